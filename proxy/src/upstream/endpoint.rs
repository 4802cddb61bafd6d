//! An endpoint: an address that serves a cluster, and how it is reached.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use arc_swap::ArcSwapOption;

use super::{
    balancer::{JoinTime, LatencyCell},
    clock,
    cluster::next_id,
    outlier::OutlierState,
    reason::FailureCategory,
    transport::Transport,
};
use crate::{
    config::units::Address,
    observe::{LogLimiter, target},
};

/// One address that serves a cluster, with how it is reached. All workers share it, and it survives every change of the
/// configuration that changes neither.
#[derive(Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: Address,
    /// How connections to it are opened.
    pub transport: Arc<Transport>,
    /// Its host name, for TLS.
    pub hostname: Option<Box<str>>,
    pub(super) id: u64,
    /// Its statistics, which also survive a change of the transport.
    pub(super) state: Arc<EndpointState>,
}

/// The statistics of an address that serves a cluster, and the results of its health checks.
#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) active: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) connect_failures: AtomicU64,
    /// The addresses of a host name, if there are any. Connections keep the address that they were opened to.
    resolved: ArcSwapOption<Box<[SocketAddr]>>,
    /// Concurrent streams per HTTP/2 connection that the endpoint last allowed; more than a `u32` if unknown yet.
    streams: AtomicU64,
    /// What the attempts at it took, for balancers that use it.
    latency: LatencyCell,
    /// When it joined its cluster or became healthy, for its slow start.
    joined: JoinTime,
    /// The result of its health checks; true without any.
    pub(super) healthy: AtomicBool,
    /// The error of the last health check; empty if it succeeded.
    pub(super) check_error: ArcSwapOption<String>,
    /// What outlier detection counts, from the first attempt on.
    pub(super) outlier: OnceLock<Box<OutlierState>>,
    /// The last error, however long ago.
    last_error: ArcSwapOption<LastError>,
    /// Rate limits of the log, per kind of failure. Most endpoints never fail.
    log_limiters: OnceLock<Box<[LogLimiter; FailureCategory::COUNT]>>,
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

impl EndpointState {
    /// The state of an endpoint that joins its cluster at this time; see [`clock`].
    pub(super) fn new(now: u64) -> Self {
        EndpointState {
            active: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            resolved: ArcSwapOption::empty(),
            streams: AtomicU64::new(u64::MAX),
            latency: LatencyCell::new(now),
            joined: JoinTime::new(now),
            healthy: AtomicBool::new(true),
            check_error: ArcSwapOption::empty(),
            outlier: OnceLock::new(),
            last_error: ArcSwapOption::empty(),
            log_limiters: OnceLock::new(),
        }
    }
}

impl Endpoint {
    /// The endpoint at this address that is reached by `transport`. `previous` is the cluster's endpoint at the same
    /// address until now: it stays the same if the transport and the host name do, and keeps its statistics in any case.
    pub(super) fn new(
        address: &Address,
        hostname: Option<&str>,
        transport: &Arc<Transport>,
        previous: Option<&Arc<Endpoint>>,
    ) -> Arc<Endpoint> {
        let is_same = |previous: &&Arc<Endpoint>| {
            previous.transport.is_like(transport) && previous.hostname.as_deref() == hostname
        };
        if let Some(same) = previous.filter(is_same) {
            return Arc::clone(same);
        }
        let state = previous.map(|previous| Arc::clone(&previous.state));
        let state = state.unwrap_or_else(|| Arc::new(EndpointState::new(clock::now())));
        let (address, transport, hostname) = (address.clone(), Arc::clone(transport), hostname.map(Into::into));
        Arc::new(Endpoint { address, transport, hostname, id: next_id(), state })
    }

    /// The addresses of a host name, in the order in which they are tried.
    pub fn resolved(&self) -> Arc<Box<[SocketAddr]>> {
        self.state.resolved.load_full().unwrap_or_default()
    }

    /// Whether these are its addresses.
    pub(super) fn is_resolved_to(&self, addresses: Option<&Arc<Box<[SocketAddr]>>>) -> bool {
        self.state.resolved.load().as_ref() == addresses
    }

    /// Changes the addresses of a host name for connections from now on.
    pub(super) fn resolve(&self, addresses: Option<&Arc<Box<[SocketAddr]>>>) {
        if !self.is_resolved_to(addresses) {
            self.state.resolved.store(addresses.cloned());
        }
    }

    /// Counts an attempt to this endpoint: as active until the guard is dropped, which is what balancers use.
    pub fn start(self: Arc<Self>) -> ActiveGuard {
        self.state.active.fetch_add(1, Relaxed);
        self.state.requests.fetch_add(1, Relaxed);
        ActiveGuard(self)
    }

    /// Returns the number of active attempts.
    pub fn active(&self) -> u64 {
        self.state.active.load(Relaxed)
    }

    pub(super) fn latency(&self) -> &LatencyCell {
        &self.state.latency
    }

    pub(super) fn joined(&self) -> &JoinTime {
        &self.state.joined
    }

    /// Returns the number of attempts in total.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Relaxed)
    }

    /// Returns the number of connections that are open or being opened.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Relaxed)
    }

    /// Returns the concurrent streams per HTTP/2 connection that the endpoint last allowed, if known.
    pub(super) fn streams(&self) -> Option<u32> {
        u32::try_from(self.state.streams.load(Relaxed)).ok()
    }

    /// Records the number of streams that the endpoint allows.
    pub(super) fn allow_streams(&self, streams: u32) {
        // Written only on a change, because all workers read it.
        if self.streams() != Some(streams) {
            self.state.streams.store(streams.into(), Relaxed);
        }
    }

    /// Returns the result of its health checks; true without any.
    pub fn is_healthy(&self) -> bool {
        self.state.healthy.load(Relaxed)
    }

    /// Returns the error of the last health check; `None` if it succeeded.
    pub fn check_error(&self) -> Option<Arc<String>> {
        self.state.check_error.load_full()
    }

    /// Returns the last error; it is kept after the endpoint recovers.
    pub fn last_error(&self) -> Option<Arc<LastError>> {
        self.state.last_error.load_full()
    }

    /// Records a failure as the last error, and logs it unless this kind was logged within the last minute.
    #[cold]
    pub fn note_failure(&self, cluster: &str, trouble: FailureCategory, text: &str) {
        self.remember(trouble, text);
        if let Some(left_out) = self.state.log_limiters.get_or_init(Box::default)[trouble as usize].may_warn() {
            let (endpoint, kind) = (&self.address, trouble.name());
            tracing::warn!(target: target::UPSTREAM, cluster, %endpoint, kind, left_out, "an endpoint failed: {text}");
        }
    }

    /// Records a failure without logging it.
    pub(super) fn remember(&self, trouble: FailureCategory, text: &str) {
        let error = LastError { at: SystemTime::now(), trouble, text: text.into() };
        self.state.last_error.store(Some(Arc::new(error)));
    }

    /// Returns the number of failures to connect in total.
    pub fn connect_failures(&self) -> u64 {
        self.state.connect_failures.load(Relaxed)
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
        self.0.state.active.fetch_sub(1, Relaxed);
    }
}
