//! Metrics that a filter reports on the proxy's `/metrics`.
//!
//! Metrics of the same name are the same metric, in any worker or filter, and they survive a reload. Names may contain
//! any characters; they are exported as `wasmcustom_NAME`, with `_` for characters that Prometheus does not allow.

use crate::sys;

/// A counter, from [`Setup::counter`](crate::Setup::counter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter(pub(crate) u32);

impl Counter {
    /// Adds `n`.
    #[inline]
    pub fn add(self, n: u32) {
        sys::metric_increment(self.0, i64::from(n));
    }

    /// Returns the total of all workers since the process started.
    pub fn get(self) -> u64 {
        sys::metric_get(self.0)
    }
}

/// A gauge, from [`Setup::gauge`](crate::Setup::gauge).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge(pub(crate) u32);

impl Gauge {
    /// Changes the value, shared by all workers.
    pub fn add(self, delta: i64) {
        sys::metric_increment(self.0, delta);
    }

    /// Sets the value, shared by all workers.
    pub fn set(self, value: i64) {
        sys::metric_record(self.0, value);
    }

    /// Returns the value.
    pub fn get(self) -> i64 {
        sys::metric_get(self.0) as i64
    }
}

/// A histogram, from [`Setup::histogram`](crate::Setup::histogram).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Histogram(pub(crate) u32);

impl Histogram {
    /// Records a value in the unit that the metric's name states. Values above 2^63-1 are recorded as 2^63-1.
    pub fn record(self, value: u64) {
        sys::metric_record(self.0, i64::try_from(value).unwrap_or(i64::MAX));
    }
}
