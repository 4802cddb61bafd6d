//! A cluster as one configuration snapshot defines it, with its limits (circuit breaking), and its statistics, which
//! outlive the snapshot.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use super::{
    balancer::{Balancer, Excluded},
    budget::{RetryBudget, RetryGuard},
    reason::FailureCategory,
    uploads::ClientShares,
};
use arc_swap::ArcSwapOption;

use crate::{
    config::{model, units::Address},
    net::Client,
    observe::{LogLimiter, target},
    tls::ClientTls,
};

/// A group of equivalent endpoints, as configured. Read by all workers and immutable.
#[derive(Debug)]
pub struct Cluster {
    /// The name that routes use.
    pub name: Box<str>,
    /// Time limit for connecting; `None`: only the system's limit.
    pub connect_timeout: Option<Duration>,
    /// Time from the last byte of a request to the head of its response, retries included; `None`: unlimited.
    pub response_head_timeout: Option<Duration>,
    /// Time from the last byte of a request to the last byte of its response, retries included; `None`: unlimited.
    pub request_timeout: Option<Duration>,
    /// The longest timeout that a gRPC client may set; `None`: unlimited.
    pub max_grpc_timeout: Option<Duration>,
    /// The protocol used with its endpoints.
    pub protocol: model::ClusterProtocol,
    /// The PROXY protocol header sent on its connections, if any.
    pub proxy_protocol: Option<model::ProxyProtocolVersion>,
    /// HTTP/2 settings for its endpoints.
    pub http2: model::Http2,
    /// TLS to its endpoints; `None`: plain text. The same `Arc` across snapshots as long as its settings are unchanged,
    /// so that pools can compare.
    pub tls: Option<Arc<ClientTls>>,
    /// Limits on its resources (circuit breaking).
    pub limits: Limits,
    /// Its endpoints, each address once, with their weights in this snapshot.
    pub members: Box<[WeightedEndpoint]>,
    /// Whether its endpoints have health checks.
    checked: bool,
    balancer: Balancer,
    retry_budget: RetryBudget,
    stats: Arc<ClusterStats>,
    /// Number of reloads that this cluster has survived, so that pools can tell the newer of two snapshots.
    generation: u64,
}

/// An endpoint and its weight in one snapshot. 0: it receives no requests.
#[derive(Debug, Clone)]
pub struct WeightedEndpoint {
    /// The endpoint, shared with other snapshots of this cluster.
    pub endpoint: Arc<Endpoint>,
    /// Its share of the requests, relative to the other weights.
    pub weight: u32,
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
    streams: u64,
    /// The shares, in percent, of the request capacity (from connections, streams and `requests`) that unfinished
    /// uploads and tunnels may hold: in total, and per client.
    percent: (u32, u32),
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

/// One address that serves a cluster, with its statistics. Shared by all workers and kept across reloads.
#[derive(Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: Address,
    pub(super) id: u64,
    pub(super) active: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) connect_failures: AtomicU64,
    /// Concurrent streams per HTTP/2 connection that the endpoint last allowed; more than a `u32` if unknown yet.
    streams: AtomicU64,
    /// The result of its health checks; true without any.
    pub(super) healthy: AtomicBool,
    /// The error of the last health check; empty if it succeeded.
    pub(super) check_error: ArcSwapOption<String>,
    /// The last error, however long ago.
    last_error: ArcSwapOption<LastError>,
    /// Rate limits of the log, per kind of failure.
    log_limiters: [LogLimiter; FailureCategory::COUNT],
}

/// The last failure of an endpoint.
#[derive(Debug)]
pub struct LastError {
    /// The time of the failure.
    pub at: SystemTime,
    /// The kind of failure.
    pub trouble: FailureCategory,
    /// The error text.
    pub text: Box<str>,
}

