//! Token buckets shared by all workers: exact and lock-free. Each bucket is one 64-bit number (see
//! `tollgate_abi::gcra`), updated by compare-and-swap.
//!
//! Keyed buckets live in a table of fixed size, whose slots hold a key's fingerprint and its number. A bucket that is
//! full again is indistinguishable from one that was never used, so its slot can be reused without any effect: this is
//! how idle keys are evicted, and why there is no clean-up task.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;
use tollgate_abi::{
    doc,
    fast::Take,
    gcra::{Figures, TICKS_PER_NANO},
};

use super::zeroed_atomics::ZeroedAtomics;

/// The number of slots a key may occupy. At `max_keys` at most half of the slots are in use, so a key rarely finds all
/// of its slots taken; then the bucket nearest to full is evicted.
const WINDOW: usize = 32;

/// The `tat` of a slot that is being taken over. Never a real value: it lies before all time.
const BUSY: u64 = u64::MAX;

/// A bucket, or one bucket per key.
#[derive(Debug)]
pub struct Bucket {
    figures: Figures,
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    One(AtomicU64),
    Many { slots: ZeroedAtomics, mask: usize, hasher: RandomState },
}

/// Ticks since the first call. Starts at one year, so that 0 is safely in the past.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    const YEAR: u64 = 365 * 86_400 * 1_000_000_000 * TICKS_PER_NANO;
    let nanos = START.get_or_init(Instant::now).elapsed().as_nanos() as u64;
    YEAR.wrapping_add(nanos.wrapping_mul(TICKS_PER_NANO))
}

/// The number of slots of a table for this many keys.
fn slots(max_keys: u32) -> usize {
    (max_keys as usize * 2).next_power_of_two().max(WINDOW * 2)
}

/// Bytes of the table of a bucket with this many keys. `None` above 2^27 keys.
pub fn table_size(max_keys: u32) -> Option<usize> {
    match max_keys {
        0 => Some(0),
        keys if keys > 1 << 27 => None,
        keys => Some(slots(keys) * 2 * size_of::<AtomicU64>()),
    }
}

impl Bucket {
    /// Creates a full bucket. `None` if its parameters are out of range, or it has more than 2^27 keys.
    pub fn new(doc: &doc::Bucket) -> Option<Bucket> {
        let figures = Figures::new(doc)?;
        table_size(doc.max_keys)?;
        let keys = match doc.max_keys {
            0 => Keys::One(AtomicU64::new(0)),
            keys => {
                let slots = slots(keys);
                Keys::Many { slots: ZeroedAtomics::new(slots * 2)?, mask: slots - 1, hasher: RandomState::new() }
            }
        };
        Some(Bucket { figures, keys })
    }

    /// Takes tokens (or returns them, if negative) for a key.
    pub fn take(&self, key: &[u8], tokens: i32) -> (bool, Take) {
        self.take_at(key, tokens, now())
    }

    fn take_at(&self, key: &[u8], tokens: i32, now: u64) -> (bool, Take) {
        match &self.keys {
            Keys::One(tat) => loop {
                let old = tat.load(Ordering::Acquire);
                let (taken, new, take) = self.figures.take(old, now, tokens);
                // A denied request changes nothing, so nothing is written.
                if !taken || tat.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return (taken, take);
                }
            },
            Keys::Many { slots, mask, hasher } => {
                let fingerprint = hasher.hash_one(key).max(1);
                let slots = Slots { slots, mask: *mask, fingerprint, now };
                loop {
                    let (tat, old) = slots.find();
                    let (taken, new, take) = self.figures.take(old, now, tokens);
                    if !taken || tat.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                        return (taken, take);
                    }
                }
            }
        }
    }
}

/// The slots that one key may occupy.
struct Slots<'a> {
    slots: &'a [AtomicU64],
    mask: usize,
    fingerprint: u64,
    now: u64,
}

impl<'a> Slots<'a> {
    /// A slot: its fingerprint and its `tat`.
    fn slot(&self, n: usize) -> (&'a AtomicU64, &'a AtomicU64) {
        let at = ((self.fingerprint as usize).wrapping_add(n) & self.mask) * 2;
        (&self.slots[at], &self.slots[at + 1])
    }

