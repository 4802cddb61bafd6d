//! A cluster as it is at one moment: its settings, its endpoints, and its statistics. The methods decide about one
//! request: whether the limits admit it, and which endpoint gets it.

use std::{
    net::IpAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

use super::{
    adaptive_concurrency::ConcurrencyPermit,
    attempt::AttemptTimer,
    balancer::PickContext,
    budget::RetryGuard,
    clock,
    endpoint::Endpoint,
    membership::{EndpointSelection, Member, Membership},
    priority::PrioritySet,
    settings::{ClientShare, ClusterSettings, part},
    stats::ClusterStats,
    subset::MetadataMatch,
    transport::Transport,
};
use crate::{config::model, net::Client, observe::target, tls::ClientTls};

/// A group of equivalent endpoints at one moment; it reads as its [`ClusterSettings`]. When its settings or its endpoints
/// change, a new `Cluster` replaces it, which shares what has not changed and, in any case, the statistics.
#[derive(Debug)]
pub struct Cluster {
    settings: Arc<ClusterSettings>,
    membership: Arc<Membership>,
    stats: Arc<ClusterStats>,
}

impl Deref for Cluster {
    type Target = ClusterSettings;

    fn deref(&self) -> &ClusterSettings {
        &self.settings
    }
}

/// Returns an id for an endpoint, cluster or pool that, unlike an address in memory, is never reused.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

impl Cluster {
    /// Creates a cluster without TLS, as one worker uses it. All statistics of the same cluster in its `previous` state
    /// carry over, as do its endpoints where their addresses are the same.
    pub fn new(config: &model::Cluster, previous: Option<&Arc<Cluster>>) -> Arc<Cluster> {
        Cluster::with_tls(config, previous, None, 1, &Arc::default())
    }

    /// Creates a cluster with the TLS settings built from its `tls` section, for this number of `workers`. `node` is where
    /// the proxy is.
    pub fn with_tls(
        config: &model::Cluster,
        previous: Option<&Arc<Cluster>>,
        tls: Option<Arc<ClientTls>>,
        workers: usize,
        node: &Arc<model::Locality>,
    ) -> Arc<Cluster> {
        let transport = Transport::new(config, tls);
        let settings = ClusterSettings::new(config, transport, node, previous.map(|p| &*p.settings));
        Arc::new(Cluster {
            membership: match previous.filter(|_| config.is_discovered()) {
                // The endpoints come from elsewhere.
                Some(previous) => previous.membership.reached_by(&settings),
                None if config.is_discovered() => Membership::new(&config.known_endpoints(), &settings, None),
                None => Membership::new(&config.endpoints, &settings, previous.map(|p| &*p.membership)),
            },
            settings,
            stats: previous.map_or_else(|| Arc::new(ClusterStats::new(workers)), |p| Arc::clone(&p.stats)),
        })
    }

    /// The same cluster with other endpoints.
    pub fn with_endpoints(&self, endpoints: &[model::Endpoint]) -> Arc<Cluster> {
        Arc::new(Cluster {
            membership: Membership::new(endpoints, &self.settings, Some(&self.membership)),
            settings: Arc::clone(&self.settings),
            stats: Arc::clone(&self.stats),
        })
    }

    /// Whether `other` is a state of the same cluster, and not of another one of the same name.
    pub(super) fn is_same(&self, other: &Cluster) -> bool {
        Arc::ptr_eq(&self.stats, &other.stats)
    }

    /// This cluster, with what is newer in `other`, another state of the same cluster: its settings, its endpoints, both
    /// or neither. `None` if nothing is. States may arrive on different ways and therefore out of order.
    pub(super) fn updated_by(&self, other: &Arc<Cluster>) -> Option<Arc<Cluster>> {
        let settings = other.settings.generation > self.settings.generation;
        let membership = other.membership.generation > self.membership.generation;
        match (settings, membership) {
            (false, false) => None,
            (true, true) => Some(Arc::clone(other)),
            (settings, _) => Some(Arc::new(Cluster {
                settings: Arc::clone(if settings { &other.settings } else { &self.settings }),
                membership: Arc::clone(if settings { &self.membership } else { &other.membership }),
                stats: Arc::clone(&self.stats),
            })),
        }
    }

    /// Whether it has exactly these endpoints.
    pub fn has_endpoints(&self, endpoints: &[model::Endpoint]) -> bool {
        let is = |(member, endpoint): (&Member, &model::Endpoint)| member.is(endpoint);
        self.members().len() == endpoints.len() && self.members().iter().zip(endpoints).all(is)
    }

    /// Its endpoints with their weights.
    pub fn members(&self) -> &[Member] {
        &self.membership.members
    }

    pub(super) fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// Returns the statistics.
    pub fn stats(&self) -> &Arc<ClusterStats> {
        &self.stats
    }

    /// Picks an endpoint for a request; `None` if no endpoint has a weight, or none is available (unless so few are
    /// available that the panic threshold applies), or if no subset fits and there is no fallback. Endpoints that the request
    /// has `tried` are chosen only if there is no other.
    pub fn pick<'k>(&self, key: impl Into<PickKey<'k>>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let PickKey { hash, subset } = key.into();
        match self.membership.is_undivided() {
            true => self.pick_of_all(hash, tried),
            false => self.pick_by(hash, subset, tried),
        }
    }

    // Not generic, so that it is compiled and optimised here. The usual case: few arguments, and nothing to decide.
    fn pick_of_all(&self, hash: Option<u64>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        self.membership.all().pick(&self.context(&self.stats.cursor, hash, tried)).cloned()
    }

    fn pick_by(
        &self,
        hash: Option<u64>,
        subset: Option<&MetadataMatch>,
        tried: &[Arc<Endpoint>],
    ) -> Option<Arc<Endpoint>> {
        let pick = |set: &PrioritySet, cursor: &AtomicU64| set.pick(&self.context(cursor, hash, tried)).cloned();
        self.membership.pick(subset, &self.stats.cursor, pick)
    }

    /// Picks an endpoint, but never one that the request has `tried`.
    pub fn pick_another<'k>(&self, key: impl Into<PickKey<'k>>, tried: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let PickKey { hash, subset } = key.into();
        let pick =
            |set: &PrioritySet, cursor: &AtomicU64| set.pick_another(&self.context(cursor, hash, tried)).cloned();
        self.membership.pick(subset, &self.stats.cursor, pick)
    }

    fn context<'a>(&'a self, cursor: &'a AtomicU64, hash: Option<u64>, tried: &'a [Arc<Endpoint>]) -> PickContext<'a> {
        PickContext { cursor, in_flight: &self.stats.active, hash, tried, clock: clock::now }
    }

    /// Measures an attempt at an endpoint that starts at this time, if the balancer or the concurrency limit learns from it.
    pub fn time_attempt<'a>(&'a self, endpoint: &'a Endpoint, start: Instant) -> AttemptTimer<'a> {
        let settings = &*self.settings;
        AttemptTimer::new(endpoint, settings.peak_ewma.as_ref(), settings.adaptive_concurrency.as_deref(), start)
    }

    /// Measures a connection that is opened for something other than requests: only the balancer learns from it.
    pub fn time_connection<'a>(&'a self, endpoint: &'a Endpoint, start: Instant) -> AttemptTimer<'a> {
        AttemptTimer::new(endpoint, self.settings.peak_ewma.as_ref(), None, start)
    }

    /// Returns whether its endpoints have health checks.
    pub fn is_checked(&self) -> bool {
        self.health_check.is_some()
    }

    /// Returns the number of available endpoints with a weight (healthy and not ejected), and the number of all with a weight.
    pub fn health(&self) -> (usize, usize) {
        self.membership.health()
    }

    /// Decides which endpoints to exclude after one has become available or unavailable.
    pub(super) fn apply_health(&self) -> EndpointSelection {
        self.membership.apply_health(&self.settings)
    }

    /// Logs that the panic threshold applies, if it does.
    pub(super) fn warn_of_panic(&self, selection: EndpointSelection) {
        if selection == EndpointSelection::Panic {
            tracing::warn!(
                target: target::UPSTREAM,
                cluster = &*self.name,
                "less than {} % of the endpoints are healthy: sending requests to all endpoints",
                self.balancer.panic_threshold()
            );
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
        Some(RequestGuard::new(self))
    }

    /// Acquires a permit although `limits.requests` are in flight, because one of those is about to end in favour of
    /// this one.
    pub fn replace_request(self: &Arc<Self>) -> RequestGuard {
        self.stats.active.fetch_add(1, Relaxed);
        self.stats.requests.fetch_add(1, Relaxed);
        RequestGuard::new(self)
    }

    /// Returns the streams per connection: the configured number, or the lowest that any endpoint allows.
    fn streams(&self) -> u64 {
        let used = self.members().iter().filter(|member| member.weight > 0);
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

    /// Returns how much each of its limits still allows now.
    pub fn remaining(&self) -> Remaining {
        let (stats, limits) = (&self.stats, &self.limits);
        let active = stats.active.load(Relaxed);
        Remaining {
            connections: limits.connections.saturating_sub(stats.connections.load(Relaxed)),
            pending: limits.pending.saturating_sub(stats.pending.load(Relaxed)),
            requests: limits.requests.saturating_sub(active),
            retries: self.retry_budget.remaining(active),
        }
    }

    /// Acquires a permit for one retry in the retry budget, released when the guard is dropped. `None` if the budget is
    /// exhausted.
    pub fn try_retry(&self) -> Option<RetryGuard> {
        self.take_from_budget(&self.stats.retries)
    }

    pub(super) fn take_from_budget(&self, taken: &AtomicU64) -> Option<RetryGuard> {
        let guard = self.retry_budget.try_acquire(self.stats.active.load(Relaxed));
        let total = if guard.is_some() { taken } else { &self.stats.retry_overflows };
        total.fetch_add(1, Relaxed);
        guard
    }
}

/// What decides about the endpoint of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PickKey<'a> {
    /// The key, for balancers that place keys.
    pub hash: Option<u64>,
    /// The properties of the endpoints that the request may go to, for clusters with subsets.
    pub subset: Option<&'a MetadataMatch>,
}

