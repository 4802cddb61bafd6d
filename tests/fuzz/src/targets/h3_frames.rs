//! The frames of HTTP/3, before h3 sees them.

use crate::{Outcome, Target, cuts};
use bytes::Bytes;
use tollgate::downstream::{
    flood::FrameLimiter,
    h3::framing::{FrameViolation, Framing},
};

/// The bound on heads.
const MAX_HEAD: u64 = 200;

/// What is passed on of a stream that comes in these pieces, how much of it is data, and how it ends.
fn passed(mut framing: Framing, pieces: &[&[u8]]) -> (Vec<u8>, u64, Result<(), FrameViolation>) {
    let (flood, mut all, mut data) = (FrameLimiter::default(), Vec::new(), 0);
    for piece in pieces {
        let pushed = framing.push(&Bytes::copy_from_slice(piece), &flood);
        while let Some(piece) = framing.pop() {
            assert!(!piece.is_empty(), "h3 takes nothing for the end");
            all.extend_from_slice(&piece);
        }
        match pushed {
            Ok(more) => data += more,
            Err(violation) => return (all, data, Err(violation)),
        }
    }
    (all, data, framing.end())
}

/// It does not matter where the stream is cut, nothing is made up, and what is passed on would be passed on again.
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
            // What comes after something that must not be is nobody's business.
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
