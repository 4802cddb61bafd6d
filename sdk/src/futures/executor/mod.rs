//! Runs the futures of an instance's filters: a task for each message that an [`AsyncFilter`](crate::AsyncFilter) is busy
//! with, and for what it does besides.
//!
//! The host calls the module, and the module never calls itself: a waker only notes its task's number. Each callback brings
//! one piece of news (an answer, a timer, a part of a body) to the future that waits for it, and then all tasks that were
//! woken are polled, each with its own stream as the effective one, before the callback returns. No borrow of what is here
//! is held while a future is polled, woken or dropped, so futures may do with each other what they like.
//!
//! Nothing here depends on the filter's type, so it is compiled once.

pub(crate) mod calls;
pub(crate) mod feed;
pub(crate) mod grpc;
pub(crate) mod sleeps;
mod waker;

use std::{
    cell::RefCell,
    future::Future,
    mem::ManuallyDrop,
    pin::Pin,
    task::{Context, Poll},
};

use self::{
    calls::Waiting,
    feed::Feed,
    grpc::{Grpc, News},
    sleeps::Sleeps,
};
use crate::{
    Flow, Reply,
    sys::{self, types::Half},
    table::{Table, borrow},
};

/// What becomes of a message: it goes on, or is answered.
pub(crate) type Verdict = Result<(), Reply>;

pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = Verdict>>>;

/// A future and what it waits for.
struct Task {
    /// Its stream, or the root context.
    context: u32,
    kind: Kind,
    /// Out while it is polled.
    future: Option<TaskFuture>,
    /// Its number is among the woken ones.
    woken: bool,
    held: Held,
    feed: Feed,
    sleeps: Sleeps,
}

/// What a task is busy with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A stream's request or response.
    Message(Half),
    /// A tick of the root context.
    Tick,
    /// A queue's message, which belongs to the root context too.
    Queued,
}

/// What the host holds for a task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    Head,
    Body,
}

struct Executor {
    tasks: Table<Task>,
    last: u32,
    woken: Vec<u32>,
    calls: Table<Waiting>,
    grpc: Table<Grpc>,
    /// What is done with news of them: there once there is a call, so that a module that makes none has no code for it.
    grpc_news: Option<fn(u32, News)>,
    /// The task that is polled.
    current: u32,
    /// The context that the host's functions act on.
    effective: u32,
}

impl Executor {
    const fn new() -> Executor {
        Executor {
            tasks: Table::new(),
            last: 0,
            woken: Vec::new(),
            calls: Table::new(),
            grpc: Table::new(),
            grpc_news: None,
            current: 0,
            effective: 0,
        }
    }
}

thread_local! {
    // Never dropped: a future that is dropped with it would look for it.
    static EXECUTOR: ManuallyDrop<RefCell<Executor>> = const { ManuallyDrop::new(RefCell::new(Executor::new())) };
}

fn with<T>(f: impl FnOnce(&mut Executor) -> T) -> T {
    EXECUTOR.with(|executor| f(&mut borrow(executor)))
}

fn with_task<T>(task: u32, f: impl FnOnce(&mut Task) -> T) -> Option<T> {
    with(|e| e.tasks.get_mut(task).map(f))
}

/// A task that ends, with all that it waits for, when this is dropped.
#[derive(Debug)]
pub struct Handle(u32);

impl Drop for Handle {
    fn drop(&mut self) {
        remove(self.0);
    }
}

fn remove(task: u32) {
    // What the future owns is dropped outside, because it may look in here.
    let task = with(|e| e.tasks.remove(task));
    drop(task);
}

/// Forgets everything: another host begins on this thread.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn reset() {
    let old = EXECUTOR.with(|executor| executor.replace(Executor::new()));
    // With the new one in place, for the same reason.
    drop(old);
}

/// The task that is polled.
pub(crate) fn current() -> u32 {
    with(|e| e.current)
}

/// Notes that a task is to be polled.
pub(crate) fn wake(task: u32) {
    with(|e| {
        if let Some(found) = e.tasks.get_mut(task)
            && !std::mem::replace(&mut found.woken, true)
        {
            e.woken.push(task);
        }
    });
}

/// A callback has begun, which acts on this context.
pub(crate) fn enter(context: u32) {
    with(|e| e.effective = context);
    sys::enter(context);
}

fn insert(context: u32, kind: Kind, feed: Feed, future: TaskFuture) -> u32 {
    with(|e| {
        // Numbers are not used twice, so a late waker finds nobody. Zero stands for none.
        e.last = e.last.wrapping_add(1).max(1);
        let task = Task {
            context,
            kind,
            future: Some(future),
            woken: false,
            held: Held::Nothing,
            feed,
            sleeps: Sleeps::default(),
        };
        e.tasks.insert(e.last, task);
        e.last
    })
}

