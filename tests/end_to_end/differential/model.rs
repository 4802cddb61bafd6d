//! The vocabulary of the table: what a client sends, what an upstream answers, the expected outcome, and the
//! combinations it applies to.

use std::fmt;

pub use crate::harness::exchange::{Point, Request, Version};
use crate::harness::{exchange::owned, frames::Fields};

/// A combination of versions and of a filter that holds bodies or none.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub client: Version,
    pub upstream: Version,
    /// Whether a filter holds each body until its end.
    pub held: bool,
}

impl Way {
    /// All combinations.
    pub fn all() -> Vec<Way> {
        let mut all = Vec::new();
        for client in [Version::H1, Version::H2, Version::H3] {
            for upstream in [Version::H1, Version::H2] {
                all.extend([false, true].map(|held| Way { client, upstream, held }));
            }
        }
        all
    }

    /// A name for listeners, clusters and files.
    pub fn name(self) -> String {
        format!("{self}").replace(' ', "-").to_lowercase()
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {:?}{}", self.client, self.upstream, if self.held { " held" } else { "" })
    }
}

/// A set of combinations.
#[derive(Debug, Clone, Copy)]
pub enum Ways {
    From(&'static [Version]),
    To(Version),
    Held,
    HeldTo(Version),
}

impl fmt::Display for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ways::From(clients) => write!(f, "from {clients:?}"),
            Ways::To(upstream) => write!(f, "to {upstream:?}"),
            Ways::Held => write!(f, "where bodies are held"),
            Ways::HeldTo(upstream) => write!(f, "to {upstream:?}, where bodies are held"),
        }
    }
}

impl Ways {
    pub fn include(self, way: Way) -> bool {
        match self {
            Ways::From(clients) => clients.contains(&way.client),
            Ways::To(upstream) => way.upstream == upstream,
            Ways::Held => way.held,
            Ways::HeldTo(upstream) => way.held && way.upstream == upstream,
        }
    }
}

/// How an upstream stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Closes the connection.
    Close,
    /// RST, or RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY for an unprocessed request, then the connection is closed. HTTP/2 only.
    Goaway,
    /// Sends nothing more and keeps the connection open.
    Silence,
}

/// An upstream's answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub interim: Vec<(u16, Fields)>,
    pub status: u16,
    pub fields: Fields,
    pub body: Option<Vec<Vec<u8>>>,
    pub trailers: Fields,
    pub cut: Option<(Point, How)>,
    /// Answers as soon as the head was received.
    pub early: bool,
    /// In HTTP/1.1, the end of the connection ends the body.
    pub until_close: bool,
    /// Replaces the whole answer in HTTP/1.1, or status and fields in HTTP/2.
    pub raw: Option<(String, Fields)>,
}

/// What the upstream must receive.
#[derive(Clone, Copy)]
pub enum Up {
    /// The request with these changes.
    Whole(fn(&mut Request)),
    /// Nothing.
    Nothing,
    /// No complete request.
    NotWhole,
    Anything,
}

/// What the client must receive.
#[derive(Clone, Copy)]
pub enum Down {
    /// The answer with these changes.
    Whole(fn(&mut Reply)),
    /// 400, or an error of this stream only.
    Refused,
    /// The proxy's local reply: its status, and `details` in the log.
    Own(u16, &'static str),
    /// The proxy's local reply with a 5xx status, or a truncated response.
    Failed,
    /// The client is gone.
    Left,
}

/// The expected outcome.
#[derive(Clone, Copy)]
pub struct Want {
    pub up: Up,
    pub down: Down,
    pub flags: Flags,
}

/// The expected flags in the access log.
#[derive(Debug, Clone, Copy)]
pub enum Flags {
    /// None.
    None,
    /// At least one.
    Some,
    /// The client disconnected. A request that was never read has no line.
    Gone,
    Any,
}

/// A combination with another outcome.
pub struct Exception {
    pub ways: Ways,
    pub kind: Kind,
    pub why: &'static str,
}

pub enum Kind {
    /// The version cannot express the message.
    Inexpressible,
    /// Another outcome is right there.
    Otherwise(Want),
}

/// A message and its expected outcome.
pub struct Row {
    pub name: &'static str,
    pub request: Request,
    pub reply: Reply,
    pub want: Want,
    pub exceptions: Vec<Exception>,
}

impl Row {
    /// `GET /`, answered with 200 and a short body.
    pub fn new(name: &'static str) -> Row {
        let reply = Reply {
            interim: Vec::new(),
            status: 200,
            fields: owned(&[("content-length", "2")]),
            body: Some(vec![b"ok".to_vec()]),
            trailers: Fields::new(),
            cut: None,
            early: false,
            until_close: false,
            raw: None,
        };
        let want = Want { up: Up::Whole(|_| {}), down: Down::Whole(|_| {}), flags: Flags::None };
        Row { name, request: Request::get("/"), reply, want, exceptions: Vec::new() }
    }

    pub fn method(mut self, method: &str) -> Row {
        method.clone_into(&mut self.request.method);
        self
    }

    pub fn target(mut self, target: &str) -> Row {
        target.clone_into(&mut self.request.target);
        self
    }

    pub fn host(mut self, host: Option<&str>) -> Row {
        self.request.host = host.map(str::to_owned);
        self
    }

    /// Adds fields to the request.
    pub fn with(mut self, more: &[(&str, &str)]) -> Row {
        self.request.fields.extend(owned(more));
        self
    }

