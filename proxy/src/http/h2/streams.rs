//! The streams of a connection: hyper's tasks for them, and what is known of how they move.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::time::Instant;

use crate::chain::stream::Progress;

/// What a stream's own clock is given, before the connection ends the stream in its place.
const MARGIN: Duration = Duration::from_secs(1);

/// The streams of a connection.
#[derive(Default)]
pub(super) struct Streams {
    /// The next task that hyper makes is that of this stream.
    next: RefCell<Option<Rc<Progress>>>,
    all: RefCell<Slab<Rc<Watched>>>,
}

struct Watched {
    progress: Rc<Progress>,
    ended: Cell<bool>,
    task: Cell<Option<Waker>>,
}

impl Watched {
    /// Ready when the stream must end.
    fn poll_ended(&self, cx: &Context<'_>) -> Poll<()> {
        if self.ended.get() {
            return Poll::Ready(());
        }
        let known = self.task.take().filter(|task| task.will_wake(cx.waker()));
        self.task.set(Some(known.unwrap_or_else(|| cx.waker().clone())));
        Poll::Pending
    }
}

impl Streams {
    /// A request has come; hyper makes a task for it next.
    pub(super) fn announce(&self, progress: Rc<Progress>) {
        *self.next.borrow_mut() = Some(progress);
    }

    /// Ends the streams on which nothing has moved for `idle`, and those whose time is over: their own clocks do not run while
    /// their clients do not read.
    pub(super) fn end_stalled(&self, idle: Option<Duration>) {
        let now = Instant::now();
        let all = self.all.borrow();
        for (_, stream) in all.iter() {
            let progress = &stream.progress;
            let idle = idle.is_some_and(|idle| progress.active.get() + idle + MARGIN <= now);
            if idle || progress.due.get().is_some_and(|due| due + MARGIN <= now) {
                progress.stalled.set(true);
                stream.ended.set(true);
                if let Some(task) = stream.task.take() {
                    task.wake();
                }
            }
        }
    }
}

/// Runs hyper's tasks.
#[derive(Clone)]
pub(super) struct Tasks(pub(super) Rc<Streams>);

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let Some(progress) = self.0.next.take() else {
            // Not a stream: the sending half of a tunnel.
            tokio::task::spawn_local(task);
            return;
        };
        let streams = self.0.clone();
        tokio::task::spawn_local(async move {
            let watched = Rc::new(Watched { progress, ended: Cell::new(false), task: Cell::new(None) });
            let key = streams.all.borrow_mut().insert(watched.clone());
            {
                let mut task = pin!(task);
                poll_fn(|cx| match watched.poll_ended(cx) {
                    // Dropped before its end, the task resets the stream.
                    Poll::Ready(()) => Poll::Ready(()),
                    Poll::Pending => task.as_mut().poll(cx).map(|_| ()),
                })
                .await;
            }
            streams.all.borrow_mut().remove(key);
        });
    }
}