/// The statistics of a cluster. Totals count from the start of the process; gauges show the current state. They are
/// read without ordering among each other (relaxed): they serve people and limits, and guard no other data.
#[derive(Debug, Default)]
pub struct ClusterStats {
    pub(super) id: u64,
    /// The position in the round-robin sequence. Here rather than in [`Cluster`], so that the cluster's cache lines are
    /// never written.
    cursor: AtomicU64,
    /// Whether unhealthy endpoints are excluded: some are unhealthy, and enough are healthy.
    leaves_unhealthy_out: AtomicBool,
    /// Total: requests admitted by [`Cluster::try_request`].
    pub requests: AtomicU64,
    /// Gauge: in-flight requests.
    pub active: AtomicU64,
    /// Total: requests refused at the limit of in-flight requests.
    pub request_overflows: AtomicU64,
    /// Total: connections opened.
    pub connects: AtomicU64,
    /// Total: failures to connect, timeouts included.
    pub connect_failures: AtomicU64,
    /// Total: of those, timeouts.
    pub connect_timeouts: AtomicU64,
    /// Gauge: connections that are open or being opened.
    pub connections: AtomicU64,
    /// Gauge: connections without a request.
    pub idle: AtomicU64,
    /// Gauge: requests waiting for a connection.
    pub pending: AtomicU64,
    /// Gauge: of these, requests that wait behind others.
    pub(super) pending_behind: AtomicU64,
    /// Gauge: of these again, requests of clients over their shares.
    pub(super) pending_over: AtomicU64,
    /// Total: requests refused because too many were waiting for a connection.
    pub pending_overflows: AtomicU64,
    /// Gauge: unfinished uploads and tunnels that have a connection or wait for one.
    pub uploads: AtomicU64,
    /// Total: uploads and tunnels refused at the limit, of their client or in total.
    pub upload_overflows: AtomicU64,
    /// Gauge: responses found waiting for slow clients when a request last found no capacity.
    pub downloads: AtomicU64,
    /// Total: of these, responses evicted for other requests.
    pub downloads_evicted: AtomicU64,
    /// What clients hold through unfinished uploads, tunnels, and responses that wait for them.
    pub(super) shares: ClientShares,
    /// Total: retries allowed by the budget.
    pub retries: AtomicU64,
    /// Total: retries refused by the budget.
    pub retry_overflows: AtomicU64,
    /// Rate limit of the log on filters' calls that could not be sent.
    warned_unsent: LogLimiter,
}

impl ClusterStats {
    /// Returns whether any worker has waiting requests that take precedence over those that wait behind others.
    pub(super) fn whole_wait(&self) -> bool {
        self.pending.load(Relaxed) > self.pending_behind.load(Relaxed)
    }
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
fn part(whole: u64, percent: u32) -> u64 {
    whole - whole * u64::from(100 - percent.min(100)) / 100
}

/// Returns an id for an endpoint, cluster or pool that, unlike an address in memory, is never reused.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

impl Cluster {
    /// Creates a cluster from its configuration. All statistics of the same cluster in the `previous` snapshot carry
    /// over, as does the state of endpoints with the same address. An address that is listed twice becomes one endpoint
    /// with both weights.
    pub fn new(config: &model::Cluster, previous: Option<&Arc<Cluster>>) -> Arc<Cluster> {
        Cluster::with_tls(config, previous, None)
    }

    /// Creates a cluster with the TLS settings built from its `tls` section.
    pub fn with_tls(
        config: &model::Cluster,
        previous: Option<&Arc<Cluster>>,
        tls: Option<Arc<ClientTls>>,
    ) -> Arc<Cluster> {
        let known: HashMap<&Address, &Arc<Endpoint>> =
            previous.iter().flat_map(|p| &p.members).map(|m| (&m.endpoint.address, &m.endpoint)).collect();
        let mut members: Vec<WeightedEndpoint> = Vec::with_capacity(config.endpoints.len());
        let mut indices = HashMap::new();
        for model::Endpoint { address, weight } in &config.endpoints {
            let index = *indices.entry(address).or_insert(members.len());
            match members.get_mut(index) {
                Some(member) => member.weight = member.weight.saturating_add(*weight),
                None => {
                    let endpoint =
                        known.get(address).map_or_else(|| Arc::new(Endpoint::new(address.clone())), |e| Arc::clone(e));
                    members.push(WeightedEndpoint { endpoint, weight: *weight });
                }
            }
        }
        let stats = previous.map_or_else(
            // Start at a random position, so that proxies started together do not send their first requests to the same
            // endpoint.
            || {
                Arc::new(ClusterStats {
                    id: next_id(),
                    cursor: AtomicU64::new(fastrand::u32(..).into()),
                    ..ClusterStats::default()
                })
            },
            |p| Arc::clone(&p.stats),
        );
        Arc::new(Cluster {
            name: config.name.as_str().into(),
            connect_timeout: config.connect_timeout.bound(),
            response_head_timeout: config.head_timeout(),
            request_timeout: config.request_timeout.and_then(|time| time.bound()),
            max_grpc_timeout: config.max_grpc_timeout.bound(),
            protocol: config.protocol,
            proxy_protocol: config.proxy_protocol,
            http2: config.http2.clone(),
            tls,
            limits: Limits::new(config),
            checked: config.health_check.is_some(),
            balancer: Balancer::new(config.balancer, &members),
            members: members.into(),
            retry_budget: RetryBudget::new(&config.retry_budget, previous.map(|p| &p.retry_budget)),
            stats,
            generation: previous.map_or(0, |p| p.generation + 1),
        })
    }

    /// Returns whether this and another snapshot of the cluster open connections in the same way.
    pub(super) fn is_reached_like(&self, other: &Cluster) -> bool {
        let same_tls = match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        };
        same_tls
            && self.protocol == other.protocol
            && self.http2 == other.http2
            && self.proxy_protocol == other.proxy_protocol
    }

