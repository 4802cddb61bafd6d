//! What reads requests over HTTP/1.1: heads, and the bodies between them.

use bytes::BytesMut;
use tollgate::h1::{Decoder, HeadError, Limits, head};

use crate::{Outcome, cuts};

/// Longer than any input, so that no head is too long for the place where it was cut.
const LIMITS: Limits = Limits { head: 64 << 10, fields: 128 };

/// However the bytes come, they mean the same; and what was read has no other meaning to a simple reader.
pub fn check(input: &[u8]) -> Outcome {
    let whole = read(&[input]);
    for cut in cuts(input) {
        let (head, tail) = input.split_at(cut);
        assert_eq!(read(&[head, tail]), whole, "cut at {cut}");
    }
    let size = 1 + input.len() % 7;
    assert_eq!(read(&input.chunks(size).collect::<Vec<_>>()), whole, "in pieces of {size}");
    let heads = if whole.error.is_none() { walk(input) } else { 0 };
    assert!(heads <= whole.heads, "{heads} of {}", whole.heads);
    Outcome::of((whole.error, whole.heads, input.len().min(400) / 16))
}

/// What is read from a connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    heads: usize,
    /// All bodies, one after the other.
    data: Vec<u8>,
    error: Option<String>,
}

fn read(parts: &[&[u8]]) -> Read {
    let mut read = Read::default();
    let (mut inbox, mut parts) = (BytesMut::new(), parts.iter());
    let mut next = |inbox: &mut BytesMut| parts.next().map(|part| inbox.extend_from_slice(part)).is_some();
    loop {
        let mut body = match next_head(&mut inbox, &mut next) {
            Ok(Some(body)) => body,
            Ok(None) => return read,
            Err(error) => {
                read.error = Some(error.to_string());
                return read;
            }
        };
        read.heads += 1;
        while !body.is_done() {
            match body.decode(&mut inbox) {
                Ok(Some(tollgate::h1::Part::Data(data))) => read.data.extend_from_slice(&data),
                Ok(Some(tollgate::h1::Part::Trailers(_))) => {}
                Ok(None) if body.is_done() || next(&mut inbox) => {}
                Ok(None) => return read,
                Err(violation) => {
                    read.error = Some(violation.to_string());
                    return read;
                }
            }
        }
    }
}

/// What reads the body after the next head, if there is one.
fn next_head(inbox: &mut BytesMut, next: &mut impl FnMut(&mut BytesMut) -> bool) -> Result<Option<Decoder>, HeadError> {
    let mut finder = head::Finder::default();
    loop {
        if let Some(length) = finder.find(inbox, LIMITS.head)? {
            return head::request(inbox, length, &LIMITS).map(|request| Some(request.body));
        }
        if !next(inbox) {
            return Ok(None);
        }
    }
}

/// Follows accepted bytes from head to head, and looks at each of them for what must not have been accepted. Returns how many
/// there were.
fn walk(mut input: &[u8]) -> usize {
    let mut heads = 0;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut head = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(len)) = head.parse(input) else { return heads };
        heads += 1;
        let all = |name: &str| {
            let of_name = head.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
            of_name.map(|field| field.value.trim_ascii()).collect::<Vec<_>>()
        };
        let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
        assert!(lengths.len() + codings.len() <= 1, "{lengths:?} and {codings:?}");
        input = &input[len..];
        let body = match (lengths.first(), codings.first()) {
            (Some(length), _) => {
                assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit), "{length:?}");
                let length = str::from_utf8(length).ok().and_then(|length| length.parse::<usize>().ok());
                length.filter(|length| *length <= input.len())
            }
            (_, Some(coding)) => {
                assert!(coding.eq_ignore_ascii_case(b"chunked"), "{coding:?}");
                chunked(input)
            }
            _ => Some(0),
        };
        let Some(body) = body else { return heads };
        input = &input[body..];
    }
}

/// The length of a chunked body with its trailers (RFC 9112 section 7.1). `None`: it has not ended.
fn chunked(input: &[u8]) -> Option<usize> {
    let line = |at: usize| input[at..].windows(2).position(|two| two == b"\r\n").map(|end| &input[at..at + end]);
    let mut at = 0;
    loop {
        let size = line(at)?;
        at += size.len() + 2;
        let digits = size.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
        let size = usize::from_str_radix(str::from_utf8(digits).expect("digits"), 16).expect("a size");
        if size == 0 {
            break;
        }
        let end = at.checked_add(size).filter(|end| end + 2 <= input.len())?;
        assert_eq!(&input[end..end + 2], b"\r\n");
        at = end + 2;
    }
    loop {
        let trailer = line(at)?;
        at += trailer.len() + 2;
        if trailer.is_empty() {
            return Some(at);
        }
    }
}

#[cfg(test)]
#[test]
fn requests_over_http_1() {
    let words: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff",
    ];
    // Shorter than the bound on lines of chunks' sizes and of trailers, which is for lines that come in parts.
    crate::driver::Target { name: "h1", words, max_len: 12_000, check }.run();
}
