//! A strict eye on what clients send, before hyper's parser sees it.
//!
//! hyper is lenient where RFC 9112 lets a recipient be: a bare LF ends a line, `Transfer-Encoding` beside `Content-Length`
//! wins silently. Between two parsers that differ in this, requests can be smuggled. So every line of a head, of a chunk's
//! size and of trailers is checked here, and at the first violation the rest is replaced by a byte that no parser accepts:
//! hyper then refuses the message with 400 in its place in the pipeline. The guard follows the framing itself, which it
//! can, having refused all that is ambiguous about it.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A line ended without CR, or had one elsewhere.
    BareLineEnd,
    /// A NUL in a head.
    Nul,
    /// A header line begins with white space (obs-fold, RFC 9112 section 5.2).
    Fold,
    /// White space before a header's colon, or no colon.
    HeaderName,
    /// `Content-Length` is no number, or there are several.
    ContentLength,
    /// `Transfer-Encoding` is anything but one `chunked`.
    TransferEncoding,
    /// Both of them.
    BothLengths,
    /// A chunk's size is no hexadecimal number, or its line too long.
    ChunkSize,
    /// A chunk does not end where it should.
    ChunkEnd,
    /// A line of trailers is too long, or there are too many.
    Trailers,
}

impl Violation {
    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Violation::BareLineEnd => "bare_line_end",
            Violation::Nul => "nul",
            Violation::Fold => "obs_fold",
            Violation::HeaderName => "header_name",
            Violation::ContentLength => "content_length",
            Violation::TransferEncoding => "transfer_encoding",
            Violation::BothLengths => "both_lengths",
            Violation::ChunkSize => "chunk_size",
            Violation::ChunkEnd => "chunk_end",
            Violation::Trailers => "trailers",
        }
    }
}

/// What the guard and the connection's driver know together.
#[derive(Default)]
pub struct Watch {
    /// The first violation.
    pub violation: Cell<Option<Violation>>,
    /// Since when a head has been under way.
    pub head_since: Cell<Option<Instant>>,
    /// Since when the client has taken nothing of what there is for it.
    pub blocked_since: Cell<Option<Instant>>,
    /// Bytes read from the client.
    pub received: Cell<u64>,
    /// Bytes written to the client.
    pub sent: Cell<u64>,
    /// Whether the protocol is switched, once that is known of a request that wants to.
    switches: Cell<Option<bool>>,
    /// Whoever wants to read on until then.
    waiting: Cell<Option<Waker>>,
}

impl Watch {
    /// Says of a request that wanted to switch protocols whether it does. Of others it means nothing.
    pub fn decide(&self, switches: bool) {
        self.switches.set(Some(switches));
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

/// No parser accepts this in a head or a chunk's size. hyper looks at a head that came in parts only when its end is there.
const POISON: &[u8] = b"\0\r\n\r\n";

/// Longest line of a chunk's size or a trailer.
const MAX_LINE: usize = 4096;
/// Bytes of trailers.
const MAX_TRAILERS: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a request line: empty lines are skipped.
    Start,
    Headers,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// After a head that wants to switch protocols: what comes next may be anything.
    Switching,
    Poisoned,
}

/// Follows the bytes of a connection.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// The beginning of a line whose end has not come yet. For heads hyper has the bound on its length.
    line: Vec<u8>,
    length: Option<u64>,
    chunked: bool,
    trailer_bytes: usize,
    /// The head wants to switch protocols.
    wants_switch: bool,
    max_head_line: usize,
}

impl Scanner {
    /// A scanner at the beginning of a connection. A line of a head may have `max_head` bytes; beyond, hyper answers with
    /// 431 (or 414), and nothing more need be looked at.
    pub fn new(max_head: usize) -> Scanner {
        Scanner {
            state: State::Start,
            line: Vec::new(),
            length: None,
            chunked: false,
            trailer_bytes: 0,
            wants_switch: false,
            max_head_line: max_head,
        }
    }

    /// Whether a head has begun and not ended.
    pub fn in_head(&self) -> bool {
        self.state == State::Headers || (self.state == State::Start && !self.line.is_empty())
    }