    /// Returns the statistics.
    pub fn stats(&self) -> &Arc<ClusterStats> {
        &self.stats
    }

    /// Returns the retry budget.
    pub fn retry_budget(&self) -> &RetryBudget {
        &self.retry_budget
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Picks an endpoint for a request; `None` if no endpoint has a weight, or none is healthy (unless so few are
    /// healthy that the panic threshold applies). `hash` is the request's key, used by the `hash` balancer. Endpoints
    /// that the request has `tried` are chosen only if there is no other.
    pub fn pick(&self, hash: Option<u64>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let unhealthy = self.checked && self.stats.leaves_unhealthy_out.load(Relaxed);
        self.balancer.pick(&self.stats.cursor, hash, Excluded { tried, unhealthy }).cloned()
    }

    /// Picks an endpoint, but never one that the request has `tried`.
    pub fn pick_another(&self, hash: Option<u64>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let unhealthy = self.checked && self.stats.leaves_unhealthy_out.load(Relaxed);
        self.balancer.pick_another(&self.stats.cursor, hash, Excluded { tried, unhealthy }).cloned()
    }

    /// Returns whether its endpoints have health checks.
    pub fn is_checked(&self) -> bool {
        self.checked
    }

    /// Returns the number of healthy endpoints with a weight, and the number of all with a weight.
    pub fn health(&self) -> (usize, usize) {
        let weighted = || self.members.iter().filter(|member| member.weight > 0);
        (weighted().filter(|member| member.endpoint.is_healthy()).count(), weighted().count())
    }

    /// Decides whether to exclude unhealthy endpoints after the health of one has changed: they are excluded unless
    /// less than `panic_threshold` percent are healthy. Called on the control thread, so that requests do not pay for
    /// it.
    pub(super) fn set_health(&self, panic_threshold: u32) -> EndpointSelection {
        let (healthy, all) = self.health();
        let selection = match healthy {
            _ if healthy == all => EndpointSelection::All,
            _ if healthy * 100 < all * panic_threshold as usize => EndpointSelection::Panic,
            _ => EndpointSelection::Healthy,
        };
        self.stats.leaves_unhealthy_out.store(selection == EndpointSelection::Healthy, Relaxed);
        selection
    }

    /// Returns whether requests may use HTTP/2: with `auto`, an endpoint may choose it by ALPN.
    pub fn may_speak_h2(&self) -> bool {
        match self.protocol {
            model::ClusterProtocol::H1 => false,
            model::ClusterProtocol::H2 => true,
            model::ClusterProtocol::Auto => self.tls.is_some(),
        }
    }

    /// Acquires a permit for one request (not per attempt), released when the guard is dropped. `None` if
    /// `limits.requests` are in flight.
    pub fn try_request(self: &Arc<Self>) -> Option<RequestGuard> {
        // Add first, then undo, as in `RetryBudget::try_acquire`.
        if self.stats.active.fetch_add(1, Relaxed) >= self.limits.requests {
            self.stats.active.fetch_sub(1, Relaxed);
            self.stats.request_overflows.fetch_add(1, Relaxed);
            return None;
        }
        self.stats.requests.fetch_add(1, Relaxed);
        Some(RequestGuard(Arc::clone(self)))
    }

    /// Acquires a permit although `limits.requests` are in flight, because one of those is about to end in favour of
    /// this one.
    pub fn replace_request(self: &Arc<Self>) -> RequestGuard {
        self.stats.active.fetch_add(1, Relaxed);
        self.stats.requests.fetch_add(1, Relaxed);
        RequestGuard(Arc::clone(self))
    }

    /// Returns the streams per connection: the configured number, or the lowest that any endpoint allows.
    fn streams(&self) -> u64 {
        let used = self.members.iter().filter(|member| member.weight > 0);
        let allowed = used.filter_map(|member| member.endpoint.streams()).map(u64::from);
        allowed.fold(self.limits.streams, u64::min).max(1)
    }

    /// Returns the request capacity.
    fn capacity(&self) -> u64 {
        self.limits.requests.min(self.limits.connections * self.streams())
    }

    /// Returns how much all clients together, and each client, may hold through unfinished uploads and tunnels.
    pub(super) fn upload_shares(&self) -> (ClientShare, ClientShare) {
        let (capacity, streams) = (self.capacity(), self.streams());
        let share = |percent| ClientShare {
            requests: part(capacity, percent),
            connections: part(self.limits.connections, percent),
            streams,
        };
        let (all, each) = self.limits.percent;
        (share(all), share(each))
    }

    /// Returns how many responses waiting for them all clients together, and each client, may hold while there is no
    /// capacity for others: a share of the capacity in use.
    pub(super) fn shares_now(&self) -> (u64, u64) {
        let held = self.stats.active.load(Relaxed).saturating_sub(self.stats.pending.load(Relaxed));
        let capacity = held.min(self.capacity()).max(1);
        let (all, each) = self.limits.percent;
        (part(capacity, all), part(capacity, each))
    }

    /// Returns whether a client holds or waits for more than its share, as far as is known. If nothing is waiting, this
    /// costs two atomic loads.
    pub(super) fn is_over_share(&self, client: Option<IpAddr>) -> bool {
        let any = self.stats.downloads.load(Relaxed) > 0 || self.stats.pending.load(Relaxed) > 0;
        let Some(client) = client.filter(|_| any) else { return false };
        self.stats.shares.lock().of(Client::of(client)).is_over(self.shares_now().1)
    }

    /// Logs, at most once a minute, why a filter's call, which has no access log entry, could not even be sent.
    #[cold]
    pub fn note_unsent(&self, why: &str) {
        if let Some(left_out) = self.stats.warned_unsent.may_warn() {
            tracing::warn!(
                target: target::UPSTREAM,
                cluster = &*self.name, left_out, "a filter's call was not sent: {why}"
            );
        }
    }

    /// Acquires a permit for one retry in the retry budget, released when the guard is dropped. `None` if the budget is
    /// exhausted.
    pub fn try_retry(&self) -> Option<RetryGuard> {
        let guard = self.retry_budget.try_acquire(self.stats.active.load(Relaxed));
        let total = if guard.is_some() { &self.stats.retries } else { &self.stats.retry_overflows };
        total.fetch_add(1, Relaxed);
        guard
    }
}

/// The endpoints of a cluster that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndpointSelection {
    /// All endpoints, because all are healthy.
    All,
    /// The healthy endpoints.
    Healthy,
    /// All endpoints, because too few are healthy (panic threshold).
    Panic,
}

impl Endpoint {
    fn new(address: Address) -> Self {
        Endpoint {
            address,
            id: next_id(),
            active: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            streams: AtomicU64::new(u64::MAX),
            healthy: AtomicBool::new(true),
            check_error: ArcSwapOption::empty(),
            last_error: ArcSwapOption::empty(),
            log_limiters: Default::default(),
        }
    }

