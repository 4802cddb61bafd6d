//! Everything that reads what peers and filters send, under inputs that nobody has thought of.
//!
//! Each of [`targets`] has a function that takes any bytes and asserts what must hold of them: not only that nothing panics,
//! but that what is written is read again, that cutting the input anywhere changes nothing, that nobody waits for ever. Its
//! test runs it on the files in `corpus/NAME`, on a fixed number of mutations of them, which are the same each time, and then
//! on others for `TOLLGATE_FUZZ_SECONDS` (2 by default):
//!
//! ```console
//! $ TOLLGATE_FUZZ_SECONDS=600 cargo test -p fuzz --release client_hello
//! ```
//!
//! An input that fails is made smaller and shown; as a file in the corpus it will be tried for ever.
//!
//! The driver is our own. cargo-fuzz needs a nightly compiler; bolero, on a stable one, makes up its inputs from nothing, and
//! chance does not write the twelve bytes of a signature. Ours changes inputs that are already good, and keeps those whose
//! outcome is new. The targets are plain functions, so either of the others can run them as they are.

use std::hash::{DefaultHasher, Hash, Hasher};

#[cfg(test)]
mod driver;
#[cfg(test)]
mod mutate;
pub mod targets;

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