impl From<Option<u64>> for PickKey<'_> {
    fn from(hash: Option<u64>) -> Self {
        PickKey { hash, subset: None }
    }
}

/// What a cluster's limits (circuit breakers) still allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Connections; a worker without one may open one in any case.
    pub connections: u64,
    /// Requests that wait for a connection.
    pub pending: u64,
    /// In-flight requests.
    pub requests: u64,
    /// Concurrent retries.
    pub retries: u64,
}

impl Remaining {
    /// By the name of the limit.
    pub fn by_name(self) -> [(&'static str, u64); 4] {
        [
            ("connections", self.connections),
            ("pending", self.pending),
            ("requests", self.requests),
            ("retries", self.retries),
        ]
    }
}

/// A request's permit in its cluster.
#[derive(Debug)]
#[must_use = "dropping this releases the permit"]
pub struct RequestGuard {
    cluster: Arc<Cluster>,
    concurrency: Option<ConcurrencyPermit>,
}

impl RequestGuard {
    fn new(cluster: &Arc<Cluster>) -> RequestGuard {
        RequestGuard { cluster: Arc::clone(cluster), concurrency: None }
    }

    /// Returns the cluster.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Counts the request among those that wait for a response, if the cluster has adaptive concurrency. Returns false if its
    /// limit is reached.
    pub fn await_response(&mut self) -> bool {
        let Some(limit) = &self.cluster.settings.adaptive_concurrency else { return true };
        self.concurrency = limit.try_acquire();
        self.concurrency.is_some()
    }

    /// The request has the head of its response.
    pub fn answered(&mut self) {
        self.concurrency = None;
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.cluster.stats.active.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[path = "tests/cluster.rs"]
mod tests;
