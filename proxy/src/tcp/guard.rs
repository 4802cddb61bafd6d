//! The guard that settles a connection's accounts: notifies the filters of its end, updates the metrics and writes the
//! access log entry. It acts on drop, so this happens exactly once however the connection ends.

use std::{cell::Cell, rc::Rc};

use tokio::time::Instant;

use super::{TcpFailure, TcpListenerContext, connect::UpstreamConnection};
use crate::{
    chain::network::{ClosedBy, NetworkStream, Side},
    observe::{self, Entry, access_log::Timings, detail},
    upstream::{Cluster, Endpoint, FailureCategory},
};

/// Settles a connection's accounts when dropped.
pub(super) struct TcpGuard {
    listener: Rc<TcpListenerContext>,
    stream: Rc<NetworkStream>,
    /// The side that ended first, if one has.
    first: Cell<Option<Side>>,
    /// Which side closed the upstream connection; `None` without an upstream connection.
    upstream: Cell<Option<ClosedBy>>,
    opened: Cell<Option<u64>>,
    connected: Cell<Option<u64>>,
    first_byte: Cell<Option<u64>>,
    complete: Cell<bool>,
}

impl TcpGuard {
    pub(super) fn new(listener: Rc<TcpListenerContext>, stream: Rc<NetworkStream>) -> TcpGuard {
        let shard = observe::shard();
        listener.metrics.connections.inc(shard);
        listener.metrics.active.add(shard, 1);
        TcpGuard {
            listener,
            stream,
            first: Cell::new(None),
            upstream: Cell::new(None),
            opened: Cell::new(None),
            connected: Cell::new(None),
            first_byte: Cell::new(None),
            complete: Cell::new(false),
        }
    }

    pub(super) fn listener(&self) -> &TcpListenerContext {
        &self.listener
    }

    pub(super) fn stream(&self) -> &Rc<NetworkStream> {
        &self.stream
    }

    fn micros(&self) -> u64 {
        Instant::now().saturating_duration_since(self.stream.start).as_micros() as u64
    }

    /// Records that the filters have let the connection through.
    pub(super) fn opened(&self) {
        self.opened.set(Some(self.micros()));
    }

    /// Records that the connection to an endpoint is established.
    pub(super) fn connected(&self, connected: &UpstreamConnection) {
        self.connected.set(Some(connected.after.as_micros() as u64));
        self.upstream.set(Some(ClosedBy::Local));
    }

    /// Records that a side has ended.
    pub(super) fn ended(&self, side: Side) {
        if self.first.get().is_none() {
            self.first.set(Some(side));
        }
        if side == Side::Upstream {
            self.upstream.set(Some(ClosedBy::Remote));
        }
    }

    /// Returns whether the other side has ended before this one.
    pub(super) fn has_ended_before(&self, side: Side) -> bool {
        self.first.get().is_some_and(|first| first != side)
    }

    /// Records that the upstream has sent a byte.
    pub(super) fn answered(&self) {
        if self.first_byte.get().is_none() {
            self.first_byte.set(Some(self.micros()));
        }
    }

    /// Records the reason why the connection ends.
    pub(super) fn failure(&self, failure: TcpFailure) {
        match failure {
            TcpFailure::ClientReset => self.ended(Side::Downstream),
            TcpFailure::UpstreamReset => self.ended(Side::Upstream),
            _ => {}
        }
        if let Some((flags, details)) = failure.table() {
            self.stream.close(flags, details);
        }
    }

    /// Records that the endpoint reset the connection.
    #[cold]
    pub(super) fn endpoint_failed(&self, cluster: &Cluster, endpoint: &Endpoint) {
        if let Some(failures) = &self.stream.state.borrow().failures {
            endpoint.note_failure(&cluster.name, FailureCategory::Reset, &failures.upstream);
        }
    }

    /// Records that the connection has completed.
    pub(super) fn complete(&self) {
        self.complete.set(true);
    }
}

impl Drop for TcpGuard {
    fn drop(&mut self) {
        let (listener, stream) = (&self.listener, &self.stream);
        if !self.complete.get() {
            // Active connections are dropped only when the process ends.
            stream.close(0, detail::SHUTDOWN);
        }
        let downstream = if self.first.get() == Some(Side::Downstream) { ClosedBy::Remote } else { ClosedBy::Local };
        stream.end(downstream, self.upstream.get());
        let state = stream.state.borrow();
        let shard = observe::shard();
        let figures = &listener.metrics;
        figures.active.sub(shard, 1);
        if state.flags != 0 {
            figures.flags.iter().filter(|(bit, _)| state.flags & bit != 0).for_each(|(_, counter)| counter.inc(shard));
        }
        let Some(log) = &listener.access_log else { return };
        let total = self.micros();
        let entry = Entry {
            protocol: "TCP",
            authority: stream.server_name.as_deref().unwrap_or_default().as_bytes(),
            flags: state.flags,
            details: &state.details,
            upstream_failure: state.failures.as_ref().map_or("", |failures| &failures.upstream),
            downstream_failure: state.failures.as_ref().map_or("", |failures| &failures.downstream),
            request_bytes: state.received[Side::Downstream as usize],
            response_bytes: state.sent[Side::Upstream as usize],
            timings: Timings {
                total,
                chain_request: self.opened.get().unwrap_or(total),
                upstream_connect: self.connected.get(),
                upstream_first_byte: self.first_byte.get(),
                ..Timings::default()
            },
            route: state.route.as_ref().map_or("", |r| &r.route.name),
            cluster: state.cluster.as_deref().unwrap_or_default(),
            endpoint: state.endpoint.as_ref(),
            attempts: state.attempts,
            fields: &state.log_fields,
            stored: Some(&state.stored),
            ..Entry::new(stream.start_time, &listener.name, stream.connection.peer)
        };
        log.log(shard, &entry);
    }
}
