//! Runs a target under libFuzzer, guided by coverage. `run.sh` builds and starts it.
#![no_main]

use std::sync::LazyLock;

use fuzz::{Target, mutate::Mutator, targets};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TOLLGATE_FUZZ_TARGET").unwrap_or_default();
    let found = targets::ALL.iter().find(|(known, _)| *known == name);
    let names = || targets::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    &found.unwrap_or_else(|| panic!("TOLLGATE_FUZZ_TARGET must be one of: {}", names())).1
});

fuzz_target!(|input: &[u8]| {
    (TARGET.check)(&input[..input.len().min(TARGET.max_len)]);
});

// Half of the mutations are ours, which use the target's words; the others are libFuzzer's, which use the compared
// values.
fuzz_mutator!(|input: &mut [u8], len: usize, max_len: usize, seed: u32| {
    if seed.is_multiple_of(2) {
        return fuzzer_mutate(input, len, max_len);
    }
    let random = fastrand::Rng::with_seed(seed.into());
    let mut changed = input[..len].to_vec();
    Mutator::new(random, TARGET.words, max_len.min(TARGET.max_len)).mutate(&mut changed, &[]);
    input[..changed.len()].copy_from_slice(&changed);
    changed.len()
});