    /// A `POST` with this body.
    pub fn post(mut self, pieces: &[&[u8]]) -> Row {
        "POST".clone_into(&mut self.request.method);
        self.body(pieces)
    }

    pub fn body(mut self, pieces: &[&[u8]]) -> Row {
        self.request.body = Some(pieces.iter().map(|piece| piece.to_vec()).collect());
        self
    }

    /// Declares this length for the request.
    pub fn length(self, length: &str) -> Row {
        self.with(&[("content-length", length)])
    }

    /// The client waits for 100 before it sends the body.
    pub fn waiting(mut self) -> Row {
        self.request.waits = true;
        self
    }

    pub fn trailers(mut self, trailers: &[(&str, &str)]) -> Row {
        self.request.trailers = owned(trailers);
        self
    }

    /// The client disconnects at this point.
    pub fn cut(mut self, point: Point) -> Row {
        self.request.cut = Some(point);
        self.want = Want { up: Up::NotWhole, down: Down::Left, flags: Flags::Gone };
        self
    }

    /// The client ends its direction of the connection at this point.
    pub fn half_closes(mut self, point: Point) -> Row {
        (self.request.cut, self.request.half) = (Some(point), true);
        self.want(Up::NotWhole, Down::Refused)
            .not_from(&[Version::H2, Version::H3], "there the end of a direction is the end of a message")
    }

    /// Only HTTP/2 and HTTP/3 have pseudo-fields.
    pub fn pseudo(mut self, all: &[(&str, &str)]) -> Row {
        self.request.pseudo = Some(owned(all));
        self.not_from(&[Version::H1], "HTTP/1.1 has no pseudo-fields")
    }

    /// Spells out the pseudo-fields; other versions use a request line.
    pub fn spelt(mut self, all: &[(&str, &str)]) -> Row {
        self.request.pseudo = Some(owned(all));
        self
    }

    /// Bytes that only HTTP/1.1 can express.
    pub fn raw(mut self, rest: &str) -> Row {
        self.request.raw = Some(rest.to_owned());
        self.not_from(&[Version::H2, Version::H3], "framing of HTTP/1.1, which other versions do not have")
    }

    /// The answer's status, fields and body.
    pub fn answer(mut self, status: u16, more: &[(&str, &str)], pieces: Option<&[&[u8]]>) -> Row {
        self.reply.status = status;
        self.reply.fields = owned(more);
        self.reply.body = pieces.map(|pieces| pieces.iter().map(|piece| piece.to_vec()).collect());
        self
    }

    /// An answer that only HTTP/1.1 can express.
    pub fn of_h1(self, raw: &str) -> Row {
        self.reply(|reply| reply.raw = Some((raw.to_owned(), Fields::new())))
            .not_to(Version::H2, "framing of HTTP/1.1, which other versions do not have")
    }

    pub fn interim(mut self, status: u16, more: &[(&str, &str)], times: usize) -> Row {
        self.reply.interim.extend((0..times).map(|_| (status, owned(more))));
        self
    }

    pub fn reply(mut self, change: impl FnOnce(&mut Reply)) -> Row {
        change(&mut self.reply);
        self
    }

    /// The upstream stops at this point.
    pub fn stops(mut self, point: Point, how: How) -> Row {
        self.reply.cut = Some((point, how));
        let down =
            if matches!(point, Point::Start | Point::Head) { Down::Own(502, "upstream_reset") } else { Down::Failed };
        self.want = Want { up: Up::Whole(|_| {}), down, flags: Flags::Some };
        self
    }

    pub fn want(mut self, up: Up, down: Down) -> Row {
        let flags = match down {
            Down::Whole(_) => Flags::None,
            Down::Own(..) | Down::Failed => Flags::Some,
            Down::Refused => Flags::Any,
            Down::Left => Flags::Gone,
        };
        self.want = Want { up, down, flags };
        self
    }

    /// The request does not reach the upstream, and the client gets an error.
    pub fn refused(self) -> Row {
        self.want(Up::Nothing, Down::Refused)
    }

    /// The request arrives with these changes.
    pub fn arrives(mut self, change: fn(&mut Request)) -> Row {
        self.want.up = Up::Whole(change);
        self
    }

    /// The client gets the answer with these changes.
    pub fn gets(mut self, change: fn(&mut Reply)) -> Row {
        self.want.down = Down::Whole(change);
        self
    }

    fn except(mut self, ways: Ways, kind: Kind, why: &'static str) -> Row {
        self.exceptions.push(Exception { ways, kind, why });
        self
    }

    pub fn not_from(self, clients: &'static [Version], why: &'static str) -> Row {
        self.except(Ways::From(clients), Kind::Inexpressible, why)
    }

    pub fn not_to(self, upstream: Version, why: &'static str) -> Row {
        self.except(Ways::To(upstream), Kind::Inexpressible, why)
    }

    pub fn not_held(self, why: &'static str) -> Row {
        self.except(Ways::Held, Kind::Inexpressible, why)
    }

    /// Another outcome is right there.
    pub fn but(self, ways: Ways, up: Up, down: Down, why: &'static str) -> Row {
        let want = Row::new("").want(up, down).want;
        self.except(ways, Kind::Otherwise(want), why)
    }

    /// The exception for a combination. The first match counts.
    pub fn exception(&self, way: Way) -> Option<&Exception> {
        self.exceptions.iter().find(|exception| exception.ways.include(way))
    }
}
