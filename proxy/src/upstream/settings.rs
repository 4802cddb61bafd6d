//! A cluster's settings: everything about it except its endpoints, as the data path needs it.

use std::{sync::Arc, time::Duration};

use super::{
    AdaptiveConcurrency, HedgingPolicy, RetryPolicy, balancer::PeakEwma, budget::RetryBudget, subset::SubsetSettings,
    transport::Transport,
};
use crate::config::model::{self, BalancerPolicy};

/// A cluster's settings. Read by all workers and immutable.
#[derive(Debug)]
pub struct ClusterSettings {
    /// The name that routes use.
    pub name: Arc<str>,
    /// Time limit for connecting; `None`: only the system's limit.
    pub connect_timeout: Option<Duration>,
    /// Time from the last byte of a request to the head of its response, retries included; `None`: unlimited.
    pub response_head_timeout: Option<Duration>,
    /// Time from the last byte of a request to the last byte of its response, retries included; `None`: unlimited.
    pub request_timeout: Option<Duration>,
    /// The longest timeout that a gRPC client may set; `None`: unlimited.
    pub max_grpc_timeout: Option<Duration>,
    /// The retry policy of routes without their own.
    pub retry: Option<Box<RetryPolicy>>,
    /// The hedging of routes that do not set their own.
    pub hedging: Option<Box<HedgingPolicy>>,
    /// The limit on requests by latency.
    pub adaptive_concurrency: Option<Box<AdaptiveConcurrency>>,
    /// How its endpoints are reached.
    pub transport: Arc<Transport>,
    /// Limits on its resources (circuit breaking).
    pub limits: Limits,
    /// Its endpoints' health checks.
    pub health_check: Option<Box<model::HealthCheck>>,
    /// The rules by which its endpoints are ejected.
    pub outlier_detection: Option<Box<model::OutlierDetection>>,
    /// The name under which a source or DNS supplies its endpoints, if they are not in its configuration.
    pub service: Option<Box<str>>,
    pub(super) balancer: Arc<model::Balancer>,
    /// How its endpoints are divided.
    pub(super) subsets: Option<Arc<SubsetSettings>>,
    /// Where the proxy is.
    pub(super) node: Arc<model::Locality>,
    /// Set if the balancer learns from the latency of attempts.
    pub(super) peak_ewma: Option<PeakEwma>,
    pub(super) retry_budget: RetryBudget,
    /// The number of settings of the cluster before these, so that the newer of two can be told.
    pub(super) generation: u64,
}

impl ClusterSettings {
    /// Creates settings. `transport` is how the endpoints are reached. Retries in progress under `previous` settings of
    /// the same cluster still count.
    pub(super) fn new(
        config: &model::Cluster,
        transport: Transport,
        node: &Arc<model::Locality>,
        previous: Option<&ClusterSettings>,
    ) -> Arc<ClusterSettings> {
        let same = previous.map(|previous| &previous.transport).filter(|previous| previous.is_like(&transport));
        let transport = same.map_or_else(|| Arc::new(transport), Arc::clone);
        let name = previous.map_or_else(|| config.name.as_str().into(), |previous| Arc::clone(&previous.name));
        let previous_subsets = previous.and_then(|previous| previous.subsets.as_deref());
        Arc::new(ClusterSettings {
            name,
            connect_timeout: config.connect_timeout.bound(),
            response_head_timeout: config.head_timeout(),
            request_timeout: config.request_timeout.and_then(|time| time.bound()),
            max_grpc_timeout: config.max_grpc_timeout.bound(),
            retry: config.retry.as_deref().map(|retry| Box::new(RetryPolicy::new(retry))),
            hedging: config.hedging.as_deref().map(|hedging| Box::new(HedgingPolicy::new(hedging))),
            adaptive_concurrency: config.adaptive_concurrency.as_deref().map(|section| {
                let previous = previous.and_then(|previous| previous.adaptive_concurrency.as_deref());
                Box::new(AdaptiveConcurrency::new(section, previous))
            }),
            transport,
            limits: Limits::new(config),
            health_check: config.health_check.clone(),
            outlier_detection: config.outlier_detection.clone(),
            service: config.service().map(Into::into),
            balancer: Arc::new(config.balancer.clone()),
            subsets: config.subsets.as_deref().map(|subsets| Arc::new(SubsetSettings::new(subsets, previous_subsets))),
            node: Arc::clone(node),
            peak_ewma: (config.balancer.policy == BalancerPolicy::PeakEwma).then(|| PeakEwma::new(&config.balancer)),
            retry_budget: RetryBudget::new(
                &config.retry_budget,
                config.limits.retries,
                previous.map(|p| &p.retry_budget),
            ),
            generation: previous.map_or(0, |previous| previous.generation + 1),
        })
    }
}

impl ClusterSettings {
    /// Whether endpoints get no requests before a health check has succeeded.
    pub(super) fn starts_unhealthy(&self) -> bool {
        self.health_check.as_ref().is_some_and(|check| check.initially == model::InitialHealth::Unhealthy)
    }
}

/// Limits of a cluster over all workers (circuit breaking).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum concurrent connections. A worker without one may always open one.
    pub connections: u64,
    /// Maximum requests waiting for a connection.
    pub pending: u64,
    /// Maximum in-flight requests.
    pub requests: u64,
    /// Maximum concurrent streams per connection, as configured.
    pub(super) streams: u64,
    /// The shares, in percent, of the request capacity (from connections, streams and `requests`) that unfinished
    /// uploads and tunnels may hold: in total, and per client.
    pub(super) percent: (u32, u32),
    /// Maximum requests waiting for a connection at which an unfinished upload may still join the queue.
    pub pending_uploads: u64,
    /// Idle connections are closed after this time; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Requests on one connection before it is closed; 0: unlimited.
    pub requests_per_connection: u32,
}

/// Amounts that clients may hold of a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientShare {
    /// Requests.
    pub(super) requests: u64,
    /// Connections.
    pub(super) connections: u64,
    /// Streams per connection.
    pub(super) streams: u64,
}

impl Limits {
    fn new(config: &model::Cluster) -> Limits {
        let model::ClusterLimits { connections, pending, requests, uploads, uploads_per_client, .. } = config.limits;
        // Whether an endpoint will choose HTTP/2 is not known here.
        let streams =
            if config.protocol == model::ClusterProtocol::H2 { config.http2.max_concurrent_streams } else { 1 };
        Limits {
            connections: connections.into(),
            pending: pending.into(),
            requests: requests.into(),
            streams: streams.into(),
            percent: (uploads, uploads_per_client),
            pending_uploads: part(pending.into(), uploads),
            idle_timeout: config.limits.idle_timeout.bound(),
            requests_per_connection: config.limits.requests_per_connection,
        }
    }
}

/// Returns a percentage of `whole`. The remainder is rounded down, so that a positive percentage never yields zero.
pub(super) fn part(whole: u64, percent: u32) -> u64 {
    whole - whole * u64::from(100 - percent.min(100)) / 100
}
