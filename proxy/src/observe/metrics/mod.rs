//! Metrics: handles that workers update without contention, and a registry that names them for the scrape.

mod bench;
mod cells;
mod dynamic;
mod exposition;
mod histogram;
mod pending;
mod process;
mod registry;
mod shard;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::{
    cells::{Counter, Gauge, GaugeGuard, PlainGauge, SumGauge},
    dynamic::{Handle, MAX_DYNAMIC, MAX_DYNAMIC_NAME, MAX_OWNED, Owner},
    exposition::CONTENT_TYPE,
    histogram::{Buckets, Distribution, Histogram, LatencyCells},
    pending::PendingUpdates,
    process::{register_process, resident_memory},
    registry::{Collected, Labels, Registry},
    shard::{LazyShards, Shard, set_shard, shard},
};
pub(in crate::observe) use shard::PerShard;

/// A metric's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value that only grows.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Counts of values per bucket.
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        })
    }
}

/// The reason why a metric or an operation on it was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// The name is invalid for Prometheus.
    #[error("`{0}` is not a valid metric name")]
    Name(String),
    /// The label name is invalid for Prometheus, reserved, or repeated.
    #[error("`{0}` is not a valid label name, or is repeated")]
    Label(String),
    /// A family already exists with another type, storage or set of buckets.
    #[error("cannot define the metric `{name}` as a {asked}: it is already in use for a {there}")]
    Conflict {
        /// The family's name in the scrape.
        name: String,
        /// The existing type.
        there: Kind,
        /// The requested type.
        asked: Kind,
    },
    /// Filters define too many metrics.
    #[error(
        "too many metrics: at most {MAX_OWNED} per filter and {MAX_DYNAMIC} in total, fewer if their names are long"
    )]
    TooMany,
    /// A filter's metric has too long a name.
    #[error("the metric's name is too long: {0} bytes, at most {MAX_DYNAMIC_NAME} are allowed")]
    NameLength(usize),
    /// The type does not support the operation: a counter cannot shrink, a histogram cannot be incremented, a collected
    /// metric cannot be a histogram.
    #[error("a {0} does not support this operation")]
    Operation(Kind),
}
