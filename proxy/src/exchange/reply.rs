//! Local replies: responses by the proxy itself. Each failure maps to one status, one response flag and one detail for
//! the access log.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tollgate_abi::{fast::flag, spelling::BadPath};

use super::outcome::Interrupted;
use crate::{
    chain::{LocalReply, Stream, body::BodyAborted},
    http::grpc::Code,
    observe::{Detail, detail},
    upstream::ClientLimit,
};

/// A failure that the proxy itself answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalFailure {
    /// No `Host`, several, or an invalid one (RFC 9112 section 3.2).
    BadHost,
    /// The path cannot be normalised.
    BadPath(BadPath),
    /// A method with lower-case letters.
    BadMethod,
    /// A field name with a `_`, where that is not allowed.
    Underscore,
    /// `CONNECT`, which is not enabled.
    Connect,
    /// An upgrade that is not enabled.
    Upgrade,
    /// More header fields than allowed.
    TooManyFields,
    /// More bytes of header fields than allowed.
    HeadTooLarge,
    /// An `OPTIONS` request whose `Max-Forwards` is 0.
    LastHop,
    /// A `TRACE` request whose `Max-Forwards` is 0.
    LastHopTrace,
    /// The proxy itself is overloaded (load shedding).
    Overload,
    /// No filter selected a route, and the listener has no cluster.
    NoRoute,
    /// The route's cluster does not exist.
    NoCluster,
    /// The cluster has no endpoint.
    NoEndpoint,
    /// The cluster's request limit is reached (circuit breaking).
    Overflow,
    /// The cluster's limit by latency is reached (adaptive concurrency).
    ConcurrencyLimit,
    /// Connecting failed.
    ConnectFailure,
    /// Connecting timed out.
    ConnectTimeout,
    /// The upstream closed the connection before a response.
    Reset,
    /// The upstream's response was invalid.
    Protocol,
    /// The upstream sent only interim responses.
    Interim,
    /// The target cannot be expressed in the upstream's version of HTTP.
    Target,
    /// The response's head did not arrive in time.
    HeadTimeout,
    /// The request's head exceeds the upstream's HTTP/2 limit.
    UpstreamHead,
    /// The request timeout expired.
    Timeout,
    /// The timeout set by a gRPC client expired.
    Deadline,
    /// The deadline in a request's header passed.
    RequestDeadline,
    /// The stream reached the listener's maximum age.
    StreamAge,
    /// The timeout of the last attempt expired.
    PerTryTimeout,
    /// The last attempt was idle for too long.
    PerTryIdleTimeout,
    /// The upstream was silent for too long.
    Idle,
    /// The client sent nothing of the request's body for too long.
    SlowBody,
    /// The request's body arrived too slowly.
    SlowUpload,
    /// The limit on unfinished uploads and tunnels to the cluster is reached: the total, or this client's share.
    Crowded(ClientLimit),
    /// The client does not read the response, and its place is needed by others.
    Evicted,
    /// The request's body violated HTTP.
    BadBody,
    /// The client aborted the request within the body.
    ClientReset,
    /// The request's body exceeds the listener's limit.
    RequestBodyLimit,
    /// A filter exceeds its limit for held request body bytes.
    RequestTooLarge,
    /// The worker's filters exceed the limit for all held bodies.
    HeldBodies,
    /// A filter exceeds its limit for held response body bytes.
    ResponseTooLarge,
    /// A filter failed.
    FilterFailed,
    /// A filter closed the stream after its response had begun.
    FilterClosed,
    /// A filter changed a body so that its length differs from the announced one.
    FilterLength,
    /// A filter held the request for too long.
    FilterStalled,
}

