//! Counts of latencies, of which percentiles are read. Any number of threads count, without locks.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// Bits of precision: a bucket is at most a sixteenth (6.25 %) wide.
const PRECISION: u32 = 4;

/// The longest time that is told apart, in microseconds: 2^36, 19 hours.
const MAX_EXPONENT: u32 = 36;

const BUCKETS: usize = ((MAX_EXPONENT - PRECISION + 1) << PRECISION) as usize;

/// How often each latency was observed.
pub(super) struct LatencyCounts([AtomicU32; BUCKETS]);

impl Default for LatencyCounts {
    fn default() -> Self {
        LatencyCounts(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl LatencyCounts {
    /// Counts one.
    pub(super) fn observe(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0[bucket(micros)].fetch_add(1, Relaxed);
    }

    /// Sets all counts to 0.
    pub(super) fn clear(&self) {
        self.0.iter().for_each(|count| count.store(0, Relaxed));
    }

    /// Sets all counts to 0, and returns what they were.
    pub(super) fn take(&self) -> LatencySums {
        let mut sums = LatencySums::default();
        sums.0.iter_mut().zip(&self.0).for_each(|(sum, count)| *sum = u64::from(count.swap(0, Relaxed)));
        sums
    }
}

impl fmt::Debug for LatencyCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LatencyCounts").finish_non_exhaustive()
    }
}

/// Sums of counts.
pub(super) struct LatencySums([u64; BUCKETS]);

impl Default for LatencySums {
    fn default() -> Self {
        LatencySums([0; BUCKETS])
    }
}

impl LatencySums {
    /// Adds counts.
    pub(super) fn add(&mut self, counts: &LatencyCounts) {
        self.0.iter_mut().zip(&counts.0).for_each(|(sum, count)| *sum += u64::from(count.load(Relaxed)));
    }

    /// The number of latencies.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The time that this percentage of the latencies did not exceed, up to a sixteenth more; `None` without any.
    pub(super) fn percentile(&self, percent: u32) -> Option<Duration> {
        let all = self.count();
        let rank = (all - all * u64::from(100 - percent.min(100)) / 100).max(1);
        let mut below = 0;
        let reached = |count: &u64| {
            below += count;
            below >= rank
        };
        self.0.iter().position(reached).map(|bucket| Duration::from_micros(end(bucket)))
    }
}

/// The bucket of a time in microseconds: exact below 2^[`PRECISION`], then a power of two in 2^[`PRECISION`] parts.
fn bucket(micros: u64) -> usize {
    let exponent = 63 - (micros | 1).leading_zeros();
    match exponent.checked_sub(PRECISION) {
        None => micros as usize,
        Some(shift) => {
            let part = (micros >> shift) & ((1 << PRECISION) - 1);
            let index = ((u64::from(shift) + 1) << PRECISION) + part;
            (index as usize).min(BUCKETS - 1)
        }
    }
}

/// The longest time in a bucket, in microseconds.
fn end(bucket: usize) -> u64 {
    let (row, part) = (bucket >> PRECISION, bucket as u64 & ((1 << PRECISION) - 1));
    match row.checked_sub(1) {
        None => part,
        Some(shift) => (((1 << PRECISION) + part + 1) << shift) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_consecutive_and_a_sixteenth_wide() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for n in (0..100_000).chain((10..MAX_EXPONENT).flat_map(|e| [(1 << e) - 1, 1 << e, (1 << e) + 1])) {
            let end = end(bucket(n));
            assert!(end >= n && end <= n + n / 16, "{n} {end}");
            assert_eq!(bucket(end + 1), bucket(n) + 1, "{n}");
        }
    }

    #[test]
    fn percentiles_are_of_all_counts_since_they_were_taken() {
        let counts = LatencyCounts::default();
        assert_eq!(counts.take().percentile(50), None);
        (1..=10).for_each(|micros| counts.observe(Duration::from_micros(micros)));
        let sums = counts.take();
        assert_eq!(sums.count(), 10);
        for (percent, micros) in [(0, 1), (10, 1), (50, 5), (51, 6), (95, 10), (100, 10)] {
            assert_eq!(sums.percentile(percent), Some(Duration::from_micros(micros)), "{percent}");
        }
        assert_eq!(counts.take().count(), 0);
    }
}
