//! One request and its outcome in any version of HTTP, so that a table of requests can run over all of them. Each
//! [`Speaker`] sends exactly what it is given, valid or not, and its outcome has the same type in each version.

mod everywhere;
mod h1;
mod h2;
#[cfg(feature = "http3")]
mod h3;

use std::time::Duration;

#[cfg(feature = "http3")]
pub use self::h3::SpeakerH3;
pub use self::{
    everywhere::Everywhere,
    h1::{SpeakerH1, lower},
    h2::SpeakerH2,
};
use super::frames::Fields;

/// How long a client waits for a 100 before it sends its body anyway.
const PATIENCE: Duration = Duration::from_secs(1);

/// The version of HTTP on one side of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    H1,
    H2,
    H3,
}

/// The point at which a message stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before the first byte.
    Start,
    /// Within the head.
    Head,
    /// Between head and body.
    Body,
    /// After the first piece of the body.
    Piece,
    /// After the body, before the end of the message: the last chunk, END_STREAM, FIN, or trailers.
    End,
    /// Within the trailers.
    Trailers,
    /// After the end.
    After,
}

/// A client's request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub host: Option<String>,
    pub fields: Fields,
    /// The body in pieces: chunks, or frames. `None` if the head ends the message.
    pub body: Option<Vec<Vec<u8>>>,
    pub trailers: Fields,
    /// Where the client aborts: it resets the stream or the connection.
    pub cut: Option<Point>,
    /// Whether the client instead only closes its direction of the connection, and keeps reading. HTTP/1.1 only.
    pub half: bool,
    /// Whether the body waits for an interim response.
    pub waits: bool,
    /// Replaces method, target and host in HTTP/2 and HTTP/3.
    pub pseudo: Option<Fields>,
    /// Replaces everything after the field `Host` in HTTP/1.1.
    pub raw: Option<String>,
}

impl Request {
    /// A `GET` of this target at the host `web.test`.
    pub fn get(target: &str) -> Request {
        Request {
            method: "GET".to_owned(),
            target: target.to_owned(),
            host: Some("web.test".to_owned()),
            fields: Fields::new(),
            body: None,
            trailers: Fields::new(),
            cut: None,
            half: false,
            waits: false,
            pseudo: None,
            raw: None,
        }
    }

    /// Adds fields.
    pub fn with(mut self, more: &[(&str, &str)]) -> Request {
        self.fields.extend(owned(more));
        self
    }

    /// The fields of the head in HTTP/2 and HTTP/3.
    fn head(&self, scheme: &str) -> Fields {
        let mut all = self.pseudo.clone().unwrap_or_else(|| {
            let mut usual = owned(&[(":method", &self.method), (":scheme", scheme)]);
            usual.extend(self.host.iter().map(|host| (":authority".to_owned(), host.clone())));
            usual.push((":path".to_owned(), self.target.clone()));
            usual
        });
        all.extend(self.fields.iter().cloned());
        all
    }
}

/// A response as received by a client; field names are in lower case.
#[derive(Debug, Default)]
pub struct Response {
    pub interim: Vec<(u16, Fields)>,
    pub status: u16,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
}

/// The outcome of a request for the client.
#[derive(Debug)]
pub enum Outcome {
    Whole(Response),
    /// Aborted; with the status, if a head was received.
    Broken {
        status: Option<u16>,
        end: End,
    },
    /// None: the client itself disconnected.
    Left,
}

/// How an exchange was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The HTTP/1.1 connection ended, which serves one exchange at a time.
    Closed,
    /// The stream was reset, with this code.
    Reset(u64),
    /// The response ended, but does not match its head.
    Unfit,
    /// The HTTP/2 or HTTP/3 connection ended, with this code if there was one, and with it other exchanges.
    Connection(Option<u64>),
}

impl End {
    /// Whether other exchanges continue.
    pub fn is_alone(self) -> bool {
        !matches!(self, End::Connection(_))
    }
}

impl Outcome {
    /// The outcome from blocks of fields and a body, in a version with streams. `end` is how the stream ended, if not
    /// normally.
    fn of(blocks: Vec<Fields>, body: Vec<u8>, end: Option<End>, method: &str) -> Outcome {
        let mut response = Response { body, ..Response::default() };
        // Not every peer can read one.
        let is_empty = blocks.iter().any(Fields::is_empty);
        for block in blocks {
            let status = block.iter().find(|(name, _)| name == ":status").and_then(|(_, value)| value.parse().ok());
            match status {
                Some(status @ 100..=199) => response.interim.push((status, block)),
                Some(status) => (response.status, response.fields) = (status, block),
                None => response.trailers = block,
            }
        }
        let length = response.fields.iter().find(|(name, _)| name == "content-length");
        let fits = method == "HEAD"
            || response.status == 304
            || length.is_none_or(|(_, length)| *length == response.body.len().to_string());
        match end {
            None if fits && !is_empty && response.status != 0 => Outcome::Whole(response),
            _ => Outcome::Broken {
                status: Some(response.status).filter(|status| *status != 0),
                end: end.unwrap_or(End::Unfit),
            },
        }
    }

    /// The status; also 400 for a stream that was reset because its request is malformed, which is equivalent.
    #[track_caller]
    pub fn status(&self) -> u16 {
        match self {
            Outcome::Whole(response) => response.status,
            // PROTOCOL_ERROR (RFC 9113 section 8.1.1) and H3_MESSAGE_ERROR (RFC 9114 section 4.1.2).
            Outcome::Broken { status: None, end: End::Reset(1 | 0x10e) } => 400,
            other => panic!("{other:?}"),
        }
    }
}

/// A client of one version.
pub trait Speaker {
    fn version(&self) -> Version;

    /// Sends a request and waits for the outcome. `leave` is called before the client aborts.
    fn exchange_until(&mut self, request: &Request, leave: &mut dyn FnMut()) -> Outcome;

    /// The same for a client that does not abort.
    fn exchange(&mut self, request: &Request) -> Outcome {
        self.exchange_until(request, &mut || ())
    }
}

/// Fields with owned text.
pub fn owned(list: &[(&str, &str)]) -> Fields {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Borrowed fields, as encoders take them.
pub fn borrowed(fields: &Fields) -> Vec<(&str, &str)> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
