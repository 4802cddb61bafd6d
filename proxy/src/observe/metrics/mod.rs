//! Metrics: handles that workers add to without waiting for each other, and a registry that names them for the scrape.

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
    cells::{Counter, Gauge, GaugeGuard, PlainGauge},
    dynamic::{Handle, MAX_DYNAMIC, MAX_DYNAMIC_NAME, MAX_OWNED, Owner},
    exposition::CONTENT_TYPE,
    histogram::{Buckets, Distribution, Histogram},
    pending::PendingUpdates,
    process::register_process,
    registry::{Labels, Registry},
    shard::{Shard, set_shard, shard},
};
pub(in crate::observe) use shard::PerShard;

/// What sort of figure a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often values fell between which bounds.
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

/// Why a metric was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// Prometheus has rules for names.
    #[error("`{0}` is not a metric's name")]
    Name(String),
    /// Prometheus has rules for labels' names; some are its own, and none may be given twice.
    #[error("`{0}` cannot be a label's name here")]
    Label(String),
    /// A family has one kind (and one way of keeping it, and one ladder).
    #[error("the metric `{name}` cannot be this {asked}: it is in use already for a {there}")]
    Conflict {
        /// The family, as shown.
        name: String,
        /// What it is.
        there: Kind,
        /// What it should have been.
        asked: Kind,
    },
    /// Filters define too many metrics.
    #[error(
        "there may be {MAX_OWNED} metrics of one filter, and {MAX_DYNAMIC} of all, fewer if their names are long; \
         there are so many already"
    )]
    TooMany,
    /// A filter's metric has too long a name.
    #[error("a name of {0} bytes is too long for a metric: at most {MAX_DYNAMIC_NAME}")]
    NameLength(usize),
    /// A counter cannot shrink, a histogram cannot be incremented, a figure kept elsewhere is no histogram.
    #[error("a {0} cannot do that")]
    Operation(Kind),
}
