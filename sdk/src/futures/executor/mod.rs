//! Executor for the futures of an instance's filters: one task per message that an [`AsyncFilter`](crate::AsyncFilter)
//! processes, and one per tick or queue message.
//!
//! The host calls the module, and the module never calls itself: a waker only records its task's number. Each callback
//! delivers one event (an answer, a timer, a part of a body) to the future that waits for it. Before the callback
//! returns, all woken tasks are polled, each with its own stream as the effective context. No borrow of the executor is
//! held while a future is polled, woken or dropped, so futures may interact freely.
//!
//! Nothing here depends on the filter's type, so it is compiled only once.

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

/// The outcome for a message: it continues, or is answered with this response.
pub(crate) type Verdict = Result<(), Reply>;

pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = Verdict>>>;

/// A future and the events that it waits for.
struct Task {
    /// Its stream, or the root context.
    context: u32,
    kind: Kind,
    /// `None` while it is polled.
    future: Option<TaskFuture>,
    /// Whether its number is among the woken ones.
    woken: bool,
    held: Held,
    feed: Feed,
    sleeps: Sleeps,
}

/// The subject of a task.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A stream's request or response.
    Message(Half),
    /// A tick of the root context.
    Tick,
    /// A queue's message, which also belongs to the root context.
    Queued,
}

/// The part of a message that the host holds for a task.
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
    /// Handler of gRPC events. Set by the first call, so that a module without calls does not link the code.
    grpc_news: Option<fn(u32, News)>,
    /// The task being polled.
    current: u32,
    /// The context that host functions act on.
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
    // Never dropped: a future dropped with it would access it.
    static EXECUTOR: ManuallyDrop<RefCell<Executor>> = const { ManuallyDrop::new(RefCell::new(Executor::new())) };
}

fn with<T>(f: impl FnOnce(&mut Executor) -> T) -> T {
    EXECUTOR.with(|executor| f(&mut borrow(executor)))
}

fn with_task<T>(task: u32, f: impl FnOnce(&mut Task) -> T) -> Option<T> {
    with(|e| e.tasks.get_mut(task).map(f))
}

/// A task that is cancelled, with everything it waits for, when this is dropped.
#[derive(Debug)]
pub struct Handle(u32);

impl Drop for Handle {
    fn drop(&mut self) {
        remove(self.0);
    }
}

fn remove(task: u32) {
    // The future is dropped outside of the borrow, because its destructors may access the executor.
    let task = with(|e| e.tasks.remove(task));
    drop(task);
}

/// Discards all state, for another test host on this thread.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn reset() {
    let old = EXECUTOR.with(|executor| executor.replace(Executor::new()));
    // Dropped after the new one is in place, for the same reason.
    drop(old);
}

/// Returns the task being polled.
pub(crate) fn current() -> u32 {
    with(|e| e.current)
}

/// Marks a task to be polled.
pub(crate) fn wake(task: u32) {
    with(|e| {
        if let Some(found) = e.tasks.get_mut(task)
            && !std::mem::replace(&mut found.woken, true)
        {
            e.woken.push(task);
        }
    });
}

/// Begins a callback that acts on this context.
pub(crate) fn enter(context: u32) {
    with(|e| e.effective = context);
    sys::enter(context);
}

fn insert(context: u32, kind: Kind, feed: Feed, future: TaskFuture) -> u32 {
    with(|e| {
        // Numbers are not reused, so a late waker finds no task. Zero means none.
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

/// Starts processing a message whose headers were received. Polls the future; if it does not finish, returns its handle
/// as well.
pub(crate) fn begin(context: u32, half: Half, end: bool, future: TaskFuture) -> (Flow, Option<Handle>) {
    let id = insert(context, Kind::Message(half), Feed::new(half, end), future);
    match poll(id) {
        Poll::Ready(verdict) => (flow(verdict), None),
        // The body arrives only after the headers have continued.
        Poll::Pending if with_task(id, |t| t.feed.is_wanted()) == Some(true) => (Flow::Continue, Some(Handle(id))),
        Poll::Pending => {
            with_task(id, |t| t.held = Held::Head);
            (Flow::Pause, Some(Handle(id)))
        }
    }
}

/// Starts processing something that belongs to no stream.
pub(crate) fn begin_root(root: u32, kind: Kind, future: TaskFuture) {
    let id = insert(root, kind, Feed::default(), future);
    let _ = poll(id);
}

/// Reports whether a task of this kind is running.
pub(crate) fn is_busy(root: u32, kind: Kind) -> bool {
    with(|e| e.tasks.iter().any(|(_, task)| task.context == root && task.kind == kind))
}

/// Cancels the tasks of a root context.
pub(crate) fn end_root(root: u32) {
    let ids: Vec<_> = with(|e| e.tasks.iter().filter(|(_, t)| t.context == root).map(|(id, _)| *id).collect());
    ids.into_iter().for_each(remove);
}

/// Handles a part of a message's body, of which the host makes `len` bytes available.
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
            // A future that waits for another part has seen this one.
            let released = with_task(id, |t| {
                let released = t.feed.close();
                t.held = if released { Held::Nothing } else { Held::Body };
                released
            });
            if released == Some(true) { Flow::Continue } else { Flow::Pause }
        }
    }
}

/// Handles an event of a gRPC call.
pub(crate) fn grpc_news(call: u32, news: News) {
    if let Some(took) = with(|e| e.grpc_news) {
        took(call, news);
    }
}

/// Polls the woken tasks and applies their results.
pub(crate) fn run_woken() {
    while let Some(id) = with(|e| e.woken.pop()) {
        let Some((context, kind, true)) = with_task(id, |t| (t.context, t.kind, t.woken)) else { continue };
        if with(|e| std::mem::replace(&mut e.effective, context)) != context {
            sys::set_effective_context(context);
        }
        let result = poll(id);
        let Kind::Message(half) = kind else { continue };
        let released = match result {
            Poll::Ready((Err(reply), _)) => {
                reply.send();
                false
            }
            Poll::Ready((Ok(()), held)) => held != Held::Nothing,
            Poll::Pending => with_task(id, Task::release_held) == Some(true),
        };
        if released {
            half.resume();
        }
    }
}

impl Task {
    /// Reports whether the host must release what it holds before more of the body can arrive.
    fn release_held(&mut self) -> bool {
        let released = match self.held {
            Held::Nothing => false,
            Held::Head => self.feed.is_wanted() && self.feed.is_untouched(),
            Held::Body => self.feed.release(),
        };
        if released {
            self.held = Held::Nothing;
        }
        released
    }
}

fn flow((verdict, _): (Verdict, Held)) -> Flow {
    verdict.map_or_else(Flow::from, |()| Flow::Continue)
}

/// Polls a task until it waits for the host. Removes a finished task and returns what the host holds for it.
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
