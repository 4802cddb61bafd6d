//! The guard that settles a stream's accounts: notifies filters of the end (including client disconnects), updates the
//! metrics and writes the access log entry. It acts on drop, so this happens exactly once however the stream ends.

use std::{cell::Cell, rc::Rc};

use http::header;
use tokio::time::Instant;
use tollgate_abi::fast::flag;

use super::{
    ListenerContext,
    deadline::{Deadline, DeadlineKind},
    grpc,
    reply::LocalFailure,
};
use crate::{
    chain::Stream,
    observe::{self, Entry, access_log::Timings, detail},
};

thread_local! {
    /// Whether this worker has stopped and drops in-flight requests.
    static WORKER_ENDED: Cell<bool> = const { Cell::new(false) };
}

/// Marks everything that this worker drops from now on as ended by the shutdown of the process, not by clients.
pub fn worker_ends() {
    WORKER_ENDED.set(true);
}

/// Returns whether this worker has stopped.
pub(super) fn has_worker_ended() -> bool {
    WORKER_ENDED.get()
}

/// Settles a stream's accounts when dropped.
pub(super) struct StreamGuard {
    listener: Rc<ListenerContext>,
    stream: Rc<Stream>,
    /// Whether the response's last byte was handed over.
    complete: Cell<bool>,
    /// The total timeout in effect while the client reads.
    due: Cell<Option<DeadlineKind>>,
}

impl StreamGuard {
    pub(super) fn new(listener: Rc<ListenerContext>, stream: Rc<Stream>) -> StreamGuard {
        listener.metrics.active.add(observe::shard(), 1);
        let connection = &stream.connection;
        connection.active.set(connection.active.get() + 1);
        StreamGuard { listener, stream, complete: Cell::new(false), due: Cell::new(None) }
    }

    pub(super) fn listener(&self) -> &ListenerContext {
        &self.listener
    }

    pub(super) fn stream(&self) -> &Rc<Stream> {
        &self.stream
    }

    /// Publishes the response's deadline to the connection driver, which enforces it while the client does not read.
    pub(super) fn set_due(&self, deadline: Option<&Deadline>) {
        let whole = deadline.and_then(Deadline::whole);
        self.stream.progress.due.set(whole.map(|(at, _)| at));
        self.due.set(whole.map(|(_, bound)| bound));
    }

    /// Returns the failure for a response that was dropped without a recorded reason, if it was not the client that
    /// ended it.
    fn unsaid(&self) -> Option<LocalFailure> {
        let progress = &self.stream.progress;
        let late = progress.due.get().is_some_and(|due| due <= Instant::now());
        match self.due.get().filter(|_| late) {
            _ if progress.evicted.get() => Some(LocalFailure::Evicted),
            _ if !progress.stalled.get() => None,
            // A client that reads, but too slowly, has made progress.
            Some(bound) => Some(bound.failure(false)),
            None => Some(LocalFailure::Idle),
        }
    }

    /// Records that the response was sent completely.
    pub(super) fn complete(&self) {
        self.complete.set(true);
    }
}

fn micros(from: Instant, to: Instant) -> u64 {
    to.saturating_duration_since(from).as_micros() as u64
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let (listener, stream) = (&self.listener, &self.stream);
        {
            let mut state = stream.state.borrow_mut();
            if !self.complete.get() && state.flags & !(flag::BY_FILTERS | flag::HEDGED) == 0 {
                let (flags, details) = match self.unsaid() {
                    _ if has_worker_ended() => (flag::UPSTREAM_TIMEOUT, Some(detail::SHUTDOWN)),
                    Some(failure) => (failure.flags(), Some(failure.details())),
                    // Only a client ends a stream without a recorded reason.
                    None => (flag::DOWNSTREAM_TERMINATED, None),
                };
                state.flags |= flags;
                if let Some(details) = details {
                    state.details = details.into();
                }
            }
        }
        stream.end();
        let connection = &stream.connection;
        connection.active.set(connection.active.get() - 1);
        stream.progress.due.set(None);
        let now = Instant::now();
        connection.idle_since.set(now.into_std());
        let state = stream.state.borrow();
        let shard = observe::shard();
        let sent = state.response.as_ref().map(|r| r.status);
        let status = sent.map_or(0, |status| status.as_u16());
        let grpc_status = grpc::outcome(stream, state.flags, sent);
        let total = micros(stream.start, now);

        let metrics = &listener.metrics;
        metrics.active.sub(shard, 1);
        metrics.requests[usize::from(status / 100).min(5)].inc(shard);
        metrics.duration.observe(shard, total);
        metrics.bytes.iter().zip(state.bytes).for_each(|(counter, bytes)| counter.add(shard, bytes));
        if state.flags != 0 {
            metrics.flags.iter().filter(|(bit, _)| state.flags & bit != 0).for_each(|(_, counter)| counter.inc(shard));
        }

        if let Some(status) = grpc_status {
            // Only upstreams know which methods exist.
            metrics.methods.count(&stream.original_path, status, state.attempts > 0, shard, total);
        }

        let Some(log) = &listener.access_log else { return };
        let request = &state.request;
        let text = |name: header::HeaderName| request.fields.get(name).map_or(&b""[..], |v| v.as_bytes());
        let at = |instant: &Cell<Option<Instant>>| instant.get().map(|at| micros(stream.start, at));
        let first_byte = at(&stream.times.response_start);
        let route = state.route.as_ref();
        let entry = Entry {
            client: stream.client.ip(),
            method: request.method.as_str(),
            path: &stream.original_path,
            upstream_path: &request.path,
            authority: &request.authority,
            protocol: stream.protocol(),
            request_id: stream.request_id.as_bytes(),
            status,
            grpc_status,
            flags: state.flags,
            details: &state.details,
            upstream_failure: state.failures.as_ref().map_or("", |failures| &failures.upstream),
            downstream_failure: state.failures.as_ref().map_or("", |failures| &failures.downstream),
            request_bytes: state.bytes[0],
            response_bytes: state.bytes[1],
            timings: Timings {
                total,
                request_received: at(&stream.times.request_end),
                chain_request: at(&stream.times.routed).unwrap_or(total),
                upstream_connect: stream.times.connected.get().map(|time| time.as_micros() as u64),
                upstream_first_byte: first_byte,
                upstream_total: first_byte.map(|_| total),
            },
            route: route.map_or("", |r| &r.route.name),
            cluster: route.map_or("", |r| r.cluster().name()),
            endpoint: state.endpoint.as_ref(),
            attempts: state.attempts,
            user_agent: text(header::USER_AGENT),
            referer: text(header::REFERER),
            fields: &state.log_fields,
            stored: Some(&state.stored),
            request_headers: log.format().request_headers().then_some(&request.fields),
            response_headers: state.response.as_ref().filter(|_| log.format().response_headers()).map(|r| &r.fields),
            ..Entry::new(stream.start_time(), &listener.name, stream.connection.peer)
        };
        log.log(shard, &entry);
    }
}