    /// Returns the key's slot and the `tat` read from it while it was the key's. A slot that changes owner first sets
    /// its `tat` to [`BUSY`], so a compare-and-swap from the returned value succeeds only on the key's own bucket.
    fn find(&self) -> (&'a AtomicU64, u64) {
        loop {
            let mut worst: Option<(usize, u64)> = None;
            for n in 0..WINDOW {
                let (owner, tat) = self.slot(n);
                let seen = tat.load(Ordering::Acquire);
                if owner.load(Ordering::Acquire) == self.fingerprint {
                    if seen != BUSY && tat.load(Ordering::Acquire) == seen {
                        return (tat, seen);
                    }
                    // The slot is being taken over right now: scan all slots again.
                    worst = None;
                    break;
                }
                // An idle slot stays a candidate: the key itself may be further on.
                if seen != BUSY && worst.is_none_or(|(_, tat)| seen < tat) {
                    worst = Some((n, seen));
                }
            }
            let Some((n, seen)) = worst else {
                std::hint::spin_loop();
                continue;
            };
            let (owner, tat) = self.slot(n);
            if tat.compare_exchange(seen, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // While the slot is busy, no one else can use it, so it can still be given up: another worker may be
            // inserting the same key elsewhere. Of two concurrent insertions, the one with the earlier slot waits for
            // the other, which gives up.
            owner.store(self.fingerprint, Ordering::SeqCst);
            let mut alone = true;
            for other in (0..WINDOW).filter(|other| *other != n) {
                let (other_owner, other_tat) = self.slot(other);
                while alone && other_owner.load(Ordering::SeqCst) == self.fingerprint {
                    alone = other > n && other_tat.load(Ordering::SeqCst) == BUSY;
                    std::hint::spin_loop();
                }
            }
            if !alone {
                owner.store(0, Ordering::SeqCst);
            }
            // The bucket is full. Its `tat` is now, rather than 0, so that no two lives of a slot have the same number.
            tat.store(self.now, Ordering::SeqCst);
            if !alone {
                continue;
            }
            return (tat, self.now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(capacity: u32, max_keys: u32) -> Bucket {
        // So slow that no token is added during a test.
        Bucket::new(&doc::Bucket { name: "b".into(), capacity, fill: 1, interval_ms: 60_000, max_keys }).unwrap()
    }

    fn taken_by_four_threads(bucket: &Bucket, key: impl Fn(u32) -> Vec<u8> + Sync) -> u32 {
        std::thread::scope(|s| {
            let threads: Vec<_> =
                (0..4).map(|_| s.spawn(|| (0..40_000).filter(|i| bucket.take(&key(*i), 1).0).count() as u32)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn clock_advances_and_starts_at_one_year() {
        let ticks = |seconds: u64| seconds * 1_000_000_000 * TICKS_PER_NANO;
        let before = now();
        assert!(before >= ticks(365 * 86_400));
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        assert_eq!(now() - before, ticks(2));
    }

    #[test]
    fn four_threads_take_exactly_the_available_tokens() {
        assert_eq!(taken_by_four_threads(&bucket(10_000, 0), |_| Vec::new()), 10_000);
    }

    #[test]
    fn four_threads_take_exactly_the_available_tokens_per_key() {
        let bucket = bucket(30, 1000);
        assert_eq!(taken_by_four_threads(&bucket, |i| (i % 500).to_le_bytes().to_vec()), 30 * 500);
    }

    #[test]
    fn a_million_keys_have_separate_buckets() {
        let bucket = bucket(2, 1_000_000);
        for round in 0..3 {
            let allowed = (0..1_000_000u32).filter(|key| bucket.take(&key.to_le_bytes(), 1).0).count();
            let expected = if round < 2 { 1_000_000 } else { 0 };
            // A key whose slots are all taken is evicted, so a few may get one token too many, depending on this
            // process's hash seed; none gets one too few.
            assert!((expected..=expected + 30).contains(&allowed), "round {round}: {allowed}");
        }
    }

    #[test]
    fn table_size_is_fixed() {
        let bucket = bucket(1, 1000);
        let Keys::Many { slots, .. } = &bucket.keys else { panic!() };
        assert_eq!(slots.len(), 2048 * 2);
        assert!(
            (0..100_000u32).all(|key| bucket.take(&key.to_le_bytes(), 1).0),
            "a new key always finds a full bucket"
        );
    }

    #[test]
    fn idle_keys_are_evicted() {
        let doc = doc::Bucket { name: "b".into(), capacity: 1, fill: 1, interval_ms: 1000, max_keys: 64 };
        let bucket = Bucket::new(&doc).unwrap();
        let second = 1_000_000_000 * TICKS_PER_NANO;
        let start = now();
        for generation in 0..100u64 {
            let at = start + generation * second;
            for key in 0..64u64 {
                let key = (generation * 64 + key).to_le_bytes();
                assert!(bucket.take_at(&key, 1, at).0);
                assert!(!bucket.take_at(&key, 1, at + 1).0, "an active key is not evicted");
            }
        }
    }
}
