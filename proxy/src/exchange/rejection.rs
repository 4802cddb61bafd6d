//! Rejected connections: reasons, metrics and log entries.

use std::net::SocketAddr;

use tollgate_abi::fast::flag;

use crate::{
    observe::{Detail, LogLimiter, detail, target},
    tls::HandshakeError,
};

/// The reason why the proxy closed a connection without serving a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// The listener's connection limit is reached.
    Limit,
    /// No file descriptors are left for clients.
    Descriptors,
    /// The proxy itself is overloaded, and the connection is not HTTP.
    Overload,
    /// The client did not send enough to identify its protocol in time.
    Silent,
    /// The PROXY protocol header is invalid or missing.
    ProxyProtocol,
    /// The client's protocol is not one that the listener serves.
    Protocol,
    /// The TLS handshake failed.
    Handshake,
    /// The client violated HTTP/2 (RFC 9113).
    Http2,
    /// The client violated HTTP/3 (RFC 9114).
    Http3,
    /// The client sent so much unproductive traffic that it must be an attack.
    Flood,
}

impl RejectReason {
    /// Number of reasons.
    pub const COUNT: usize = 10;
    /// All reasons, with their names in metrics.
    pub const ALL: [(RejectReason, &'static str); RejectReason::COUNT] = [
        (RejectReason::Limit, "limit"),
        (RejectReason::Descriptors, "descriptors"),
        (RejectReason::Overload, "overload"),
        (RejectReason::Silent, "silent"),
        (RejectReason::ProxyProtocol, "proxy_protocol"),
        (RejectReason::Protocol, "protocol"),
        (RejectReason::Handshake, "handshake"),
        (RejectReason::Http2, "http2"),
        (RejectReason::Http3, "http3"),
        (RejectReason::Flood, "flood"),
    ];

    /// Returns the flag and the detail for the access log, for connections closed before any request; `None` for
    /// others.
    pub(super) fn logged(self) -> Option<(u32, Detail)> {
        match self {
            RejectReason::Overload => Some((flag::OVERLOADED, detail::OVERLOAD)),
            RejectReason::Silent => Some((flag::DOWNSTREAM_TIMEOUT, detail::HANDSHAKE_TIMEOUT)),
            RejectReason::ProxyProtocol => Some((flag::DOWNSTREAM_PROTOCOL, detail::PROXY_PROTOCOL)),
            RejectReason::Protocol => Some((flag::DOWNSTREAM_PROTOCOL, detail::UNKNOWN_PROTOCOL)),
            RejectReason::Handshake => Some((flag::DOWNSTREAM_PROTOCOL, detail::TLS_HANDSHAKE)),
            RejectReason::Limit
            | RejectReason::Descriptors
            | RejectReason::Http2
            | RejectReason::Http3
            | RejectReason::Flood => None,
        }
    }
}

/// A rejected client.
#[derive(Debug)]
pub struct RejectedConnection {
    /// The reason.
    pub refusal: RejectReason,
    /// The handshake error, if the handshake failed.
    pub cause: Option<HandshakeError>,
    /// The reason as text; empty if it is not to be logged.
    pub why: String,
}

impl From<RejectReason> for RejectedConnection {
    fn from(refusal: RejectReason) -> RejectedConnection {
        RejectedConnection::new(refusal, String::new())
    }
}

impl RejectedConnection {
    /// Creates a rejection for a reason other than the handshake.
    pub fn new(refusal: RejectReason, why: String) -> RejectedConnection {
        RejectedConnection { refusal, cause: None, why }
    }

    /// Creates a rejection for a failed handshake.
    pub fn handshake(cause: HandshakeError, why: String) -> RejectedConnection {
        RejectedConnection { refusal: RejectReason::Handshake, cause: Some(cause), why }
    }
}

/// Rate limits for logging a listener's rejections, per reason.
#[derive(Debug, Default)]
pub struct RejectLogLimiter {
    refusals: [LogLimiter; RejectReason::COUNT],
    handshakes: [LogLimiter; HandshakeError::COUNT],
}

impl RejectLogLimiter {
    /// Logs a rejection, unless one with the same reason was logged within the last minute.
    pub fn warn(&self, listener: &str, peer: SocketAddr, refused: &RejectedConnection) {
        let (limiter, reason) = match refused.cause {
            Some(cause) => (&self.handshakes[cause as usize], HandshakeError::ALL[cause as usize].1),
            None => (&self.refusals[refused.refusal as usize], RejectReason::ALL[refused.refusal as usize].1),
        };
        if let Some(left_out) = limiter.may_warn() {
            tracing::warn!(
                target: target::DOWNSTREAM,
                listener, %peer, reason, left_out, "client rejected: {}", refused.why
            );
        }
    }
}
