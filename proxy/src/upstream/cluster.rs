//! A cluster as one configuration snapshot sees it, and what it counts, which outlives the snapshot.

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

/// A group of endpoints that serve the same thing, as configured. Read by all workers, changed by none.
#[derive(Debug)]
pub struct Cluster {
    /// What routes call it.
    pub name: Box<str>,
    /// How long connecting may take; `None` for no bound but the system's.
    pub connect_timeout: Option<Duration>,
    /// From the last byte of a request to the head of its response, retries included; `None` for no bound.
    pub response_head_timeout: Option<Duration>,
    /// From the last byte of a request to the last of its response, retries included; `None` for no bound.
    pub request_timeout: Option<Duration>,
    /// The longest time that a gRPC client may set itself; `None` for no bound.
    pub max_grpc_timeout: Option<Duration>,
    /// What is spoken to its endpoints.
    pub protocol: model::ClusterProtocol,
    /// The header that connections to them begin with.
    pub proxy_protocol: Option<model::ProxyProtocolVersion>,
    /// How HTTP/2 is spoken to them.
    pub http2: model::Http2,
    /// TLS to its endpoints; none: they are spoken to in the clear. The same over snapshots as long as nothing about it has
    /// changed, so that pools can compare.
    pub tls: Option<Arc<ClientTls>>,
    /// Bounds on what it may use.
    pub limits: Limits,
    /// Its endpoints, each address once, with their weights in this snapshot.
    pub members: Box<[WeightedEndpoint]>,
    /// The health of its endpoints is checked.
    checked: bool,
    balancer: Balancer,
    retry_budget: RetryBudget,
    stats: Arc<ClusterStats>,
    /// Counts the reloads that this cluster has lived through, so that pools can tell the newer of two snapshots.
    generation: u64,
}

/// An endpoint and its weight in one snapshot. 0: it gets no requests.
#[derive(Debug, Clone)]
pub struct WeightedEndpoint {
    /// The endpoint, shared with other snapshots of this cluster.
    pub endpoint: Arc<Endpoint>,
    /// Its share of the requests, against the others' weights.
    pub weight: u32,
}

/// Bounds of a cluster, over all workers.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at one time. A worker without one may always open one.
    pub connections: u64,
    /// Requests that wait for a connection.
    pub pending: u64,
    /// Requests under way.
    pub requests: u64,
    /// Streams at one time on a connection, as configured.
    streams: u64,
    /// Of the places for requests that connections, streams and `requests` come to, those that unfinished uploads and tunnels may
    /// hold, and those of one client, in percent.
    percent: (u32, u32),
    /// How many requests may wait for a connection for an unfinished upload to wait, too.
    pub pending_uploads: u64,
    /// An idle connection is closed after this; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Requests on one connection before it is closed; 0: no bound.
    pub requests_per_connection: u32,
}

/// What clients may hold of a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientShare {
    /// Requests.
    pub(super) requests: u64,
    /// Connections.
    pub(super) connections: u64,
    /// Streams that each connection has.
    pub(super) streams: u64,
}

/// One address that serves a cluster, with what is under way there. The same for all workers and over reloads.
#[derive(Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: Address,
    pub(super) id: u64,
    pub(super) active: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) connect_failures: AtomicU64,
    /// Streams at one time on an HTTP/2 connection, as it has last allowed them; more than a `u32` if it has not yet.
    streams: AtomicU64,
    /// What its health checks have found; true without any.
    pub(super) healthy: AtomicBool,
    /// Why the last check failed; none if it did not.
    pub(super) check_error: ArcSwapOption<String>,
    /// What it failed with last, however long ago.
    last_error: ArcSwapOption<LastError>,
    /// Of each kind of failure, when it was logged.
    warned: [LogLimiter; FailureCategory::COUNT],
}

/// What an endpoint has failed with.
#[derive(Debug)]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// The kind of failure.
    pub trouble: FailureCategory,
    /// What was wrong.
    pub text: Box<str>,
}

