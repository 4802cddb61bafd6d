//! HTTP/2 heads, as the crate h2 gets them after the inspection.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use http::HeaderMap;
use tollgate::h2::{
    Malformed, ScreenedIo,
    hpack::{
        self,
        text::{Text, number},
    },
};

use crate::{Outcome, Pieces, Target, cuts};

/// What a client sends before its first head: the preface and empty SETTINGS.
const BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// `GET`, `https`, `/`.
const GOOD: &[u8] = b"\x82\x87\x84";

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The first byte selects what the others are: a head or trailers, in one frame or in two.
fn check(input: &[u8]) -> Outcome {
    let Some((how, block)) = input.split_first() else { return Outcome::of(()) };
    let (in_trailers, split) = (how & 1 == 1, usize::from(how >> 1) % (block.len() + 1));
    let mut bytes = BEGINNING.to_vec();
    let flags = if in_trailers { 0 } else { END_STREAM };
    let head = if in_trailers { GOOD } else { block };
    let (first, second) = if in_trailers { (head, &[][..]) } else { head.split_at(split) };
    put_head(&mut bytes, first, second, flags);
    if in_trailers {
        let (first, second) = block.split_at(split);
        put_head(&mut bytes, first, second, END_STREAM);
    }
    let seen = serve(&[&bytes]);
    for cut in cuts(&bytes).filter(|cut| *cut > BEGINNING.len()) {
        let (before, after) = bytes.split_at(cut);
        assert_eq!(serve(&[before, after]), seen, "cut at {cut}");
    }
    // Fields for which h2 would close the connection were replaced. The inspection does not track the dynamic table.
    if is_self_contained(block) && hpack::replaced(block, in_trailers, |_| {}).is_some() {
        assert!(!seen.has_ended, "{seen:?}");
    }
    if hpack::is_fine(block, in_trailers) == Some(true) {
        assert_eq!(seen.malformed, 0);
    }
    for (name, value) in seen.fields.iter().chain(&seen.trailers) {
        assert!(!name.as_str().bytes().any(|byte| byte.is_ascii_uppercase() || byte.is_ascii_whitespace()));
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{value:?}");
    }
    assert!(!seen.target.bytes().any(|byte| byte <= b' ' || byte == 0x7f), "{:?}", seen.target);
    Outcome::of((seen.has_ended, seen.malformed, seen.fields.len(), seen.target, seen.trailers.len()))
}

fn put_head(out: &mut Vec<u8>, first: &[u8], second: &[u8], flags: u8) {
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    let flags = if second.is_empty() { flags | END_HEADERS } else { flags };
    put_frame(out, HEADERS, flags, first);
    if !second.is_empty() {
        put_frame(out, CONTINUATION, END_HEADERS, second);
    }
}

fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
    out.extend_from_slice(payload);
}

/// What a server reads from a connection with one request.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// `:method` and the URI.
    target: String,
    fields: HeaderMap,
    trailers: HeaderMap,
    /// Whether the connection was closed.
    has_ended: bool,
    /// The number of heads with replaced fields.
    malformed: usize,
}

fn serve(pieces: &[&[u8]]) -> Seen {
    let malformed = Malformed::default();
    let screened = ScreenedIo::of_client(Pieces::new(pieces, true), 16_000, malformed.clone());
    let cx = &mut Context::from_waker(Waker::noop());
    let mut seen = Seen::default();
    if let Poll::Ready(Ok(mut connection)) = pin!(h2::server::handshake(screened)).poll(cx) {
        let mut bodies = Vec::new();
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    let (parts, body) = request.into_parts();
                    (seen.target, seen.fields) = (format!("{}{}", parts.method, parts.uri), parts.headers);
                    bodies.push((body, respond));
                }
                Poll::Ready(Some(Err(_)) | None) => {
                    seen.has_ended = true;
                    break;
                }
                Poll::Pending => break,
            }
        }
        for (body, _) in &mut bodies {
            while let Poll::Ready(Some(Ok(_))) = body.poll_data(cx) {}
            if let Poll::Ready(Ok(Some(trailers))) = body.poll_trailers(cx) {
                seen.trailers = trailers;
            }
        }
    }
    seen.malformed = std::iter::from_fn(|| malformed.take().then_some(())).count();
    seen
}

/// Returns whether a block can be decoded without a dynamic table: it refers only to the static table, and its
/// strings are valid.
fn is_self_contained(mut block: &[u8]) -> bool {
    const STATIC: usize = 61;
    let input = &mut block;
    while let Some(first) = input.first() {
        let (prefix, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => return false,
            _ => (4, true),
        };
        let Some(index) = number(input, prefix) else { return false };
        if index > STATIC || (!literal && index == 0) {
            return false;
        }
        let texts = usize::from(literal) + usize::from(literal && index == 0);
        for _ in 0..texts {
            if Text::read(input, 7).and_then(|text| text.with(|_| ())).is_none() {
                return false;
            }
        }
    }
    true
}

pub(super) const TARGET: Target = Target {
    words: &[
        GOOD,
        b"\x41\x01a",
        b"\x04\x02/x",
        b"\x02\x07CONNECT",
        b"\0\x09:protocol\x09websocket",
        b"\x08\x03200",
        b"\0\x01x\x01y",
        b"\0\x01X\x01y",
        b"\0\x01x\x02a\n",
        b"\x40\x01x\x81\xff",
        b"\x44\x81\x63",
        b"\x3f\xe1\x1f",
        b"\xbe",
        b"\0\0\x01y",
        b"\x5c\x01\x35",
    ],
    max_len: 400,
    check,
};
