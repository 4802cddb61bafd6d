//! Active health checks: endpoints are probed periodically, and unhealthy ones are excluded from load balancing. Passive
//! ones are in [`outlier`](super::outlier).
//!
//! [`HealthChecks`] schedules all probes: an endpoint that waits for its next one is an entry of a timer wheel, and only a
//! running probe is a task. The results are stored in the [`Endpoint`], which workers and later states of the cluster
//! share, so they survive every change of the configuration.

pub(crate) mod grpc;
mod probe;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::{pending, poll_fn},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tokio_util::time::{DelayQueue, delay_queue};

use super::{Cluster, ClusterHandle, ClusterId, Endpoint, clock, outlier};
use crate::{config::model, observe::target};

/// The health checks of all clusters.
#[derive(Default)]
pub struct HealthChecks {
    running: HashMap<ClusterId, ClusterChecks>,
    /// The endpoints that wait for their next probe.
    due: DelayQueue<CheckId>,
    /// The running probes. Each returns when the next one is due.
    probes: JoinSet<(CheckId, Instant)>,
}

/// The longest wait for a probe. A [`DelayQueue`] panics at about two years.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A cluster, and the id of one of its endpoints.
type CheckId = (ClusterId, u64);

/// The checks of one cluster.
struct ClusterChecks {
    /// Keeps the cluster's number from being reused.
    _handle: ClusterHandle,
    /// By the endpoint's id.
    endpoints: HashMap<u64, Scheduled>,
}

/// A check, and what it does now.
struct Scheduled {
    check: Rc<EndpointCheck>,
    state: CheckState,
}

enum CheckState {
    /// It waits in the timer wheel.
    Waiting(delay_queue::Key),
    /// A task probes the endpoint.
    Probing(AbortHandle),
}

/// The check of one endpoint.
struct EndpointCheck {
    endpoint: Arc<Endpoint>,
    config: model::HealthCheck,
    /// The cluster's latest state.
    cluster: RefCell<Arc<Cluster>>,
    /// Consecutive results that contradict the endpoint's current state.
    contrary: Cell<u32>,
    /// Whether the endpoint has been unhealthy from the start, so that the first result decides.
    awaited: Cell<bool>,
}

impl HealthChecks {
    /// Adopts another state of a cluster, or a new one. Checks of endpoints that have not changed continue; endpoints that are
    /// no longer checked count as healthy.
    pub fn set(&mut self, handle: &ClusterHandle, cluster: &Arc<Cluster>) {
        let before = self.running.remove(&handle.id()).map(|before| before.endpoints);
        let Some(config) = cluster.health_check.as_deref() else {
            if let Some(before) = before {
                self.cancel(before);
                cluster.members().iter().for_each(|member| member.endpoint.set_healthy(true));
                cluster.apply_health();
            }
            return;
        };
        let mut before = before.unwrap_or_default();
        let mut endpoints = HashMap::with_capacity(cluster.members().len());
        for endpoint in cluster.members().iter().map(|member| &member.endpoint) {
            let scheduled = match before.remove(&endpoint.id) {
                Some(running) if running.check.config == *config => {
                    *running.check.cluster.borrow_mut() = cluster.clone();
                    running
                }
                other => {
                    self.cancel(other.map(|other| (endpoint.id, other)));
                    let (config, cluster) = (config.clone(), RefCell::new(cluster.clone()));
                    let awaited = !endpoint.is_healthy() && endpoint.check_error().is_none();
                    // Spread the checks, so that endpoints are not all probed at the same moment, nor by all proxies. Those
                    // that get no requests until then are probed at once.
                    let spread = if awaited { config.jitter.0 } else { config.interval.0 };
                    let first = Instant::now() + spread.min(LONGEST_WAIT).mul_f64(fastrand::f64());
                    let waiting = CheckState::Waiting(self.due.insert_at((handle.id(), endpoint.id), first));
                    let check = EndpointCheck {
                        endpoint: endpoint.clone(),
                        config,
                        cluster,
                        contrary: Cell::new(0),
                        awaited: Cell::new(awaited),
                    };
                    Scheduled { check: Rc::new(check), state: waiting }
                }
            };
            endpoints.insert(endpoint.id, scheduled);
        }
        self.cancel(before);
        cluster.apply_health();
        self.running.insert(handle.id(), ClusterChecks { _handle: handle.clone(), endpoints });
    }

    /// Ends the checks of a cluster that is gone.
    pub fn remove(&mut self, handle: &ClusterHandle) {
        if let Some(gone) = self.running.remove(&handle.id()) {
            self.cancel(gone.endpoints);
        }
    }

