//! What the proxy answers itself: for each failure one status, one flag, one word for the access log.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tollgate_abi::{fast::flag, spelling::BadPath};

use super::Stop;
use crate::{
    chain::{LocalReply, Stream, body::Stopped},
    http::grpc::Code,
};

/// A failure that is answered by the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No `Host`, or several, or one that is none (RFC 9112 section 3.2).
    BadHost,
    /// The path cannot be normalised.
    BadPath(BadPath),
    /// A method with small letters.
    BadMethod,
    /// A field's name has a `_`, where that is not allowed.
    Underscore,
    /// `CONNECT`, which is not offered.
    Connect,
    /// An upgrade that is not offered.
    Upgrade,
    /// More header fields than allowed.
    TooManyFields,
    /// No filter has routed it, and the listener has no cluster.
    NoRoute,
    /// The cluster has no endpoint.
    NoEndpoint,
    /// The cluster has as many requests as it may.
    Overflow,
    /// No connection could be made.
    ConnectFailure,
    /// No connection could be made in time.
    ConnectTimeout,
    /// The upstream ended the connection before a response.
    Reset,
    /// The upstream's response was none.
    Protocol,
    /// The request's time was over.
    Timeout,
    /// The time that a gRPC client had set was over.
    Deadline,
    /// The stream was as old as the listener lets it become.
    StreamAge,
    /// The last try's time was over.
    PerTryTimeout,
    /// Nothing came from the upstream for too long.
    Idle,
    /// Nothing of the request's body came for too long.
    SlowBody,
    /// The request's body broke HTTP.
    BadBody,
    /// A filter holds more of the request's body than it may.
    RequestTooLarge,
    /// A filter holds more of the response's body than it may.
    ResponseTooLarge,
    /// A filter has failed.
    FilterFailed,
    /// A filter has held the request for too long.
    FilterStalled,
}

impl Fault {
    /// Status, flag, details.
    fn table(self) -> (StatusCode, u32, &'static str) {
        use StatusCode as S;
        match self {
            Fault::BadHost => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "bad_host"),
            Fault::BadPath(BadPath::Relative) => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "relative_path"),
            Fault::BadPath(BadPath::Encoding) => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "bad_path_encoding"),
            Fault::BadPath(BadPath::Nul) => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "nul_in_path"),
            Fault::BadPath(BadPath::EscapedSlash) => {
                (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "escaped_slash_in_path")
            }
            Fault::BadPath(BadPath::Parameters) => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "parameters_in_path"),
            Fault::BadPath(BadPath::HiddenSegment) => {
                (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "hidden_segment_in_path")
            }
            Fault::BadMethod => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "bad_method"),
            Fault::Underscore => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "header_underscore"),
            Fault::Connect => (S::METHOD_NOT_ALLOWED, flag::DOWNSTREAM_PROTOCOL, "connect_not_allowed"),
            Fault::Upgrade => (S::NOT_IMPLEMENTED, flag::DOWNSTREAM_PROTOCOL, "upgrade_not_allowed"),
            Fault::TooManyFields => (S::REQUEST_HEADER_FIELDS_TOO_LARGE, flag::DOWNSTREAM_PROTOCOL, "too_many_fields"),
            Fault::NoRoute => (S::NOT_FOUND, flag::NO_ROUTE, "route_not_found"),
            Fault::NoEndpoint => (S::SERVICE_UNAVAILABLE, flag::NO_HEALTHY_UPSTREAM, "no_endpoint"),
            Fault::Overflow => (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_OVERFLOW, "overflow"),
            Fault::ConnectFailure => (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_CONNECT_FAILURE, "connect_failure"),
            Fault::ConnectTimeout => (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_CONNECT_FAILURE, "connect_timeout"),
            Fault::Reset => (S::BAD_GATEWAY, flag::UPSTREAM_TERMINATED, "upstream_reset"),
            Fault::Protocol => (S::BAD_GATEWAY, flag::UPSTREAM_PROTOCOL, "upstream_protocol_error"),
            Fault::Timeout => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, "response_timeout"),
            Fault::Deadline => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, "grpc_deadline"),
            Fault::StreamAge => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, "stream_age"),
            Fault::PerTryTimeout => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, "per_try_timeout"),
            Fault::Idle => (S::GATEWAY_TIMEOUT, flag::IDLE_TIMEOUT, "stream_idle_timeout"),
            Fault::SlowBody => (S::REQUEST_TIMEOUT, flag::DOWNSTREAM_TIMEOUT, "request_body_timeout"),
            Fault::BadBody => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, "bad_request_body"),
            Fault::RequestTooLarge => (S::PAYLOAD_TOO_LARGE, flag::BODY_TOO_LARGE, "request_body_too_large"),
            Fault::ResponseTooLarge => (S::INTERNAL_SERVER_ERROR, flag::BODY_TOO_LARGE, "response_body_too_large"),
            Fault::FilterFailed => (S::SERVICE_UNAVAILABLE, flag::FILTER_FAILED, "filter_failed"),
            Fault::FilterStalled => (S::GATEWAY_TIMEOUT, flag::IDLE_TIMEOUT, "filter_stalled"),
        }
    }

    /// The gRPC status, where the HTTP status would say less.
    fn grpc_status(self) -> Option<Code> {
        match self {
            Fault::Timeout
            | Fault::Deadline
            | Fault::StreamAge
            | Fault::PerTryTimeout
            | Fault::Idle
            | Fault::SlowBody
            | Fault::FilterStalled => Some(Code::DeadlineExceeded),
            Fault::RequestTooLarge | Fault::ResponseTooLarge => Some(Code::ResourceExhausted),
            _ => None,
        }
    }

    /// The response. The client learns the status, the access log why.
    pub(super) fn reply(self, stream: &Stream) -> LocalReply {
        let (status, flags, details) = self.table();
        stream.flag(flags);
        let mut fields = HeaderMap::new();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let reason = status.canonical_reason().unwrap_or("error");
        let body = Bytes::from_static(reason.as_bytes());
        LocalReply { status, details: details.into(), fields, body, grpc_status: self.grpc_status().map(Code::number) }
    }

    /// The same, as an end of the request's way; so many filters have seen it.
    pub(super) fn into_stop(self, stream: &Stream, seen: usize) -> Stop {
        Stop::Reply(Box::new(self.reply(stream)), seen)
    }

    /// The same, before any filter has seen it.
    pub(super) fn into_reply(self, stream: &Stream) -> Stop {
        self.into_stop(stream, 0)
    }
}

impl From<Stopped> for Fault {
    /// For request bodies.
    fn from(stopped: Stopped) -> Fault {
        match stopped {
            Stopped::TooLarge => Fault::RequestTooLarge,
            Stopped::FilterFailed => Fault::FilterFailed,
        }
    }
}
