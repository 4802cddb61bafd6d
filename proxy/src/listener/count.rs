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

/// The number of connections, and the waiter for the last one to end.
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

/// One of a worker's connections; counted until it is dropped.
pub(crate) struct ConnectionGuard {
    connections: Rc<ConnectionCount>,
    active: Gauge,
    _permit: ConnectionPermit,
}

impl ConnectionGuard {
    /// Counts an accepted connection.
    pub(crate) fn begin(
        connections: &Rc<ConnectionCount>,
        ctx: &ListenerContext,
        permit: ConnectionPermit,
    ) -> ConnectionGuard {
        connections.count.set(connections.count.get() + 1);
        let metrics = &ctx.metrics.connections;
        metrics.accepted.inc(observe::shard());
        metrics.active.add(observe::shard(), 1);
        ConnectionGuard { connections: connections.clone(), active: metrics.active.clone(), _permit: permit }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.active.sub(observe::shard(), 1);
        self.connections.count.set(self.connections.count.get() - 1);
        self.connections.check();
    }
}

/// Rejects a client because the listener has reached `limits.connections`.
pub(crate) fn full() -> RejectedConnection {
    RejectedConnection::new(RejectReason::Limit, "the listener has reached `limits.connections`".to_owned())
}
