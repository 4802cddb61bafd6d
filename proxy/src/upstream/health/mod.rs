//! Active health checks: endpoints are probed periodically, and unhealthy ones are ejected from load balancing. There is
//! no passive outlier detection.
//!
//! One task per endpoint probes it. The results are stored in the [`Endpoint`], which workers and later states of the
//! cluster share, so they survive every change of the configuration.

pub(crate) mod grpc;
mod probe;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::{
    task::{AbortHandle, spawn_local},
    time::{Instant, sleep, sleep_until},
};

use super::{Cluster, ClusterHandle, ClusterId, Endpoint, membership::EndpointSelection};
use crate::{config::model, observe::target};

/// The health checks of all clusters.
#[derive(Default)]
pub struct HealthChecks {
    running: HashMap<ClusterId, ClusterChecks>,
}

/// The checks of one cluster.
struct ClusterChecks {
    /// Keeps the cluster's number from being reused.
    _handle: ClusterHandle,
    /// By the endpoint's id.
    endpoints: HashMap<u64, Running>,
}

/// A running check, stopped on drop.
struct Running {
    check: Rc<EndpointCheck>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The check of one endpoint.
struct EndpointCheck {
    endpoint: Arc<Endpoint>,
    config: model::HealthCheck,
    /// The cluster's latest state.
    cluster: RefCell<Arc<Cluster>>,
    /// Consecutive results that contradict the endpoint's current state.
    contrary: Cell<u32>,
}

impl HealthChecks {
    /// Adopts another state of a cluster, or a new one. Checks of endpoints that have not changed continue; endpoints that are
    /// no longer checked count as healthy.
    ///
    /// # Panics
    ///
    /// Panics outside a context for spawning local tasks.
    pub fn set(&mut self, handle: &ClusterHandle, cluster: &Arc<Cluster>) {
        let before = self.running.remove(&handle.id()).map(|before| before.endpoints);
        let Some(config) = cluster.health_check.as_deref() else {
            if before.is_some() {
                cluster.members().iter().for_each(|member| member.endpoint.set_healthy(true));
            }
            return;
        };
        let mut before = before.unwrap_or_default();
        let of = |endpoint: &Arc<Endpoint>| match before.remove(&endpoint.id) {
            Some(running) if running.check.config == *config => {
                *running.check.cluster.borrow_mut() = cluster.clone();
                (endpoint.id, running)
            }
            _ => {
                let (config, cluster) = (config.clone(), RefCell::new(cluster.clone()));
                let check = EndpointCheck { endpoint: endpoint.clone(), config, cluster, contrary: Cell::new(0) };
                (endpoint.id, start(check))
            }
        };
        let endpoints = cluster.members().iter().map(|member| &member.endpoint).map(of).collect();
        cluster.apply_health();
        self.running.insert(handle.id(), ClusterChecks { _handle: handle.clone(), endpoints });
    }

    /// Ends the checks of a cluster that is gone.
    pub fn remove(&mut self, handle: &ClusterHandle) {
        self.running.remove(&handle.id());
    }
}

fn start(check: EndpointCheck) -> Running {
    let check = Rc::new(check);
    let task = spawn_local(Rc::clone(&check).run()).abort_handle();
    Running { check, task }
}

impl EndpointCheck {
    async fn run(self: Rc<Self>) {
        let interval = self.config.interval.0;
        // Spread the checks, so that endpoints are not all probed at the same moment, nor by all proxies.
        sleep(interval.mul_f64(fastrand::f64())).await;
        loop {
            let next = Instant::now() + interval;
            let cluster = self.cluster.borrow().clone();
            let result = probe::ask(&cluster, &self.endpoint, &self.config).await;
            if let Err(error) = &result {
                self.endpoint.remember(error.trouble(), &format!("health check: {error}"));
            }
            self.note(result.map_err(|error| error.to_string()));
            sleep_until(next).await;
        }
    }

    /// Counts a result, and changes the endpoint's state after enough consecutive ones.
    fn note(&self, result: Result<(), String>) {
        self.cluster.borrow().stats().checks[usize::from(result.is_ok())].fetch_add(1, Relaxed);
        let was = self.endpoint.is_healthy();
        self.endpoint.state.check_error.store(result.as_ref().err().cloned().map(Arc::new));
        if result.is_ok() == was {
            return self.contrary.set(0);
        }
        self.contrary.set(self.contrary.get() + 1);
        let threshold = if was { self.config.unhealthy_threshold } else { self.config.healthy_threshold };
        if self.contrary.get() >= threshold {
            self.contrary.set(0);
            self.endpoint.set_healthy(!was);
            self.announce(result);
        }
    }

    /// Logs and applies a change of the endpoint's state.
    fn announce(&self, result: Result<(), String>) {
        let cluster = self.cluster.borrow().clone();
        let selection = cluster.apply_health();
        let (healthy, all) = cluster.health();
        let (name, endpoint) = (&*cluster.name, &self.endpoint.address);
        match result {
            Ok(()) => tracing::info!(
                target: target::UPSTREAM,
                cluster = name, %endpoint, "healthy again; {healthy} of {all} are healthy"
            ),
            Err(error) => {
                tracing::warn!(
                    target: target::UPSTREAM,
                    cluster = name, %endpoint, "unhealthy: {error}; {healthy} of {all} are healthy"
                )
            }
        }
        if selection == EndpointSelection::Panic {
            tracing::warn!(
                target: target::UPSTREAM,
                cluster = name,
                "less than {} % of the endpoints are healthy: sending requests to all endpoints",
                self.config.panic_threshold
            );
        }
    }
}

impl Endpoint {
    fn set_healthy(&self, healthy: bool) {
        self.state.healthy.store(healthy, Relaxed);
        if healthy {
            self.state.check_error.store(None);
        }
    }
}

#[cfg(test)]
#[path = "../tests/health.rs"]
mod tests;
