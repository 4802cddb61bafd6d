//! Everything that reads what peers and filters send, under inputs that nobody has thought of.
//!
//! Each of [`targets`] has a function that takes any bytes and asserts what must hold of them: not only that nothing panics,
//! but that what is written is read again, that cutting the input anywhere changes nothing, that another parser agrees, that
//! nobody waits for ever.
//!
//! # In CI
//!
//! `cargo test -p fuzz` runs each target on the inputs in `regressions/NAME`, on those in `corpus/NAME`, on a fixed number of
//! mutations of these, and then on random ones for `TOLLGATE_FUZZ_SECONDS` (1 by default). A failure shows its input, made smaller, and
//! the seed; `TOLLGATE_FUZZ_SEED` has the same random inputs again:
//!
//! ```console
//! $ TOLLGATE_FUZZ_SECONDS=60 TOLLGATE_FUZZ_SEED=7 cargo test -p fuzz --release client_hello
//! ```
//!
//! # Guided by coverage
//!
//! `tests/fuzz/run.sh NAME SECONDS` runs the same function under libFuzzer, which keeps each input that reaches new code. Half of its
//! mutations are ours. The pinned compiler can instrument the workspace's crates, so no nightly one is needed; there is no
//! AddressSanitizer then, which has little to find in a workspace that denies `unsafe` but for a few places.
//!
//! An input that fails becomes a file in `regressions/NAME`, named after what it has found. To take over what a long run has
//! found, without what adds nothing:
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
    /// What its inputs are made of.
    pub words: &'static [&'static [u8]],
    /// Longest input.
    pub max_len: usize,
    /// Panics if an input shows something that must not be.
    pub check: fn(&[u8]) -> Outcome,
}

/// A peer whose bytes come in these pieces, one at a time. What is written to it is lost.
pub struct Pieces<'a> {
    left: VecDeque<&'a [u8]>,
    stays: bool,
}

impl<'a> Pieces<'a> {
    /// Whether it `stays` after them, and says no more.
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

/// What became of an input. Of two inputs with the same outcome, one is worth keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome(u64);

impl Outcome {
    /// From whatever tells outcomes apart.
    pub fn of(what: impl Hash) -> Outcome {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Outcome(hasher.finish())
    }

    /// As a number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Where an input is cut: everywhere if it is short, else at its ends and at places that depend on nothing but its bytes.
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

/// A parser that is asked again when more bytes have come says of a beginning what it says of the whole, or that it needs
/// more; and that only of fewer than `bound` bytes. Returns what it says of the whole.
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
