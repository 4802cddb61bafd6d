//! Why an endpoint was of no use, in words for whoever runs it: which step failed, what the system, TLS or HTTP had against it,
//! after how long, and what to change where that can be told.
//!
//! All of this is for failures: nothing here is done, or kept, for a request that gets its response.

use std::{error::Error, fmt, io, time::Duration};

use super::{Again, Cluster, Endpoint, FailureKind, ProtocolError, body::Broken};
use crate::{
    h1::HeadError,
    net::{FirstBytes, Looks},
    tls::{self, Peer},
};

/// Kinds of failures: of each kind an endpoint has a warning a minute at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
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

impl Trouble {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Trouble::Connect => "connect",
            Trouble::Timeout => "timeout",
            Trouble::Tls => "tls",
            Trouble::Reset => "reset",
            Trouble::Protocol => "protocol",
        }
    }
}

/// A step on the way to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Connect,
    ProxyHeader,
    Handshake,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Connect => "connecting",
            Step::ProxyHeader => "PROXY protocol header",
            Step::Handshake => "TLS handshake",
        })
    }
}

/// Why no connection to an endpoint could be opened.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct OpenError {
    /// The kind of failure.
    pub trouble: Trouble,
    /// Whether the cluster's `connect_timeout` had passed.
    pub timeout: bool,
    text: Box<str>,
}

/// What a step has failed for.
#[derive(Debug)]
pub(super) enum Cause {
    Io(io::Error),
    /// The cluster's `connect_timeout` has passed.
    Late(Duration),
    Tls(String),
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Cause {
        Cause::Io(error)
    }
}

impl OpenError {
    pub(super) fn new(step: Step, cause: &Cause, after: Duration) -> OpenError {
        let (trouble, text) = match cause {
            Cause::Late(limit) => {
                let hint = match step {
                    Step::Connect => "",
                    Step::ProxyHeader | Step::Handshake => ": the endpoint took the connection and did not answer",
                };
                (Trouble::Timeout, format!("{step}: no answer within {limit:?} (`connect_timeout`){hint}"))
            }
            Cause::Tls(why) => (Trouble::Tls, format!("{step}: {why} (after {after:.1?})")),
            Cause::Io(error) => {
                let trouble = if step == Step::Handshake { Trouble::Tls } else { Trouble::Connect };
                (trouble, format!("{step}: {error}, after {after:.1?}"))
            }
        };
        OpenError { trouble, timeout: matches!(cause, Cause::Late(_)), text: text.into() }
    }

    /// A connection that was not opened by a socket.
    pub(super) fn of(error: &io::Error) -> OpenError {
        OpenError { trouble: Trouble::Connect, timeout: false, text: error.to_string().into() }
    }
}

/// What is said of an endpoint that speaks something else than was expected of it.
pub(super) fn mismatch(expected: Looks, first: &FirstBytes) -> String {
    let (expected, hint) = match (expected, first.look()) {
        (Looks::Tls, Looks::Http1 | Looks::Http2) => {
            ("TLS", ": it speaks HTTP without TLS; take `tls` out of the cluster, or ask the port that has it")
        }
        (Looks::Tls, _) => ("TLS", ""),
        (Looks::Http2, Looks::Http1) => ("HTTP/2 (`protocol`)", ": it speaks HTTP/1.1; set `protocol: h1`"),
        (Looks::Http2, Looks::Tls) => ("HTTP/2 (`protocol`)", ": it speaks TLS; give the cluster a `tls` section"),
        (Looks::Http2, _) => ("HTTP/2 (`protocol`)", ""),
        (_, Looks::Http2) => ("HTTP/1.1 (`protocol`)", ": it speaks HTTP/2; set `protocol: h2`"),
        (_, Looks::Tls) => ("HTTP/1.1 (`protocol`)", ": it speaks TLS; give the cluster a `tls` section"),
        (_, _) => ("HTTP/1.1 (`protocol`)", ""),
    };
    match expected {
        "TLS" => format!("peer speaks no TLS: {first}{hint}"),
        expected => format!("expected {expected}: {first}{hint}"),
    }
}

impl FailureKind {
    /// What to say of the endpoint, if it is to blame; `after`: how long that took since the request was sent.
    pub fn reason(&self, after: Duration) -> Option<(Trouble, String)> {
        Some(match self {
            FailureKind::Connect(error) => (error.trouble, error.to_string()),
            FailureKind::Reset { source, in_head, .. } => {
                let place = if *in_head { "in the middle of the response's head" } else { "before a response" };
                let (trouble, why) = lost(source);
                (trouble, format!("{why}, {place}, after {after:.1?}"))
            }
            FailureKind::Protocol { source } => {
                let why = match source {
                    ProtocolError::Malformed(HeadError::Malformed | HeadError::Violation(_), first)
                        if first.look() != Looks::Http1 =>
                    {
                        mismatch(Looks::Http1, first)
                    }
                    ProtocolError::Http2(_, Some(first)) => mismatch(Looks::Http2, first),
                    ProtocolError::NoUpgrades => source.to_string(),
                    source => format!("the response is not valid: {}", chain_of(source)),
                };
                (Trouble::Protocol, format!("{why}, after {after:.1?}"))
            }
            FailureKind::RequestBody { .. }
            | FailureKind::Target
            | FailureKind::HeadTooLong { .. }
            | FailureKind::Overflow
            | FailureKind::Crowded(_) => return None,
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
        matches!(self, FailureKind::Reset { again: Again::Anew | Again::Alone, .. })
    }
}

impl Broken {
    /// What to say of the endpoint whose response ended early, after so many bytes of its body.
    pub fn reason(&self, bytes: u64) -> (Trouble, String) {
        let (trouble, why) = match self {
            Broken::Http2(error) | Broken::Malformed(error) => lost_h2(error),
            Broken::Connection(error) => lost(error),
            Broken::Framing(violation) => (Trouble::Protocol, violation.to_string()),
            Broken::TooLong(_) => (Trouble::Protocol, self.to_string()),
            Broken::Cut => (Trouble::Reset, self.to_string()),
        };
        (trouble, format!("{why}, after {bytes} bytes of the response's body"))
    }
}

/// The end of a connection on which HTTP/2 was spoken under TLS without the endpoint's word that it does so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unchosen(#[source] pub(super) io::Error);

/// What to say of a connection that has ended before its time.
pub fn lost(error: &io::Error) -> (Trouble, String) {
    if tls::tls_error(error).is_some() {
        return (Trouble::Tls, format!("TLS: {}", tls::explain(error, Peer::Server).1));
    }
    if let Some(Unchosen(error)) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
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
            (Trouble::Reset, "the endpoint closed the connection".to_owned())
        }
        _ => (Trouble::Reset, error.to_string()),
    }
}

fn lost_h2(error: &h2::Error) -> (Trouble, String) {
    if let Some(error) = error.get_io() {
        return lost(error);
    }
    let frame = if error.is_go_away() { "GOAWAY" } else { "RST_STREAM" };
    match error.reason() {
        Some(reason) if error.is_remote() => {
            // "connection error received: …", with the debug data of a GOAWAY: who has sent it is said already.
            let text = error.to_string();
            let text = text.split_once(" received: ").map_or(&*text, |(_, text)| text);
            (Trouble::Reset, format!("the endpoint sent {frame} {reason:?}: {text}"))
        }
        _ => (Trouble::Protocol, error.to_string()),
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
