//! The streams of an HTTP/2 connection, and the detection of stalled ones.

use std::{cell::RefCell, rc::Rc, time::Duration};

use slab::Slab;
use tokio::{
    task::{JoinHandle, spawn_local},
    time::Instant,
};

use super::Connection;
use crate::chain::stream::StreamProgress;

/// Margin left to a stream's own deadline before the connection ends the stream instead.
const MARGIN: Duration = Duration::from_secs(1);

/// The streams of a connection.
#[derive(Default)]
pub(super) struct Streams(RefCell<Slab<Stream>>);

struct Stream {
    progress: Rc<StreamProgress>,
    task: JoinHandle<()>,
}

impl Streams {
    /// Ends streams without progress for `idle` and streams past their deadline: their own timers do not run while
    /// their clients do not read.
    pub(super) fn end_stalled(&self, idle: Option<Duration>) {
        let now = Instant::now();
        for (_, Stream { progress, task }) in self.0.borrow().iter() {
            let idle = idle.is_some_and(|idle| progress.active.get() + idle + MARGIN <= now);
            if idle || progress.due.get().is_some_and(|due| due + MARGIN <= now) {
                progress.stalled.set(true);
                // Dropping the task before its end resets the stream.
                task.abort();
            }
        }
    }
}

/// A stream's entry in its connection's table, removed on drop.
pub(super) struct StreamSlot {
    pub(super) connection: Rc<Connection>,
    key: usize,
}

impl StreamSlot {
    /// Spawns a task for a stream.
    pub(super) fn spawn<F: Future<Output = ()> + 'static>(
        connection: &Rc<Connection>,
        progress: Rc<StreamProgress>,
        serve: impl FnOnce(StreamSlot) -> F,
    ) {
        let mut streams = connection.streams.0.borrow_mut();
        let entry = streams.vacant_entry();
        let place = StreamSlot { connection: connection.clone(), key: entry.key() };
        entry.insert(Stream { progress, task: spawn_local(serve(place)) });
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.connection.streams.0.borrow_mut().remove(self.key);
    }
}