impl LocalFailure {
    /// Returns the status, flag and detail.
    fn table(self) -> (StatusCode, u32, Detail) {
        use StatusCode as S;
        match self {
            LocalFailure::BadHost => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::BAD_HOST),
            LocalFailure::BadPath(BadPath::Relative) => {
                (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::RELATIVE_PATH)
            }
            LocalFailure::BadPath(BadPath::Encoding) => {
                (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::BAD_PATH_ENCODING)
            }
            LocalFailure::BadPath(BadPath::Nul) => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::NUL_IN_PATH),
            LocalFailure::BadPath(BadPath::EscapedSlash) => {
                (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::ESCAPED_SLASH_IN_PATH)
            }
            LocalFailure::BadPath(BadPath::Parameters) => {
                (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::PARAMETERS_IN_PATH)
            }
            LocalFailure::BadPath(BadPath::HiddenSegment) => {
                (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::HIDDEN_SEGMENT_IN_PATH)
            }
            LocalFailure::BadMethod => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::BAD_METHOD),
            LocalFailure::Underscore => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::HEADER_UNDERSCORE),
            LocalFailure::Connect => (S::METHOD_NOT_ALLOWED, flag::DOWNSTREAM_PROTOCOL, detail::CONNECT_NOT_ALLOWED),
            LocalFailure::Upgrade => (S::NOT_IMPLEMENTED, flag::DOWNSTREAM_PROTOCOL, detail::UPGRADE_NOT_ALLOWED),
            LocalFailure::TooManyFields => {
                (S::REQUEST_HEADER_FIELDS_TOO_LARGE, flag::DOWNSTREAM_PROTOCOL, detail::TOO_MANY_FIELDS)
            }
            LocalFailure::HeadTooLarge => {
                (S::REQUEST_HEADER_FIELDS_TOO_LARGE, flag::DOWNSTREAM_PROTOCOL, detail::HEAD_TOO_LARGE)
            }
            // A TRACE response would show fields that only the upstream should see (RFC 9110 section 9.3.8).
            LocalFailure::LastHopTrace => (S::NOT_IMPLEMENTED, 0, detail::MAX_FORWARDS),
            LocalFailure::LastHop => (S::OK, 0, detail::MAX_FORWARDS),
            LocalFailure::Overload => (S::SERVICE_UNAVAILABLE, flag::OVERLOADED, detail::OVERLOAD),
            LocalFailure::NoRoute => (S::NOT_FOUND, flag::NO_ROUTE, detail::ROUTE_NOT_FOUND),
            LocalFailure::NoCluster => (S::SERVICE_UNAVAILABLE, flag::NO_CLUSTER, detail::CLUSTER_NOT_FOUND),
            LocalFailure::NoEndpoint => (S::SERVICE_UNAVAILABLE, flag::NO_HEALTHY_UPSTREAM, detail::NO_ENDPOINT),
            LocalFailure::Overflow => (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_OVERFLOW, detail::OVERFLOW),
            LocalFailure::ConcurrencyLimit => {
                (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_OVERFLOW, detail::REACHED_CONCURRENCY_LIMIT)
            }
            LocalFailure::ConnectFailure => {
                (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_CONNECT_FAILURE, detail::CONNECT_FAILURE)
            }
            LocalFailure::ConnectTimeout => {
                (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_CONNECT_FAILURE, detail::CONNECT_TIMEOUT)
            }
            LocalFailure::Reset => (S::BAD_GATEWAY, flag::UPSTREAM_TERMINATED, detail::UPSTREAM_RESET),
            LocalFailure::Protocol => (S::BAD_GATEWAY, flag::UPSTREAM_PROTOCOL, detail::UPSTREAM_PROTOCOL_ERROR),
            LocalFailure::Interim => (S::BAD_GATEWAY, flag::UPSTREAM_PROTOCOL, detail::TOO_MANY_INTERIM_RESPONSES),
            LocalFailure::Target => (S::BAD_GATEWAY, flag::UPSTREAM_PROTOCOL, detail::UNSENDABLE_TARGET),
            LocalFailure::HeadTimeout => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, detail::RESPONSE_HEAD_TIMEOUT),
            LocalFailure::UpstreamHead => {
                (S::REQUEST_HEADER_FIELDS_TOO_LARGE, flag::UPSTREAM_PROTOCOL, detail::UPSTREAM_HEAD_LIMIT)
            }
            LocalFailure::Timeout => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, detail::RESPONSE_TIMEOUT),
            LocalFailure::Deadline => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, detail::GRPC_DEADLINE),
            LocalFailure::RequestDeadline => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, detail::REQUEST_DEADLINE),
            LocalFailure::StreamAge => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, detail::STREAM_AGE),
            LocalFailure::PerTryTimeout => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, detail::PER_TRY_TIMEOUT),
            LocalFailure::PerTryIdleTimeout => {
                (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, detail::PER_TRY_IDLE_TIMEOUT)
            }
            LocalFailure::Idle => (S::GATEWAY_TIMEOUT, flag::IDLE_TIMEOUT, detail::STREAM_IDLE_TIMEOUT),
            LocalFailure::SlowBody => (S::REQUEST_TIMEOUT, flag::DOWNSTREAM_TIMEOUT, detail::REQUEST_BODY_TIMEOUT),
            LocalFailure::SlowUpload => (S::REQUEST_TIMEOUT, flag::DOWNSTREAM_TIMEOUT, detail::REQUEST_BODY_TOO_SLOW),
            LocalFailure::Crowded(ClientLimit::All) => {
                (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_OVERFLOW, detail::UPLOADS_OVERFLOW)
            }
            LocalFailure::Crowded(ClientLimit::Client) => {
                (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_OVERFLOW, detail::CLIENT_UPLOADS_OVERFLOW)
            }
            LocalFailure::ClientReset => (S::BAD_REQUEST, flag::DOWNSTREAM_TERMINATED, detail::CLIENT_RESET),
            LocalFailure::Evicted => (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_OVERFLOW, detail::DOWNLOAD_EVICTED),
            LocalFailure::BadBody => (S::BAD_REQUEST, flag::DOWNSTREAM_PROTOCOL, detail::BAD_REQUEST_BODY),
            LocalFailure::RequestBodyLimit => (S::PAYLOAD_TOO_LARGE, flag::BODY_TOO_LARGE, detail::REQUEST_BODY_LIMIT),
            LocalFailure::RequestTooLarge => {
                (S::PAYLOAD_TOO_LARGE, flag::BODY_TOO_LARGE, detail::REQUEST_BODY_TOO_LARGE)
            }
            LocalFailure::HeldBodies => (S::SERVICE_UNAVAILABLE, flag::BODY_TOO_LARGE, detail::HELD_BODIES_OVERFLOW),
            LocalFailure::ResponseTooLarge => {
                (S::INTERNAL_SERVER_ERROR, flag::BODY_TOO_LARGE, detail::RESPONSE_BODY_TOO_LARGE)
            }
            LocalFailure::FilterFailed => (S::SERVICE_UNAVAILABLE, flag::FILTER_FAILED, detail::FILTER_FAILED),
            LocalFailure::FilterClosed => (S::INTERNAL_SERVER_ERROR, flag::LOCAL_REPLY, detail::CLOSED_BY_FILTER),
            LocalFailure::FilterLength => (S::INTERNAL_SERVER_ERROR, flag::FILTER_FAILED, detail::FILTER_LENGTH),
            LocalFailure::FilterStalled => (S::GATEWAY_TIMEOUT, flag::IDLE_TIMEOUT, detail::FILTER_STALLED),
        }
    }

    /// Returns the flag for the access log.
    pub(super) fn flags(self) -> u32 {
        self.table().1
    }

    /// Returns the detail for the access log.
    pub(super) fn details(self) -> Detail {
        self.table().2
    }

    /// Returns the gRPC status, where it is more specific than the HTTP status.
    fn grpc_status(self) -> Option<Code> {
        match self {
            LocalFailure::HeadTimeout
            | LocalFailure::Timeout
            | LocalFailure::Deadline
            | LocalFailure::RequestDeadline
            | LocalFailure::StreamAge
            | LocalFailure::PerTryTimeout
            | LocalFailure::PerTryIdleTimeout
            | LocalFailure::Idle
            | LocalFailure::SlowBody
            | LocalFailure::SlowUpload
            | LocalFailure::FilterStalled => Some(Code::DeadlineExceeded),
            LocalFailure::TooManyFields
            | LocalFailure::HeadTooLarge
            | LocalFailure::UpstreamHead
            | LocalFailure::RequestBodyLimit
            | LocalFailure::RequestTooLarge
            | LocalFailure::ResponseTooLarge => Some(Code::ResourceExhausted),
            _ => None,
        }
    }

    /// Creates the response. The client sees the status; the reason goes to the access log.
    pub(super) fn reply(self, stream: &Stream) -> LocalReply {
        let (status, flags, details) = self.table();
        stream.flag(flags);
        let mut fields = HeaderMap::new();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let reason = status.canonical_reason().unwrap_or("error");
        let body = match stream.grpc.get() {
            None => Bytes::from_static(reason.as_bytes()),
            // The body becomes the call's message. The failure's detail is not confidential; the underlying reason may
            // be, and stays in the access log.
            Some(_) => format!("{reason} ({})", details.text()).into(),
        };
        LocalReply { status, details: details.into(), fields, body, grpc_status: self.grpc_status().map(Code::number) }
    }

    /// Creates the response as an interruption of a request that `seen` filters have seen.
    pub(super) fn into_stop(self, stream: &Stream, seen: usize) -> Interrupted {
        Interrupted::Reply(Box::new(self.reply(stream)), seen)
    }

    /// Creates the response as an interruption before any filter has seen the request.
    pub(super) fn into_reply(self, stream: &Stream) -> Interrupted {
        self.into_stop(stream, 0)
    }
}

impl From<BodyAborted> for LocalFailure {
    /// Converts for request bodies.
    fn from(stopped: BodyAborted) -> LocalFailure {
        match stopped {
            BodyAborted::TooLarge => LocalFailure::RequestTooLarge,
            BodyAborted::Crowded => LocalFailure::HeldBodies,
            BodyAborted::FilterFailed => LocalFailure::FilterFailed,
        }
    }
}
