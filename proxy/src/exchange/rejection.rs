//! Clients that are turned away: why, how that is counted, and where it is said.

use std::net::SocketAddr;

use tollgate_abi::fast::flag;

use crate::{
    observe::{Detail, Seldom, detail, target},
    tls::Cause,
};

/// Why the proxy ended a connection on which no request could be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
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

impl Refusal {
    /// How many there are.
    pub const COUNT: usize = 9;
    /// All, with their names in metrics.
    pub const ALL: [(Refusal, &'static str); Refusal::COUNT] = [
        (Refusal::Limit, "limit"),
        (Refusal::Descriptors, "descriptors"),
        (Refusal::Silent, "silent"),
        (Refusal::ProxyProtocol, "proxy_protocol"),
        (Refusal::Protocol, "protocol"),
        (Refusal::Handshake, "handshake"),
        (Refusal::Http2, "http2"),
        (Refusal::Http3, "http3"),
        (Refusal::Flood, "flood"),
    ];

    /// The flag and the details in the access log, for connections that are ended before there was a request; none for others.
    pub(super) fn logged(self) -> Option<(u32, Detail)> {
        match self {
            Refusal::Silent => Some((flag::DOWNSTREAM_TIMEOUT, detail::HANDSHAKE_TIMEOUT)),
            Refusal::ProxyProtocol => Some((flag::DOWNSTREAM_PROTOCOL, detail::PROXY_PROTOCOL)),
            Refusal::Protocol => Some((flag::DOWNSTREAM_PROTOCOL, detail::UNKNOWN_PROTOCOL)),
            Refusal::Handshake => Some((flag::DOWNSTREAM_PROTOCOL, detail::TLS_HANDSHAKE)),
            Refusal::Limit | Refusal::Descriptors | Refusal::Http2 | Refusal::Http3 | Refusal::Flood => None,
        }
    }
}

/// A client that is turned away.
#[derive(Debug)]
pub struct Refused {
    /// What for.
    pub refusal: Refusal,
    /// Why its handshake failed, if it did.
    pub cause: Option<Cause>,
    /// The reason in words; empty if nobody need be told.
    pub why: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused::new(refusal, String::new())
    }
}

impl Refused {
    /// For a reason other than its handshake.
    pub fn new(refusal: Refusal, why: String) -> Refused {
        Refused { refusal, cause: None, why }
    }

    /// For a handshake that failed.
    pub fn handshake(cause: Cause, why: String) -> Refused {
        Refused { refusal: Refusal::Handshake, cause: Some(cause), why }
    }
}

/// When which refusals of a listener were logged.
#[derive(Debug, Default)]
pub struct Warned {
    refusals: [Seldom; Refusal::COUNT],
    handshakes: [Seldom; Cause::COUNT],
}

impl Warned {
    /// Logs one, unless one for the same reason was logged within the last minute.
    pub fn warn(&self, listener: &str, peer: SocketAddr, refused: &Refused) {
        let (seldom, reason) = match refused.cause {
            Some(cause) => (&self.handshakes[cause as usize], Cause::ALL[cause as usize].1),
            None => (&self.refusals[refused.refusal as usize], Refusal::ALL[refused.refusal as usize].1),
        };
        if let Some(left_out) = seldom.may_warn() {
            tracing::warn!(
                target: target::DOWNSTREAM,
                listener, %peer, reason, left_out, "a client was turned away: {}", refused.why
            );
        }
    }
}
