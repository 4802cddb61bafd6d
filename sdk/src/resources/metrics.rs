//! Metrics: what a filter counts and measures for the proxy's `/metrics`.
//!
//! The same name is the same metric, whichever worker or filter uses it, and it survives a swap. Names may have any
//! characters; they are shown as `wasmcustom_NAME` with `_` for those that Prometheus does not take.

use crate::sys;

/// Something that is counted, made by [`Setup::counter`](crate::Setup::counter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter(pub(crate) u32);

impl Counter {
    /// Counts.
    #[inline]
    pub fn add(self, n: u32) {
        sys::metric_increment(self.0, i64::from(n));
    }

    /// What has been counted since the process began, by all workers.
    pub fn get(self) -> u64 {
        sys::metric_get(self.0)
    }
}

/// Something that rises and falls, made by [`Setup::gauge`](crate::Setup::gauge).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge(pub(crate) u32);

impl Gauge {
    /// Changes it, over all workers.
    pub fn add(self, delta: i64) {
        sys::metric_increment(self.0, delta);
    }

    /// Sets it, over all workers.
    pub fn set(self, value: i64) {
        sys::metric_record(self.0, value);
    }

    /// Its value.
    pub fn get(self) -> i64 {
        sys::metric_get(self.0) as i64
    }
}

/// How something is distributed, made by [`Setup::histogram`](crate::Setup::histogram).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Histogram(pub(crate) u32);

impl Histogram {
    /// Counts a value, in whatever unit its name says. Values above 2^63-1 count as that.
    pub fn record(self, value: u64) {
        sys::metric_record(self.0, i64::try_from(value).unwrap_or(i64::MAX));
    }
}
