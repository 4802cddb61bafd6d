//! Clients that are turned away: why, how that is counted, and where it is said.

use std::net::SocketAddr;

use tollgate_abi::fast::flag;

use crate::{
    observe::{Detail, LogLimiter, detail, target},
    tls::HandshakeError,
};

/// Why the proxy ended a connection on which no request could be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// The listener has as many as it may.
    Limit,
    /// There are no more file descriptors for clients.
    Descriptors,
    /// Nothing that shows what is spoken has come in time.
    Silent,
    /// The PROXY protocol's header is wrong, or missing.
    ProxyProtocol,
    /// What is spoken is none of what the listener takes.
    Protocol,
    /// The TLS handshake has failed.
    Handshake,
    /// The client broke HTTP/2 (RFC 9113).
    Http2,
    /// The client broke HTTP/3 (RFC 9114).
    Http3,
    /// The client sent so much of what leads to nothing that it must be an attack.
    Flood,
}

impl RejectReason {
    /// How many there are.
    pub const COUNT: usize = 9;
    /// All, with their names in metrics.
    pub const ALL: [(RejectReason, &'static str); RejectReason::COUNT] = [
        (RejectReason::Limit, "limit"),
        (RejectReason::Descriptors, "descriptors"),
        (RejectReason::Silent, "silent"),
        (RejectReason::ProxyProtocol, "proxy_protocol"),
        (RejectReason::Protocol, "protocol"),
        (RejectReason::Handshake, "handshake"),
        (RejectReason::Http2, "http2"),
        (RejectReason::Http3, "http3"),
        (RejectReason::Flood, "flood"),
    ];

    /// The flag and the details in the access log, for connections that are ended before there was a request; none for others.
    pub(super) fn logged(self) -> Option<(u32, Detail)> {
        match self {
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

/// A client that is turned away.
#[derive(Debug)]
pub struct RejectedConnection {
    /// What for.
    pub refusal: RejectReason,
    /// Why its handshake failed, if it did.
    pub cause: Option<HandshakeError>,
    /// The reason in words; empty if nobody need be told.
    pub why: String,
}

impl From<RejectReason> for RejectedConnection {
    fn from(refusal: RejectReason) -> RejectedConnection {
        RejectedConnection::new(refusal, String::new())
    }
}

impl RejectedConnection {
    /// For a reason other than its handshake.
    pub fn new(refusal: RejectReason, why: String) -> RejectedConnection {
        RejectedConnection { refusal, cause: None, why }
    }

    /// For a handshake that failed.
    pub fn handshake(cause: HandshakeError, why: String) -> RejectedConnection {
        RejectedConnection { refusal: RejectReason::Handshake, cause: Some(cause), why }
    }
}

/// When which refusals of a listener were logged.
#[derive(Debug, Default)]
pub struct RejectLogLimiter {
    refusals: [LogLimiter; RejectReason::COUNT],
    handshakes: [LogLimiter; HandshakeError::COUNT],
}

impl RejectLogLimiter {
    /// Logs one, unless one for the same reason was logged within the last minute.
    pub fn warn(&self, listener: &str, peer: SocketAddr, refused: &RejectedConnection) {
        let (seldom, reason) = match refused.cause {
            Some(cause) => (&self.handshakes[cause as usize], HandshakeError::ALL[cause as usize].1),
            None => (&self.refusals[refused.refusal as usize], RejectReason::ALL[refused.refusal as usize].1),
        };
        if let Some(left_out) = seldom.may_warn() {
            tracing::warn!(
                target: target::DOWNSTREAM,
                listener, %peer, reason, left_out, "a client was turned away: {}", refused.why
            );
        }
    }
}
