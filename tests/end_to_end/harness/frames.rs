//! HTTP/2 by hand: a test can send any frames, valid or not, from either end of a connection. Routine work (the
//! preface, acknowledgements, windows) is done unless a test disables it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Error, ErrorKind},
    net::{SocketAddr, TcpStream},
};

use super::wire::Wire;

/// Frame types (RFC 9113 section 6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub mod flag {
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
}

/// Settings (RFC 9113 section 6.5.2).
pub mod setting {
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// Error codes (RFC 9113 section 7).
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const CONNECT_ERROR: u32 = 10;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// The client connection preface (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A window that no test uses up.
const WIDE: u32 = 1 << 30;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The encoded frame.
    pub fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// The error code of a RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    /// The last processed stream according to a GOAWAY.
    pub fn last_stream(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().expect("four bytes"))
    }
}

/// A list of fields.
pub type Fields = Vec<(String, String)>;

/// What was received on one stream.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// Each received block of fields: interim heads, the head, trailers.
    pub blocks: Vec<Fields>,
    pub body: Vec<u8>,
    /// Whether the stream ended with END_STREAM.
    pub ended: bool,
    /// The code of the stream's reset, if any.
    pub reset: Option<u32>,
}

impl Message {
    /// The only value of a field of the head, pseudo-fields included. Panics if there are several.
    pub fn field(&self, name: &str) -> Option<&str> {
        let head = self.head()?;
        let all: Vec<&str> = head.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
        assert!(all.len() < 2, "several values of {name}: {all:?}");
        all.first().copied()
    }

    /// The head: the first block that is not interim.
    pub fn head(&self) -> Option<&Fields> {
        self.blocks.iter().find(|b| !b.iter().any(|(n, v)| n == ":status" && v.starts_with('1')))
    }

    /// The status; 0 if no head was received.
    pub fn status(&self) -> u16 {
        self.field(":status").map_or(0, |s| s.parse().expect("a status"))
    }

    /// The value of a trailer field.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        let block = self.blocks.last().filter(|b| !b.iter().any(|(n, _)| n.starts_with(':')))?;
        block.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("the body is text")
    }
}

/// One end of a connection.
pub struct H2 {
    pub wire: Wire,
    decoder: loona_hpack::Decoder<'static>,
    messages: BTreeMap<u32, Message>,
    block: Option<(u32, Vec<u8>, bool)>,
    next: u32,
    /// Received requests, on the server side.
    served: BTreeSet<u32>,
    /// Whether windows are enlarged as bytes arrive. If not, bodies stop when the initial windows are used up.
    pub generous: bool,
    /// Whether pings are answered.
    pub answers_pings: bool,
    /// The peer's settings from its last SETTINGS.
    pub settings: BTreeMap<u16, u32>,
    /// Received GOAWAYs.
    pub goaways: Vec<Frame>,
    /// Received pings, without acknowledgements.
    pub pings: usize,
    /// What can still be sent: on the connection, and on each stream beyond its initial window.
    windows: BTreeMap<u32, i64>,
}

impl H2 {
    /// Opens a connection as a client, with these settings.
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> H2 {
        let stream = TcpStream::connect(address).expect("the proxy accepts connections");
        let mut h2 = H2::new(Wire::new(stream));
        h2.raw(PREFACE);
        h2.settings(settings);
        h2
    }

    /// Opens a connection as a client.
    pub fn connect(address: SocketAddr) -> H2 {
        let mut h2 = H2::connect_with(address, &[(setting::INITIAL_WINDOW_SIZE, WIDE)]);
        h2.window(0, WIDE);
        h2
    }

    /// Starts the server side of a new connection.
    pub fn accept(mut wire: Wire, settings: &[(u16, u32)]) -> io::Result<H2> {
        match wire.read_exact(PREFACE.len())? == PREFACE {
            true => Ok(H2::accepted(wire, settings)),
            false => Err(Error::new(ErrorKind::InvalidData, "no preface")),
        }
    }

    /// The same if the preface was already read.
    pub fn accepted(wire: Wire, settings: &[(u16, u32)]) -> H2 {
        let mut h2 = H2::new(wire);
        h2.settings(settings);
        h2
    }

    fn new(wire: Wire) -> H2 {
        H2 {
            wire,
            decoder: loona_hpack::Decoder::new(),
            messages: BTreeMap::new(),
            block: None,
            next: 1,
            served: BTreeSet::new(),
            generous: true,
            answers_pings: true,
            settings: BTreeMap::new(),
            goaways: Vec::new(),
            pings: 0,
            // RFC 9113 section 6.9.2.
            windows: BTreeMap::from([(0, 65_535)]),
        }
    }