    /// Counts an attempt to this endpoint: as active until the guard is dropped, which is what `least_request` uses.
    pub fn start(self: Arc<Self>) -> ActiveGuard {
        self.active.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        ActiveGuard(self)
    }

    /// Returns the number of active attempts.
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Returns the number of attempts in total.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Returns the number of connections that are open or being opened.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Returns the concurrent streams per HTTP/2 connection that the endpoint last allowed, if known.
    pub(super) fn streams(&self) -> Option<u32> {
        u32::try_from(self.streams.load(Relaxed)).ok()
    }

    /// Records the number of streams that the endpoint allows.
    pub(super) fn allow_streams(&self, streams: u32) {
        // Written only on a change, because all workers read it.
        if self.streams() != Some(streams) {
            self.streams.store(streams.into(), Relaxed);
        }
    }

    /// Returns the result of its health checks; true without any.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Relaxed)
    }

    /// Returns the error of the last health check; `None` if it succeeded.
    pub fn check_error(&self) -> Option<Arc<String>> {
        self.check_error.load_full()
    }

    /// Returns the last error; it is kept after the endpoint recovers.
    pub fn last_error(&self) -> Option<Arc<LastError>> {
        self.last_error.load_full()
    }

    /// Records a failure as the last error, and logs it unless this kind was logged within the last minute.
    #[cold]
    pub fn note_failure(&self, cluster: &str, trouble: FailureCategory, text: &str) {
        self.remember(trouble, text);
        if let Some(left_out) = self.log_limiters[trouble as usize].may_warn() {
            let (endpoint, kind) = (&self.address, trouble.name());
            tracing::warn!(target: target::UPSTREAM, cluster, %endpoint, kind, left_out, "an endpoint failed: {text}");
        }
    }

    /// Records a failure without logging it.
    pub(super) fn remember(&self, trouble: FailureCategory, text: &str) {
        let error = LastError { at: SystemTime::now(), trouble, text: text.into() };
        self.last_error.store(Some(Arc::new(error)));
    }

    /// Returns the number of failures to connect in total.
    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Relaxed)
    }
}

/// A request's permit in its cluster.
#[derive(Debug)]
#[must_use = "dropping this releases the permit"]
pub struct RequestGuard(Arc<Cluster>);

impl RequestGuard {
    /// Returns the cluster.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.0
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.stats.active.fetch_sub(1, Relaxed);
    }
}

/// A guard that counts an active attempt at an endpoint.
#[derive(Debug)]
#[must_use = "dropping this ends the attempt"]
pub struct ActiveGuard(Arc<Endpoint>);

impl ActiveGuard {
    /// Returns the endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[path = "tests/cluster.rs"]
mod tests;
