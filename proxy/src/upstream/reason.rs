//! Why an endpoint was of no use, in words for whoever runs it: which step failed, what the system, TLS or HTTP had against it,
//! after how long, and what to change where that can be told.
//!
//! All of this is for failures: nothing here is done, or kept, for a request that gets its response.

use std::{error::Error, fmt, io, time::Duration};

use super::{Cluster, Endpoint, ProtocolError, RequestErrorKind, Retryable, body::UpstreamBodyError};
use crate::{
    h1::HeadError,
    net::{DetectedProtocol, FirstBytes},
    tls::{self, Peer},
};

/// Kinds of failures: of each kind an endpoint has a warning a minute at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCategory {
    /// There was no connection: refused, unreachable.
    Connect,
    /// Nothing came in time.
    Timeout,
    /// TLS has failed.
    Tls,
    /// The endpoint has ended the connection, or the request.
    Reset,
    /// The endpoint has said something that makes no sense.
    Protocol,
}

impl FailureCategory {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            FailureCategory::Connect => "connect",
            FailureCategory::Timeout => "timeout",
            FailureCategory::Tls => "tls",
            FailureCategory::Reset => "reset",
            FailureCategory::Protocol => "protocol",
        }
    }
}

/// A step on the way to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectStep {
    Connect,
    ProxyHeader,
    Handshake,
}

impl fmt::Display for ConnectStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectStep::Connect => "connecting",
            ConnectStep::ProxyHeader => "PROXY protocol header",
            ConnectStep::Handshake => "TLS handshake",
        })
    }
}

/// Why no connection to an endpoint could be opened.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct ConnectError {
    /// The kind of failure.
    pub trouble: FailureCategory,
    /// Whether the cluster's `connect_timeout` had passed.
    pub timeout: bool,
    text: Box<str>,
}

/// What a step has failed for.
#[derive(Debug)]
pub(super) enum ConnectErrorCause {
    Io(io::Error),
    /// The cluster's `connect_timeout` has passed.
    Late(Duration),
    Tls(String),
}

impl From<io::Error> for ConnectErrorCause {
    fn from(error: io::Error) -> ConnectErrorCause {
        ConnectErrorCause::Io(error)
    }
}

impl ConnectError {
    pub(super) fn new(step: ConnectStep, cause: &ConnectErrorCause, after: Duration) -> ConnectError {
        let (trouble, text) = match cause {
            ConnectErrorCause::Late(limit) => {
                let hint = match step {
                    ConnectStep::Connect => "",
                    ConnectStep::ProxyHeader | ConnectStep::Handshake => {
                        ": the endpoint took the connection and did not answer"
                    }
                };
                (FailureCategory::Timeout, format!("{step}: no answer within {limit:?} (`connect_timeout`){hint}"))
            }
            ConnectErrorCause::Tls(why) => (FailureCategory::Tls, format!("{step}: {why} (after {after:.1?})")),
            ConnectErrorCause::Io(error) => {
                let trouble =
                    if step == ConnectStep::Handshake { FailureCategory::Tls } else { FailureCategory::Connect };
                (trouble, format!("{step}: {error}, after {after:.1?}"))
            }
        };
        ConnectError { trouble, timeout: matches!(cause, ConnectErrorCause::Late(_)), text: text.into() }
    }

    /// A connection that was not opened by a socket.
    pub(super) fn of(error: &io::Error) -> ConnectError {
        ConnectError { trouble: FailureCategory::Connect, timeout: false, text: error.to_string().into() }
    }
}

/// What is said of an endpoint that speaks something else than was expected of it.
pub(super) fn mismatch(expected: DetectedProtocol, first: &FirstBytes) -> String {
    let (expected, hint) = match (expected, first.look()) {
        (DetectedProtocol::Tls, DetectedProtocol::Http1 | DetectedProtocol::Http2) => {
            ("TLS", ": it speaks HTTP without TLS; take `tls` out of the cluster, or ask the port that has it")
        }
        (DetectedProtocol::Tls, _) => ("TLS", ""),
        (DetectedProtocol::Http2, DetectedProtocol::Http1) => {
            ("HTTP/2 (`protocol`)", ": it speaks HTTP/1.1; set `protocol: h1`")
        }
        (DetectedProtocol::Http2, DetectedProtocol::Tls) => {
            ("HTTP/2 (`protocol`)", ": it speaks TLS; give the cluster a `tls` section")
        }
        (DetectedProtocol::Http2, _) => ("HTTP/2 (`protocol`)", ""),
        (_, DetectedProtocol::Http2) => ("HTTP/1.1 (`protocol`)", ": it speaks HTTP/2; set `protocol: h2`"),
        (_, DetectedProtocol::Tls) => ("HTTP/1.1 (`protocol`)", ": it speaks TLS; give the cluster a `tls` section"),
        (_, _) => ("HTTP/1.1 (`protocol`)", ""),
    };
    match expected {
        "TLS" => format!("peer speaks no TLS: {first}{hint}"),
        expected => format!("expected {expected}: {first}{hint}"),
    }
}

