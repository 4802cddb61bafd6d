//! How a request can end: an upstream's response, a local reply, or a closed stream.

use std::sync::Arc;

use http::Response;
use tollgate_abi::fast::flag;

use super::{deadline::Deadline, tunnel::Tunnel};
use crate::{
    chain::{LocalReply, Stream},
    http::body::Body,
    observe::detail,
    upstream::{ActiveGuard, Cluster, PooledBody, RequestGuard, Upgrading, UpstreamBodyError, UsageGuard},
};

/// What a request comes to.
pub struct ServedResponse {
    /// What the client is sent.
    pub response: Response<Body>,
    /// What becomes of the connection, or of the HTTP/2 stream, after that.
    pub tunnel: Option<Tunnel>,
}

/// A filter has ended the stream without a response: the connection is closed.
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

/// Why a request got no response from an upstream.
pub(super) enum Interrupted {
    /// It is answered with this; so many filters have seen it.
    Reply(Box<LocalReply>, usize),
    /// It is not answered at all.
    Closed,
}

/// What an upstream has answered. A response to an upgrade with which it switches protocols is a 101, in whichever version of
/// HTTP it was said.
pub(super) struct UpstreamResponse {
    pub(super) parts: http::response::Parts,
    pub(super) body: UpstreamBody,
    pub(super) deadline: Deadline,
    /// Held until the response has ended.
    pub(super) guards: ResponseGuards,
}

/// What follows a response's head.
pub(super) enum UpstreamBody {
    /// Its body.
    Body(PooledBody),
    /// Another protocol.
    Switched(Upgrading),
}

/// Whether a response has no body whatever its head says (RFC 9112 section 6.3).
pub(super) fn is_bodiless(status: http::StatusCode, head_only: bool) -> bool {
    head_only || matches!(status.as_u16(), 100..=199 | 204 | 304)
}

/// What counts as under way until the response has ended.
pub(super) struct ResponseGuards {
    pub(super) request: RequestGuard,
    pub(super) endpoint: ActiveGuard,
    /// A tunnel's place among those that clients hold.
    pub(super) _tunnel: Option<Box<UsageGuard>>,
}

impl ResponseGuards {
    /// Where the request has gone.
    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        self.request.cluster()
    }

    /// Notes that the endpoint has failed after the head of its response, of whose body so many bytes had come.
    #[cold]
    pub(super) fn broken(&self, stream: &Stream, error: &UpstreamBodyError, bytes: u64) {
        let (trouble, why) = error.reason(bytes);
        self.endpoint.endpoint().note_failure(&self.request.cluster().name, trouble, &why);
        stream.upstream_failed(why);
    }
}
