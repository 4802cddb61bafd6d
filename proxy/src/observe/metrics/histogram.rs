//! Histograms of whole numbers (microseconds, bytes), with few buckets and exact bounds.
//!
//! A value's bucket is found in constant time: a log-linear cell (the value's octave, divided into four) gives the
//! first possible bucket, and since each cell has at most one bound, one comparison decides between this bucket and the
//! next. Counting in finer cells and adding them up for the scrape would blur the bounds: a request of exactly 5 ms
//! belongs to `le="0.005"`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::shard::{PerShard, Shard};

/// The maximum number of bounds; one more bucket counts values above the last.
const MAX_BOUNDS: usize = 20;
/// The number of cells: one per value below 4, then four per octave for 62 octaves.
const CELLS: usize = 4 + 62 * 4;

/// A histogram's buckets, and the unit of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buckets {
    /// Requests: observed in microseconds, shown in seconds from 100 µs to 60 s.
    Latency,
    /// Calls into a filter: observed in nanoseconds, shown in seconds from 250 ns to 100 ms.
    CallTime,
    /// Sizes in bytes, from 64 B to 1 GiB.
    Bytes,
    /// Numbers without a unit: Envoy's default buckets, which dashboards for its filters expect.
    Numbers,
}

struct Steps {
    bounds: &'static [u64],
    /// Per cell, the number of bounds below its first value.
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

/// The cell of a value: the value itself below 4, otherwise given by the octave and the two bits after the leading one.
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
                "at most one bound per cell"
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

    /// The first bucket whose bound is at least the value.
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

/// Counts of values per bucket.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Buckets,
    parts: PerShard<Part>,
}

/// A histogram's contents when it was read, in the unit of the scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Each bound, with the number of values up to it.
    pub cumulative: Vec<(f64, u64)>,
    /// The number of values.
    pub count: u64,
    /// The sum of all values.
    pub sum: f64,
}

impl Histogram {
    /// Creates a histogram outside of any registry.
    pub fn new(buckets: Buckets, shards: usize) -> Self {
        Histogram { buckets, parts: PerShard::new(shards) }
    }

    /// Adds a value, in the unit of the buckets.
    #[inline]
    pub fn observe(&self, shard: Shard, value: u64) {
        let part = self.parts.at(shard);
        part.buckets[self.buckets.steps().bucket(value)].fetch_add(1, Relaxed);
        part.sum.fetch_add(value, Relaxed);
    }

    /// Adds the contents of another histogram with the same buckets.
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

    /// The address of the histogram, equal for all of its handles.
    pub(super) fn address(&self) -> usize {
        self.parts.address()
    }

    /// Reads the histogram.
    pub fn read(&self) -> Distribution {
        read(self.buckets, self.parts.iter())
    }
}

/// One shard of a histogram of latencies, for values that are allocated together; see
/// [`LazyShards`](super::LazyShards).
#[derive(Debug, Default)]
pub struct LatencyCells(Part);

impl LatencyCells {
    /// Adds a value, in microseconds.
    #[inline]
    pub fn observe(&self, micros: u64) {
        self.0.buckets[LATENCY.bucket(micros)].fetch_add(1, Relaxed);
        self.0.sum.fetch_add(micros, Relaxed);
    }

    /// Reads the histogram that these shards form.
    pub fn read<'c>(cells: impl Iterator<Item = &'c LatencyCells> + Clone) -> Distribution {
        read(Buckets::Latency, cells.map(|cells| &cells.0))
    }
}

/// Adds up shards. The count is the total of the buckets, so that the two always agree, even during updates.
fn read<'p>(buckets: Buckets, parts: impl Iterator<Item = &'p Part> + Clone) -> Distribution {
    let steps = buckets.steps();
    let total = |bucket: usize| parts.clone().map(|part| part.buckets[bucket].load(Relaxed)).sum::<u64>();
    let mut count = 0;
    let mut cumulative = Vec::with_capacity(steps.bounds.len());
    for (bucket, bound) in steps.bounds.iter().enumerate() {
        count += total(bucket);
        cumulative.push((*bound as f64 / steps.per_shown_unit, count));
    }
    count += total(steps.bounds.len());
    let sum = parts.fold(0u64, |sum, part| sum.wrapping_add(part.sum.load(Relaxed)));
    Distribution { cumulative, count, sum: sum as f64 / steps.per_shown_unit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_is_not_below_it() {
        for buckets in [Buckets::Latency, Buckets::CallTime, Buckets::Bytes, Buckets::Numbers] {
            let steps = buckets.steps();
            let check = |value: u64| {
                let naive = steps.bounds.iter().take_while(|bound| **bound < value).count();
                assert_eq!(steps.bucket(value), naive, "{buckets:?} {value}");
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
