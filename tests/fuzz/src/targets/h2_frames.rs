//! The inspection of HTTP/2 frames before h2, and of the heads in them.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, ReadBuf};
use tollgate::h2::{Malformed, ScreenedIo, hpack};

use crate::{Outcome, Pieces, Target, cuts};

/// The connection preface.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Returns what passes of a client's bytes after the preface, sent in these pieces, and the number of rewritten
/// heads.
fn passed(pieces: &[&[u8]]) -> (Vec<u8>, usize) {
    let (malformed, pieces) = (Malformed::default(), [&[PREFACE], pieces].concat());
    let mut screened = pin!(ScreenedIo::of_client(Pieces::new(&pieces, false), 300, malformed.clone()));
    let (mut all, mut space) = (Vec::new(), [0; 4096]);
    loop {
        let mut buffer = ReadBuf::new(&mut space);
        let read = screened.as_mut().poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        assert!(matches!(read, Poll::Ready(Ok(()))), "nothing is left to wait for");
        match buffer.filled() {
            [] => break,
            more => all.extend_from_slice(more),
        }
    }
    let count = std::iter::from_fn(|| malformed.take().then_some(())).count();
    (all.split_off(PREFACE.len()), count)
}

/// The result does not depend on where the input is split, what passes would pass again, and a block with replaced
/// fields is valid.
fn check(input: &[u8]) -> Outcome {
    let (all, malformed) = passed(&[input]);
    for cut in cuts(input) {
        let (before, after) = input.split_at(cut);
        assert_eq!(passed(&[before, after]), (all.clone(), malformed), "cut at {cut}");
    }
    assert_eq!(passed(&[&all]), (all, 0));
    let mut outcomes = Vec::new();
    for in_trailers in [false, true] {
        let fine = hpack::is_fine(input, in_trailers);
        let mut replaced = Vec::new();
        let done = hpack::replaced(input, in_trailers, |line| replaced.extend_from_slice(line));
        match (fine, done) {
            (Some(true), Some(())) => assert_eq!(replaced, input),
            (Some(false), Some(())) => assert_eq!(hpack::is_fine(&replaced, in_trailers), Some(true)),
            // An empty name has no replacement.
            (Some(true), None) | (None, Some(())) => panic!("{fine:?}, {done:?}"),
            (_, None) => {}
        }
        outcomes.push((fine, done));
    }
    Outcome::of((malformed, format!("{outcomes:?}")))
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"\0\0\x03\x01\x05\0\0\0\x01\x82\x84\x86",
        b"\0\0\x06\x01\x04\0\0\0\x03\0\x01x\x02a\x1f",
        b"\0\0\0\x01\0\0\0\0\x01",
        b"\0\0\x04\x09\x04\0\0\0\x01\0\x01X\0",
        b"\0\0\x05\0\x01\0\0\0\x01hello",
        b"\0\0\x04\x01\x0c\0\0\0\x01\x02\x82\0\0",
        b"\x40\x01x\x81\xff",
        b"\x42\x03G T",
        b"\x44\x81\x63",
        b"\x3f\xe1\x1f",
        b"\xbe",
    ],
    max_len: 600,
    check,
};
