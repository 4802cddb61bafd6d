//! Runs a target: on its corpus, on mutations that are the same each time, on mutations that are not.

use std::{
    cell::Cell,
    collections::HashSet,
    fs,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::Once,
    time::{Duration, Instant},
};

use fastrand::Rng;

use crate::{Outcome, mutate::Mutator};

/// Mutations that are the same each time.
const FIXED: u32 = 5000;

/// Inputs that are kept for their outcome.
const MOST_KEPT: usize = 4096;

/// Tries to make an input smaller that fails.
const SHRINKING: u32 = 2000;

/// A target.
pub struct Target {
    /// Its name, and that of its folder in `corpus`.
    pub name: &'static str,
    /// What its inputs are made of.
    pub words: &'static [&'static [u8]],
    /// Longest input.
    pub max_len: usize,
    /// Panics if an input shows something that must not be.
    pub check: fn(&[u8]) -> Outcome,
}

impl Target {
    /// Runs it. Panics with the least input found for which it fails.
    pub fn run(&self) {
        let mut inputs = self.corpus();
        let given = inputs.len();
        let mut seen = HashSet::new();
        for input in &inputs {
            seen.insert(self.check(input));
        }
        let mut one = |mutator: &mut Mutator<'_>, inputs: &mut Vec<Vec<u8>>| {
            let input = mutator.next(inputs, given);
            if seen.insert(self.check(&input)) && inputs.len() < MOST_KEPT {
                inputs.push(input);
            }
        };
        let mut mutator = Mutator::new(Rng::with_seed(Outcome::of(self.name).number()), self.words, self.max_len);
        for _ in 0..FIXED {
            one(&mut mutator, &mut inputs);
        }
        let end = Instant::now() + seconds();
        let mut mutator = Mutator::new(Rng::new(), self.words, self.max_len);
        while Instant::now() < end {
            one(&mut mutator, &mut inputs);
        }
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name);
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.expect("a file of the corpus").path()).collect();
        assert!(!files.is_empty(), "{} is empty", folder.display());
        // The fixed mutations are the same everywhere.
        files.sort();
        files.iter().map(|file| fs::read(file).expect("a readable file")).collect()
    }

    fn check(&self, input: &[u8]) -> Outcome {
        match self.try_check(input) {
            Ok(outcome) => outcome,
            Err(why) => {
                let least = quietly(|| self.shrink(input.to_vec()));
                let bytes = least.escape_ascii();
                panic!("{}: {why}\nwith an input like this, which belongs into the corpus:\nb\"{bytes}\"", self.name);
            }
        }
    }

    fn try_check(&self, input: &[u8]) -> Result<Outcome, String> {
        panic::catch_unwind(AssertUnwindSafe(|| (self.check)(input))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
        })
    }

    /// Leaves out what can be left out, in ever smaller pieces.
    fn shrink(&self, mut input: Vec<u8>) -> Vec<u8> {
        let mut tries = SHRINKING;
        let mut piece = input.len() / 2;
        while piece > 0 && tries > 0 {
            let mut at = 0;
            while at < input.len() && tries > 0 {
                tries -= 1;
                let mut less = input.clone();
                less.drain(at..(at + piece).min(input.len()));
                if self.try_check(&less).is_err() {
                    input = less;
                } else {
                    at += piece;
                }
            }
            piece /= 2;
        }
        input
    }
}

fn seconds() -> Duration {
    let text = std::env::var("TOLLGATE_FUZZ_SECONDS").unwrap_or_else(|_| "2".to_owned());
    Duration::from_secs(text.parse().expect("TOLLGATE_FUZZ_SECONDS is a whole number of seconds"))
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Does something whose panics on this thread are not worth telling.
fn quietly<T>(f: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let result = f();
    QUIET.set(false);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_found_behind_a_signature_and_shown_small() {
        let target = Target {
            name: "sniff",
            words: &[b"X-Fault"],
            max_len: 4096,
            check: |input| {
                let head = input.starts_with(b"GET /");
                assert!(!(head && input.windows(7).any(|w| w == b"X-Fault")), "the fault");
                Outcome::of(head)
            },
        };
        let shown = quietly(|| panic::catch_unwind(AssertUnwindSafe(|| target.run()))).unwrap_err();
        let shown = shown.downcast_ref::<String>().unwrap();
        assert!(shown.contains("sniff: the fault") && shown.ends_with("b\"GET /X-Fault\""), "{shown}");
    }
}