    /// Looks at the next bytes, and returns how many of them it has seen: less than all only after a head that wants to
    /// switch protocols. `Err`: from this byte on they must not be passed on.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<usize, (usize, Violation)> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.state {
                State::Poisoned => return Err((at, Violation::BareLineEnd)),
                State::Switching => return Ok(at),
                State::Body(left) | State::Chunk(left) => {
                    let n = (*left).min(rest.len() as u64);
                    *left -= n;
                    at += n as usize;
                    if *left == 0 {
                        self.state = if matches!(self.state, State::Body(_)) { State::Start } else { State::ChunkEnd };
                    }
                }
                State::ChunkEnd => {
                    let expected = [b'\r', b'\n'][self.line.len()];
                    if rest[0] != expected {
                        return self.poison(at, Violation::ChunkEnd);
                    }
                    at += 1;
                    self.line.push(expected);
                    if self.line.len() == 2 {
                        self.line.clear();
                        self.state = State::ChunkSize;
                    }
                }
                State::Start | State::Headers | State::ChunkSize | State::Trailers => {
                    let Some(end) = rest.iter().position(|b| *b == b'\n') else {
                        self.line.extend_from_slice(rest);
                        return match self.check_partial() {
                            Ok(()) => Ok(bytes.len()),
                            Err(violation) => self.poison(at, violation),
                        };
                    };
                    let checked = match self.line.is_empty() {
                        true => self.line_ended(&rest[..=end]),
                        false => {
                            let mut line = std::mem::take(&mut self.line);
                            line.extend_from_slice(&rest[..=end]);
                            let checked = self.line_ended(&line);
                            line.clear();
                            self.line = line;
                            checked
                        }
                    };
                    if let Err(violation) = checked {
                        return self.poison(at, violation);
                    }
                    at += end + 1;
                }
            }
        }
        Ok(at)
    }

    /// The protocol is not switched: what comes next is another request.
    pub fn stay(&mut self) {
        if self.state == State::Switching {
            self.state = State::Start;
        }
    }

    fn poison<T>(&mut self, at: usize, violation: Violation) -> Result<T, (usize, Violation)> {
        self.state = State::Poisoned;
        Err((at, violation))
    }

    /// A line without an end may not grow for ever where hyper does not bound it.
    fn check_partial(&mut self) -> Result<(), Violation> {
        match self.state {
            // Its CR may have come, and is not counted.
            State::ChunkSize if self.line.len() > MAX_LINE + 1 => Err(Violation::ChunkSize),
            State::Trailers if self.line.len() > MAX_LINE + 1 => Err(Violation::Trailers),
            // hyper refuses it for its length; its beginning is enough.
            State::Start | State::Headers => {
                self.line.truncate(self.max_head_line);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A whole line, its LF included.
    fn line_ended(&mut self, line: &[u8]) -> Result<(), Violation> {
        let Some(line) = line.strip_suffix(b"\r\n") else { return Err(Violation::BareLineEnd) };
        if line.contains(&b'\r') {
            return Err(Violation::BareLineEnd);
        }
        if line.contains(&0) {
            return Err(Violation::Nul);
        }
        match self.state {
            State::Start if line.is_empty() => Ok(()),
            State::Start => {
                (self.length, self.chunked, self.trailer_bytes) = (None, false, 0);
                self.wants_switch = line.starts_with(b"CONNECT ");
                self.state = State::Headers;
                Ok(())
            }
            State::Headers if line.is_empty() => self.head_ended(),
            State::Headers => self.header(line),
            State::ChunkSize if line.len() > MAX_LINE => Err(Violation::ChunkSize),
            State::Trailers if line.len() > MAX_LINE => Err(Violation::Trailers),
            State::ChunkSize => {
                let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
                let hex =
                    str::from_utf8(digits).ok().filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit()));
                let size = hex.and_then(|d| u64::from_str_radix(d, 16).ok()).ok_or(Violation::ChunkSize)?;
                self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                Ok(())
            }
            State::Trailers if line.is_empty() => {
                self.state = State::Start;
                Ok(())
            }
            State::Trailers => {
                self.trailer_bytes += line.len() + 2;
                name_and_value(line)?;
                if self.trailer_bytes > MAX_TRAILERS { Err(Violation::Trailers) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Violation> {
        let (name, value) = name_and_value(line)?;
        // Most names are neither; one look at the length spares two comparisons.
        if name.len() == 14 && name.eq_ignore_ascii_case(b"content-length") {
            let digits = str::from_utf8(value).ok().filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()));
            let length = digits.and_then(|d| d.parse().ok()).ok_or(Violation::ContentLength)?;
            if self.length.replace(length).is_some() {
                return Err(Violation::ContentLength);
            }
        } else if name.len() == 7 && name.eq_ignore_ascii_case(b"upgrade") {
            self.wants_switch = true;
        } else if name.len() == 17
            && name.eq_ignore_ascii_case(b"transfer-encoding")
            && (!value.eq_ignore_ascii_case(b"chunked") || std::mem::replace(&mut self.chunked, true))
        {
            return Err(Violation::TransferEncoding);
        }
        // Refused before the head ends, so that hyper never sees a head with both.
        if self.chunked && self.length.is_some() { Err(Violation::BothLengths) } else { Ok(()) }
    }

    fn head_ended(&mut self) -> Result<(), Violation> {
        self.state = match (self.chunked, self.length) {
            (true, _) => State::ChunkSize,
            (false, None | Some(0)) if self.wants_switch => State::Switching,
            (false, None | Some(0)) => State::Start,
            (false, Some(length)) => State::Body(length),
        };
        Ok(())
    }
}

fn name_and_value(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if matches!(line[0], b' ' | b'\t') {
        return Err(Violation::Fold);
    }
    let colon = line.iter().position(|b| *b == b':').filter(|at| *at > 0).ok_or(Violation::HeaderName)?;
    let name = &line[..colon];
    if name.iter().any(|b| b.is_ascii_whitespace()) {
        return Err(Violation::HeaderName);
    }
    Ok((name, line[colon + 1..].trim_ascii()))
}

/// A connection from a client, with the guard on its reading side.
pub struct Guarded<T> {
    stream: T,
    scanner: Scanner,
    watch: Rc<Watch>,
    /// What of the poison is still to be given.
    poison: &'static [u8],
    /// What has come after a head that wants to switch protocols, until it is known whether it does.
    held: Bytes,
}

impl<T> Guarded<T> {
    /// Guards a connection.
    pub fn new(stream: T, max_head: usize, watch: Rc<Watch>) -> Guarded<T> {
        Guarded { stream, scanner: Scanner::new(max_head), watch, poison: POISON, held: Bytes::new() }
    }

    fn poison(&mut self, buf: &mut ReadBuf<'_>) {
        let (now, later) = self.poison.split_at(self.poison.len().min(buf.remaining()));
        buf.put_slice(now);
        self.poison = later;
    }

    /// Whether the client may have more to send of what it has begun.
    pub fn in_message(&self) -> bool {
        self.scanner.state != State::Start || self.scanner.in_head()
    }

    /// What has come and was not given on, and the connection itself.
    pub fn into_parts(self) -> (Bytes, T) {
        (self.held, self.stream)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        // After a violation there is nothing more to read: hyper refuses, and closes.
        if me.scanner.state == State::Poisoned {
            me.poison(buf);
            return Poll::Ready(Ok(()));
        }
        if me.scanner.state == State::Switching {
            if me.watch.switches.take() != Some(false) {
                // Either nobody knows yet, or whoever speaks the other protocol reads on, and not from here.
                me.watch.waiting.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            me.scanner.stay();
        }
        let before = buf.filled().len();
        let result = match me.held.is_empty() {
            true => Pin::new(&mut me.stream).poll_read(cx, buf),
            false => {
                buf.put_slice(&me.held.split_to(me.held.len().min(buf.remaining())));
                Poll::Ready(Ok(()))
            }
        };
        if let Poll::Ready(Ok(())) = result {
            let new = &buf.filled()[before..];
            me.watch.received.set(me.watch.received.get() + new.len() as u64);
            match me.scanner.scan(new) {
                Ok(seen) => {
                    if me.scanner.state == State::Switching {
                        me.watch.switches.set(None);
                    }
                    if seen < new.len() {
                        me.held = [&new[seen..], &me.held].concat().into();
                        buf.set_filled(before + seen);
                    }
                }
                Err((at, violation)) => {
                    me.watch.violation.set(Some(violation));
                    buf.set_filled(before + at);
                    me.poison(buf);
                }
            }
            match me.scanner.in_head() {
                true if me.watch.head_since.get().is_none() => me.watch.head_since.set(Some(Instant::now())),
                true => {}
                false => me.watch.head_since.set(None),
            }
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.stream).poll_write(cx, buf);
        me.count(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.stream).poll_write_vectored(cx, bufs);
        me.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    /// Nothing: when and how the connection is closed is decided by its driver, which takes it back.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl<T> Guarded<T> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(n)) => {
                self.watch.sent.set(self.watch.sent.get() + *n as u64);
                self.watch.blocked_since.set(None);
            }
            Poll::Pending if self.watch.blocked_since.get().is_none() => {
                self.watch.blocked_since.set(Some(Instant::now()));
            }
            _ => {}
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(input: &[u8], step: usize) -> Option<Violation> {
        let mut scanner = Scanner::new(64 << 10);
        input.chunks(step).find_map(|part| scanner.scan(part).err()).map(|(_, v)| v)
    }

    #[test]
    fn smuggling_is_refused_however_it_is_cut() {
        let head = "POST / HTTP/1.1\r\nHost: a\r\n";
        let cases: &[(&str, Option<Violation>)] = &[
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
            ("{}Content-Length: 3\r\n\r\na\nbGET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
            ("{}Transfer-Encoding: chunked\r\n\r\n3;x=y\r\na\nb\r\n0\r\nT: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n", None),
            ("{}Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", None),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Some(Violation::BareLineEnd)),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Some(Violation::BareLineEnd)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", Some(Violation::BareLineEnd)),
            ("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", Some(Violation::BareLineEnd)),
            ("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", Some(Violation::Nul)),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", Some(Violation::Fold)),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Some(Violation::HeaderName)),
            ("GET / HTTP/1.1\r\n: a\r\n\r\n", Some(Violation::HeaderName)),
            ("GET / HTTP/1.1\r\nnonsense\r\n\r\n", Some(Violation::HeaderName)),
            ("{}Content-Length: 1\r\nContent-Length: 2\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 1\r\nContent-Length: 1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 1, 1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: +1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: -1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 0x1\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length:\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 99999999999999999999\r\n\r\n", Some(Violation::ContentLength)),
            ("{}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", Some(Violation::BothLengths)),
            ("{}Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", Some(Violation::BothLengths)),
            ("{}Transfer-Encoding: gzip, chunked\r\n\r\n", Some(Violation::TransferEncoding)),
            ("{}Transfer-Encoding: xchunked\r\n\r\n", Some(Violation::TransferEncoding)),
            ("{}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", Some(Violation::TransferEncoding)),
            ("{}Transfer-Encoding: chunked\r\n\r\n0x1\r\n", Some(Violation::ChunkSize)),
            ("{}Transfer-Encoding: chunked\r\n\r\n-1\r\n", Some(Violation::ChunkSize)),
            ("{}Transfer-Encoding: chunked\r\n\r\n\r\n", Some(Violation::ChunkSize)),
            ("{}Transfer-Encoding: chunked\r\n\r\n11111111111111111\r\n", Some(Violation::ChunkSize)),
            ("{}Transfer-Encoding: chunked\r\n\r\n1\na\r\n", Some(Violation::BareLineEnd)),
            ("{}Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\n", Some(Violation::BareLineEnd)),
            ("{}Transfer-Encoding: chunked\r\n\r\n1\r\nabc", Some(Violation::ChunkEnd)),
            ("{}Transfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n", Some(Violation::ChunkEnd)),
            ("{}Transfer-Encoding: chunked\r\n\r\n0\r\n x: y\r\n\r\n", Some(Violation::Fold)),
        ];
        for (input, expected) in cases {
            let input = input.replace("{}", head);
            for step in [1, 2, 3, 7, 64, 4096] {
                assert_eq!(scan(input.as_bytes(), step), *expected, "{input:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn nothing_grows_without_bound() {
        let mut scanner = Scanner::new(100);
        for _ in 0..1000 {
            scanner.scan(&[b'x'; 1000]).unwrap();
        }
        assert!(scanner.line.len() <= 100);
        let mut scanner = Scanner::new(100);
        scanner.scan(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        assert_eq!(scanner.scan(&[b'1'; 5000]), Err((0, Violation::ChunkSize)));
        let mut scanner = Scanner::new(100);
        scanner.scan(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n").unwrap();
        let refused = (0..10_000).find_map(|_| scanner.scan(b"a: bbbbbbbbbbbbbb\r\n").err());
        assert_eq!(refused, Some((0, Violation::Trailers)));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(1);
        let parts: [&[u8]; 14] = [
            b"GET / HTTP/1.1",
            b"\r\n",
            b"\n",
            b"\r",
            b"Content-Length: 5",
            b"Transfer-Encoding: chunked",
            b"0",
            b"5",
            b"hello",
            b": ",
            b" ",
            b"\0",
            b"\r\n\r\n",
            b"\xff",
        ];
        for _ in 0..20_000 {
            let input: Vec<u8> = (0..12).flat_map(|_| parts[random.usize(..parts.len())]).copied().collect();
            let _ = scan(&input, random.usize(1..20));
        }
    }
}
