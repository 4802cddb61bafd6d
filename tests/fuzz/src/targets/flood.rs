//! The limit on an HTTP/2 client's frames that lead to nothing.

use std::{
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use crate::{Outcome, Pieces, Target};
use tokio::io::{AsyncRead, ReadBuf};
use tollgate::{downstream::flood::FrameLimiter, fuzzing::counted};

/// The documented limits: frames at once, additional frames per second, and the credit for a head.
const MOST: u64 = 10_000;
const EACH_SECOND: u64 = 1000;
const HEAD: u64 = 10;

/// The first byte is how often the following frames are repeated. A connection is closed if and only if they exceed
/// the limit.
fn check(input: &[u8]) -> Outcome {
    let Some((times, frames)) = input.split_first() else { return Outcome::of(()) };
    let all = frames.repeat(1 + 16 * usize::from(*times));
    let highest = highest(&all);
    let begin = Instant::now();
    let flood = Rc::new(FrameLimiter::default());
    let pieces: Vec<&[u8]> = [&[b'x'; 24][..]].into_iter().chain(all.chunks(1 + 61 * frames.len())).collect();
    let mut counted = pin!(counted(Pieces::new(&pieces, false), &flood));
    let (mut space, mut broken) = ([0; 4096], false);
    loop {
        let mut buffer = ReadBuf::new(&mut space);
        match counted.as_mut().poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => break,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                broken = true;
                break;
            }
            Poll::Pending => panic!("nothing is left to wait for"),
        }
    }
    assert_eq!(broken, flood.is_one());
    let allowed = EACH_SECOND * (1 + begin.elapsed().as_secs());
    assert!(!broken || highest > MOST, "closed after {highest} at once");
    assert!(broken || highest <= MOST + allowed, "{highest} at once were allowed");
    Outcome::of((broken, highest.min(MOST).checked_ilog2(), frames.len().min(64)))
}

/// Returns the highest level of a bucket that does not leak.
fn highest(mut bytes: &[u8]) -> u64 {
    let (mut level, mut highest) = (0u64, 0);
    while let Some(([a, b, c, kind, ..], rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, *a, *b, *c]);
        match kind {
            0 if length > 0 => level = level.saturating_sub(u64::from(length / 1024) + 1),
            1 => level = level.saturating_sub(HEAD),
            _ => level += 1,
        }
        highest = highest.max(level);
        bytes = rest.get(length as usize..).unwrap_or_default();
    }
    highest
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\x04\0\0\0\0\0",
        b"\0\0\0\0\0\0\0\0\x01",
        b"\0\0\x01\0\0\0\0\0\x01x",
        b"\0\0\0\x01\x05\0\0\0\x01",
        b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01",
        b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\0\0",
    ],
    max_len: 100,
    check,
};
