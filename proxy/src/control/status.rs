//! The state of the process: the running configuration and its history, for the admin listener and readiness.

use std::{
    cell::{OnceCell, RefCell},
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwapOption;
use serde_json::{Value, json};

use super::{
    change::{ReloadAttempt, ReloadOutcome, attempt_json},
    discovery,
    history::{AppliedVersion, History},
    pin::{Pending, Pin},
    resources::Resources,
};
use crate::{
    config::model::OnFailure,
    digest::hex,
    observe::{Counter, MetricError, PlainGauge, Registry, access_log::timestamp},
    snapshot::Snapshot,
    upstream::{Cluster, ClusterHandle, ConcurrencyStatus, Endpoint, Member, SubsetStatus},
    wasm::{Plugin, VmTemplate},
};

/// At most this many of the filters that share a filter's VM are listed. There may be thousands.
const MAX_SHARING: usize = 20;

/// The state of the process.
pub struct Status {
    /// The running snapshot.
    pub current: Arc<ArcSwapOption<Snapshot>>,
    /// Whether the start is over: what sources have kept is in effect too.
    pub started: AtomicBool,
    /// Whether the process is draining.
    pub draining: AtomicBool,
    /// The reason why not all file changes are detected, if any.
    pub unwatched: Arc<ArcSwapOption<String>>,
    /// The thread of the resources, once it runs.
    pub(crate) resources: OnceCell<Resources>,
    /// What DNS lookups have found, once they run.
    pub(crate) discovered: OnceCell<Arc<discovery::Table>>,
    history: RefCell<History>,
    pin: RefCell<Option<Pin>>,
    last: Mutex<Option<ReloadAttempt>>,
    pinned: PlainGauge,
    applied: Counter,
    refused: Counter,
    version: PlainGauge,
    last_ok: PlainGauge,
}

impl Status {
    /// Creates the state, without a running configuration.
    pub fn new(registry: &Registry) -> Result<Status, MetricError> {
        let reloads = |result| {
            registry.counter(
                "tollgate_config_reloads_total",
                "Configuration reloads, by result.",
                &[("result", result)],
            )
        };
        Ok(Status {
            current: Arc::default(),
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            unwatched: Arc::default(),
            resources: OnceCell::new(),
            discovered: OnceCell::new(),
            history: RefCell::default(),
            pin: RefCell::default(),
            last: Mutex::new(None),
            pinned: registry.plain_gauge(
                "tollgate_config_pinned",
                "1 while a configuration is pinned and changes of the files are not applied, otherwise 0.",
                &[],
            )?,
            applied: reloads("applied")?,
            refused: reloads("refused")?,
            version: registry.plain_gauge(
                "tollgate_config_version",
                "The version of the running configuration.",
                &[],
            )?,
            last_ok: registry.plain_gauge(
                "tollgate_config_last_reload_successful",
                "1 if the last reload succeeded, 0 if it was rejected.",
                &[],
            )?,
        })
    }

    /// Records the outcome of a reload.
    pub fn note(&self, cause: &'static str, result: ReloadOutcome) -> ReloadAttempt {
        let shard = crate::observe::shard();
        match &result {
            ReloadOutcome::Applied(version) => {
                self.applied.inc(shard);
                self.version.set(*version as i64);
                self.last_ok.set(1);
            }
            ReloadOutcome::Unchanged | ReloadOutcome::Pinned(_) => self.last_ok.set(1),
            ReloadOutcome::Refused(..) => {
                self.refused.inc(shard);
                self.last_ok.set(0);
            }
        }
        let attempt = ReloadAttempt { at: SystemTime::now(), cause, result };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(attempt.clone());
        attempt
    }

    /// Adds an applied configuration to the history.
    pub fn record(&self, applied: AppliedVersion) {
        let most = applied.loaded.config.admin.history.into();
        self.history.borrow_mut().add(applied, most);
    }

    /// Finds a version in the history.
    pub fn applied(&self, version: u64) -> Option<Arc<AppliedVersion>> {
        self.history.borrow().find(version).cloned()
    }

    /// Pins a version, or none.
    pub fn pin(&self, version: Option<u64>) {
        *self.pin.borrow_mut() = version.map(|version| Pin { version, pending: None });
        self.pinned.set(version.is_some().into());
    }

    /// The pinned version.
    pub fn pinned(&self) -> Option<u64> {
        self.pin.borrow().as_ref().map(|pin| pin.version)
    }

    /// Sets what the files would change in the pinned version. Returns whether the files have another configuration than
    /// the last time.
    pub fn set_pending(&self, pending: Option<Pending>) -> bool {
        let mut pin = self.pin.borrow_mut();
        let Some(pin) = &mut *pin else { return true };
        let hash = |pending: &Option<Pending>| pending.as_ref().and_then(Pending::hash).map(str::to_owned);
        let is_new = pin.pending.is_some() != pending.is_some() || hash(&pin.pending) != hash(&pending);
        pin.pending = pending;
        is_new
    }

    /// Returns the history as JSON.
    pub fn history_json(&self) -> Value {
        let (version, pinned) = (self.current.load().as_ref().map(|s| s.version), self.pinned());
        json!({ "version": version, "pinned": pinned, "history": self.history.borrow().to_json(pinned) })
    }

    /// Returns whether traffic is accepted, and the text for `/ready`, which lists filters without instances.
    pub fn readiness(&self) -> (bool, String) {
        let current = self.current.load();
        let accepts = self.started.load(Ordering::Relaxed) && !self.is_draining();
        let Some(snapshot) = current.as_ref().filter(|_| accepts) else {
            let why = if self.is_draining() { "draining\n" } else { "not ready\n" };
            return (false, why.to_owned());
        };
        let strict = snapshot.loaded.config.admin.unready_without_filters;
        let (mut out, mut degraded) = (String::new(), String::new());
        for template in &snapshot.templates {
            let seen = template.availability.seen();
            if seen.with == seen.workers && !seen.out {
                continue;
            }
            for plugin in &*template.plugins() {
                let name = &plugin.info.name;
                let missing = match seen.workers - seen.with {
                    _ if seen.out => {
                        "has had no instance on any worker for over a second, or only intermittently".to_owned()
                    }
                    all if all == seen.workers => "has no instance on any worker".to_owned(),
                    some => format!("has no instance on {some} of {} workers", seen.workers),
                };
                let (list, word) = match strict && seen.out && plugin.settings().on_failure == OnFailure::Deny {
                    true => (&mut out, "not ready"),
                    false => (&mut degraded, "degraded"),
                };
                *list += &format!("{word}: filter `{name}` {missing}\n");
            }
        }
        match out.is_empty() {
            true => (true, format!("ready\n{degraded}")),
            false => (false, out + &degraded),
        }
    }

    /// Whether the process is draining.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Returns the running configuration and the last attempt to change it, as JSON.
    pub fn config_json(&self) -> Value {
        let current = self.current.load();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (config, supplied) = current.as_ref().map(|s| s.effective.shown_apart(&s.loaded)).unzip();
        json!({
            "version": current.as_ref().map(|s| s.version),
            "hash": current.as_ref().map(|s| s.hash.clone()),
            "file": current.as_ref().map(|s| s.loaded.source.name().to_owned()),
            "since": current.as_ref().map(|s| timestamp::text(s.created)),
            "pinned": self.pinned(),
            "pending": self.pin.borrow().as_ref().and_then(|pin| pin.pending.as_ref()).map(Pending::to_json),
            "last_attempt": last.as_ref().map(attempt_json),
            "unwatched": self.unwatched.load().as_ref().map(|why| why.as_str().to_owned()),
            "settings_sha256": current.as_ref().map(|s| hex(&s.loaded.source.settings_hash())),
            "tls_files": current.as_ref().map(|s| tls_files(s)),
            "config": config,
            "supplied": supplied,
        })
    }

    /// Returns the running clusters as JSON: those of the configuration in its order, then those of sources by name.
    pub fn clusters_json(&self) -> Value {
        let current = self.current.load();
        let listed = || current.iter().flat_map(|s| &s.clusters).map(|cluster| &cluster.handle);
        let known: HashSet<_> = listed().map(ClusterHandle::id).collect();
        let mut others = current.as_ref().map_or_else(Vec::new, |s| s.directory.handles());
        others.retain(|handle| !known.contains(&handle.id()));
        others.sort_by(|a, b| a.name().cmp(b.name()));
        let all = listed().chain(&others).filter_map(ClusterHandle::current);
        let clusters = all.map(|cluster| {
            let mut json = cluster_json(&cluster);
            let table = self.discovered.get();
            let looked_up = cluster.service.as_ref().and_then(|service| Some((service, table?.get(service)?)));
            json["discovery"] = looked_up.map(|(service, state)| state.to_json(service)).into();
            json
        });
        json!({ "version": current.as_ref().map(|s| s.version), "clusters": clusters.collect::<Vec<_>>() })
    }

    /// Returns all resources with their states as JSON.
    pub async fn resources_json(&self) -> Value {
        match self.resources.get() {
            Some(resources) => resources.shown().await,
            None => json!({ "sources": [], "resources": [] }),
        }
    }

    /// Returns the running filters as JSON.
    pub fn filters_json(&self) -> Value {
        let current = self.current.load();
        let templates = || current.iter().flat_map(|s| &s.templates);
        let of_template = |template: &Arc<VmTemplate>| {
            let plugins = template.plugins();
            let entry = |plugin: &Arc<Plugin>| (Arc::as_ptr(plugin), (template.clone(), plugins.clone()));
            plugins.iter().map(entry).collect::<Vec<_>>()
        };
        let vms: HashMap<_, _> = templates().flat_map(of_template).collect();
        let filters = current.iter().flat_map(|s| &s.plugins).map(|p| {
            let instances = p.metrics.instances.value();
            let (template, sharing) = vms.get(&Arc::as_ptr(p)).map_or((None, &[][..]), |(t, all)| (Some(t), all));
            let others = sharing.iter().map(|o| &o.info.name).filter(|name| **name != p.info.name);
            let others: Vec<_> = others.take(MAX_SHARING).collect();
            json!({
                "name": p.info.name,
                "wasm": p.code.source,
                "hash": p.code.hash,
                "bytes": p.code.size,
                "abi": p.code.abi,
                "variants": p.variants.iter().map(|(name, _)| name).collect::<Vec<_>>(),
                "vm_key": template.map(|m| m.key()),
                "vm_answers": template.map(|m| hex(&m.answers())),
                "shares_vm_with": others,
                "state": if instances > 0 { "ready" } else { "failed" },
                "instances": instances,
                "spares": template.map_or(0, |m| m.spares()),
                "quarantine": p.metrics.quarantine.value(),
                "memory_bytes": p.metrics.memory.value(),
                "host_memory_bytes": p.metrics.host_memory.value(),
                "calls": p.metrics.calls.value(),
                "failed_streams": p.metrics.failed_streams.value(),
                "traps": p.metrics.traps.iter().map(|t| t.value()).sum::<u64>(),
                "rebuilds": p.metrics.rebuilds.value(),
                "poisoned_by": p.failures.json(),
                "last_error": p.last_error.load().as_ref().map(|e| e.as_str().to_owned()),
            })
        });
        json!({ "version": current.as_ref().map(|s| s.version), "filters": filters.collect::<Vec<_>>() })
    }
}

/// Returns the SHA-256 of each TLS file.
fn tls_files(snapshot: &Snapshot) -> Value {
    let file =
        |(path, digest): (&PathBuf, &[u8; 32])| json!({ "file": path.display().to_string(), "sha256": hex(digest) });
    snapshot.tls.files().iter().map(file).collect()
}

/// Returns the numbers of a cluster's endpoints. Without health checks, all with a weight that are not ejected count as healthy.
fn endpoints_by_state(cluster: &Cluster) -> Value {
    let (healthy, weighted) = cluster.health();
    let unhealthy = weighted.saturating_sub(healthy);
    let unused = cluster.members().len().saturating_sub(weighted);
    json!({ "healthy": healthy, "unhealthy": unhealthy, "without_weight": unused })
}

/// Returns the state of a cluster's adaptive concurrency.
fn concurrency_json(status: &ConcurrencyStatus) -> Value {
    json!({
        "limit": status.limit,
        "active": status.active,
        "overflows": status.refused,
        "gradient": status.gradient,
        "min_rtt_seconds": status.min_rtt.map(|time| time.as_secs_f64()),
        "sample_rtt_seconds": status.sample_rtt.map(|time| time.as_secs_f64()),
        "min_rtt_measuring": status.is_measuring,
    })
}

/// Returns a cluster in the admin API's form. The health of an endpoint is known only if the cluster has health checks, and
/// whether it is an outlier only with outlier detection.
fn cluster_json(cluster: &Cluster) -> Value {
    let endpoints = cluster.members().iter().map(|member| {
        let Member { endpoint, weight, priority, locality, metadata } = member;
        json!({
            "address": endpoint.address,
            "hostname": endpoint.hostname,
            "weight": weight,
            "priority": priority,
            "locality": locality.as_deref().cloned().unwrap_or_default(),
            "metadata": metadata.as_deref().cloned().unwrap_or_default(),
            "healthy": cluster.is_checked().then(|| endpoint.is_healthy()),
            "outlier": cluster.outlier_detection.is_some().then(|| outlier_json(endpoint)),
            "check_error": endpoint.check_error().map(|error| error.as_str().to_owned()),
            "last_error": endpoint.last_error().map(|error| {
                json!({ "at": timestamp::text(error.at), "kind": error.trouble.name(), "error": error.text })
            }),
            "requests_active": endpoint.active(),
            "requests": endpoint.requests(),
            "connections": endpoint.connections(),
            "connect_failures": endpoint.connect_failures(),
        })
    });
    let stats = cluster.stats();
    json!({
        "name": &*cluster.name,
        "requests_active": stats.active.load(Ordering::Relaxed),
        "requests_pending": stats.pending.load(Ordering::Relaxed),
        "connections": stats.connections.load(Ordering::Relaxed),
        "connections_idle": stats.idle.load(Ordering::Relaxed),
        "adaptive_concurrency": cluster.adaptive_concurrency.as_ref().map(|limit| concurrency_json(&limit.status())),
        "endpoints_by_state": endpoints_by_state(cluster),
        "subsets": cluster.subsets().map(|subsets| subsets.into_iter().map(subset_json).collect::<Vec<_>>()),
        "remaining": cluster.remaining().by_name().into_iter().collect::<HashMap<_, _>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn subset_json(subset: SubsetStatus) -> Value {
    let SubsetStatus { properties, is_default, available, endpoints } = subset;
    json!({ "metadata": properties, "default": is_default, "healthy": available, "unhealthy": endpoints - available })
}

/// Returns what outlier detection knows of an endpoint. Success rates are those of the last interval, if it had enough
/// requests.
fn outlier_json(endpoint: &Endpoint) -> Value {
    let status = endpoint.outlier_status();
    let ejection = status.as_ref().and_then(|status| status.ejection.as_ref());
    json!({
        "ejected": ejection.is_some(),
        "rule": ejection.map(|ejection| ejection.rule.name()),
        "ejected_at": ejection.map(|ejection| timestamp::text(ejection.at)),
        "ejection_seconds": ejection.map(|ejection| ejection.time.as_secs_f64()),
        "ejections": status.as_ref().map_or(0, |status| status.ejections),
        "success_rate": status.as_ref().and_then(|status| status.success_rate),
        "local_origin_success_rate": status.as_ref().and_then(|status| status.local_origin_success_rate),
    })
}
