//! The list of buffers that a module passes to `fd_write` of WASI.

use tollgate::fuzzing::gathered;

use crate::{Outcome, Target};

/// The limit on the logged bytes of a call.
const LONGEST: usize = 16 << 10;

/// The first eight bytes are the list's address and length, and the rest, repeated four times, is the module's
/// memory. What is read lies in that memory and has the stated length.
fn check(input: &[u8]) -> Outcome {
    let Some(([a, b, c, d, e, f, g, h], rest)) = input.split_first_chunk::<8>() else { return Outcome::of(()) };
    let (iovs, len) = (i32::from_le_bytes([*a, *b, *c, *d]), i32::from_le_bytes([*e, *f, *g, *h]));
    // Callers have rejected longer lists.
    let len = (len as u32 % 1025) as i32;
    let memory = rest.repeat(4);
    let (read, expected) = (gathered(&memory, iovs, len), by_hand(&memory, iovs, len));
    if let Some((_, total)) = &read {
        assert!(*total <= memory.len());
    }
    assert_eq!(read, expected);
    Outcome::of((read.map(|(text, total)| (text.len().min(64), total.min(64))), len.min(16), memory.len().min(64)))
}

fn by_hand(memory: &[u8], iovs: i32, len: i32) -> Option<(Vec<u8>, usize)> {
    let at = |place: u64, length: u64| memory.get(usize::try_from(place).ok()?..usize::try_from(place + length).ok()?);
    let word = |place: u64| Some(u64::from(u32::from_le_bytes(at(place, 4)?.try_into().ok()?)));
    let first = u64::from(iovs as u32);
    at(first, 8 * len as u64)?;
    let mut all = Vec::new();
    for piece in 0..len as u64 {
        let place = first + 8 * piece;
        all.extend_from_slice(at(word(place)?, word(place + 4)?)?);
        if all.len() > memory.len() {
            return None;
        }
    }
    let total = all.len();
    all.truncate(LONGEST);
    Some((all, total))
}

pub(super) const TARGET: Target = Target {
    words: &[b"\0\0\0\0\x01\0\0\0", b"\x08\0\0\0\x04\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\0", b"\x01\x04\0\0"],
    max_len: 8192,
    check,
};