/// What a cluster counts. Totals grow from the process's start; gauges say how it is now. All are read without order
/// among each other (relaxed): they are for people and for limits, and guard no other data.
#[derive(Debug, Default)]
pub struct ClusterStats {
    pub(super) id: u64,
    /// Round robin's place in its sequence. Here rather than in [`Cluster`], whose cache lines stay unwritten that way.
    cursor: AtomicU64,
    /// Some endpoints are unhealthy, and enough are healthy to do without those.
    leaves_unhealthy_out: AtomicBool,
    /// Total: requests that were let in by [`Cluster::try_request`].
    pub requests: AtomicU64,
    /// Gauge: requests under way.
    pub active: AtomicU64,
    /// Total: requests refused because too many were under way.
    pub request_overflows: AtomicU64,
    /// Total: connections opened.
    pub connects: AtomicU64,
    /// Total: connections that could not be opened, timeouts included.
    pub connect_failures: AtomicU64,
    /// Total: of those, timeouts.
    pub connect_timeouts: AtomicU64,
    /// Gauge: connections that are open or being opened.
    pub connections: AtomicU64,
    /// Gauge: connections without a request.
    pub idle: AtomicU64,
    /// Gauge: requests that wait for a connection.
    pub pending: AtomicU64,
    /// Gauge: of these, requests that wait behind the others.
    pub(super) pending_behind: AtomicU64,
    /// Gauge: of these again, requests of clients that are over their shares.
    pub(super) pending_over: AtomicU64,
    /// Total: requests refused because too many waited for a connection.
    pub pending_overflows: AtomicU64,
    /// Gauge: unfinished uploads and tunnels that have a connection or wait for one.
    pub uploads: AtomicU64,
    /// Total: uploads and tunnels refused because too many were under way, of their client or in all.
    pub upload_overflows: AtomicU64,
    /// Gauge: responses that were found waiting for their clients when a request last found no place.
    pub downloads: AtomicU64,
    /// Total: of these, responses that were ended for others.
    pub downloads_evicted: AtomicU64,
    /// What clients hold by unfinished uploads, tunnels, and responses that wait for them.
    pub(super) shares: ClientShares,
    /// Total: retries that the budget allowed.
    pub retries: AtomicU64,
    /// Total: retries that it did not.
    pub retry_overflows: AtomicU64,
    /// When it was logged that a filter's call could not be sent.
    warned_unsent: LogLimiter,
}

impl ClusterStats {
    /// Whether requests wait that go before those which wait behind others, on whichever worker.
    pub(super) fn whole_wait(&self) -> bool {
        self.pending.load(Relaxed) > self.pending_behind.load(Relaxed)
    }
}

