//! Histograms over whole numbers (microseconds, bytes), with few buckets whose bounds are exact.
//!
//! A value finds its bucket in constant time: a log-linear cell (the octave of the value, cut into four) leads to the
//! first bucket that it can be in, and since bounds lie further apart than cells are wide, one comparison decides the
//! rest. Counting in finer cells and adding them up for the scrape would blur the bounds: a request of exactly 5 ms
//! belongs to `le="0.005"`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::shard::{PerShard, Shard};

/// Bounds that a ladder may have; one more bucket takes what is above the last.
const MAX_BOUNDS: usize = 20;
/// Cells: values below 4 have their own, then four for each of the 62 octaves.
const CELLS: usize = 4 + 62 * 4;

/// Which buckets a histogram has, and the unit that it observes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buckets {
    /// Requests: observed in microseconds, shown in seconds from 100 µs to 60 s.
    Latency,
    /// Calls into a filter: observed in nanoseconds, shown in seconds from 250 ns to 100 ms.
    CallTime,
    /// Sizes in bytes, from 64 B to 1 GiB.
    Bytes,
    /// Figures without a unit: Envoy's default buckets, which dashboards for filters written for it expect.
    Numbers,
}

struct Steps {
    bounds: &'static [u64],
    /// For each cell, how many bounds are below its first value.
    cells: [u8; CELLS],
    per_shown_unit: f64,
}

#[rustfmt::skip]
static LATENCY: Steps = Steps::new(&[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
], 1e6);
#[rustfmt::skip]
static CALL_TIME: Steps = Steps::new(&[
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000,
], 1e9);
static BYTES: Steps = Steps::new(
    &[64, 256, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28, 1 << 30],
    1.0,
);
#[rustfmt::skip]
static NUMBERS: Steps = Steps::new(&[
    1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000,
    3_600_000,
], 1.0);

/// The cell of a value: 0 to 3 for themselves, then the octave and the two bits after the leading one.
const fn cell(value: u64) -> usize {
    if value < 4 {
        return value as usize;
    }
    let octave = 63 - value.leading_zeros() as usize;
    4 * (octave - 1) + ((value >> (octave - 2)) & 3) as usize
}

impl Steps {
    const fn new(bounds: &'static [u64], per_shown_unit: f64) -> Self {
        assert!(bounds.len() <= MAX_BOUNDS);
        let mut cells = [0; CELLS];
        let mut i = 0;
        while i < bounds.len() {
            assert!(
                i == 0 || (bounds[i] > bounds[i - 1] && cell(bounds[i]) > cell(bounds[i - 1])),
                "at most one bound to a cell"
            );
            let mut c = cell(bounds[i]) + 1;
            while c < CELLS {
                cells[c] += 1;
                c += 1;
            }
            i += 1;
        }
        Steps { bounds, cells, per_shown_unit }
    }

    /// The first bucket whose bound is not below the value.
    #[inline]
    fn bucket(&self, value: u64) -> usize {
        let first = usize::from(self.cells[cell(value)]);
        first + usize::from(self.bounds.get(first).is_some_and(|bound| value > *bound))
    }
}

impl Buckets {
    #[inline]
    fn steps(self) -> &'static Steps {
        match self {
            Buckets::Latency => &LATENCY,
            Buckets::CallTime => &CALL_TIME,
            Buckets::Bytes => &BYTES,
            Buckets::Numbers => &NUMBERS,
        }
    }
}

#[derive(Debug, Default)]
struct Part {
    buckets: [AtomicU64; MAX_BOUNDS + 1],
    sum: AtomicU64,
}

/// How often values fell between which bounds.
#[derive(Debug, Clone)]
pub struct Histogram {
    ladder: Buckets,
    parts: PerShard<Part>,
}

/// What a histogram held when it was read, in the unit that it is shown in.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Each bound, and how many values were not above it.
    pub cumulative: Vec<(f64, u64)>,
    /// All values' number.
    pub count: u64,
    /// All values' sum.
    pub sum: f64,
}

