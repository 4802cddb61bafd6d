//! The inspection of HTTP/3 frames before h3.

use crate::{Outcome, Target, cuts};
use bytes::Bytes;
use tollgate::downstream::{
    flood::FrameLimiter,
    h3::framing::{FrameViolation, Framing},
};

/// The limit on heads in bytes.
const MAX_HEAD: u64 = 200;

/// Returns what passes of a stream that arrives in these pieces, how much of it is data, and how it ends.
fn passed(mut framing: Framing, pieces: &[&[u8]]) -> (Vec<u8>, u64, Result<(), FrameViolation>) {
    let (flood, mut all, mut data) = (FrameLimiter::default(), Vec::new(), 0);
    for piece in pieces {
        let pushed = framing.push(&Bytes::copy_from_slice(piece), &flood);
        while let Some(piece) = framing.pop() {
            assert!(!piece.is_empty(), "h3 takes an empty piece for the end");
            all.extend_from_slice(&piece);
        }
        match pushed {
            Ok(more) => data += more,
            Err(violation) => return (all, data, Err(violation)),
        }
    }
    (all, data, framing.end())
}

/// The result does not depend on where the stream is split, nothing is added, and what passes would pass again.
fn check(input: &[u8]) -> Outcome {
    let kinds: [fn() -> Framing; 2] = [|| Framing::request(MAX_HEAD), Framing::one_way];
    let mut outcomes = Vec::new();
    for framing in kinds {
        let (all, data, end) = passed(framing(), &[input]);
        assert!(all.len() <= input.len() && data <= all.len() as u64);
        for cut in cuts(input) {
            let (before, after) = input.split_at(cut);
            let (parts, _, same) = passed(framing(), &[before, after]);
            assert_eq!(end, same, "cut at {cut}");
            // Bytes after a violation do not matter.
            assert!(if end.is_ok() { parts == all } else { parts.starts_with(&all) || all.starts_with(&parts) });
        }
        if end.is_ok() {
            assert_eq!(passed(framing(), &[&all]), (all.clone(), data, Ok(())));
        }
        outcomes.push((all.len().checked_ilog2(), data > 0, end));
    }
    Outcome::of(format!("{outcomes:?}"))
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"\x00\x05hello",
        b"\x01\x05\0\0\xd1\xd7\xc1",
        b"\x01\x03\0\0\xdd",
        b"\x00\x00",
        b"\x21\x03abc",
        b"\x04\x00",
        b"\x40\x54",
        b"\x41\x00",
        b"\xc0\0\0\0\0\0\0\x01",
    ],
    max_len: 600,
    check,
};
