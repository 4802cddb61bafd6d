//! What can be seen of the proxy from outside: metrics, access logs, and its own log.
//!
//! All three follow one rule: a worker never waits for whoever looks. Figures are kept by worker and summed up when
//! they are read, and log lines go to a thread of their own, which loses (and counts) them rather than hold traffic up.

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
    metrics::{Buckets, Counter, Gauge, Histogram, Kind, MetricError, PlainGauge, Registry, Shard, set_shard, shard},
};
