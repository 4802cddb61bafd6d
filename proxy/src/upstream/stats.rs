//! The statistics of a cluster, which survive every change of it.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{cluster::next_id, latency_window::LatencyWindow, outlier::OutlierStats, uploads::ClientShares};
use crate::observe::{
    LogLimiter, Shard,
    metrics::{Distribution, LatencyCells, LazyShards},
};

/// The statistics of a cluster. Totals count from the start of the process; gauges show the current state. They are
/// read without ordering among each other (relaxed): they serve people and limits, and guard no other data.
#[derive(Debug)]
pub struct ClusterStats {
    pub(super) id: u64,
    /// What the metrics of its requests show; empty until the first one.
    traffic: LazyShards<Traffic>,
    /// Failed and successful health checks.
    pub(super) checks: [AtomicU64; 2],
    /// What its outlier detection counts, from when it runs.
    pub(super) outliers: OnceLock<Box<OutlierStats>>,
    /// The position in the round-robin sequence. Here rather than in [`Cluster`], so that the cluster's cache lines are
    /// never written.
    pub(super) cursor: AtomicU64,
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
    /// Total: retries and second attempts refused by the budget.
    pub retry_overflows: AtomicU64,
    /// Total: second attempts of hedged requests.
    pub hedges: AtomicU64,
    /// Total: of those, the ones whose response was used.
    pub hedges_won: AtomicU64,
    /// How long responses took, if hedging asks for it.
    pub(super) response_times: OnceLock<Box<LatencyWindow>>,
    /// Rate limit of the log on filters' calls that could not be sent.
    pub(super) warned_unsent: LogLimiter,
}

/// What one worker counts of a cluster's traffic.
#[derive(Debug, Default)]
struct Traffic {
    /// Attempts by status class; 0: no response.
    responses: [AtomicU64; 6],
    /// Microseconds from sending a request to the head of its response.
    latency: LatencyCells,
    /// Bytes of TCP connections sent to endpoints, and received from them.
    tcp_bytes: [AtomicU64; 2],
}

/// A direction of a TCP connection, as its cluster's metrics tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpBytes {
    /// To endpoints.
    Sent = 0,
    /// From endpoints.
    Received = 1,
}

/// The names of the status classes in metrics, in the order of [`ClusterStats::responses`].
pub const STATUS_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl ClusterStats {
    /// Creates the statistics of a new cluster, for this number of `workers`.
    pub(super) fn new(workers: usize) -> ClusterStats {
        let zero = || AtomicU64::new(0);
        ClusterStats {
            id: next_id(),
            traffic: LazyShards::new(workers + 1),
            checks: Default::default(),
            outliers: OnceLock::new(),
            // Start at a random position, so that proxies started together do not send their first requests to the same
            // endpoint.
            cursor: AtomicU64::new(fastrand::u32(..).into()),
            requests: zero(),
            active: zero(),
            request_overflows: zero(),
            connects: zero(),
            connect_failures: zero(),
            connect_timeouts: zero(),
            connections: zero(),
            idle: zero(),
            pending: zero(),
            pending_behind: zero(),
            pending_over: zero(),
            pending_overflows: zero(),
            uploads: zero(),
            upload_overflows: zero(),
            downloads: zero(),
            downloads_evicted: zero(),
            shares: ClientShares::default(),
            retries: zero(),
            retry_overflows: zero(),
            hedges: zero(),
            hedges_won: zero(),
            response_times: OnceLock::new(),
            warned_unsent: LogLimiter::default(),
        }
    }

    /// Counts an attempt: the status code of its response, and the microseconds until then; `None` if there was none.
    pub fn attempt(&self, shard: Shard, response: Option<(u16, u64)>) {
        let traffic = self.traffic.at(shard);
        let class = response.map_or(0, |(status, _)| usize::from(status / 100).min(5));
        traffic.responses[class].fetch_add(1, Relaxed);
        if let Some((_, micros)) = response {
            traffic.latency.observe(micros);
        }
    }

    /// Counts bytes of TCP connections.
    pub fn tcp_bytes(&self, shard: Shard, direction: TcpBytes, bytes: u64) {
        self.traffic.at(shard).tcp_bytes[direction as usize].fetch_add(bytes, Relaxed);
    }

    /// Attempts by status class; `None` before the first.
    pub fn responses(&self) -> Option<[u64; 6]> {
        self.sum(|traffic, class: usize| traffic.responses[class].load(Relaxed))
    }

    /// The time from sending requests to the heads of their responses; `None` before the first attempt.
    pub fn latency(&self) -> Option<Distribution> {
        self.responses()?;
        Some(LatencyCells::read(self.traffic.iter().map(|traffic| &traffic.latency)))
    }

    /// Bytes of TCP connections in both directions; `None` before the first connection.
    pub fn tcp_totals(&self) -> Option<[u64; 2]> {
        self.sum(|traffic, direction: usize| traffic.tcp_bytes[direction].load(Relaxed))
    }

    /// Failed and successful health checks.
    pub fn checks(&self) -> [u64; 2] {
        [0, 1].map(|result| self.checks[result].load(Relaxed))
    }

    /// Adds up a row of counters over all workers; `None` if all are zero.
    fn sum<const N: usize>(&self, read: impl Fn(&Traffic, usize) -> u64) -> Option<[u64; N]> {
        let total = std::array::from_fn(|n| self.traffic.iter().map(|traffic| read(traffic, n)).sum());
        total.iter().any(|count| *count > 0).then_some(total)
    }

    /// Returns whether any worker has waiting requests that take precedence over those that wait behind others.
    pub(super) fn whole_wait(&self) -> bool {
        self.pending.load(Relaxed) > self.pending_behind.load(Relaxed)
    }
}
