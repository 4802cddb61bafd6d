//! How long responses took in the last minute, for hedging: how long may a request wait before it is late?
//!
//! One window per cluster, shared by all workers. Counting takes a few atomic operations; the percentile is computed once per
//! second, by the worker whose request asks first. Readers and writers are not synchronised: a count that falls into the
//! moment in which a slot is reused may be lost.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::latency_counts::{LatencyCounts, LatencySums};

/// Slots of the window, each of [`SLOT_MS`]; the newest one is being filled.
const SLOTS: usize = 6;

/// The length of a slot in milliseconds.
const SLOT_MS: u64 = 10_000;

/// How long a computed percentile is used, in milliseconds.
const REFRESH_MS: u64 = 1_000;

/// With fewer responses than this, a percentile of 95 is that of the slowest one.
const MIN_SAMPLES: u64 = 20;

/// "None" for a percentile in microseconds.
const UNKNOWN: u64 = u64::MAX;

/// The response times of the last minute.
pub struct LatencyWindow {
    slots: [Slot; SLOTS],
    /// When the percentile was computed, in milliseconds of [`clock`](super::clock).
    computed: AtomicU64,
    /// The percentile in microseconds, or [`UNKNOWN`].
    percentile: AtomicU64,
}

struct Slot {
    /// The number of the slot since the clock's start.
    number: AtomicU64,
    counts: LatencyCounts,
}

impl Default for LatencyWindow {
    fn default() -> Self {
        LatencyWindow {
            slots: std::array::from_fn(|_| Slot { number: AtomicU64::new(0), counts: LatencyCounts::default() }),
            computed: AtomicU64::new(0),
            percentile: AtomicU64::new(UNKNOWN),
        }
    }
}

impl LatencyWindow {
    /// Counts a response that took this long; `now` is in milliseconds of [`clock`](super::clock).
    pub(super) fn observe(&self, now: u64, took: Duration) {
        let number = now / SLOT_MS;
        let slot = &self.slots[(number % SLOTS as u64) as usize];
        let seen = slot.number.load(Relaxed);
        if seen != number && slot.number.compare_exchange(seen, number, Relaxed, Relaxed).is_ok() {
            slot.counts.clear();
        }
        slot.counts.observe(took);
    }

    /// Returns the time within which 95 % of the responses of the last minute began, up to a sixteenth more and at most a
    /// second old; `None` if there were too few.
    pub(super) fn p95(&self, now: u64) -> Option<Duration> {
        let computed = self.computed.load(Relaxed);
        if now >= computed.saturating_add(REFRESH_MS)
            && self.computed.compare_exchange(computed, now, Relaxed, Relaxed).is_ok()
        {
            self.percentile.store(self.compute(now).unwrap_or(UNKNOWN), Relaxed);
        }
        let micros = self.percentile.load(Relaxed);
        (micros != UNKNOWN).then(|| Duration::from_micros(micros))
    }

    fn compute(&self, now: u64) -> Option<u64> {
        let number = now / SLOT_MS;
        let is_recent =
            |slot: &&Slot| (number.saturating_sub(SLOTS as u64 - 1)..=number).contains(&slot.number.load(Relaxed));
        let mut sums = LatencySums::default();
        self.slots.iter().filter(is_recent).for_each(|slot| sums.add(&slot.counts));
        let p95 = sums.percentile(95).filter(|_| sums.count() >= MIN_SAMPLES);
        p95.map(|time| time.as_micros() as u64)
    }
}

impl fmt::Debug for LatencyWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LatencyWindow").field("percentile", &self.percentile).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn percentile_is_that_of_the_last_minute() {
        let window = LatencyWindow::default();
        assert_eq!(window.p95(1), None);
        (0..19).for_each(|_| window.observe(1_000, micros(100)));
        assert_eq!(window.p95(2_000), None, "too few");
        (0..75).for_each(|_| window.observe(1_000, micros(100)));
        (0..6).for_each(|_| window.observe(5_000, micros(10_000)));
        // 94 of 100 took 100 µs.
        let p95 = window.p95(6_000).unwrap();
        assert!(p95 >= micros(10_000) && p95 <= micros(10_625), "{p95:?}");
        window.observe(6_000, micros(100));
        (0..30).for_each(|_| window.observe(6_001, micros(100)));
        assert_eq!(window.p95(6_500).unwrap(), p95, "it is computed once per second");
        let fast = window.p95(7_001).unwrap();
        assert!(fast >= micros(100) && fast <= micros(107), "{fast:?}");
        assert!(window.p95(59_999).is_some());
        assert_eq!(window.p95(61_000), None, "they are older than a minute");
        // A slot is emptied before it is used again.
        (0..20).for_each(|_| window.observe(61_000, micros(1)));
        assert_eq!(window.p95(62_000), Some(micros(1)));
    }

    /// The tail that hedging cuts off still counts: a first attempt that is cancelled counts with the time until then.
    /// Otherwise each round would hedge earlier than the one before.
    #[test]
    fn delay_does_not_shrink_when_slow_responses_are_cut_off() {
        let (window, mut random) = (LatencyWindow::default(), fastrand::Rng::with_seed(7));
        let (mut now, mut hedged) = (1_000, 0);
        for _ in 0..60_000 {
            now += 2;
            // From 10 ms to 10 s, of which few are slow.
            let mut response = || 10_000_000 / random.u64(1..=1_000);
            let (first, second) = (response(), response());
            match window.p95(now).map(|delay| delay.as_micros() as u64).filter(|delay| first > *delay) {
                None => window.observe(now, micros(first)),
                Some(delay) => {
                    hedged += 1;
                    window.observe(now, micros(first.min(delay + second)));
                }
            }
        }
        assert!((1_200..3_600).contains(&hedged), "{hedged} of 60000 requests had a second attempt");
    }
}
