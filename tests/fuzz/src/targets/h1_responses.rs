//! The parser of HTTP/1.1 responses.

use bytes::BytesMut;
use http::{HeaderMap, StatusCode, Version};
use tollgate::h1::{
    Decoder, HeadError, Limits, WriteBuf,
    encoder::{self, ClientTraits},
    head,
};

use super::h1::{Message, chunked, framing, length, read, wherever_cut};
use crate::{Outcome, Target};

const LIMITS: Limits = Limits { head: 64 << 10, fields: 160 };

/// The bytes have the same meaning wherever they are split; a simple parser finds the same bodies; and the response
/// sent to a client parses as one response with the same body.
/// one response, with the same body.
fn check(input: &[u8]) -> Outcome {
    let mut outcomes = Vec::new();
    for head_only in [false, true] {
        let all = wherever_cut(input, if head_only { to_head } else { to_get });
        let mut left = input;
        for message in &all.messages {
            left = body(left, head_only, message);
        }
        for message in all.messages.iter().filter(|message| message.can_be_forwarded()) {
            let (status, _) = message.start;
            let (mut parts, ()) = http::Response::new(()).into_parts();
            (parts.status, parts.headers) = (status, message.fields.clone());
            let client =
                ClientTraits { version: Version::HTTP_11, head_only, trailers: true, persists: true, switches: false };
            let mut out = WriteBuf::default();
            let (mut encoder, _) =
                encoder::response(&parts, &message.length(), message.data.is_empty(), client, &mut out);
            let written = message.write(&mut encoder, out);
            let again = read(&[&written], if head_only { to_head } else { to_get });
            let [one] = &again.messages[..] else { panic!("{} as {again:?}", written.escape_ascii()) };
            assert!(one.is_whole && again.error.is_none(), "{} as {again:?}", written.escape_ascii());
            assert_eq!((one.start.0, &one.data), (status, &message.data));
        }
        outcomes.push((all.error, all.messages.len()));
    }
    Outcome::of((outcomes, head::may_be_response(input), input.len().min(400) / 16))
}

type Start = (StatusCode, Version);

fn response(
    inbox: &mut BytesMut,
    length: usize,
    head_only: bool,
) -> Result<(Start, HeaderMap, Option<Decoder>), HeadError> {
    assert!(length <= inbox.len());
    let before = inbox.clone();
    match head::response(inbox, length, &LIMITS, head_only) {
        Ok(response) => {
            let parts = response.parts;
            Ok(((parts.status, parts.version), parts.headers, response.body))
        }
        Err(error) => {
            assert!(inbox.starts_with(&before[..length]), "it stays, so that it can be logged");
            Err(error)
        }
    }
}

fn to_get(inbox: &mut BytesMut, length: usize) -> Result<(Start, HeaderMap, Option<Decoder>), HeadError> {
    response(inbox, length, false)
}

fn to_head(inbox: &mut BytesMut, length: usize) -> Result<(Start, HeaderMap, Option<Decoder>), HeadError> {
    response(inbox, length, true)
}

/// Parses the next accepted response as RFC 9112 section 6.3 defines, and compares its body. Returns the bytes after
/// it.
fn body<'a>(mut input: &'a [u8], head_only: bool, message: &Message<Start>) -> &'a [u8] {
    let read = &message.data[..];
    while let Some(rest) = input.strip_prefix(b"\r\n") {
        input = rest;
    }
    let mut fields = [httparse::EMPTY_HEADER; LIMITS.fields];
    let mut head = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(len)) = head.parse(input) else { panic!("an accepted head is valid") };
    let (lengths, codings) = framing(head.headers);
    assert!(lengths.len() <= 1 && (codings.is_empty() || lengths.is_empty()), "{lengths:?} and {codings:?}");
    let rest = &input[len..];
    let bodiless = head_only || matches!(head.code, Some(100..=199 | 204 | 304));
    match (lengths.first(), &codings[..]) {
        _ if bodiless => {
            assert!(read.is_empty());
            rest
        }
        (Some(length), _) => {
            // An incomplete body consists of all received bytes.
            let length = self::length(length).unwrap_or(usize::MAX).min(rest.len());
            assert_eq!(read, &rest[..length]);
            &rest[length..]
        }
        (None, [coding]) if coding.eq_ignore_ascii_case(b"chunked") => {
            // The decoder decides how much of an incomplete body there is; nothing follows it.
            let length = message.is_whole.then(|| chunked(rest).expect("it is complete"));
            length.map_or(&[], |length| &rest[length..])
        }
        (None, []) => {
            assert_eq!(read, rest);
            &[]
        }
        _ => {
            assert!(read.is_empty(), "it cannot be decoded");
            &[]
        }
    }
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 204 \r\n",
        b"HTTP/1.1 304\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\0",
        b" ",
        b":",
        b"Connection: keep-alive, close\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Trailer: x\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"ffffffffffffffff",
    ],
    max_len: 12_000,
    check,
};
