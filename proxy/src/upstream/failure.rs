//! The reason why a request got no response, with the facts needed to decide on a retry.

use std::{error::Error, fmt, io, sync::Arc};

use super::{reason::ConnectError, uploads::ClientLimit};
use crate::{h1::HeadError, net::FirstBytes};

/// A failed request.
pub struct RequestError<B> {
    /// The kind of failure.
    pub kind: RequestErrorKind,
    /// The request's body, if nothing of the request was handed to a connection: any request may then be sent again.
    /// Always present for [`RequestErrorKind::Connect`], [`RequestErrorKind::Target`] and
    /// [`RequestErrorKind::Overflow`]. Boxed, because it exists only in failures.
    pub body: Option<Box<B>>,
}

/// A kind of failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestErrorKind {
    /// Connecting failed.
    #[error("cannot connect")]
    Connect(#[source] Arc<ConnectError>),
    /// The connection ended before a response, or within its head.
    ///
    /// `again` applies to idempotent requests (RFC 9110 section 9.2.2). If `request_sent` is false, any request may be
    /// sent again.
    #[error("the connection was closed before a response{}", if *reused { " (a reused connection)" } else { "" })]
    Reset {
        /// Whether the connection had carried a request before this one.
        reused: bool,
        /// Whether any byte of the request was written to the socket.
        request_sent: bool,
        /// Whether any byte was received since the request was handed over.
        bytes_received: bool,
        /// Whether a part of the response's head was received.
        in_head: bool,
        /// Whether it may be sent again without a retry policy, if its method allows it.
        again: Retryable,
        /// The reason.
        source: io::Error,
    },
    /// The response was invalid.
    #[error("the response is not valid")]
    Protocol {
        /// The reason.
        source: ProtocolError,
    },
    /// The request's own body failed, or ended before its Content-Length. The upstream is not to blame.
    #[error("cannot read the request's body")]
    RequestBody {
        /// The body's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The request's target cannot be expressed in the upstream's HTTP version, and must not be replaced by another
    /// one.
    #[error("the request's target cannot be sent over HTTP/2 unchanged")]
    Target,
    /// The request's head exceeds the limit that the HTTP/2 upstream announced.
    #[error("the request's head counts as {size} bytes; the upstream accepts at most {limit}")]
    HeadTooLong {
        /// The size of the head, in bytes as HTTP/2 counts them.
        size: usize,
        /// The upstream's limit.
        limit: u32,
    },
    /// The cluster's limits on connections and on waiting requests are reached.
    #[error("too many requests are waiting for a connection")]
    Overflow,
    /// An unfinished upload or a tunnel, and those hold the maximum of connections.
    #[error("too many unfinished uploads and tunnels hold connections")]
    Crowded(ClientLimit),
}

/// Whether and how a request may be sent again after its connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retryable {
    /// Not without a retry policy.
    No,
    /// On a new connection. An idle connection may just have been closed (RFC 9112 section 9.3.1), or another request
    /// was in all likelihood the cause.
    NewConnection,
    /// On a connection without other requests: this request may have been the cause.
    Alone,
}

/// Maximum number of interim responses before a response, so that a stream of them cannot keep a worker busy.
pub const MOST_INTERIM: u32 = 32;

/// The reason why a response is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Its head violates RFC 9112, or is too long.
    #[error("cannot read its head")]
    Malformed(#[source] HeadError, Box<FirstBytes>),
    /// An HTTP/2 connection violates the protocol. With its first bytes, if even they are not HTTP/2.
    #[error("it violates HTTP/2")]
    Http2(#[source] h2::Error, Option<Box<FirstBytes>>),
    /// Its head over HTTP/2 exceeds the limit.
    #[error("its head is longer than {0} bytes")]
    TooLong(usize),
    /// Too many interim responses (RFC 9110 section 15.2).
    #[error("more than {MOST_INTERIM} interim responses preceded it")]
    Interim,
    /// The endpoint does not accept extended `CONNECT`, which upgrades over HTTP/2 require (RFC 8441 section 3).
    #[error(
        "the endpoint accepts no upgrades over HTTP/2 (its settings lack SETTINGS_ENABLE_CONNECT_PROTOCOL); set `protocol: h1` \
         for upgrades over HTTP/1.1"
    )]
    NoUpgrades,
    /// A 101 although no upgrade was requested (RFC 9110 section 15.2.2).
    #[error("it switches protocols although no upgrade was requested")]
    Switched,
    /// Its body uses a transfer coding other than `chunked` (RFC 9112 section 6.1), or several.
    #[error("its transfer coding is not `chunked`")]
    TransferCoding,
}

impl<B> RequestError<B> {
    /// Creates a failure that occurred before anything of the request with this body was handed to a connection.
    pub(super) fn unsent(kind: RequestErrorKind, body: B) -> Self {
        RequestError { kind, body: Some(Box::new(body)) }
    }
}

// Implemented by hand, because neither requires anything of the body's type.
impl<B> fmt::Debug for RequestError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestError").field("kind", &self.kind).field("unsent", &self.body.is_some()).finish()
    }
}

impl<B> fmt::Display for RequestError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl<B> Error for RequestError<B> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.kind.source()
    }
}