/// Begins with a message whose head has come. The future goes as far as it can; if that is not to its end, its handle comes
/// out too.
pub(crate) fn begin(context: u32, half: Half, end: bool, future: TaskFuture) -> (Flow, Option<Handle>) {
    let id = insert(context, Kind::Message(half), Feed::new(half, end), future);
    match poll(id) {
        Poll::Ready(verdict) => (flow(verdict), None),
        // The body comes only when the head has gone on.
        Poll::Pending if with_task(id, |t| t.feed.is_wanted()) == Some(true) => (Flow::Continue, Some(Handle(id))),
        Poll::Pending => {
            with_task(id, |t| t.held = Held::Head);
            (Flow::Pause, Some(Handle(id)))
        }
    }
}

/// Begins with something that belongs to no stream.
pub(crate) fn begin_root(root: u32, kind: Kind, future: TaskFuture) {
    let id = insert(root, kind, Feed::default(), future);
    let _ = poll(id);
}

/// Whether something of this kind is under way.
pub(crate) fn is_busy(root: u32, kind: Kind) -> bool {
    with(|e| e.tasks.iter().any(|(_, task)| task.context == root && task.kind == kind))
}

/// Ends what a root context has under way.
pub(crate) fn end_root(root: u32) {
    let ids: Vec<_> = with(|e| e.tasks.iter().filter(|(_, t)| t.context == root).map(|(id, _)| *id).collect());
    ids.into_iter().for_each(remove);
}

/// A part of a message's body has come: the host shows `len` bytes.
pub(crate) fn body(task: &Handle, len: usize, end: bool) -> Flow {
    let id = task.0;
    let Some(waiting) = with_task(id, |t| t.feed.open(len, end)) else { return Flow::Continue };
    if let Some(waker) = waiting {
        waker.wake();
    }
    let result = if with_task(id, |t| t.woken) == Some(true) { poll(id) } else { Poll::Pending };
    match result {
        Poll::Ready(verdict) => flow(verdict),
        Poll::Pending => {
            // Whoever waits for another part has seen this one.
            let goes_on = with_task(id, |t| {
                let goes_on = t.feed.close();
                t.held = if goes_on { Held::Nothing } else { Held::Body };
                goes_on
            });
            if goes_on == Some(true) { Flow::Continue } else { Flow::Pause }
        }
    }
}

/// Something has come of a gRPC call.
pub(crate) fn grpc_news(call: u32, news: News) {
    if let Some(took) = with(|e| e.grpc_news) {
        took(call, news);
    }
}

/// Polls the tasks that were woken, and does what they have come to.
pub(crate) fn run_woken() {
    while let Some(id) = with(|e| e.woken.pop()) {
        let Some((context, kind, true)) = with_task(id, |t| (t.context, t.kind, t.woken)) else { continue };
        if with(|e| std::mem::replace(&mut e.effective, context)) != context {
            sys::set_effective_context(context);
        }
        let result = poll(id);
        let Kind::Message(half) = kind else { continue };
        let goes_on = match result {
            Poll::Ready((Err(reply), _)) => {
                reply.send();
                false
            }
            Poll::Ready((Ok(()), held)) => held != Held::Nothing,
            Poll::Pending => with_task(id, Task::let_go) == Some(true),
        };
        if goes_on {
            half.resume();
        }
    }
}

impl Task {
    /// Whether what the host holds must go on for more of the body to come.
    fn let_go(&mut self) -> bool {
        let goes_on = match self.held {
            Held::Nothing => false,
            Held::Head => self.feed.is_wanted() && self.feed.is_untouched(),
            Held::Body => self.feed.release(),
        };
        if goes_on {
            self.held = Held::Nothing;
        }
        goes_on
    }
}

fn flow((verdict, _): (Verdict, Held)) -> Flow {
    verdict.map_or_else(Flow::from, |()| Flow::Continue)
}

/// Polls a task until it waits for the host. One that is done is gone; what the host holds for it comes out.
fn poll(id: u32) -> Poll<(Verdict, Held)> {
    let waker = self::waker::waker(id);
    let before = with(|e| std::mem::replace(&mut e.current, id));
    let result = loop {
        let future = with_task(id, |t| {
            t.woken = false;
            t.future.take()
        });
        let Some(mut future) = future.flatten() else { break Poll::Pending };
        if let Poll::Ready(verdict) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            drop(future);
            break Poll::Ready(verdict);
        }
        if with_task(id, |t| (t.future = Some(future), t.woken).1) != Some(true) {
            break Poll::Pending;
        }
    };
    with(|e| e.current = before);
    result.map(|verdict| {
        let task = with(|e| e.tasks.remove(id));
        let held = task.as_ref().map_or(Held::Nothing, |t| t.held);
        drop(task);
        (verdict, held)
    })
}
