//! The vocabulary of the table: what a client sends, what an upstream answers, what is right, and by which ways.

use std::fmt;

pub use crate::harness::exchange::{Point, Request, Version};
use crate::harness::{exchange::owned, frames::Fields};

/// How a message travels.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub client: Version,
    pub upstream: Version,
    /// A filter holds each body until its end.
    pub held: bool,
}

impl Way {
    /// Every way there is.
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

/// Some of the ways.
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
    /// It closes the connection.
    Close,
    /// RST, or RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY says that the request was not processed; then the connection is closed. HTTP/2 only.
    Goaway,
    /// It says no more and keeps the connection open.
    Silence,
}

/// What an upstream answers.
#[derive(Debug, Clone)]
pub struct Reply {
    pub interim: Vec<(u16, Fields)>,
    pub status: u16,
    pub fields: Fields,
    pub body: Option<Vec<Vec<u8>>>,
    pub trailers: Fields,
    pub cut: Option<(Point, How)>,
    /// It answers as soon as it has the head.
    pub early: bool,
    /// In HTTP/1.1, the connection's end is the body's.
    pub until_close: bool,
    /// Takes the place of the whole answer in HTTP/1.1, or of status and fields in HTTP/2.
    pub raw: Option<(String, Fields)>,
}

/// What the upstream sees if all is right.
#[derive(Clone, Copy)]
pub enum Up {
    /// The request, once changed so.
    Whole(fn(&mut Request)),
    /// Nothing at all.
    Nothing,
    /// No request that has ended.
    NotWhole,
    Anything,
}

/// What the client gets.
#[derive(Clone, Copy)]
pub enum Down {
    /// The answer, once changed so.
    Whole(fn(&mut Reply)),
    /// 400, or an error of this stream alone.
    Refused,
    /// An answer of the proxy's: its status, and `details` in the log.
    Own(u16, &'static str),
    /// An answer of the proxy's that says 5xx, or one that breaks off.
    Failed,
    /// It is gone.
    Left,
}

/// What is right.
#[derive(Clone, Copy)]
pub struct Want {
    pub up: Up,
    pub down: Down,
    pub flags: Flags,
}

/// What the flags in the access log say.
#[derive(Debug, Clone, Copy)]
pub enum Flags {
    /// Nothing.
    None,
    /// Something.
    Some,
    /// That the client went away. A request that nobody has begun to read has no line.
    Gone,
    Any,
}

/// A way that differs.
pub struct Exception {
    pub ways: Ways,
    pub kind: Kind,
    pub why: &'static str,
}

pub enum Kind {
    /// The version has no words for it.
    Inexpressible,
    /// Something else is right there.
    Otherwise(Want),
}

/// One message, and what should come of it.
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

    /// The request says this length.
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

    /// The client goes away at this point.
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

    /// Pseudo-fields for what other versions say with a request line.
    pub fn spelt(mut self, all: &[(&str, &str)]) -> Row {
        self.request.pseudo = Some(owned(all));
        self
    }

    /// What only HTTP/1.1 can say.
    pub fn raw(mut self, rest: &str) -> Row {
        self.request.raw = Some(rest.to_owned());
        self.not_from(&[Version::H2, Version::H3], "the framing of HTTP/1.1, which other versions have not")
    }

    /// The answer's status, fields and body.
    pub fn answer(mut self, status: u16, more: &[(&str, &str)], pieces: Option<&[&[u8]]>) -> Row {
        self.reply.status = status;
        self.reply.fields = owned(more);
        self.reply.body = pieces.map(|pieces| pieces.iter().map(|piece| piece.to_vec()).collect());
        self
    }

    /// An answer that only HTTP/1.1 can give.
    pub fn of_h1(self, raw: &str) -> Row {
        self.reply(|reply| reply.raw = Some((raw.to_owned(), Fields::new())))
            .not_to(Version::H2, "the framing of HTTP/1.1, which other versions have not")
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

    /// The request reaches nobody, and the client is told so.
    pub fn refused(self) -> Row {
        self.want(Up::Nothing, Down::Refused)
    }

    /// The request arrives changed so.
    pub fn arrives(mut self, change: fn(&mut Request)) -> Row {
        self.want.up = Up::Whole(change);
        self
    }

    /// The answer arrives changed so.
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

    /// Elsewhere something else is right.
    pub fn but(self, ways: Ways, up: Up, down: Down, why: &'static str) -> Row {
        let want = Row::new("").want(up, down).want;
        self.except(ways, Kind::Otherwise(want), why)
    }

    /// What differs in a way. The first one counts.
    pub fn exception(&self, way: Way) -> Option<&Exception> {
        self.exceptions.iter().find(|exception| exception.ways.include(way))
    }
}