impl Limits {
    fn new(config: &model::Cluster) -> Limits {
        let model::ClusterLimits { connections, pending, requests, uploads, uploads_per_client, .. } = config.limits;
        // Whether an endpoint chooses HTTP/2 is not known here.
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

/// A part of something. What is left to the others is rounded down, so that some part is always there.
fn part(whole: u64, percent: u32) -> u64 {
    whole - whole * u64::from(100 - percent.min(100)) / 100
}

/// Names for endpoints, clusters and pools that are never used twice, unlike addresses in memory.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

impl Cluster {
    /// A cluster by its configuration. With the same cluster of the `previous` snapshot, all counts and the state of
    /// endpoints with the same address carry over. An address that is listed twice is one endpoint with both weights.
    pub fn new(config: &model::Cluster, previous: Option<&Arc<Cluster>>) -> Arc<Cluster> {
        Cluster::with_tls(config, previous, None)
    }

    /// The same, with what the `tls` section of its configuration has become.
    pub fn with_tls(
        config: &model::Cluster,
        previous: Option<&Arc<Cluster>>,
        tls: Option<Arc<ClientTls>>,
    ) -> Arc<Cluster> {
        let known: HashMap<&Address, &Arc<Endpoint>> =
            previous.iter().flat_map(|p| &p.members).map(|m| (&m.endpoint.address, &m.endpoint)).collect();
        let mut members: Vec<WeightedEndpoint> = Vec::with_capacity(config.endpoints.len());
        let mut places = HashMap::new();
        for model::Endpoint { address, weight } in &config.endpoints {
            let place = *places.entry(address).or_insert(members.len());
            match members.get_mut(place) {
                Some(member) => member.weight = member.weight.saturating_add(*weight),
                None => {
                    let endpoint =
                        known.get(address).map_or_else(|| Arc::new(Endpoint::new(address.clone())), |e| Arc::clone(e));
                    members.push(WeightedEndpoint { endpoint, weight: *weight });
                }
            }
        }
        let stats = previous.map_or_else(
            // A start at random: proxies that are started together must not send their first requests to the same
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

    /// Whether connections to this and to another snapshot of it are opened in the same way.
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

    /// What it counts.
    pub fn stats(&self) -> &Arc<ClusterStats> {
        &self.stats
    }

    /// How many retries it may have under way.
    pub fn retry_budget(&self) -> &RetryBudget {
        &self.retry_budget
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// An endpoint for a request; `None` if no endpoint has a weight, or none is healthy (unless that is so of so many
    /// that it is not believed). `hash` is the request's key, which the `hash` balancer goes by. Endpoints that the request
    /// has `tried` are chosen only if there is no other.
    pub fn pick(&self, hash: Option<u64>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let unhealthy = self.checked && self.stats.leaves_unhealthy_out.load(Relaxed);
        self.balancer.pick(&self.stats.cursor, hash, Excluded { tried, unhealthy }).cloned()
    }

    /// The same, but never one that the request has `tried`.
    pub fn pick_another(&self, hash: Option<u64>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let unhealthy = self.checked && self.stats.leaves_unhealthy_out.load(Relaxed);
        self.balancer.pick_another(&self.stats.cursor, hash, Excluded { tried, unhealthy }).cloned()
    }

    /// Whether the health of its endpoints is checked.
    pub fn is_checked(&self) -> bool {
        self.checked
    }

    /// How many of the endpoints that have a weight are healthy, and how many there are.
    pub fn health(&self) -> (usize, usize) {
        let weighted = || self.members.iter().filter(|member| member.weight > 0);
        (weighted().filter(|member| member.endpoint.is_healthy()).count(), weighted().count())
    }

    /// Decides whether unhealthy endpoints are left out, now that the health of one has changed: unless less than
    /// `panic_threshold` percent are healthy. For the control thread, so that it costs requests nothing.
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

    /// Whether requests to it may be streams of HTTP/2: with `auto`, an endpoint may choose that by ALPN.
    pub fn may_speak_h2(&self) -> bool {
        match self.protocol {
            model::ClusterProtocol::H1 => false,
            model::ClusterProtocol::H2 => true,
            model::ClusterProtocol::Auto => self.tls.is_some(),
        }
    }

    /// A place for one request (not for each of its tries), given back when the guard is dropped. `None` if
    /// `limits.requests` are under way.
    pub fn try_request(self: &Arc<Self>) -> Option<RequestGuard> {
        // Add first and take back, as in `RetryBudget::try_acquire`.
        if self.stats.active.fetch_add(1, Relaxed) >= self.limits.requests {
            self.stats.active.fetch_sub(1, Relaxed);
            self.stats.request_overflows.fetch_add(1, Relaxed);
            return None;
        }
        self.stats.requests.fetch_add(1, Relaxed);
        Some(RequestGuard(Arc::clone(self)))
    }

    /// The same when `limits.requests` are under way, of which one is about to end for this one.
    pub fn replace_request(self: &Arc<Self>) -> RequestGuard {
        self.stats.active.fetch_add(1, Relaxed);
        self.stats.requests.fetch_add(1, Relaxed);
        RequestGuard(Arc::clone(self))
    }

    /// Streams that each connection has: as many as are configured, or as the endpoint allows that allows fewest.
    fn streams(&self) -> u64 {
        let used = self.members.iter().filter(|member| member.weight > 0);
        let allowed = used.filter_map(|member| member.endpoint.streams()).map(u64::from);
        allowed.fold(self.limits.streams, u64::min).max(1)
    }

    /// Places for requests, at most.
    fn places(&self) -> u64 {
        self.limits.requests.min(self.limits.connections * self.streams())
    }

    /// How much all clients together, and each of them, may hold by unfinished uploads and tunnels.
    pub(super) fn upload_shares(&self) -> (ClientShare, ClientShare) {
        let (places, streams) = (self.places(), self.streams());
        let share = |percent| ClientShare {
            requests: part(places, percent),
            connections: part(self.limits.connections, percent),
            streams,
        };
        let (all, each) = self.limits.percent;
        (share(all), share(each))
    }

    /// How much all clients together, and each of them, may hold by responses that wait for them, while there is no place for others:
    /// a part of the places that are taken.
    pub(super) fn shares_now(&self) -> (u64, u64) {
        let held = self.stats.active.load(Relaxed).saturating_sub(self.stats.pending.load(Relaxed));
        let places = held.min(self.places()).max(1);
        let (all, each) = self.limits.percent;
        (part(places, all), part(places, each))
    }

    /// Whether a client holds more than its share, or waits for more, as far as is known. Where nothing waits for anybody, that is two
    /// loads.
    pub(super) fn is_over_share(&self, client: Option<IpAddr>) -> bool {
        let any = self.stats.downloads.load(Relaxed) > 0 || self.stats.pending.load(Relaxed) > 0;
        let Some(client) = client.filter(|_| any) else { return false };
        self.stats.shares.lock().of(Client::of(client)).is_over(self.shares_now().1)
    }

    /// Logs, once a minute at most, why a request of which there is no line in the access log could not even be sent.
    #[cold]
    pub fn note_unsent(&self, why: &str) {
        if let Some(left_out) = self.stats.warned_unsent.may_warn() {
            tracing::warn!(
                target: target::UPSTREAM,
                cluster = &*self.name, left_out, "a filter's call was not sent: {why}"
            );
        }
    }

    /// A place for one retry in the retry budget, given back when the guard is dropped. `None` if the budget is spent.
    pub fn try_retry(&self) -> Option<RetryGuard> {
        let guard = self.retry_budget.try_acquire(self.stats.active.load(Relaxed));
        let total = if guard.is_some() { &self.stats.retries } else { &self.stats.retry_overflows };
        total.fetch_add(1, Relaxed);
        guard
    }
}

/// Which endpoints of a cluster are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndpointSelection {
    /// All: they are healthy.
    All,
    /// Those that are healthy.
    Healthy,
    /// All, though some are not healthy, since too few are.
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
            warned: Default::default(),
        }
    }

    /// Counts a try that is sent here: as active until the guard is dropped, which is what `least_request` goes by.
    pub fn start(self: Arc<Self>) -> ActiveGuard {
        self.active.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        ActiveGuard(self)
    }

    /// Tries under way.
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Tries in total.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Connections that are open or being opened.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Streams at one time on an HTTP/2 connection, as it has last allowed them, if it has been connected to.
    pub(super) fn streams(&self) -> Option<u32> {
        u32::try_from(self.streams.load(Relaxed)).ok()
    }

    /// It allows so many streams.
    pub(super) fn allow_streams(&self, streams: u32) {
        // It is written only when it changes, as all workers read it.
        if self.streams() != Some(streams) {
            self.streams.store(streams.into(), Relaxed);
        }
    }

    /// What its health checks have found; true without any.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Relaxed)
    }

    /// Why the last health check failed; none if it did not.
    pub fn check_error(&self) -> Option<Arc<String>> {
        self.check_error.load_full()
    }

    /// What it failed with last; it stays when the endpoint is well again.
    pub fn last_error(&self) -> Option<Arc<LastError>> {
        self.last_error.load_full()
    }

    /// Notes a failure: as the last one, and in the log, unless this kind was logged within the last minute.
    #[cold]
    pub fn note_failure(&self, cluster: &str, trouble: FailureCategory, text: &str) {
        self.remember(trouble, text);
        if let Some(left_out) = self.warned[trouble as usize].may_warn() {
            let (endpoint, kind) = (&self.address, trouble.name());
            tracing::warn!(target: target::UPSTREAM, cluster, %endpoint, kind, left_out, "an endpoint failed: {text}");
        }
    }

    /// Notes a failure without logging it.
    pub(super) fn remember(&self, trouble: FailureCategory, text: &str) {
        let error = LastError { at: SystemTime::now(), trouble, text: text.into() };
        self.last_error.store(Some(Arc::new(error)));
    }

    /// Connections that could not be opened, in total.
    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Relaxed)
    }
}

/// A request's place in its cluster.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct RequestGuard(Arc<Cluster>);

impl RequestGuard {
    /// The cluster.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.0
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.stats.active.fetch_sub(1, Relaxed);
    }
}

/// A try that is under way at an endpoint.
#[derive(Debug)]
#[must_use = "the try counts as ended when this is dropped"]
pub struct ActiveGuard(Arc<Endpoint>);

impl ActiveGuard {
    /// The endpoint.
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
