//! Explanations of upstream failures for operators: the step that failed, the error of the system, TLS or HTTP, the
//! time it took, and what to change where that is known.
//!
//! Only failures use this: nothing here is computed or stored for a successful request.

use std::{error::Error, fmt, io, time::Duration};

use super::{Cluster, Endpoint, ProtocolError, RequestErrorKind, Retryable, body::UpstreamBodyError};
use crate::{
    h1::HeadError,
    net::{DetectedProtocol, FirstBytes},
    tls::{self, Peer},
};

/// Kinds of failures. Each is logged at most once a minute per endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCategory {
    /// Connecting failed: refused, unreachable.
    Connect,
    /// Nothing was received in time.
    Timeout,
    /// TLS failed.
    Tls,
    /// The endpoint ended the connection or the request.
    Reset,
    /// The endpoint violated the protocol.
    Protocol,
}

impl FailureCategory {
    /// Number of kinds.
    pub const COUNT: usize = 5;

    /// Returns the name.
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

/// A step of opening a connection.
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

/// The reason why a connection to an endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct ConnectError {
    /// The kind of failure.
    pub trouble: FailureCategory,
    /// Whether the cluster's `connect_timeout` expired.
    pub timeout: bool,
    text: Box<str>,
}

/// The cause of a failed step.
#[derive(Debug)]
pub(super) enum ConnectErrorCause {
    Io(io::Error),
    /// The cluster's `connect_timeout` expired.
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
                        ": the endpoint accepted the connection but did not answer"
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

    /// Creates an error for a connection that was not opened by a socket.
    pub(super) fn of(error: &io::Error) -> ConnectError {
        ConnectError { trouble: FailureCategory::Connect, timeout: false, text: error.to_string().into() }
    }
}

/// Describes an endpoint that speaks another protocol than expected.
pub(super) fn mismatch(expected: DetectedProtocol, first: &FirstBytes) -> String {
    let (expected, hint) = match (expected, first.look()) {
        (DetectedProtocol::Tls, DetectedProtocol::Http1 | DetectedProtocol::Http2) => {
            ("TLS", ": it speaks HTTP without TLS; remove `tls` from the cluster, or use the TLS port")
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
        "TLS" => format!("peer does not speak TLS: {first}{hint}"),
        expected => format!("expected {expected}: {first}{hint}"),
    }
}

impl RequestErrorKind {
    /// Describes the failure if the endpoint is to blame; `after`: time since the request was sent.
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

    /// Returns whether the endpoint has failed: not one that merely closed an idle connection.
    pub fn is_of_endpoint(&self) -> bool {
        match self {
            RequestErrorKind::Connect(_) | RequestErrorKind::Protocol { .. } => true,
            RequestErrorKind::Reset { .. } => !self.is_stale(),
            RequestErrorKind::RequestBody { .. }
            | RequestErrorKind::Target
            | RequestErrorKind::HeadTooLong { .. }
            | RequestErrorKind::Overflow
            | RequestErrorKind::Crowded(_) => false,
        }
    }

    /// Records the failure of a request that has no entry in the access log.
    #[cold]
    pub fn note(&self, cluster: &Cluster, endpoint: &Endpoint, after: Duration) {
        if let Some((trouble, why)) = self.reason(after) {
            endpoint.note_failure(&cluster.name, trouble, &why);
        }
    }

    /// Returns whether the request may not be the cause: an upstream may close an idle connection while a request is on
    /// its way (RFC 9112 section 9.3.1), or because of another request.
    pub fn is_stale(&self) -> bool {
        matches!(self, RequestErrorKind::Reset { again: Retryable::NewConnection | Retryable::Alone, .. })
    }
}

impl UpstreamBodyError {
    /// Describes the failure of an endpoint whose response ended early, after this many bytes of its body.
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

/// The end of a connection on which HTTP/2 was assumed, because the endpoint chose no protocol by ALPN.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct AlpnMismatch(#[source] pub(super) io::Error);

/// Describes a connection that ended early.
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
        // h2 reports the end of a connection as a broken pipe; the system's error has a number.
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
            // The text is "connection error received: …", with the debug data of a GOAWAY. The first part is dropped, since the
            // message below names the sender.
            let text = error.to_string();
            let text = text.split_once(" received: ").map_or(&*text, |(_, text)| text);
            (FailureCategory::Reset, format!("the endpoint sent {frame} {reason:?}: {text}"))
        }
        _ => (FailureCategory::Protocol, error.to_string()),
    }
}

/// Returns an error's text followed by those of all its sources.
pub fn chain_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}
