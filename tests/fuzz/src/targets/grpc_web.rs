//! The translation of gRPC-Web in both directions.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::{Body as _, Frame};
use tollgate::http::{
    body::{Body, BodyError},
    grpc_web::Translation,
};

use crate::{Outcome, Target, cuts};

/// The first line is a media type, the rest a body. A request is decoded the same wherever it is split, as if each
/// group of four were decoded by itself; a translated response has the same content.
fn check(input: &[u8]) -> Outcome {
    let line = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (kind, body) = (&input[..line], input.get(line + 1..).unwrap_or_default());
    let Ok(kind) = HeaderValue::from_bytes(kind) else { return Outcome::of(()) };
    let Some((translated, decoded, translation)) = ask(&kind, &[body]) else { return Outcome::of(kind.len().min(32)) };
    let asked = kind.to_str().expect("text").to_ascii_lowercase();
    assert!(asked.trim_start().starts_with("application/grpc-web") && translated.starts_with("application/grpc"));
    assert!(!translated.starts_with("application/grpc-web"));
    let text = asked.trim_start().starts_with("application/grpc-web-text");
    assert_eq!(decoded, if text { by_groups(body) } else { Ok(body.to_vec()) });
    for cut in cuts(body) {
        let (before, after) = body.split_at(cut);
        assert_eq!(ask(&kind, &[before, after]).map(|asked| asked.1), Some(decoded.clone()), "cut at {cut}");
    }
    let trailers = trailers(body);
    let answered = answer(translation, body, &trailers);
    let plain = if text { by_groups(&answered).expect("what is encoded is base64") } else { answered };
    let frame = plain.strip_prefix(body).expect("the data comes first");
    assert_eq!(frame.is_empty(), trailers.is_empty());
    if !frame.is_empty() {
        let ([flag, length @ ..], lines) = frame.split_first_chunk::<5>().expect("a frame's head");
        assert_eq!((*flag, u32::from_be_bytes(*length) as usize), (0x80, lines.len()));
        let lines: Vec<&[u8]> = lines.split_inclusive(|byte| *byte == b'\n').collect();
        let expected =
            trailers.iter().map(|(name, value)| [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        assert_eq!(lines, expected.collect::<Vec<_>>());
    }
    Outcome::of((text, decoded.is_ok(), trailers.len(), body.len().min(64)))
}

/// Translates a request. Returns its media type and body, or `None` if it is not gRPC-Web.
fn ask(kind: &HeaderValue, pieces: &[&[u8]]) -> Option<(String, Result<Vec<u8>, ()>, Translation)> {
    let mut request =
        Request::post("/a/b").header(header::CONTENT_TYPE, kind).body(frames(pieces, None)).expect("a request");
    let translation = Translation::begin(&mut request)?;
    let translated = request.headers()[header::CONTENT_TYPE].to_str().expect("text").to_owned();
    Some((translated, read(request.into_body()), translation))
}

fn answer(translation: Translation, body: &[u8], trailers: &HeaderMap) -> Vec<u8> {
    let body = frames(&[body], (!trailers.is_empty()).then(|| trailers.clone()));
    let response = Response::builder().header(header::CONTENT_TYPE, "application/grpc").body(body).expect("a response");
    read(translation.end(response).into_body()).expect("a response is valid")
}

/// Parses lines of names and values.
fn trailers(input: &[u8]) -> HeaderMap {
    let lines = input.split(|byte| *byte == b'\n').take(20);
    let field = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b':')?;
        Some((HeaderName::from_bytes(&line[..at]).ok()?, HeaderValue::from_bytes(&line[at + 1..]).ok()?))
    };
    let mut trailers = HeaderMap::new();
    lines.filter_map(field).for_each(|(name, value)| _ = trailers.append(name, value));
    trailers
}

/// Decodes base64 with padding at the end of any group.
fn by_groups(text: &[u8]) -> Result<Vec<u8>, ()> {
    let (groups, rest) = text.as_chunks::<4>();
    let decoded: Result<Vec<_>, _> = groups.iter().map(|group| BASE64_STANDARD.decode(group)).collect();
    if rest.is_empty() { decoded.map(|all| all.concat()).map_err(|_| ()) } else { Err(()) }
}

struct Frames(VecDeque<Frame<Bytes>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

fn frames(pieces: &[&[u8]], trailers: Option<HeaderMap>) -> Body {
    let data = pieces.iter().filter(|piece| !piece.is_empty()).map(|piece| Frame::data(Bytes::copy_from_slice(piece)));
    Body::stream(Frames(data.chain(trailers.map(Frame::trailers)).collect()))
}

fn read(mut body: Body) -> Result<Vec<u8>, ()> {
    let mut all = Vec::new();
    let cx = &mut Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(cx) {
        all.extend_from_slice(&frame.map_err(|_| ())?.into_data().unwrap_or_default());
    }
    Ok(all)
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"application/grpc-web",
        b"-text",
        b"+proto",
        b"; charset=utf-8",
        b"\n",
        b"AAAA",
        b"AA==",
        b"AAA=",
        b"=",
        b"grpc-status: 0\n",
        b"x:",
        b"\0\0\0\0\0",
    ],
    max_len: 400,
    check,
};
