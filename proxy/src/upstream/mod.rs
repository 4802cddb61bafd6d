//! Upstreams: clusters and their endpoints, load balancing, connection pools, health checks and retries.
//!
//! A [`Cluster`] is part of a configuration snapshot and immutable. Its statistics outlive the snapshot and are shared
//! by all workers as atomics ([`ClusterStats`], [`Endpoint`]). Connections are not shared: each worker has its own
//! [`Pools`], so that a request meets neither a lock nor another thread. The path of a request:
//! [`Cluster::try_request`] (is it admitted?), [`Cluster::pick`] (which endpoint?), [`Pools::send`] (which
//! connection?), and after a failure [`Cluster::try_retry`] and [`Backoff`].

pub mod backoff;
pub mod balancer;
pub mod body;
pub mod budget;
pub mod cluster;
mod connect;
mod direct;
mod downloads;
mod endpoint_pool;
pub mod failure;
pub(crate) mod head;
pub mod health;
mod link;
mod mux;
pub mod pool;
pub mod reason;
mod uploads;

#[cfg(test)]
mod tests;

pub use self::{
    backoff::Backoff,
    body::{PooledBody, Upgrading, UpstreamBodyError},
    budget::{RetryBudget, RetryGuard},
    cluster::{ActiveGuard, Cluster, ClusterStats, Endpoint, LastError, Limits, RequestGuard, WeightedEndpoint},
    direct::DirectConnection,
    downloads::{Download, DownloadSink},
    failure::{MOST_INTERIM, ProtocolError, RequestError, RequestErrorKind, Retryable},
    head::Head,
    health::HealthChecks,
    pool::{Dial, PoolOptions, Pools, ProtocolChoice, WaitTime},
    reason::{ConnectError, FailureCategory},
    uploads::{ClientLimit, ClientPermit, UsageGuard},
};
