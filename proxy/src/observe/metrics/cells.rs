//! Counters and gauges: handles that traffic adds to without taking a lock.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

use super::shard::{PerShard, Shard};

/// A figure that only grows.
///
/// Adding is one relaxed read-modify-write on the shard's own cache line. A plain load and store would be some
/// nanoseconds faster, but would lose counts as soon as two threads used one shard by mistake.
#[derive(Debug, Clone)]
pub struct Counter(PerShard<AtomicU64>);

impl Counter {
    /// A counter that no registry shows.
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

    /// Adds 1 to a figure that no other thread ever adds to in this shard: a load and a store.
    #[inline]
    pub fn inc_alone(&self, shard: Shard) {
        let cell = self.0.at(shard);
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Where it lies: the same for all that count in it.
    pub(super) fn address(&self) -> usize {
        self.0.address()
    }

    /// The sum over all shards.
    pub fn value(&self) -> u64 {
        self.0.iter().fold(0, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
    }
}

/// A figure that grows and shrinks by what each worker adds and takes; it may be taken from another shard than it was
/// added to.
#[derive(Debug, Clone)]
pub struct Gauge(PerShard<AtomicI64>);

impl Gauge {
    /// A gauge that no registry shows.
    pub fn new(shards: usize) -> Self {
        Gauge(PerShard::new(shards))
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, shard: Shard, n: i64) {
        self.0.at(shard).fetch_add(n, Relaxed);
    }

    /// Takes `n` away.
    #[inline]
    pub fn sub(&self, shard: Shard, n: i64) {
        self.0.at(shard).fetch_sub(n, Relaxed);
    }

    /// Adds 1, and takes it away when the guard is dropped.
    pub fn hold(&self, shard: Shard) -> GaugeGuard {
        self.add(shard, 1);
        GaugeGuard { gauge: self.clone(), shard }
    }

    /// The sum over all shards.
    pub fn value(&self) -> i64 {
        self.0.iter().fold(0, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
    }
}

/// One of a [`Gauge`], for as long as this lives.
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

/// A figure that is set as a whole: not sharded, because the last one to set it must win.
#[derive(Debug, Clone, Default)]
pub struct PlainGauge(Arc<AtomicI64>);

impl PlainGauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Where it lies: the same for all that set it.
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// What it is.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}
