//! Active health checks: endpoints are probed periodically, and unhealthy ones are ejected from load balancing. There is
//! no passive outlier detection.
//!
//! The checks run on the control thread, one task per endpoint. Their results are stored in the [`Endpoint`], which
//! workers and later snapshots share, so they survive a reload.

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

use super::{Cluster, Endpoint, cluster::EndpointSelection};
use crate::{
    config::model,
    observe::{Counter, Registry, shard, target},
};

/// The health checks of all clusters.
pub struct HealthChecks {
    registry: Registry,
    /// Checks by the endpoint's id.
    running: HashMap<u64, Running>,
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
    /// The cluster in the active snapshot.
    cluster: RefCell<Arc<Cluster>>,
    /// Consecutive results that contradict the endpoint's current state.
    contrary: Cell<u32>,
    /// Failures and successes.
    results: [Counter; 2],
}

impl HealthChecks {
    /// Creates an empty set of checks.
    pub fn new(registry: Registry) -> HealthChecks {
        HealthChecks { registry, running: HashMap::new() }
    }

    /// Applies another snapshot. Unchanged checks continue; endpoints that are no longer checked count as healthy.
    ///
    /// # Panics
    ///
    /// Panics outside a context for spawning local tasks.
    pub fn apply<'a>(&mut self, clusters: impl IntoIterator<Item = (&'a Arc<Cluster>, &'a model::Cluster)>) {
        let mut kept = HashMap::new();
        for (cluster, config) in clusters {
            let Some(check) = &config.health_check else {
                cluster.members.iter().for_each(|member| member.endpoint.set_healthy(true));
                continue;
            };
            let results = ["failure", "success"].map(|result| self.counter(cluster, result));
            for member in &cluster.members {
                let endpoint = &member.endpoint;
                let running = match self.running.remove(&endpoint.id) {
                    Some(running) if running.check.config == *check => {
                        *running.check.cluster.borrow_mut() = cluster.clone();
                        running
                    }
                    _ => start(EndpointCheck {
                        endpoint: endpoint.clone(),
                        config: check.clone(),
                        cluster: RefCell::new(cluster.clone()),
                        contrary: Cell::new(0),
                        results: results.clone(),
                    }),
                };
                kept.insert(endpoint.id, running);
            }
            cluster.set_health(check.panic_threshold);
        }
        // The remaining checks are not in the snapshot.
        self.running = kept;
    }

    fn counter(&self, cluster: &Cluster, result: &str) -> Counter {
        let labels = [("cluster", &*cluster.name), ("result", result)];
        let counter =
            self.registry.counter("tollgate_cluster_health_checks_total", "Health checks by result.", &labels);
        // The names are valid, so this does not fail.
        counter.unwrap_or_else(|_| Counter::new(1))
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
        self.results[usize::from(result.is_ok())].inc(shard());
        let was = self.endpoint.is_healthy();
        self.endpoint.check_error.store(result.as_ref().err().cloned().map(Arc::new));
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
        let selection = cluster.set_health(self.config.panic_threshold);
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
        self.healthy.store(healthy, Relaxed);
        if healthy {
            self.check_error.store(None);
        }
    }
}

#[cfg(test)]
#[path = "../tests/health.rs"]
mod tests;