impl Histogram {
    /// A histogram that no registry shows.
    pub fn new(ladder: Buckets, shards: usize) -> Self {
        Histogram { ladder, parts: PerShard::new(shards) }
    }

    /// Counts a value, given in the ladder's unit.
    #[inline]
    pub fn observe(&self, shard: Shard, value: u64) {
        let part = self.parts.at(shard);
        part.buckets[self.ladder.steps().bucket(value)].fetch_add(1, Relaxed);
        part.sum.fetch_add(value, Relaxed);
    }

    /// Counts all that another one of the same ladder holds.
    pub(super) fn add(&self, shard: Shard, other: &Histogram) {
        let part = self.parts.at(shard);
        for more in other.parts.iter() {
            part.buckets
                .iter()
                .zip(&more.buckets)
                .for_each(|(all, more)| _ = all.fetch_add(more.load(Relaxed), Relaxed));
            part.sum.fetch_add(more.sum.load(Relaxed), Relaxed);
        }
    }

    /// Where it lies: the same for all that count in it.
    pub(super) fn address(&self) -> usize {
        self.parts.address()
    }

    /// What it holds. The count is the buckets' total, so that the two always agree, even amid observations.
    pub fn read(&self) -> Distribution {
        let steps = self.ladder.steps();
        let total = |bucket: usize| self.parts.iter().map(|part| part.buckets[bucket].load(Relaxed)).sum::<u64>();
        let mut count = 0;
        let mut cumulative = Vec::with_capacity(steps.bounds.len());
        for (bucket, bound) in steps.bounds.iter().enumerate() {
            count += total(bucket);
            cumulative.push((*bound as f64 / steps.per_shown_unit, count));
        }
        count += total(steps.bounds.len());
        let sum = self.parts.iter().fold(0u64, |sum, part| sum.wrapping_add(part.sum.load(Relaxed)));
        Distribution { cumulative, count, sum: sum as f64 / steps.per_shown_unit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_the_first_whose_bound_is_not_below() {
        for ladder in [Buckets::Latency, Buckets::CallTime, Buckets::Bytes, Buckets::Numbers] {
            let steps = ladder.steps();
            let check = |value: u64| {
                let naive = steps.bounds.iter().take_while(|bound| **bound < value).count();
                assert_eq!(steps.bucket(value), naive, "{ladder:?} {value}");
            };
            for value in 0..100_000 {
                check(value);
            }
            for bound in steps.bounds {
                for value in [bound - 1, *bound, bound + 1] {
                    check(value);
                }
            }
            for shift in 0..64 {
                for value in [1 << shift, (1 << shift) - 1, (1u64 << shift) | (1 << shift >> 1)] {
                    check(value);
                }
            }
            check(u64::MAX);
        }
    }

    #[test]
    fn cells_are_consecutive_and_all_used() {
        assert_eq!(cell(u64::MAX), CELLS - 1);
        let mut last = 0;
        for value in 1..1 << 16 {
            let here = cell(value);
            assert!(here == last || here == last + 1, "{value}");
            last = here;
        }
    }

    #[test]
    fn bounds_are_inclusive_and_shown_in_seconds() {
        let histogram = Histogram::new(Buckets::Latency, 3);
        histogram.observe(Shard::CONTROL, 5_000);
        histogram.observe(Shard::worker(0), 5_001);
        histogram.observe(Shard::worker(1), 120_000_000);
        histogram.observe(Shard::worker(7), 0);
        let read = histogram.read();
        let at = |le: f64| read.cumulative.iter().find(|(bound, _)| *bound == le).map(|(_, n)| *n);
        assert_eq!(at(0.0001), Some(1));
        assert_eq!(at(0.005), Some(2));
        assert_eq!(at(0.01), Some(3));
        assert_eq!(at(60.0), Some(3));
        assert_eq!(read.count, 4);
        assert!((read.sum - 120.010001).abs() < 1e-9);
    }
}
