//! Decodes message bodies (RFC 9112 sections 6 and 7).

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::SizeHint;

use super::{
    HeadError, Violation,
    head::trailers,
    violation::{of_field, of_line},
};

/// The limit on the line of a chunk size or a trailer, in bytes.
const MAX_LINE: usize = 4096;

/// The limit on a trailer section, in bytes.
const MAX_TRAILERS: usize = 16 << 10;

/// The least memory worth reusing for the next part, in bytes.
const REUSED: usize = 16 << 10;

/// A part of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyPart {
    /// Data, never empty.
    Data(Bytes),
    /// The trailers after the data, never empty.
    Trailers(HeaderMap),
}

/// The state of reading a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoder(State);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The body is complete.
    Done,
    /// This many bytes follow.
    Length(u64),
    /// The body ends with the connection.
    UntilClose,
    /// A chunk-size line follows, of which this many bytes were searched.
    Size(usize),
    /// This many bytes of a chunk follow.
    Chunk(u64),
    /// The line end after a chunk's data follows.
    ChunkEnd,
    /// Trailers follow: the length of the complete lines, and the number of bytes searched.
    Trailers(usize, usize),
}

impl Decoder {
    /// Decodes a body of this many bytes.
    pub fn length(length: u64) -> Decoder {
        Decoder(if length == 0 { State::Done } else { State::Length(length) })
    }

    /// Decodes a chunked body.
    pub fn chunked() -> Decoder {
        Decoder(State::Size(0))
    }

    /// Decodes a body that ends with its connection.
    pub fn until_close() -> Decoder {
        Decoder(State::UntilClose)
    }

    /// Returns whether the body is complete.
    pub fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// Returns whether the body ends with the connection.
    pub fn ends_with_connection(&self) -> bool {
        self.0 == State::UntilClose
    }

    /// Returns the least number of bytes to come.
    pub fn expects(&self) -> u64 {
        match self.0 {
            State::Length(left) | State::Chunk(left) => left,
            _ => 0,
        }
    }

