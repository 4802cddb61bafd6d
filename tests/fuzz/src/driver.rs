//! Runs a target: on inputs that failed before, on its corpus, on a fixed sequence of mutations, and on random
//! mutations.

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

use crate::{Outcome, Target, mutate::Mutator};

/// The number of mutations in the fixed sequence.
const FIXED: u32 = 5000;

/// The limit on inputs that are kept because of a new outcome.
const MOST_KEPT: usize = 4096;

/// The limit on attempts to shrink a failing input.
const SHRINKING: u32 = 2000;

/// Runs a target. Panics with the smallest failing input found, and the seed that led to it.
pub fn run(name: &str, target: &Target) {
    let driver = Driver { name, target };
    for input in driver.files("regressions") {
        driver.check(&input, None);
    }
    let mut inputs = driver.files("corpus");
    assert!(!inputs.is_empty(), "corpus/{name} is empty");
    let given = inputs.len();
    let mut seen = HashSet::new();
    for input in &inputs {
        seen.insert(driver.check(input, None));
    }
    let mut one = |mutator: &mut Mutator<'_>, inputs: &mut Vec<Vec<u8>>, seed| {
        let input = mutator.next(inputs, given);
        if seen.insert(driver.check(&input, seed)) && inputs.len() < MOST_KEPT {
            inputs.push(input);
        }
    };
    let mut mutator = Mutator::new(Rng::with_seed(Outcome::of(name).number()), target.words, target.max_len);
    for _ in 0..FIXED {
        one(&mut mutator, &mut inputs, None);
    }
    let seed = number("TOLLGATE_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{name}: TOLLGATE_FUZZ_SEED={seed}");
    let end = Instant::now() + Duration::from_secs(number("TOLLGATE_FUZZ_SECONDS").unwrap_or(1));
    let mut mutator = Mutator::new(Rng::with_seed(seed), target.words, target.max_len);
    while Instant::now() < end {
        one(&mut mutator, &mut inputs, Some(seed));
    }
}

struct Driver<'t> {
    name: &'t str,
    target: &'t Target,
}

impl Driver<'_> {
    /// Returns the inputs in a folder, in the same order on every machine.
    fn files(&self, folder: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(self.name);
        let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
        let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
        files.sort();
        files.iter().map(|file| fs::read(file).expect("a readable file")).collect()
    }

    /// Checks an input. `seed` led to the input, if it is from the random mutations.
    fn check(&self, input: &[u8], seed: Option<u64>) -> Outcome {
        self.try_check(input).unwrap_or_else(|why| {
            let least = quietly(|| self.shrink(input.to_vec()));
            let (name, bytes) = (self.name, least.escape_ascii());
            let seed = seed.map(|seed| format!(" (TOLLGATE_FUZZ_SEED={seed})")).unwrap_or_default();
            panic!("{name}: {why}{seed}\nwith this input; add it to regressions/{name}:\nb\"{bytes}\"");
        })
    }

    fn try_check(&self, input: &[u8]) -> Result<Outcome, String> {
        panic::catch_unwind(AssertUnwindSafe(|| (self.target.check)(input))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
        })
    }

    /// Removes ever smaller pieces from a failing input.
    fn shrink(&self, mut input: Vec<u8>) -> Vec<u8> {
        let mut attempts = SHRINKING;
        let mut piece = input.len() / 2;
        while piece > 0 && attempts > 0 {
            let mut at = 0;
            while at < input.len() && attempts > 0 {
                attempts -= 1;
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

/// Reads an integer from an environment variable.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be an integer, not `{text}`")))
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Calls a function and suppresses the messages of its panics on this thread.
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
    fn a_bug_behind_a_magic_prefix_is_found_and_its_input_shrunk() {
        let target = Target {
            words: &[b"X-Fault"],
            max_len: 4096,
            check: |input| {
                let head = input.starts_with(b"GET /");
                assert!(!(head && input.windows(7).any(|w| w == b"X-Fault")), "the fault");
                Outcome::of(head)
            },
        };
        let shown = quietly(|| panic::catch_unwind(AssertUnwindSafe(|| run("sniff", &target)))).unwrap_err();
        let shown = shown.downcast_ref::<String>().unwrap();
        assert!(shown.contains("sniff: the fault") && shown.ends_with("b\"GET /X-Fault\""), "{shown}");
    }
}
