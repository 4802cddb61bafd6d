//! The possible outcomes of a request: an upstream's response, a local reply, or a closed stream.

use std::sync::Arc;

use http::Response;
use tollgate_abi::fast::flag;

use super::{deadline::Deadline, tunnel::Tunnel};
use crate::{
    chain::{LocalReply, Stream},
    http::body::Body,
    observe::detail,
    upstream::{
        ActiveGuard, AttemptOutcome, Cluster, PooledBody, RequestGuard, Upgrading, UpstreamBodyError, UsageGuard,
    },
};

/// The response to a request.
pub struct ServedResponse {
    /// The response for the client.
    pub response: Response<Body>,
    /// The tunnel that continues on the connection or HTTP/2 stream, if any.
    pub tunnel: Option<Tunnel>,
}

/// An error: a filter closed the stream without a response, so the connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("a filter closed the stream")]
pub struct StreamClosed;

pub(super) fn closed(stream: &Stream) -> StreamClosed {
    let mut state = stream.state.borrow_mut();
    if state.flags & flag::IDLE_TIMEOUT != 0 {
        state.details = detail::FILTER_STALLED.into();
    } else {
        state.flags |= flag::LOCAL_REPLY;
        state.details = detail::CLOSED_BY_FILTER.into();
    }
    StreamClosed
}

/// The reason why a request got no response from an upstream.
pub(super) enum Interrupted {
    /// A local reply, with the number of filters that have seen the request.
    Reply(Box<LocalReply>, usize),
    /// No response at all.
    Closed,
}

/// An upstream's response. A response that accepts an upgrade has the status 101, in every version of HTTP.
pub(super) struct UpstreamResponse {
    pub(super) parts: http::response::Parts,
    pub(super) body: UpstreamBody,
    pub(super) deadline: Deadline,
    /// Guards held until the response has ended.
    pub(super) guards: ResponseGuards,
}

/// The part of a response after its head.
pub(super) enum UpstreamBody {
    /// Its body.
    Body(PooledBody),
    /// Bytes of another protocol.
    Switched(Upgrading),
}

/// Returns whether a response has no body, regardless of its fields (RFC 9112 section 6.3).
pub(super) fn is_bodiless(status: http::StatusCode, head_only: bool) -> bool {
    head_only || matches!(status.as_u16(), 100..=199 | 204 | 304)
}

/// The guards that count a response as in flight until it has ended.
pub(super) struct ResponseGuards {
    pub(super) request: RequestGuard,
    pub(super) endpoint: ActiveGuard,
    /// A tunnel's share of the client's limit.
    pub(super) _tunnel: Option<Box<UsageGuard>>,
}

impl ResponseGuards {
    /// Returns the cluster that the request was sent to.
    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        self.request.cluster()
    }

    /// Records that the endpoint failed after its response's head and `bytes` bytes of the body.
    #[cold]
    pub(super) fn broken(&self, stream: &Stream, error: &UpstreamBodyError, bytes: u64) {
        let (trouble, why) = error.reason(bytes);
        self.endpoint.endpoint().note_failure(&self.request.cluster().name, trouble, &why);
        self.report(|| Some(AttemptOutcome::NoResponse));
        stream.upstream_failed(why);
    }

    /// Counts what is only known after the response's head for the cluster's outlier detection.
    pub(super) fn report(&self, outcome: impl FnOnce() -> Option<AttemptOutcome>) {
        self.cluster().report(self.endpoint.endpoint(), outcome);
    }
}
