//! Fuzz tests of everything that parses input from peers and filters.
//!
//! Each of [`targets`] has a function that accepts any bytes and asserts invariants: not only that nothing panics,
//! but that encoding and parsing round-trip, that splitting the input anywhere changes nothing, that another parser
//! agrees, and that nothing waits forever.
//!
//! # In CI
//!
//! `cargo test -p fuzz` runs each target on the inputs in `regressions/NAME`, on those in `corpus/NAME`, on a fixed
//! number of mutations of these, and then on random mutations for `TOLLGATE_FUZZ_SECONDS` (1 by default). A failure
//! prints the shrunk input and the seed; `TOLLGATE_FUZZ_SEED` repeats the random mutations:
//!
//! ```console
//! $ TOLLGATE_FUZZ_SECONDS=60 TOLLGATE_FUZZ_SEED=7 cargo test -p fuzz --release client_hello
//! ```
//!
//! # Coverage-guided
//!
//! `tests/fuzz/run.sh NAME SECONDS` runs the same function under libFuzzer, which keeps each input that reaches new
//! code. Half of its mutations are ours. The pinned compiler can instrument the workspace's crates, so no nightly
//! compiler is needed. AddressSanitizer is not used; it would find little in a workspace that denies `unsafe` except
//! in a few places.
//!
//! Store a failing input in `regressions/NAME`, in a file named after the bug. To add the inputs that a long run has
//! found to the corpus, without redundant ones:
//!
//! ```console
//! $ TOLLGATE_FUZZ_TARGET=NAME target/debug/guided -merge=1 tests/fuzz/corpus/NAME target/fuzz/corpus/NAME
//! ```

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(test)]
mod driver;
pub mod mutate;
pub mod targets;

/// A parser under test.
pub struct Target {
    /// Typical fragments of its inputs.
    pub words: &'static [&'static [u8]],
    /// The limit on inputs in bytes.
    pub max_len: usize,
    /// Checks an input. Panics if an invariant is violated.
    pub check: fn(&[u8]) -> Outcome,
}

/// A peer that sends these pieces, one at a time. Bytes written to it are discarded.
pub struct Pieces<'a> {
    left: VecDeque<&'a [u8]>,
    stays: bool,
}

impl<'a> Pieces<'a> {
    /// Creates a peer; after the pieces it keeps the connection open if it `stays`, else closes it.
    pub fn new(pieces: &[&'a [u8]], stays: bool) -> Self {
        Pieces { left: pieces.iter().copied().filter(|piece| !piece.is_empty()).collect(), stays }
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(piece) = self.left.pop_front() else {
            return if self.stays { Poll::Pending } else { Poll::Ready(Ok(())) };
        };
        let (now, later) = piece.split_at(buffer.remaining().min(piece.len()));
        buffer.put_slice(now);
        if !later.is_empty() {
            self.left.push_front(later);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The outcome of an input. Of several inputs with the same outcome, one is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome(u64);

impl Outcome {
    /// Creates an outcome from everything that distinguishes it.
    pub fn of(what: impl Hash) -> Outcome {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Outcome(hasher.finish())
    }

    /// Returns the outcome as a number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Returns the positions at which an input is split: all of them if it is short, else some at both ends and some
/// pseudo-random ones that depend only on its bytes.
pub fn cuts(input: &[u8]) -> impl Iterator<Item = usize> {
    const MOST: usize = 48;
    let len = input.len();
    let mut random = fastrand::Rng::with_seed(Outcome::of(input).number());
    (0..len.min(MOST)).map(move |i| match i {
        _ if len <= MOST => i,
        0..16 => i,
        16..24 => len - (i - 15),
        _ => random.usize(..len),
    })
}

/// Checks an incremental parser: for each prefix it must return the same result as for the whole, or need more bytes,
/// but only for fewer than `bound` bytes. Returns the result for the whole.
pub fn asked_again<'a, T: PartialEq + std::fmt::Debug>(
    input: &'a [u8],
    need_more: &T,
    bound: usize,
    parse: impl Fn(&'a [u8]) -> T,
) -> T {
    let whole = parse(input);
    assert!(whole != *need_more || input.len() < bound, "{} bytes are not enough", input.len());
    for end in cuts(input) {
        let part = parse(&input[..end]);
        assert!(part == whole || part == *need_more, "{part:?} after {end} bytes, then {whole:?}");
    }
    whole
}
