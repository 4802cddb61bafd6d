//! What the proxy answers itself: for each failure one status, one flag, one word for the access log.

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

/// A failure that is answered by the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalFailure {
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
    /// More bytes of header fields than allowed.
    HeadTooLarge,
    /// An `OPTIONS` request that may go no further.
    LastHop,
    /// A `TRACE` request that may go no further.
    LastHopTrace,
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
    /// The upstream sent interim responses and no response.
    Interim,
    /// The target cannot be sent in the version of HTTP that the upstream speaks.
    Target,
    /// The response had not begun when the time for its head was over.
    HeadTimeout,
    /// The head is longer than the upstream takes over HTTP/2.
    UpstreamHead,
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
    /// The request's body came too slowly.
    SlowUpload,
    /// Unfinished uploads and tunnels hold as much of the cluster as they may: all of them, or those of this client.
    Crowded(ClientLimit),
    /// The client does not read the response, and others need its place.
    Evicted,
    /// The request's body broke HTTP.
    BadBody,
    /// The client has given its request up amid the body.
    ClientReset,
    /// The request's body is longer than the listener lets it be.
    RequestBodyLimit,
    /// A filter holds more of the request's body than it may.
    RequestTooLarge,
    /// The worker's filters hold as much of all bodies as they may.
    HeldBodies,
    /// A filter holds more of the response's body than it may.
    ResponseTooLarge,
    /// A filter has failed.
    FilterFailed,
    /// A filter has ended the stream when its response had begun.
    FilterClosed,
    /// A body is not as long as its head says, by a filter's doing.
    FilterLength,
    /// A filter has held the request for too long.
    FilterStalled,
}

impl LocalFailure {
    /// Status, flag, details.
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
            // Of what it would show, much is nobody's business but the upstream's (RFC 9110 section 9.3.8).
            LocalFailure::LastHopTrace => (S::NOT_IMPLEMENTED, 0, detail::MAX_FORWARDS),
            LocalFailure::LastHop => (S::OK, 0, detail::MAX_FORWARDS),
            LocalFailure::NoRoute => (S::NOT_FOUND, flag::NO_ROUTE, detail::ROUTE_NOT_FOUND),
            LocalFailure::NoEndpoint => (S::SERVICE_UNAVAILABLE, flag::NO_HEALTHY_UPSTREAM, detail::NO_ENDPOINT),
            LocalFailure::Overflow => (S::SERVICE_UNAVAILABLE, flag::UPSTREAM_OVERFLOW, detail::OVERFLOW),
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
            LocalFailure::StreamAge => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, detail::STREAM_AGE),
            LocalFailure::PerTryTimeout => (S::GATEWAY_TIMEOUT, flag::UPSTREAM_TIMEOUT, detail::PER_TRY_TIMEOUT),
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

    /// The flag in the access log.
    pub(super) fn flags(self) -> u32 {
        self.table().1
    }

    /// The word in the access log.
    pub(super) fn details(self) -> Detail {
        self.table().2
    }

    /// The gRPC status, where the HTTP status would say less.
    fn grpc_status(self) -> Option<Code> {
        match self {
            LocalFailure::HeadTimeout
            | LocalFailure::Timeout
            | LocalFailure::Deadline
            | LocalFailure::StreamAge
            | LocalFailure::PerTryTimeout
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

    /// The response. The client learns the status, the access log why.
    pub(super) fn reply(self, stream: &Stream) -> LocalReply {
        let (status, flags, details) = self.table();
        stream.flag(flags);
        let mut fields = HeaderMap::new();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let reason = status.canonical_reason().unwrap_or("error");
        let body = match stream.grpc.get() {
            None => Bytes::from_static(reason.as_bytes()),
            // It becomes the call's message. Which of several failures it was is no secret; the reason may be one, and stays in
            // the access log.
            Some(_) => format!("{reason} ({})", details.text()).into(),
        };
        LocalReply { status, details: details.into(), fields, body, grpc_status: self.grpc_status().map(Code::number) }
    }

    /// The same, as an end of the request's way; so many filters have seen it.
    pub(super) fn into_stop(self, stream: &Stream, seen: usize) -> Interrupted {
        Interrupted::Reply(Box::new(self.reply(stream)), seen)
    }

    /// The same, before any filter has seen it.
    pub(super) fn into_reply(self, stream: &Stream) -> Interrupted {
        self.into_stop(stream, 0)
    }
}

impl From<BodyAborted> for LocalFailure {
    /// For request bodies.
    fn from(stopped: BodyAborted) -> LocalFailure {
        match stopped {
            BodyAborted::TooLarge => LocalFailure::RequestTooLarge,
            BodyAborted::Crowded => LocalFailure::HeldBodies,
            BodyAborted::FilterFailed => LocalFailure::FilterFailed,
        }
    }
}