    /// Returns the length of the data to come, for forwarding.
    pub fn size_hint(&self) -> SizeHint {
        match self.0 {
            State::Done => SizeHint::with_exact(0),
            State::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// Returns the next part. `None` if more bytes are needed or the body is complete.
    ///
    /// # Errors
    /// The framing is invalid: the connection is no longer usable.
    pub fn decode(&mut self, inbox: &mut BytesMut) -> Result<Option<BodyPart>, Violation> {
        loop {
            match &mut self.0 {
                State::Done => return Ok(None),
                _ if inbox.is_empty() => return Ok(None),
                State::Length(left) => {
                    let data = up_to(inbox, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.0 = State::Done;
                    }
                    return Ok(Some(BodyPart::Data(data)));
                }
                State::UntilClose => return Ok(Some(BodyPart::Data(up_to(inbox, u64::MAX)))),
                State::Chunk(left) => {
                    let data = up_to(inbox, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.0 = State::ChunkEnd;
                        // If this was the last chunk, report that together with its data. An error here is found
                        // again after the data.
                        let _ = self.pass_framing(inbox);
                    }
                    return Ok(Some(BodyPart::Data(data)));
                }
                State::Trailers(..) => return self.trailers(inbox),
                State::Size(_) | State::ChunkEnd => {
                    if !self.pass_framing(inbox)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Skips the framing between the data of chunks. Returns whether it was complete.
    fn pass_framing(&mut self, inbox: &mut BytesMut) -> Result<bool, Violation> {
        loop {
            match &mut self.0 {
                State::ChunkEnd => {
                    let len = inbox.len().min(2);
                    if inbox[..len] != b"\r\n"[..len] {
                        return Err(Violation::ChunkEnd);
                    }
                    if len < 2 {
                        return Ok(false);
                    }
                    inbox.advance(2);
                    self.0 = State::Size(0);
                }
                State::Size(seen) => {
                    let Some(end) = memchr::memchr(b'\n', &inbox[*seen..]).map(|at| *seen + at + 1) else {
                        *seen = inbox.len();
                        // The CR may be among the bytes; it does not count towards the limit.
                        return if *seen > MAX_LINE + 1 { Err(Violation::ChunkSize) } else { Ok(false) };
                    };
                    let size = chunk_size(&inbox[..end])?;
                    inbox.advance(end);
                    self.0 = if size == 0 { State::Trailers(0, 0) } else { State::Chunk(size) };
                    if size > 0 {
                        return Ok(true);
                    }
                }
                // Without trailers the body ends here.
                State::Trailers(0, _) if inbox.starts_with(b"\r\n") => {
                    inbox.advance(2);
                    self.0 = State::Done;
                    return Ok(true);
                }
                State::Trailers(..) => return Ok(true),
                State::Done | State::Length(_) | State::UntilClose | State::Chunk(_) => return Ok(true),
            }
        }
    }

    fn trailers(&mut self, inbox: &mut BytesMut) -> Result<Option<BodyPart>, Violation> {
        let State::Trailers(whole, seen) = &mut self.0 else { return Ok(None) };
        while let Some(end) = memchr::memchr(b'\n', &inbox[*seen..]).map(|at| *seen + at + 1) {
            let line = &inbox[*whole..end];
            if line == b"\r\n" {
                let section = inbox.split_to(end).freeze();
                self.0 = State::Done;
                if section.len() == 2 {
                    return Ok(None);
                }
                return match trailers(section) {
                    Ok(trailers) => Ok(Some(BodyPart::Trailers(trailers))),
                    Err(HeadError::Violation(violation)) => Err(violation),
                    Err(_) => Err(Violation::HeaderName),
                };
            }
            if let Some(violation) = of_field(line) {
                return Err(violation);
            }
            if line.len() > MAX_LINE + 2 || end > MAX_TRAILERS {
                return Err(Violation::Trailers);
            }
            (*whole, *seen) = (end, end);
        }
        *seen = inbox.len();
        if *seen - *whole > MAX_LINE + 1 { Err(Violation::Trailers) } else { Ok(None) }
    }
}

fn up_to(inbox: &mut BytesMut, most: u64) -> Bytes {
    match usize::try_from(most) {
        Ok(most) if most < inbox.len() => inbox.split_to(most).freeze(),
        // A large part's memory is reused as soon as the part is sent; a small one's is given away with it.
        _ if inbox.capacity() >= REUSED => inbox.split().freeze(),
        _ => std::mem::take(inbox).freeze(),
    }
}

/// Parses the chunk size in a line, including its LF.
fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    if let Some(violation) = of_line(line) {
        return Err(violation);
    }
    if line.len() > MAX_LINE + 2 {
        return Err(Violation::ChunkSize);
    }
    let line = &line[..line.len() - 2];
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
    let digits = str::from_utf8(digits).ok().filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit()));
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or(Violation::ChunkSize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes a whole body in pieces of this size. Returns its data, its trailers and the number of bytes left.
    fn decode(
        mut decoder: Decoder,
        input: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, Option<HeaderMap>, usize), Violation> {
        let (mut inbox, mut data, mut trailers) = (BytesMut::new(), Vec::new(), None);
        let mut pieces = input.chunks(step);
        loop {
            match decoder.decode(&mut inbox)? {
                Some(BodyPart::Data(part)) => {
                    assert!(!part.is_empty());
                    data.extend_from_slice(&part);
                }
                Some(BodyPart::Trailers(fields)) => assert!(trailers.replace(fields).is_none()),
                None if decoder.is_done() => break,
                None => match pieces.next() {
                    Some(piece) => inbox.extend_from_slice(piece),
                    None => break,
                },
            }
        }
        assert!(decoder.is_done() || decoder.ends_with_connection() || pieces.next().is_none());
        Ok((data, trailers, inbox.len() + pieces.map(<[u8]>::len).sum::<usize>()))
    }

    #[test]
    fn a_body_ends_where_its_framing_ends() {
        for step in [1, 2, 3, 7, 100] {
            let (data, trailers, left) = decode(Decoder::length(5), b"hello, world", step).unwrap();
            assert_eq!((&*data, trailers, left), (&b"hello"[..], None, 7));
            let (data, _, left) = decode(Decoder::until_close(), b"hello", step).unwrap();
            assert_eq!((&*data, left), (&b"hello"[..], 0));
            let chunks = b"5;x=\"y\"\r\nhello\r\n00A \r\n, world, w\r\n0\r\n\r\nGET";
            let (data, trailers, left) = decode(Decoder::chunked(), chunks, step).unwrap();
            assert_eq!((&*data, trailers, left), (&b"hello, world, w"[..], None, 3), "in steps of {step}");
            let chunks = b"1\r\na\r\n0\r\nGrpc-Status: 0\r\na: \r\n\r\nrest";
            let (data, trailers, left) = decode(Decoder::chunked(), chunks, step).unwrap();
            let trailers = trailers.unwrap();
            assert_eq!((&*data, trailers.len(), left), (&b"a"[..], 2, 4));
            assert_eq!(trailers["grpc-status"], "0");
        }
    }

    #[test]
    fn the_last_chunk_completes_the_body_if_its_end_was_received() {
        let mut decoder = Decoder::chunked();
        let mut inbox = BytesMut::from("5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(decoder.decode(&mut inbox), Ok(Some(BodyPart::Data(Bytes::from_static(b"hello")))));
        assert!(decoder.is_done() && inbox.is_empty());
    }

    #[test]
    fn ambiguous_framing_is_rejected_in_pieces_of_any_size() {
        let cases: &[(&str, Violation)] = &[
            ("0x1\r\n", Violation::ChunkSize),
            ("-1\r\n", Violation::ChunkSize),
            ("+1\r\n", Violation::ChunkSize),
            ("\r\n", Violation::ChunkSize),
            ("11111111111111111\r\n", Violation::ChunkSize),
            ("1\na\r\n", Violation::BareLineEnd),
            ("1;a\nb\r\n", Violation::BareLineEnd),
            ("1;a\0\r\n", Violation::Nul),
            ("1\r\nabc", Violation::ChunkEnd),
            ("1\r\na\n0\r\n", Violation::ChunkEnd),
            ("1\r\na\rb", Violation::ChunkEnd),
            ("0\r\n x: y\r\n\r\n", Violation::Fold),
            ("0\r\nx : y\r\n\r\n", Violation::HeaderName),
            ("0\r\nx\r\n\r\n", Violation::HeaderName),
            ("0\r\nx: y\n\r\n", Violation::BareLineEnd),
        ];
        for (input, expected) in cases {
            for step in [1, 2, 3, 64] {
                let result = decode(Decoder::chunked(), input.as_bytes(), step);
                assert_eq!(result.map(|_| ()), Err(*expected), "{input:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn limits_are_inclusive() {
        let chunk = |more: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_LINE - 2 + more));
        let line = |more: usize| format!("0\r\na:{}\r\n\r\n", "b".repeat(MAX_LINE - 2 + more));
        let last = |more: usize| format!("a:{}\r\n", "b".repeat(1020 + more));
        let lines = |more: usize| format!("0\r\n{}{}\r\n", last(0).repeat(MAX_TRAILERS / 1024 - 1), last(more));
        let cases: [(&dyn Fn(usize) -> String, Violation); 3] =
            [(&chunk, Violation::ChunkSize), (&line, Violation::Trailers), (&lines, Violation::Trailers)];
        for (input, violation) in cases {
            for step in [1, 100, 100_000] {
                let result = |more| decode(Decoder::chunked(), input(more).as_bytes(), step).map(|_| ());
                assert_eq!((result(0), result(1)), (Ok(()), Err(violation)), "in steps of {step}");
            }
        }
    }

    #[test]
    fn a_decoder_reports_what_is_to_come() {
        let within = |decoder: Decoder, input: &str| {
            let mut decoder = decoder;
            decoder.decode(&mut BytesMut::from(input)).unwrap();
            decoder
        };
        for (decoder, ends_with_connection, expects, exact) in [
            (Decoder::length(0), false, 0, Some(0)),
            (Decoder::length(5), false, 5, Some(5)),
            (within(Decoder::length(5), "he"), false, 3, Some(3)),
            (within(Decoder::chunked(), "5\r\nhe"), false, 3, None),
            (Decoder::chunked(), false, 0, None),
            (Decoder::until_close(), true, 0, None),
        ] {
            let reported = (decoder.ends_with_connection(), decoder.expects(), decoder.size_hint().exact());
            assert_eq!(reported, (ends_with_connection, expects, exact));
        }
    }

    #[test]
    fn lines_and_trailers_are_limited() {
        for (input, expected) in [
            ("1".repeat(5000), Violation::ChunkSize),
            (format!("0\r\na: {}", "b".repeat(5000)), Violation::Trailers),
            (format!("0\r\n{}", "a: bbbbbbbbbbbbbb\r\n".repeat(1000)), Violation::Trailers),
        ] {
            for step in [1, 100, 100_000] {
                let result = decode(Decoder::chunked(), input.as_bytes(), step);
                assert_eq!(result.map(|_| ()), Err(expected), "in steps of {step}");
            }
        }
    }
}
