//! Reads bodies out of what has come (RFC 9112 sections 6 and 7).

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::SizeHint;

use super::{
    HeadError, Violation,
    head::trailers,
    violation::{of_field, of_line},
};

/// Longest line of a chunk's size or a trailer.
const MAX_LINE: usize = 4096;

/// Bytes of trailers.
const MAX_TRAILERS: usize = 16 << 10;

/// Memory that is worth to be kept for the next part, in bytes.
const REUSED: usize = 16 << 10;

/// A part of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyPart {
    /// Data; never empty.
    Data(Bytes),
    /// What follows the last of it; never empty.
    Trailers(HeaderMap),
}

/// What of a body is still to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoder(State);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing.
    Done,
    /// So many bytes.
    Length(u64),
    /// All until the end of the connection.
    UntilClose,
    /// The line of a chunk's size; so much of it has been looked at.
    Size(usize),
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The end of a chunk's data.
    ChunkEnd,
    /// Trailers, of which so much is whole lines, and so much has been looked at.
    Trailers(usize, usize),
}

impl Decoder {
    /// A body of so many bytes.
    pub fn length(length: u64) -> Decoder {
        Decoder(if length == 0 { State::Done } else { State::Length(length) })
    }

    /// A body in chunks.
    pub fn chunked() -> Decoder {
        Decoder(State::Size(0))
    }

    /// A body that ends with its connection.
    pub fn until_close() -> Decoder {
        Decoder(State::UntilClose)
    }

    /// Whether all of it has been read.
    pub fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// Whether it is over when the connection ends.
    pub fn ends_with_connection(&self) -> bool {
        self.0 == State::UntilClose
    }

    /// How many bytes follow at least.
    pub fn expects(&self) -> u64 {
        match self.0 {
            State::Length(left) | State::Chunk(left) => left,
            _ => 0,
        }
    }

    /// How much data follows, for whoever passes it on.
    pub fn size_hint(&self) -> SizeHint {
        match self.0 {
            State::Done => SizeHint::with_exact(0),
            State::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// The next part. `None`: it is not there yet, or there is none.
    ///
    /// # Errors
    /// What has come breaks the framing: the connection cannot be used any more.
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
                        // If this was the last one, better say so with it than to be asked once more. What is wrong there
                        // is found again, after the data.
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

    /// Goes over what is between the data of chunks. Whether that was all there.
    fn pass_framing(&mut self, inbox: &mut BytesMut) -> Result<bool, Violation> {
        loop {
            match &mut self.0 {
                State::ChunkEnd => {
                    let there = inbox.len().min(2);
                    if inbox[..there] != b"\r\n"[..there] {
                        return Err(Violation::ChunkEnd);
                    }
                    if there < 2 {
                        return Ok(false);
                    }
                    inbox.advance(2);
                    self.0 = State::Size(0);
                }
                State::Size(seen) => {
                    let Some(end) = memchr::memchr(b'\n', &inbox[*seen..]).map(|at| *seen + at + 1) else {
                        *seen = inbox.len();
                        // Its CR may have come, and is not counted.
                        return if *seen > MAX_LINE + 1 { Err(Violation::ChunkSize) } else { Ok(false) };
                    };
                    let size = chunk_size(&inbox[..end])?;
                    inbox.advance(end);
                    self.0 = if size == 0 { State::Trailers(0, 0) } else { State::Chunk(size) };
                    if size > 0 {
                        return Ok(true);
                    }
                }
                // Without any, the body ends here.
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
        // A large part's memory is read into again as soon as the part is sent; a small one's is given away with it.
        _ if inbox.capacity() >= REUSED => inbox.split().freeze(),
        _ => std::mem::take(inbox).freeze(),
    }
}

/// The size in a line, its LF included.
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

    /// All of a body, in pieces of this size, and what is left.
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
    fn a_body_ends_where_its_framing_says() {
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
    fn the_last_chunk_is_known_to_be_the_last_if_its_end_is_there() {
        let mut decoder = Decoder::chunked();
        let mut inbox = BytesMut::from("5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(decoder.decode(&mut inbox), Ok(Some(BodyPart::Data(Bytes::from_static(b"hello")))));
        assert!(decoder.is_done() && inbox.is_empty());
    }

    #[test]
    fn what_could_be_understood_differently_is_refused_however_it_is_cut() {
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
    fn bounds_are_what_is_just_let_through() {
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
    fn a_decoder_tells_what_is_still_to_come() {
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
            let told = (decoder.ends_with_connection(), decoder.expects(), decoder.size_hint().exact());
            assert_eq!(told, (ends_with_connection, expects, exact));
        }
    }

    #[test]
    fn nothing_grows_without_bound() {
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