impl RequestErrorKind {
    /// What to say of the endpoint, if it is to blame; `after`: how long that took since the request was sent.
    pub fn reason(&self, after: Duration) -> Option<(FailureCategory, String)> {
        Some(match self {
            RequestErrorKind::Connect(error) => (error.trouble, error.to_string()),
            RequestErrorKind::Reset { source, in_head, .. } => {
                let place = if *in_head { "in the middle of the response's head" } else { "before a response" };
                let (trouble, why) = lost(source);
                (trouble, format!("{why}, {place}, after {after:.1?}"))
            }
            RequestErrorKind::Protocol { source } => {
                let why = match source {
                    ProtocolError::Malformed(HeadError::Malformed | HeadError::Violation(_), first)
                        if first.look() != DetectedProtocol::Http1 =>
                    {
                        mismatch(DetectedProtocol::Http1, first)
                    }
                    ProtocolError::Http2(_, Some(first)) => mismatch(DetectedProtocol::Http2, first),
                    ProtocolError::NoUpgrades => source.to_string(),
                    source => format!("the response is not valid: {}", chain_of(source)),
                };
                (FailureCategory::Protocol, format!("{why}, after {after:.1?}"))
            }
            RequestErrorKind::RequestBody { .. }
            | RequestErrorKind::Target
            | RequestErrorKind::HeadTooLong { .. }
            | RequestErrorKind::Overflow
            | RequestErrorKind::Crowded(_) => return None,
        })
    }

    /// Notes it, for a request that has no line in the access log.
    #[cold]
    pub fn note(&self, cluster: &Cluster, endpoint: &Endpoint, after: Duration) {
        if let Some((trouble, why)) = self.reason(after) {
            endpoint.note_failure(&cluster.name, trouble, &why);
        }
    }

    /// Whether the request may have nothing to do with it: an upstream may close a connection that is idle while a request is on its
    /// way to it (RFC 9112 section 9.3.1), or for the sake of another request.
    pub fn is_stale(&self) -> bool {
        matches!(self, RequestErrorKind::Reset { again: Retryable::Anew | Retryable::Alone, .. })
    }
}

impl UpstreamBodyError {
    /// What to say of the endpoint whose response ended early, after so many bytes of its body.
    pub fn reason(&self, bytes: u64) -> (FailureCategory, String) {
        let (trouble, why) = match self {
            UpstreamBodyError::Http2(error) | UpstreamBodyError::Malformed(error) => lost_h2(error),
            UpstreamBodyError::Connection(error) => lost(error),
            UpstreamBodyError::Framing(violation) => (FailureCategory::Protocol, violation.to_string()),
            UpstreamBodyError::TooLong(_) => (FailureCategory::Protocol, self.to_string()),
            UpstreamBodyError::Cut => (FailureCategory::Reset, self.to_string()),
        };
        (trouble, format!("{why}, after {bytes} bytes of the response's body"))
    }
}

/// The end of a connection on which HTTP/2 was spoken under TLS without the endpoint's word that it does so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct AlpnMismatch(#[source] pub(super) io::Error);

/// What to say of a connection that has ended before its time.
pub fn lost(error: &io::Error) -> (FailureCategory, String) {
    if tls::tls_error(error).is_some() {
        return (FailureCategory::Tls, format!("TLS: {}", tls::explain(error, Peer::Server).1));
    }
    if let Some(AlpnMismatch(error)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        let (trouble, why) = lost(error);
        let hint = "the endpoint chose no protocol by ALPN: if it speaks HTTP/1.1, set `protocol: h1`";
        return (trouble, format!("{why} ({hint})"));
    }
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<h2::Error>()) {
        return lost_h2(error);
    }
    match error.kind() {
        // h2's word for the end of a connection is a broken pipe; the system's has a number.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe if error.raw_os_error().is_none() => {
            (FailureCategory::Reset, "the endpoint closed the connection".to_owned())
        }
        _ => (FailureCategory::Reset, error.to_string()),
    }
}

fn lost_h2(error: &h2::Error) -> (FailureCategory, String) {
    if let Some(error) = error.get_io() {
        return lost(error);
    }
    let frame = if error.is_go_away() { "GOAWAY" } else { "RST_STREAM" };
    match error.reason() {
        Some(reason) if error.is_remote() => {
            // "connection error received: …", with the debug data of a GOAWAY: who has sent it is said already.
            let text = error.to_string();
            let text = text.split_once(" received: ").map_or(&*text, |(_, text)| text);
            (FailureCategory::Reset, format!("the endpoint sent {frame} {reason:?}: {text}"))
        }
        _ => (FailureCategory::Protocol, error.to_string()),
    }
}

/// An error with all its sources.
pub fn chain_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}
