//! Observability: metrics, access logs, and the proxy's own log.
//!
//! All three follow one rule: a worker never waits for a reader. Metrics are kept per worker and summed up when
//! they are scraped. Log lines go to a dedicated thread, which drops and counts lines rather than block traffic.

pub mod access_log;
pub mod detail;
pub mod log;
mod log_limiter;
pub mod metrics;
pub mod target;

pub use self::{
    access_log::{AccessLog, Entry, LogWriter},
    detail::Detail,
    log_limiter::LogLimiter,
    metrics::{
        Buckets, Counter, Gauge, Histogram, Kind, MetricError, PlainGauge, Registry, Shard, SumGauge, set_shard, shard,
    },
};
