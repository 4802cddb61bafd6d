//! The streams of a connection, and what is known of how they move.

use std::{cell::RefCell, rc::Rc, time::Duration};

use slab::Slab;
use tokio::{
    task::{JoinHandle, spawn_local},
    time::Instant,
};

use super::Connection;
use crate::chain::stream::StreamProgress;

/// What a stream's own clock is given, before the connection ends the stream in its place.
const MARGIN: Duration = Duration::from_secs(1);

/// The streams of a connection.
#[derive(Default)]
pub(super) struct Streams(RefCell<Slab<Stream>>);

struct Stream {
    progress: Rc<StreamProgress>,
    task: JoinHandle<()>,
}

impl Streams {
    /// Ends the streams on which nothing has moved for `idle`, and those whose time is over: their own clocks do not run while
    /// their clients do not read.
    pub(super) fn end_stalled(&self, idle: Option<Duration>) {
        let now = Instant::now();
        for (_, Stream { progress, task }) in self.0.borrow().iter() {
            let idle = idle.is_some_and(|idle| progress.active.get() + idle + MARGIN <= now);
            if idle || progress.due.get().is_some_and(|due| due + MARGIN <= now) {
                progress.stalled.set(true);
                // Dropped before its end, the task resets the stream.
                task.abort();
            }
        }
    }
}

/// A stream's place among those of its connection, until this is dropped.
pub(super) struct StreamSlot {
    pub(super) connection: Rc<Connection>,
    key: usize,
}

impl StreamSlot {
    /// Makes a task for a stream.
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
