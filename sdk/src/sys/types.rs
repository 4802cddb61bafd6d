//! Small types of the host interface that the whole SDK shares.

use std::time::Duration;

use tollgate_abi::{
    fast::phase,
    proxy_wasm::{buffer, stream},
};

use crate::sys;

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallError {
    /// The call timed out.
    Timeout,
    /// No connection, no endpoint, a limit of the cluster, or an invalid answer.
    Reset,
    /// The answer's body exceeds 16 MiB.
    TooLarge,
    /// The proxy's configuration has no such cluster. [`Setup::has_cluster`](crate::Setup::has_cluster) reports it
    /// earlier.
    UnknownCluster,
    /// An invalid method, path, authority or header. The proxy's log has the details.
    Invalid,
    /// This worker's instance has 4096 pending calls, or pending calls with 64 MiB of bodies.
    TooMany,
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CallError::Timeout => "the call timed out",
            CallError::Reset => "the service is unreachable or closed the connection",
            CallError::TooLarge => "the answer is too large",
            CallError::UnknownCluster => "the cluster does not exist",
            CallError::Invalid => "the call is not a valid request",
            CallError::TooMany => "too many pending calls",
        })
    }
}

impl std::error::Error for CallError {}

/// Converts a timeout to the host's unit; 0 would mean unlimited.
pub(crate) fn millis(timeout: Duration) -> u32 {
    let part = timeout.subsec_nanos().div_ceil(1_000_000);
    let millis = timeout.as_secs().saturating_mul(1000).saturating_add(part.into());
    millis.clamp(1, i32::MAX as u64) as u32
}

/// Error of a gRPC call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcError {
    /// Not 0; usually one of [`code`].
    pub status: u32,
    /// Message of the service or the proxy.
    pub message: String,
}

impl GrpcError {
    pub(crate) fn new(status: u32, message: impl Into<String>) -> GrpcError {
        GrpcError { status, message: message.into() }
    }
}

impl std::fmt::Display for GrpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", crate::sys::code::name(self.status), self.status, self.message)
    }
}

impl std::error::Error for GrpcError {}

/// A header name, which the host knows by a number. Created by [`Setup::name`](crate::Setup::name).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Name(pub(crate) u32);

/// One of a stream's two messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Request,
    Response,
}

impl Half {
    pub(crate) const fn head(self) -> Phases {
        if matches!(self, Half::Request) { Phases::REQUEST_HEADERS } else { Phases::RESPONSE_HEADERS }
    }

    pub(crate) const fn body(self) -> Phases {
        if matches!(self, Half::Request) { Phases::REQUEST_BODY } else { Phases::RESPONSE_BODY }
    }

    pub(crate) const fn buffer(self) -> i32 {
        if matches!(self, Half::Request) { buffer::HTTP_REQUEST_BODY } else { buffer::HTTP_RESPONSE_BODY }
    }

    /// Resumes the message.
    pub(crate) fn resume(self) {
        sys::continue_stream(if self == Half::Request { stream::HTTP_REQUEST } else { stream::HTTP_RESPONSE });
    }

    /// Returns the bit in a timer's token, above the filter's 32.
    pub(crate) const fn bit(self) -> i64 {
        if matches!(self, Half::Request) { 0 } else { 1 << 32 }
    }
}

pub(crate) fn micros(time: Duration) -> u64 {
    let seconds = time.as_secs().saturating_mul(1_000_000);
    seconds.saturating_add(time.subsec_micros().into()).min(i64::MAX as u64)
}

/// A set of callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases(pub(crate) u32);

impl Phases {
    /// [`Filter::on_request`].
    pub const REQUEST_HEADERS: Phases = Phases(phase::REQUEST_HEADERS);
    /// [`Filter::on_request_body`].
    pub const REQUEST_BODY: Phases = Phases(phase::REQUEST_BODY);
    /// [`Filter::on_response`].
    pub const RESPONSE_HEADERS: Phases = Phases(phase::RESPONSE_HEADERS);
    /// [`Filter::on_response_body`].
    pub const RESPONSE_BODY: Phases = Phases(phase::RESPONSE_BODY);
    /// [`Filter::on_end`].
    pub const END: Phases = Phases(phase::LOG);
    /// [`Filter::on_answer`] and [`Filter::on_grpc_answer`]. The host always makes these callbacks for a caller;
    /// without this phase, the module contains no code for them.
    pub const ANSWERS: Phases = Phases(1 << 31);

    /// Returns the union of both sets.
    pub const fn and(self, other: Phases) -> Phases {
        Phases(self.0 | other.0)
    }

    /// Reports whether the two sets intersect.
    pub(crate) const fn has(self, other: Phases) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns the bits for the host.
    pub(crate) const fn bits(self) -> u32 {
        // A body may end with trailers instead of a last part.
        const TRAILERS: u32 = phase::REQUEST_TRAILERS / phase::REQUEST_BODY;
        let host = self.0 & !Phases::ANSWERS.0;
        host | ((host & (phase::REQUEST_BODY | phase::RESPONSE_BODY)) * TRAILERS)
    }

    /// Returns the set extended with the header phases of the body phases in it.
    pub(crate) const fn with_heads(self) -> Phases {
        const BODY: u32 = phase::REQUEST_BODY / phase::REQUEST_HEADERS;
        Phases(self.0 | ((self.0 & (phase::REQUEST_BODY | phase::RESPONSE_BODY)) / BODY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_phases_include_trailers_and_need_heads() {
        let both = Phases::REQUEST_BODY.and(Phases::RESPONSE_BODY);
        let trailers = phase::REQUEST_TRAILERS | phase::RESPONSE_TRAILERS;
        assert_eq!(both.bits(), both.0 | trailers);
        assert_eq!(both.with_heads(), both.and(Phases::REQUEST_HEADERS).and(Phases::RESPONSE_HEADERS));
        assert_eq!(Phases::REQUEST_HEADERS.with_heads().bits(), phase::REQUEST_HEADERS);
        assert_eq!(Phases::REQUEST_HEADERS.and(Phases::ANSWERS).bits(), phase::REQUEST_HEADERS);
    }
}