    /// Sends bytes unchanged; whether the peer reads them is noticed when reading.
    pub fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.wire.send(bytes);
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.raw(Frame::bytes(kind, flags, stream, payload));
    }

    /// Sends SETTINGS.
    pub fn settings(&mut self, settings: &[(u16, u32)]) {
        let payload: Vec<u8> =
            settings.iter().flat_map(|(k, v)| [&k.to_be_bytes()[..], &v.to_be_bytes()].concat()).collect();
        self.send(kind::SETTINGS, 0, 0, &payload);
    }

    /// Enlarges a window.
    pub fn window(&mut self, stream: u32, bytes: u32) {
        self.send(kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    }

    /// Resets a stream.
    pub fn reset(&mut self, stream: u32, code: u32) {
        self.send(kind::RST_STREAM, 0, stream, &code.to_be_bytes());
    }

    /// Announces that no stream after this one is processed.
    pub fn goaway(&mut self, last: u32, code: u32) {
        self.send(kind::GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat());
    }

    /// Sends a block of fields, in frames of the size that every peer accepts.
    pub fn headers(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) {
        let block = encode(fields);
        let (mut kind, mut flags) = (kind::HEADERS, if end { flag::END_STREAM } else { 0 });
        let mut parts = block.chunks(16 << 10).peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                flags |= flag::END_HEADERS;
            }
            self.send(kind, flags, stream, part);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }

    /// Sends data, in frames of the size that every peer accepts.
    pub fn data(&mut self, stream: u32, body: &[u8], end: bool) {
        let mut parts = body.chunks(16 << 10).peekable();
        if parts.peek().is_none() {
            return self.send(kind::DATA, u8::from(end), stream, b"");
        }
        while let Some(part) = parts.next() {
            self.send(kind::DATA, u8::from(end && parts.peek().is_none()), stream, part);
        }
    }

    /// The number of bytes that can be sent on a stream now.
    pub fn window_of(&self, stream: u32) -> usize {
        let initial = i64::from(self.settings.get(&setting::INITIAL_WINDOW_SIZE).copied().unwrap_or(65_535));
        let own = initial + self.windows.get(&stream).copied().unwrap_or(0);
        own.min(self.windows[&0]).try_into().unwrap_or(0)
    }

    /// Sends as much data as the windows allow now, and returns the number of bytes.
    pub fn data_within(&mut self, stream: u32, body: &[u8]) -> usize {
        let allowed = self.window_of(stream).min(body.len());
        if allowed > 0 {
            self.data(stream, &body[..allowed], false);
            for window in [0, stream] {
                *self.windows.entry(window).or_default() -= allowed as i64;
            }
        }
        allowed
    }

    /// Sends a whole body, waiting for windows.
    pub fn upload(&mut self, stream: u32, mut body: &[u8]) {
        while !body.is_empty() {
            match self.data_within(stream, body) {
                0 => _ = self.read().expect("a window"),
                sent => body = &body[sent..],
            }
        }
        self.send(kind::DATA, flag::END_STREAM, stream, b"");
    }

    /// The id of the next stream that a client opens.
    pub fn next_stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    /// Opens a stream with exactly these fields.
    pub fn open(&mut self, fields: &[(&str, &str)], end: bool) -> u32 {
        let stream = self.next_stream();
        self.headers(stream, fields, end);
        stream
    }

    /// Opens a stream with a valid head: method, path, scheme, authority `test`, and further fields.
    pub fn request(&mut self, method: &str, path: &str, fields: &[(&str, &str)], end: bool) -> u32 {
        self.open(&head(method, path, fields), end)
    }

    /// Sends a whole request and returns its response.
    pub fn exchange(&mut self, method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Message {
        let stream = self.request(method, path, fields, body.is_empty());
        if !body.is_empty() {
            self.data(stream, body, true);
        }
        self.response(stream)
    }

    /// Sends a `GET` and returns its response.
    pub fn get(&mut self, path: &str) -> Message {
        self.exchange("GET", path, &[], b"")
    }

    /// Begins a `POST`: sends its head, and a part of its body.
    pub fn begin(&mut self, path: &str, fields: &[(&str, &str)], part: &[u8]) -> u32 {
        let stream = self.request("POST", path, fields, false);
        self.data(stream, part, false);
        stream
    }

    /// Reads the next frame, and answers it if every peer must. `UnexpectedEof` if the connection ends instead.
    pub fn read(&mut self) -> io::Result<Frame> {
        let head = self.wire.read_exact(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes(head[5..9].try_into().expect("four bytes")) & (u32::MAX >> 1);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload: self.wire.read_exact(length)? };
        self.note(&frame);
        Ok(frame)
    }

    fn note(&mut self, frame: &Frame) {
        let message = self.messages.entry(frame.stream).or_default();
        match frame.kind {
            kind::DATA => {
                message.body.extend_from_slice(&frame.payload);
                message.ended |= frame.flags & flag::END_STREAM != 0;
                let length = frame.payload.len() as u32;
                if self.generous && length > 0 {
                    self.window(0, length);
                    self.window(frame.stream, length);
                }
            }
            kind::HEADERS | kind::CONTINUATION => {
                let ends = frame.kind == kind::HEADERS && frame.flags & flag::END_STREAM != 0;
                let (_, block, _) = self.block.get_or_insert((frame.stream, Vec::new(), ends));
                // None of our peers pads heads, or gives them priorities.
                block.extend_from_slice(&frame.payload);
                if frame.flags & flag::END_HEADERS != 0 {
                    let (stream, block, ends) = self.block.take().expect("it was put there");
                    let fields = self.decoder.decode(&block).expect("a block of fields");
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    let fields = fields.into_iter().map(|(n, v)| (text(n), text(v))).collect();
                    let message = self.messages.entry(stream).or_default();
                    message.blocks.push(fields);
                    message.ended |= ends;
                }
            }
            kind::RST_STREAM => message.reset = Some(frame.code()),
            kind::SETTINGS if frame.flags & flag::ACK == 0 => {
                for pair in frame.payload.chunks(6) {
                    let value = u32::from_be_bytes(pair[2..].try_into().expect("four bytes"));
                    self.settings.insert(u16::from_be_bytes([pair[0], pair[1]]), value);
                }
                self.send(kind::SETTINGS, flag::ACK, 0, b"");
            }
            kind::PING if frame.flags & flag::ACK == 0 => {
                self.pings += 1;
                if self.answers_pings {
                    self.send(kind::PING, flag::ACK, 0, &frame.payload);
                }
            }
            kind::WINDOW_UPDATE => {
                let bytes = u32::from_be_bytes(frame.payload[..].try_into().expect("four bytes"));
                *self.windows.entry(frame.stream).or_default() += i64::from(bytes);
            }
            kind::GOAWAY => self.goaways.push(frame.clone()),
            _ => {}
        }
    }

    /// Reads until a frame matches.
    pub fn read_until(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            match self.read() {
                Ok(frame) if wanted(&frame) => return frame,
                Ok(_) => {}
                Err(error) => panic!("{error} while waiting for {what}; goaways: {:?}", self.goaways),
            }
        }
    }

    /// Reads until the message on a stream matches, and returns it.
    pub fn wait(&mut self, stream: u32, what: &str, wanted: impl Fn(&Message) -> bool) -> Message {
        loop {
            let message = self.messages.entry(stream).or_default();
            if wanted(message) {
                return message.clone();
            }
            if let Err(error) = self.read() {
                let message = &self.messages[&stream];
                panic!("{error} while waiting for {what} on stream {stream}: {message:?}, goaways: {:?}", self.goaways);
            }
        }
    }

    /// What was received on a stream so far.
    pub fn so_far(&self, stream: u32) -> Message {
        self.messages.get(&stream).cloned().unwrap_or_default()
    }

    /// Reads until a stream has ended, in whatever way.
    pub fn response(&mut self, stream: u32) -> Message {
        self.wait(stream, "its end", |message| message.ended || message.reset.is_some())
    }

    /// Waits for the next complete request. `UnexpectedEof` if the connection ends instead.
    pub fn next_request(&mut self) -> io::Result<(u32, Message)> {
        self.next_with(|message| message.ended)
    }

    /// Waits for the next request whose head was received.
    pub fn next_head(&mut self) -> io::Result<(u32, Message)> {
        self.next_with(|message| !message.blocks.is_empty())
    }

    fn next_with(&mut self, wanted: impl Fn(&Message) -> bool) -> io::Result<(u32, Message)> {
        loop {
            if let Some(found) = self.taken(&wanted) {
                return Ok(found);
            }
            self.read()?;
        }
    }

    /// The next matching request, if one was received.
    pub fn taken(&mut self, wanted: impl Fn(&Message) -> bool) -> Option<(u32, Message)> {
        let new = self.messages.iter().filter(|(stream, _)| **stream != 0 && !self.served.contains(stream));
        let (stream, message) = new.into_iter().find(|(_, message)| wanted(message))?;
        let found = (*stream, message.clone());
        self.served.insert(found.0);
        Some(found)
    }

    /// Answers a request with a body.
    pub fn answer(&mut self, stream: u32, status: u16, body: &[u8]) {
        let (status, length) = (status.to_string(), body.len().to_string());
        self.headers(stream, &[(":status", &status), ("content-length", &length)], body.is_empty());
        if !body.is_empty() {
            self.data(stream, body, true);
        }
    }

    /// Sends a ping and reads until it is acknowledged: then all earlier frames have been processed.
    pub fn ping(&mut self) {
        self.send(kind::PING, 0, 0, b"are you?");
        self.read_until("the answer to a ping", |frame| frame.kind == kind::PING && frame.flags & flag::ACK != 0);
    }

    /// Reads until the connection ends; returns the last GOAWAY.
    pub fn read_to_end(&mut self) -> Option<Frame> {
        loop {
            match self.read() {
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("the connection was not closed")
                }
                Err(_) => return self.goaways.last().cloned(),
            }
        }
    }
}

/// The head of a valid request.
pub fn head<'a>(method: &'a str, path: &'a str, fields: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut all = vec![(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)];
    all.extend_from_slice(fields);
    all
}

/// Encodes a block of fields, all of them as literals without indexing (RFC 7541 section 6.2.2).
pub fn encode(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let text = |block: &mut Vec<u8>, text: &str| {
        // RFC 7541 section 5.1, with a prefix of 7 bits.
        match text.len() {
            length @ 0..127 => block.push(length as u8),
            length => {
                block.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    block.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                block.push(rest as u8);
            }
        }
        block.extend_from_slice(text.as_bytes());
    };
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}
