//! A connection that sends bytes unchanged and reads HTTP/1.1 messages strictly. Both ends use it: clients read
//! responses, upstreams read requests.

use std::{
    io::{self, Error, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use super::DEADLINE;

/// A received request or response.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// The request line or the status line.
    pub start: String,
    /// The header fields in order, with the received spelling of names.
    pub fields: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
    /// The trailer fields.
    pub trailers: Vec<(String, String)>,
}

impl Message {
    fn word(&self, nth: usize) -> &str {
        self.start.split(' ').nth(nth).unwrap_or_default()
    }

    /// A response's status.
    pub fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or_else(|_| panic!("no status line: {:?}", self.start))
    }

    /// A request's method.
    pub fn method(&self) -> &str {
        self.word(0)
    }

    /// A request's target: path and query.
    pub fn target(&self) -> &str {
        self.word(1)
    }

    /// All values of a header field, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// The only value of a header field; `None` if there is no such field. Panics if there are several.
    pub fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "several values of {name}: {all:?}");
        all.first().copied()
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("the body is text")
    }

    fn is_chunked(&self) -> bool {
        self.field("transfer-encoding").is_some_and(|v| v == "chunked")
    }

    /// What is wrong with the head of a request sent by a proxy, if anything (RFC 9112 sections 3, 5 and 6).
    fn mistake(&self) -> Option<String> {
        let is_token = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
        };
        let words: Vec<&str> = self.start.split(' ').collect();
        let is_start = matches!(words[..], [method, target, "HTTP/1.1"]
            if is_token(method) && !target.is_empty() && target.bytes().all(|b| b.is_ascii_graphic()));
        if !is_start {
            return Some(self.start.clone());
        }
        let is_value = |value: &str| value.chars().all(|c| c == '\t' || !c.is_ascii_control());
        if let Some(field) = self.fields.iter().find(|(name, value)| !is_token(name) || !is_value(value)) {
            return Some(format!("{field:?}"));
        }
        let (host, length, encoding) = (self.all("host"), self.all("content-length"), self.all("transfer-encoding"));
        let is_length = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let framed = match (&length[..], &encoding[..]) {
            ([], [] | ["chunked"]) => true,
            ([length], []) => is_length(length),
            _ => false,
        };
        (host.len() != 1 || !framed).then(|| format!("{:?}", self.fields))
    }
}

/// A connection, with its read buffer.
pub struct Wire {
    stream: TcpStream,
    ahead: Vec<u8>,
}

impl Wire {
    /// Wraps a connection; no read or write takes longer than [`DEADLINE`].
    pub fn new(stream: TcpStream) -> Wire {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        Wire { stream, ahead: Vec::new() }
    }

    /// The socket, for everything that this type does not cover.
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends bytes unchanged.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Ends the sending direction only.
    pub fn finish(&self) {
        // The peer may have closed the connection, which has the same effect.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Resets the connection.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER can be set");
    }

    /// Reads some bytes; 0 at the end.
    pub fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_empty() {
            return self.stream.read(into);
        }
        let n = self.ahead.len().min(into.len());
        into[..n].copy_from_slice(&self.ahead[..n]);
        self.ahead.drain(..n);
        Ok(n)
    }

    /// Reads all bytes until the peer ends the connection, in whatever way.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.ahead);
        match self.stream.read_to_end(&mut all) {
            Err(e) if is_timeout(&e) => panic!("the connection was not closed; it received {:?}", all.escape_ascii()),
            _ => all,
        }
    }

    /// Whether the peer closes the connection without sending anything; waits for either.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.read_some(&mut byte) {
            Ok(n) => n == 0,
            Err(e) if is_timeout(&e) => panic!("the connection was not closed"),
            Err(_) => true,
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut some = [0; 16 << 10];
        match self.stream.read(&mut some)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            n => {
                self.ahead.extend_from_slice(&some[..n]);
                Ok(())
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.ahead.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.ahead.drain(..=end).collect();
                let line = line.strip_suffix(b"\r\n").ok_or_else(|| malformed("a bare LF"))?;
                // Header values need not be UTF-8; read as Latin-1 they can still be compared.
                return Ok(line.iter().map(|b| char::from(*b)).collect());
            }
            self.fill()?;
        }
    }

    fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Reads a message without its body. `UnexpectedEof` if the connection ends before or within it.
    pub fn read_head(&mut self) -> io::Result<Message> {
        let start = self.line()?;
        Ok(Message { start, fields: self.fields()?, ..Message::default() })
    }

    /// Reads exactly this number of bytes.
    pub fn read_exact(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < count {
            self.fill()?;
        }
        Ok(self.ahead.drain(..count).collect())
    }

    /// Reads the body of a message whose head was read. `until_end`: without a length it ends with the connection, as
    /// for a response.
    pub fn read_body(&mut self, message: &mut Message, until_end: bool) -> io::Result<()> {
        if message.is_chunked() {
            loop {
                let line = self.line()?;
                let size = usize::from_str_radix(&line, 16).map_err(|_| malformed(&line))?;
                if size == 0 {
                    message.trailers = self.fields()?;
                    return Ok(());
                }
                message.body.extend(self.read_exact(size)?);
                if self.read_exact(2)? != b"\r\n" {
                    return Err(malformed("a chunk without an end"));
                }
            }
        } else if let Some(length) = message.field("content-length") {
            let length = length.parse().map_err(|_| malformed("content-length"))?;
            message.body = self.read_exact(length)?;
        } else if until_end {
            message.body = self.read_to_end();
        }
        Ok(())
    }

    /// Reads the head of the next request. `UnexpectedEof` if the connection ends instead, `InvalidData` if it is
    /// malformed.
    pub fn read_request_head(&mut self) -> io::Result<Message> {
        let head = self.read_head()?;
        head.mistake().map_or(Ok(head), |mistake| Err(malformed(&mistake)))
    }

    /// Reads the response to a request of this method, interim or final.
    pub fn read_response(&mut self, method: &str) -> io::Result<Message> {
        let mut response = self.read_head()?;
        if method != "HEAD" && !matches!(response.status(), 100..=199 | 204 | 304) {
            self.read_body(&mut response, true)?;
        }
        Ok(response)
    }
}

impl Wire {
    /// Reads the response to a request of this method; `None` if the peer ends the connection before it is complete.
    pub fn whole_response(&mut self, method: &str) -> Option<Message> {
        match self.read_response(method) {
            Ok(response) => Some(response),
            Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => None,
            Err(e) => panic!("neither a response nor the end of the connection: {e}"),
        }
    }
}

fn is_timeout(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("malformed: {what}"))
}
