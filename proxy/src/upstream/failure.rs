//! Why a request got no response, with what a caller needs to know to decide on a retry.

use std::{error::Error, fmt, io, sync::Arc};

use super::{reason::ConnectError, uploads::ClientLimit};
use crate::{h1::HeadError, net::FirstBytes};

/// A request that got no response.
pub struct RequestError<B> {
    /// What went wrong.
    pub kind: RequestErrorKind,
    /// The request's body, if nothing of the request has been handed to a connection: any request may be sent again then.
    /// Always there for [`FailureKind::Connect`], [`FailureKind::Target`] and [`FailureKind::Overflow`]. Boxed, as it is there in failures only.
    pub body: Option<Box<B>>,
}

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestErrorKind {
    /// No connection could be made.
    #[error("no connection could be made")]
    Connect(#[source] Arc<ConnectError>),
    /// The connection ended before a response began, or in the middle of its head.
    ///
    /// What `again` says is about an idempotent request (RFC 9110 section 9.2.2). With not `request_sent`, any may be sent again.
    #[error("the connection was closed before a response{}", if *reused { " (it had been used before)" } else { "" })]
    Reset {
        /// Whether the connection had carried a request before this one.
        reused: bool,
        /// Whether any byte of the request was written to the socket.
        request_sent: bool,
        /// Whether any byte has come back since the request was handed over.
        bytes_received: bool,
        /// Whether a part of the response's head has come.
        in_head: bool,
        /// Whether it may be sent again although nobody has asked for that, if its method allows it.
        again: Retryable,
        /// The reason.
        source: io::Error,
    },
    /// What came back is no response that can be used.
    #[error("the response is not valid")]
    Protocol {
        /// The reason.
        source: ProtocolError,
    },
    /// The request's own body failed, or ended before its Content-Length. The upstream is not to blame.
    #[error("the request's body could not be read")]
    RequestBody {
        /// The body's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The request's target cannot be sent in the version of HTTP that the upstream speaks, and no other may be sent in its place.
    #[error("the request's target cannot be sent over HTTP/2 as it is")]
    Target,
    /// The request's head is longer than an upstream that speaks HTTP/2 takes.
    #[error("the request's head counts for {size} bytes, and the upstream takes {limit}")]
    HeadTooLong {
        /// What it counts for.
        size: usize,
        /// What the upstream takes.
        limit: u32,
    },
    /// The cluster has as many connections as it may, and as many requests waiting for one.
    #[error("too many requests wait for a connection")]
    Overflow,
    /// It is an unfinished upload or a tunnel, and those hold as many of the connections as they may.
    #[error("too many unfinished uploads and tunnels hold connections")]
    Crowded(ClientLimit),
}

/// How a request may be sent again whose connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retryable {
    /// Not by itself.
    No,
    /// By a new connection. An idle connection may just have been closed (RFC 9112 section 9.3.1), or another request was in all
    /// likelihood the reason.
    Anew,
    /// By a connection that nobody else uses: this request may have been the reason.
    Alone,
}

/// Interim responses before a response, at most: a stream of them would keep a worker busy for nothing.
pub const MOST_INTERIM: u32 = 32;

/// Why a response cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Its head breaks RFC 9112, or is longer than allowed.
    #[error("its head could not be read")]
    Malformed(#[source] HeadError, Box<FirstBytes>),
    /// An HTTP/2 connection says something that makes no sense. With its first bytes, if not even they do.
    #[error("it breaks the rules of HTTP/2")]
    Http2(#[source] h2::Error, Option<Box<FirstBytes>>),
    /// Its head over HTTP/2 is longer than any may be.
    #[error("its head is longer than {0} bytes")]
    TooLong(usize),
    /// More interim responses (RFC 9110 section 15.2) came before it than anybody needs.
    #[error("more than {MOST_INTERIM} interim responses came before it")]
    Interim,
    /// It does not say that it takes an extended `CONNECT`, as which an upgrade is asked for over HTTP/2 (RFC 8441 section 3).
    #[error(
        "the endpoint takes no upgrades over HTTP/2 (its settings have no SETTINGS_ENABLE_CONNECT_PROTOCOL); with `protocol: h1` \
         they are those of HTTP/1.1"
    )]
    NoUpgrades,
    /// It is a 101, which nobody has asked for (RFC 9110 section 15.2.2).
    #[error("it switches protocols, which was not asked for")]
    Switched,
    /// Its body is in a transfer coding other than `chunked` (RFC 9112 section 6.1), or in several.
    #[error("its transfer coding is not `chunked`")]
    TransferCoding,
}

impl<B> RequestError<B> {
    /// A failure before anything of the request with this body was handed to a connection.
    pub(super) fn unsent(kind: RequestErrorKind, body: B) -> Self {
        RequestError { kind, body: Some(Box::new(body)) }
    }
}

// By hand: neither needs anything of the body's type.
impl<B> fmt::Debug for RequestError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure").field("kind", &self.kind).field("unsent", &self.body.is_some()).finish()
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
