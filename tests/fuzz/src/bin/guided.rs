//! A target under libFuzzer, which follows what inputs reach in the code. `run.sh` builds and starts it.
#![no_main]

use std::sync::LazyLock;

use fuzz::{Target, mutate::Mutator, targets};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TOLLGATE_FUZZ_TARGET").unwrap_or_default();
    let found = targets::ALL.iter().find(|(known, _)| *known == name);
    let names = || targets::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    &found.unwrap_or_else(|| panic!("TOLLGATE_FUZZ_TARGET is one of: {}", names())).1
});

fuzz_target!(|input: &[u8]| {
    (TARGET.check)(&input[..input.len().min(TARGET.max_len)]);
});

// Half of the changes are ours, which know the target's words; the others libFuzzer's, which know what was compared with what.
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
