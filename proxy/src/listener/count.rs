//! Counts a worker's connections, so that draining can wait for the last one.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::sync::oneshot;

use super::socket::ConnectionPermit;
use crate::{
    exchange::{ListenerContext, RejectReason, RejectedConnection},
    observe::{self, Gauge},
};

/// How many connections there are, and who waits for there to be none.
#[derive(Default)]
pub(crate) struct ConnectionCount {
    pub(crate) count: Cell<usize>,
    pub(crate) waiting: RefCell<Option<oneshot::Sender<()>>>,
}

impl ConnectionCount {
    pub(crate) fn check(&self) {
        if self.count.get() == 0
            && let Some(waiting) = self.waiting.take()
        {
            let _ = waiting.send(());
        }
    }
}

/// One of a worker's connections; dropping it ends that.
pub(crate) struct ConnectionGuard {
    connections: Rc<ConnectionCount>,
    active: Gauge,
    _place: ConnectionPermit,
}

impl ConnectionGuard {
    /// A connection has been accepted.
    pub(crate) fn begin(
        connections: &Rc<ConnectionCount>,
        site: &ListenerContext,
        place: ConnectionPermit,
    ) -> ConnectionGuard {
        connections.count.set(connections.count.get() + 1);
        let figures = &site.metrics.connections;
        figures.accepted.inc(observe::shard());
        figures.active.add(observe::shard(), 1);
        ConnectionGuard { connections: connections.clone(), active: figures.active.clone(), _place: place }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.active.sub(observe::shard(), 1);
        self.connections.count.set(self.connections.count.get() - 1);
        self.connections.check();
    }
}

/// A client comes when the listener has as many connections as it may.
pub(crate) fn full() -> RejectedConnection {
    RejectedConnection::new(
        RejectReason::Limit,
        "the listener has as many connections as it may (`limits.connections`)".to_owned(),
    )
}
