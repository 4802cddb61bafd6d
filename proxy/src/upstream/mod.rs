//! Upstreams: clusters and their endpoints, load balancing, connection pools, health checks and retries.
//!
//! A [`Cluster`] is a cluster at one moment: its [`ClusterSettings`], its [`Membership`] and its [`ClusterStats`], each
//! shared with the states before and after it as far as they do not differ. [`Clusters`] is the directory of names; a
//! worker's [`Pools`] hold the clusters that the worker uses now, and its connections, which are not shared, so that a
//! request meets neither a lock nor another thread. The path of a request: [`Pools::cluster`] (which cluster?),
//! [`Cluster::try_request`] (is it admitted?), [`Cluster::pick`] (which endpoint?), [`Pools::send`] (which connection?),
//! after an attempt [`Cluster::report`], and after a failure [`Cluster::try_retry`] and [`Backoff`].

mod adaptive_concurrency;
mod attempt;
pub mod backoff;
pub mod balancer;
pub mod body;
pub mod budget;
mod clock;
pub mod cluster;
mod clusters;
mod connect;
mod direct;
mod downloads;
mod endpoint;
mod endpoint_pool;
pub mod failure;
pub(crate) mod head;
pub mod health;
mod hedging;
mod latency_counts;
mod latency_window;
mod link;
mod locality;
mod membership;
mod mux;
mod outlier;
pub mod pool;
mod priority;
mod rate_limited;
pub mod reason;
mod retry_policy;
mod settings;
mod stats;
mod subset;
mod table;
mod transport;
mod uploads;

#[cfg(test)]
mod tests;

pub use self::{
    adaptive_concurrency::{AdaptiveConcurrency, ConcurrencyStatus},
    attempt::{AttemptTimer, has_failed},
    backoff::Backoff,
    body::{PooledBody, Upgrading, UpstreamBodyError},
    budget::{RetryBudget, RetryGuard},
    cluster::{Cluster, PickKey, Remaining, RequestGuard},
    clusters::{ClusterHandle, ClusterId, Clusters},
    direct::DirectConnection,
    downloads::{Download, DownloadSink},
    endpoint::{ActiveGuard, Endpoint, LastError},
    failure::{MOST_INTERIM, ProtocolError, RequestError, RequestErrorKind, Retryable},
    head::Head,
    health::HealthChecks,
    hedging::{BadMethod, HedgingPolicy},
    membership::{Member, Membership},
    outlier::{AttemptOutcome, Ejection, OutlierDetectors, OutlierRule, OutlierStatus, OutlierTotals},
    pool::{Dial, PoolOptions, Pools, ProtocolChoice, WaitTime},
    rate_limited::RateLimitedBackoff,
    reason::{ConnectError, FailureCategory},
    retry_policy::{BadRetryPolicy, CONNECTING, RetryPolicy},
    settings::{ClusterSettings, Limits},
    stats::{ClusterStats, STATUS_CLASSES, TcpBytes},
    subset::{MetadataMatch, SubsetStatus},
    table::ClusterTable,
    transport::Transport,
    uploads::{ClientLimit, ClientPermit, UsageGuard},
};
