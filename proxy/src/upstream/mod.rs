//! Where requests are sent: clusters and their endpoints, how one is chosen, and the connections to it.
//!
//! A [`Cluster`] is part of a configuration snapshot and immutable; what it counts outlives the snapshot and is shared
//! by all workers as atomics ([`Stats`], [`Endpoint`]). Connections are not shared: each worker has [`Pools`] of its
//! own, so that a request meets neither a lock nor another thread. The way of a request: [`Cluster::try_request`] (may
//! it go at all?), [`Cluster::pick`] (where to?), [`Pools::send`] (on which connection?), then, if it failed,
//! [`Cluster::try_retry`] and [`Backoff`].

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
