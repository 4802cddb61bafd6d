//! gRPC: its fields, the messages of a body, and health responses.

use http::{HeaderMap, HeaderValue, header};
use tollgate::{
    fuzzing::{grpc_messages, health_request, health_status},
    http::grpc::{
        CONTENT_TYPE, STATUS, decode_message, encode_message, format_timeout, is_grpc, parse_timeout, split_path,
        status,
    },
};

use crate::{Outcome, Target, cuts};

/// Fields and paths round-trip as the protocol defines; messages are the same wherever a body is split.
fn check(input: &[u8]) -> Outcome {
    let fields = HeaderValue::from_bytes(input).ok().map(|value| of_field(&value));
    if let Ok(text) = str::from_utf8(input) {
        let encoded = encode_message(text);
        assert!(encoded.as_bytes().iter().all(|byte| matches!(byte, b' '..=b'~')));
        assert_eq!(decode_message(encoded.as_bytes()), text);
        if let Some((service, method)) = split_path(text) {
            assert_eq!(format!("/{service}/{method}"), text);
            assert!(!service.is_empty() && !method.is_empty() && text.len() <= 256 && text.is_ascii());
        }
        let asked = health_request(text);
        assert_eq!(grpc_messages(&[&asked]).map(|(all, left)| (all.len(), left)), Ok((1, 0)));
    }
    let decoded = decode_message(input);
    // Each byte that is not text is encoded as three.
    assert!(decoded.len() <= 3 * input.len());
    let messages = grpc_messages(&[input]);
    assert_eq!(messages.as_ref().map(|(all, left)| (all.len(), *left)).map_err(|e| *e), by_hand(input));
    for cut in cuts(input) {
        let (before, after) = input.split_at(cut);
        assert_eq!(grpc_messages(&[before, after]), messages, "cut at {cut}");
    }
    let health = health_status(input);
    if let Some(status) = health {
        // The last status counts, wherever unknown fields are.
        let more = [input, &[0x10, 5, 8][..], &varint(status ^ 1)[..]].concat();
        let length = (more.len() as u32 - 5).to_be_bytes();
        assert_eq!(health_status(&[&more[..1], &length, &more[5..]].concat()), Some(status ^ 1));
    }
    Outcome::of((fields, messages.map(|(all, left)| (all.len(), left > 0)), health.is_some(), input.len().min(64)))
}

/// Interprets a value as that of each field.
fn of_field(value: &HeaderValue) -> (bool, Option<u32>, Option<u8>) {
    let timeout = parse_timeout(value);
    if let Some(timeout) = timeout {
        let written = format_timeout(timeout);
        let again = parse_timeout(&written).expect("what is written is a timeout");
        assert!(again <= timeout.max(std::time::Duration::from_nanos(1)), "{value:?} as {written:?}");
        assert!(timeout.as_nanos().saturating_sub(again.as_nanos()) <= timeout.as_nanos() / 100_000);
    }
    let fields = HeaderMap::from_iter([(STATUS, value.clone()), (header::CONTENT_TYPE, value.clone())]);
    let is_grpc = is_grpc(&fields);
    assert!(!is_grpc || value.as_bytes()[..16].eq_ignore_ascii_case(CONTENT_TYPE.as_bytes()));
    (is_grpc, status(&fields), timeout.and(value.as_bytes().last().copied()))
}

/// Returns the number of messages and of bytes left, or the error.
fn by_hand(mut input: &[u8]) -> Result<(usize, usize), u32> {
    let mut count = 0;
    while let Some(([compressed, length @ ..], rest)) = input.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(*length) as usize;
        match (compressed, rest.get(length..)) {
            (1.., _) => return Err(12),
            _ if length > 16 << 20 => return Err(8),
            (_, Some(after)) => input = after,
            (_, None) => break,
        }
        count += 1;
    }
    Ok((count, input.len()))
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"\0\0\0\0\x02\x08\x01",
        b"\0\0\0\0\0",
        b"\x01",
        b"\x0a\x01a",
        b"\x19\0\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"99999999H",
        b"1n",
        b"0",
        b"S",
        b"application/grpc",
        b"+proto",
        b"/a.B/C",
        b"%41",
        b"%",
        b"\xc3\xa9",
    ],
    max_len: 400,
    check,
};
