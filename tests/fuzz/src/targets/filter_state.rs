//! The arguments of `set_envoy_filter_state`: a Protocol Buffers message.

use tollgate::fuzzing::filter_state;

use crate::{Outcome, Target, cuts};

/// The result is a part of the message and survives a round trip; unknown fields are ignored.
fn check(input: &[u8]) -> Outcome {
    let read = filter_state(input);
    if let Some((key, value)) = read {
        assert!(!key.is_empty() && key.len() + value.len() <= input.len());
        let written = message(key, value);
        assert_eq!(filter_state(&written), read);
        assert_eq!(filter_state(&[input, b"\x18\x02\x22\x03abc"].concat()), read);
        assert_eq!(filter_state(&[input, &message(b"k", b"v")].concat()), Some((&b"k"[..], &b"v"[..])));
    }
    let (key, value) = input.split_at(input.len() / 2);
    assert_eq!(filter_state(&message(key, value)), (!key.is_empty()).then_some((key, value)));
    // A truncated field is not accepted.
    for cut in cuts(input) {
        if let Some((key, value)) = filter_state(&input[..cut]) {
            assert!(!key.is_empty() && key.len() + value.len() <= cut);
        }
    }
    Outcome::of((read.map(|(key, value)| (key.len().min(32), value.len().min(32))), input.len().min(64)))
}

fn message(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, bytes) in [(0x0a, key), (0x12, value)] {
        out.push(tag);
        let mut length = bytes.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend_from_slice(bytes);
    }
    out
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"\x0a\x01k",
        b"\x12\x01v",
        b"\x18\x02",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0d\0\0\0\0",
        b"\x09\0\0\0\0\0\0\0\0",
        b"\x80",
        b"envoy.tcp_proxy.cluster",
    ],
    max_len: 512,
    check,
};
