//! Paths of properties, and encoded values of metadata and expected versions.

use tollgate_abi::{
    path::{MAX_BYTES, MAX_SEGMENTS, Path},
    value::{Value, kind},
};

use crate::{Outcome, Target};

/// A path equals its joined segments; a value is encoded as it was decoded.
fn check(input: &[u8]) -> Outcome {
    let path = Path::decode(input);
    let written = input.strip_suffix(b"\0").unwrap_or(input);
    let segments = written.split(|byte| *byte == 0).count();
    let readable = input.len() <= MAX_BYTES && segments <= MAX_SEGMENTS && str::from_utf8(input).is_ok();
    assert_eq!(path.is_some(), readable);
    if let Some(path) = path {
        assert_eq!(path.segments().join("\0").as_bytes(), written);
        assert_eq!(path.segments().len(), segments);
        // A trailing NUL is ignored.
        let again = [written, b"\0"].concat();
        assert_eq!(Path::decode(&again).map(|p| p.segments().join("\0")), Some(path.segments().join("\0")));
    }
    // The input as a type and a value.
    let value = input.split_first().map(|(first, bytes)| {
        let value = Value::decode(i32::from(*first as i8), bytes);
        if let Some(value) = &value {
            assert!((0..kind::NAMES.len() as i32).contains(&value.kind()) && value.kind() == i32::from(*first as i8));
            value.with_bytes(|again| assert_eq!(again, bytes));
        }
        value.map(|value| value.kind())
    });
    Outcome::of((segments.min(MAX_SEGMENTS + 1), path.is_some(), value, input.len().min(64)))
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"\0",
        b"request",
        b"metadata\0filter_metadata\0",
        b"filter_state\0",
        b"\xff",
        b"\x02",
        b"\x03",
        b"\x04\x01",
    ],
    max_len: 512,
    check,
};
