//! Response details: the words in the access log (`details`) that say why the proxy itself replied or closed a connection. The list
//! is complete, and a test compares it with the documentation. Filters choose their own details.

use std::borrow::Cow;

/// A response detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detail(&'static str);

impl Detail {
    /// The word.
    pub fn text(self) -> &'static str {
        self.0
    }
}

impl From<Detail> for Cow<'static, str> {
    fn from(detail: Detail) -> Self {
        Cow::Borrowed(detail.0)
    }
}

macro_rules! details {
    ($($name:ident $word:literal,)+) => {
        $(
            #[doc = $word]
            pub const $name: Detail = Detail($word);
        )+
        /// All details.
        pub const ALL: &[Detail] = &[$($name),+];
    };
}

details! {
    BAD_HOST "bad_host",
    RELATIVE_PATH "relative_path",
    BAD_PATH_ENCODING "bad_path_encoding",
    NUL_IN_PATH "nul_in_path",
    ESCAPED_SLASH_IN_PATH "escaped_slash_in_path",
    PARAMETERS_IN_PATH "parameters_in_path",
    HIDDEN_SEGMENT_IN_PATH "hidden_segment_in_path",
    BAD_METHOD "bad_method",
    HEADER_UNDERSCORE "header_underscore",
    CONNECT_NOT_ALLOWED "connect_not_allowed",
    UPGRADE_NOT_ALLOWED "upgrade_not_allowed",
    TOO_MANY_FIELDS "too_many_fields",
    HEAD_TOO_LARGE "head_too_large",
    MALFORMED_REQUEST "malformed_request",
    MALFORMED_FIELD "malformed_field",
    CONNECTION_FIELDS "connection_fields",
    BAD_CONTENT_LENGTH "bad_content_length",
    TLS_ON_PLAIN_PORT "tls_on_plain_port",
    HEADER_READ_TIMEOUT "header_read_timeout",
    REQUEST_BODY_TIMEOUT "request_body_timeout",
    REQUEST_BODY_TOO_SLOW "request_body_too_slow",
    REQUEST_BODY_LIMIT "request_body_limit",
    BAD_REQUEST_BODY "bad_request_body",
    REQUEST_BODY_TOO_LARGE "request_body_too_large",
    HELD_BODIES_OVERFLOW "held_bodies_overflow",
    RESPONSE_BODY_TOO_LARGE "response_body_too_large",
    BARE_LINE_END "bare_line_end",
    NUL "nul",
    OBS_FOLD "obs_fold",
    HEADER_NAME "header_name",
    CONTENT_LENGTH "content_length",
    TRANSFER_ENCODING "transfer_encoding",
    BOTH_LENGTHS "both_lengths",
    CHUNK_SIZE "chunk_size",
    CHUNK_END "chunk_end",
    TRAILERS "trailers",
    MAX_FORWARDS "max_forwards",
    ROUTE_NOT_FOUND "route_not_found",
    CLUSTER_NOT_FOUND "cluster_not_found",
    NO_ENDPOINT "no_endpoint",
    OVERFLOW "overflow",
    REACHED_CONCURRENCY_LIMIT "reached_concurrency_limit",
    UPLOADS_OVERFLOW "uploads_overflow",
    CLIENT_UPLOADS_OVERFLOW "client_uploads_overflow",
    DOWNLOAD_EVICTED "download_evicted",
    CONNECT_FAILURE "connect_failure",
    CONNECT_TIMEOUT "connect_timeout",
    UPSTREAM_RESET "upstream_reset",
    UPSTREAM_PROTOCOL_ERROR "upstream_protocol_error",
    TOO_MANY_INTERIM_RESPONSES "too_many_interim_responses",
    UNSENDABLE_TARGET "unsendable_target",
    UPSTREAM_HEAD_LIMIT "upstream_head_limit",
    RESPONSE_HEAD_TIMEOUT "response_head_timeout",
    RESPONSE_TIMEOUT "response_timeout",
    PER_TRY_TIMEOUT "per_try_timeout",
    PER_TRY_IDLE_TIMEOUT "per_try_idle_timeout",
    GRPC_DEADLINE "grpc_deadline",
    REQUEST_DEADLINE "request_deadline",
    STREAM_AGE "stream_age",
    STREAM_IDLE_TIMEOUT "stream_idle_timeout",
    FILTER_FAILED "filter_failed",
    FILTER_LENGTH "filter_length",
    FILTER_STALLED "filter_stalled",
    FILTER_BUFFER_FULL "filter_buffer_full",
    FILTER_REPLY_TOO_LARGE "filter_reply_too_large",
    CLOSED_BY_FILTER "closed_by_filter",
    CLIENT_RESET "client_reset",
    IDLE_TIMEOUT "idle_timeout",
    CONNECTION_AGE "connection_age",
    SHUTDOWN "shutdown",
    OVERLOAD "overload",
    TLS_HANDSHAKE "tls_handshake_failed",
    HANDSHAKE_TIMEOUT "handshake_timeout",
    PROXY_PROTOCOL "proxy_protocol_error",
    UNKNOWN_PROTOCOL "unknown_protocol",
}
