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
    body::{Broken, PooledBody, Switching},
    budget::{RetryBudget, RetryGuard},
    cluster::{ActiveGuard, Cluster, Endpoint, LastError, Limits, Member, RequestGuard, Stats},
    direct::DirectConnection,
    downloads::{Download, Receiver},
    failure::{Again, Failure, FailureKind, MOST_INTERIM, ProtocolError},
    head::Head,
    health::Checks,
    pool::{Dial, PoolOptions, Pools, Waited, Way},
    reason::{OpenError, Trouble},
    uploads::{ClientPlace, Crowded, Holding},
};