    /// Starts the next probe that is due, or schedules the next one of an endpoint whose probe has ended. Waits for one of
    /// the two; forever if there are no checks. Cancel safe.
    ///
    /// # Panics
    ///
    /// Panics outside a context for spawning local tasks.
    pub async fn advance(&mut self) {
        tokio::select! {
            Some(expired) = poll_fn(|context| self.due.poll_expired(context)), if !self.due.is_empty() => {
                self.probe(expired.into_inner());
            }
            Some(ended) = self.probes.join_next(), if !self.probes.is_empty() => {
                // A cancelled probe belongs to a check that is gone.
                if let Ok((id, next)) = ended {
                    self.wait(id, next);
                }
            }
            else => pending().await,
        }
    }

    fn probe(&mut self, id: CheckId) {
        let Some(scheduled) = scheduled(&mut self.running, id) else { return };
        let check = scheduled.check.clone();
        let probe = async move {
            let start = Instant::now();
            check.probe().await;
            (id, start + check.pause())
        };
        scheduled.state = CheckState::Probing(self.probes.spawn_local(probe));
    }

    fn wait(&mut self, id: CheckId, next: Instant) {
        if let Some(scheduled) = scheduled(&mut self.running, id) {
            scheduled.state = CheckState::Waiting(self.due.insert_at(id, next));
        }
    }

    fn cancel(&mut self, checks: impl IntoIterator<Item = (u64, Scheduled)>) {
        for (_, Scheduled { state, .. }) in checks {
            match state {
                CheckState::Waiting(key) => {
                    self.due.remove(&key);
                }
                CheckState::Probing(task) => task.abort(),
            }
        }
    }
}

fn scheduled(running: &mut HashMap<ClusterId, ClusterChecks>, (cluster, endpoint): CheckId) -> Option<&mut Scheduled> {
    running.get_mut(&cluster)?.endpoints.get_mut(&endpoint)
}

impl EndpointCheck {
    /// The time from the start of one probe to the start of the next one.
    fn pause(&self) -> Duration {
        let config = &self.config;
        let interval = config.unhealthy_interval.filter(|_| !self.endpoint.is_healthy()).unwrap_or(config.interval).0;
        interval.saturating_add(config.jitter.0.mul_f64(fastrand::f64())).min(LONGEST_WAIT)
    }

    async fn probe(&self) {
        let cluster = self.cluster.borrow().clone();
        let result = probe::ask(&cluster, &self.endpoint, &self.config).await;
        if let Err(error) = &result {
            self.endpoint.remember(error.trouble(), &format!("health check: {error}"));
        }
        self.note(result.map_err(|error| error.to_string()));
    }

    /// Counts a result, and changes the endpoint's state after enough consecutive ones.
    fn note(&self, result: Result<(), String>) {
        self.cluster.borrow().stats().checks[usize::from(result.is_ok())].fetch_add(1, Relaxed);
        let was = self.endpoint.is_healthy();
        self.endpoint.state.check_error.store(result.as_ref().err().cloned().map(Arc::new));
        let (awaited, has_passed) = (self.awaited.take(), result.is_ok());
        if has_passed == was {
            self.contrary.set(0);
            if awaited {
                self.announce(result, awaited);
            }
        } else {
            self.contrary.set(self.contrary.get() + 1);
            let threshold = match was {
                true => self.config.unhealthy_threshold,
                false if awaited => 1,
                false => self.config.healthy_threshold,
            };
            if self.contrary.get() >= threshold {
                self.contrary.set(0);
                self.endpoint.set_healthy(!was);
                self.announce(result, awaited);
            }
        }
        if has_passed && self.endpoint.is_ejected() {
            outlier::passed_check(&self.cluster.borrow(), &self.endpoint);
        }
    }

    /// Logs and applies a change of the endpoint's state, or what the `first` result says about it.
    fn announce(&self, result: Result<(), String>, first: bool) {
        let cluster = self.cluster.borrow().clone();
        let selection = cluster.apply_health();
        let (healthy, all) = cluster.health();
        let (name, endpoint) = (&*cluster.name, &self.endpoint.address);
        match result {
            Ok(()) => {
                let again = if first { "" } else { " again" };
                tracing::info!(
                    target: target::UPSTREAM,
                    cluster = name, %endpoint, "healthy{again}; {healthy} of {all} are healthy"
                );
            }
            Err(error) => {
                tracing::warn!(
                    target: target::UPSTREAM,
                    cluster = name, %endpoint, "unhealthy: {error}; {healthy} of {all} are healthy"
                )
            }
        }
        cluster.warn_of_panic(selection);
    }
}

impl Endpoint {
    fn set_healthy(&self, healthy: bool) {
        let was_healthy = self.state.healthy.swap(healthy, Relaxed);
        if healthy {
            if !was_healthy {
                self.joined().restart(clock::now());
            }
            self.state.check_error.store(None);
        }
    }
}

#[cfg(test)]
#[path = "../tests/health.rs"]
mod tests;
