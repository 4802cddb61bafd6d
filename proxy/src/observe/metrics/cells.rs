//! Counters and gauges: handles that traffic updates without locks.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use super::shard::{PerShard, Shard, WeakPerShard};

/// A value that only grows.
///
/// Adding is one relaxed read-modify-write on the shard's own cache line. A plain load and store would be some
/// nanoseconds faster, but would lose counts if two threads used one shard by mistake.
#[derive(Debug, Clone)]
pub struct Counter(PerShard<AtomicU64>);

impl Counter {
    /// Creates a counter outside of any registry.
    pub fn new(shards: usize) -> Self {
        Counter(PerShard::new(shards))
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, shard: Shard, n: u64) {
        self.0.at(shard).fetch_add(n, Relaxed);
    }

    /// Adds 1.
    #[inline]
    pub fn inc(&self, shard: Shard) {
        self.add(shard, 1);
    }

    /// Adds 1 with a load and a store. No other thread may ever add to this shard of the counter.
    #[inline]
    pub fn inc_alone(&self, shard: Shard) {
        let cell = self.0.at(shard);
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The address of the counter, equal for all of its handles.
    pub(super) fn address(&self) -> usize {
        self.0.address()
    }

    /// The sum over all shards.
    pub fn value(&self) -> u64 {
        self.0.iter().fold(0, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
    }
}

/// A value that workers increase and decrease, possibly on different shards.
#[derive(Debug, Clone)]
pub struct Gauge(PerShard<AtomicI64>);

impl Gauge {
    /// Creates a gauge outside of any registry.
    pub fn new(shards: usize) -> Self {
        Gauge(PerShard::new(shards))
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, shard: Shard, n: i64) {
        self.0.at(shard).fetch_add(n, Relaxed);
    }

    /// Subtracts `n`.
    #[inline]
    pub fn sub(&self, shard: Shard, n: i64) {
        self.0.at(shard).fetch_sub(n, Relaxed);
    }

    /// Adds 1, and subtracts it when the guard is dropped.
    pub fn hold(&self, shard: Shard) -> GaugeGuard {
        self.add(shard, 1);
        GaugeGuard { gauge: self.clone(), shard }
    }

    /// The sum over all shards.
    pub fn value(&self) -> i64 {
        self.0.iter().fold(0, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
    }
}

/// A gauge whose value is the sum of other gauges, its parts. A part that no other handle refers to any more is dropped.
#[derive(Debug, Clone, Default)]
pub struct SumGauge(Arc<Mutex<Vec<WeakPerShard<AtomicI64>>>>);

impl SumGauge {
    /// Makes a gauge a part, if it is not one.
    pub fn include(&self, part: &Gauge) {
        let mut parts = self.parts();
        parts.retain(|known| known.upgrade().is_some_and(|known| known.address() != part.0.address()));
        parts.push(part.0.downgrade());
    }

    /// Makes a gauge no part any more.
    pub fn exclude(&self, part: &Gauge) {
        self.parts().retain(|known| known.upgrade().is_some_and(|known| known.address() != part.0.address()));
    }

    /// The sum of the parts' values.
    pub fn value(&self) -> i64 {
        let parts = self.parts();
        parts.iter().filter_map(WeakPerShard::upgrade).fold(0, |sum, part| sum.wrapping_add(Gauge(part).value()))
    }

    /// A panic during a change leaves the list intact.
    fn parts(&self) -> MutexGuard<'_, Vec<WeakPerShard<AtomicI64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds 1 of a [`Gauge`] until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard {
    gauge: Gauge,
    shard: Shard,
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.sub(self.shard, 1);
    }
}

/// A value that can be set: not sharded, because the last write must win.
#[derive(Debug, Clone, Default)]
pub struct PlainGauge(Arc<AtomicI64>);

impl PlainGauge {
    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `n`, which can be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The address of the gauge, equal for all of its handles.
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// The current value.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}
