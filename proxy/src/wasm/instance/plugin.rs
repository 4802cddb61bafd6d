//! A filter of a snapshot: its code with its configuration. It runs in a [`Machine`](super::Machine), alone or with others.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use super::{compiled::CompiledModule, failures::FailureLog, trap::TrapKind};
use crate::{
    config::model::{self, HeadersPause, OnFailure},
    observe::{Buckets, Counter, Gauge, Histogram, LogLimiter, MetricError, Registry},
    wasm::{
        engine::Engine,
        host::{filter_log::FilterLog, plugin_info::PluginInfo},
        stores::env::FilterEnv,
    },
};

/// A filter's figures, over all workers.
#[derive(Clone)]
pub struct FilterMetrics {
    /// Calls into it.
    pub calls: Counter,
    /// Seconds spent in it: a sample, scaled up.
    pub time: Histogram,
    /// Traps, by reason.
    pub traps: [Counter; 4],
    /// Streams that were denied or bypassed because it had failed.
    pub failed_streams: Counter,
    /// Instances that were made anew after a trap.
    pub rebuilds: Counter,
    /// Failures after which there was no other instance, because making more would have taken too much time.
    pub over_budget: Counter,
    /// Bytes of linear memory, over all instances.
    pub memory: Gauge,
    /// Bytes that the host keeps for all instances.
    pub host_memory: Gauge,
    /// Instances that are ready.
    pub instances: Gauge,
    /// Instances for clients whose requests have made the filter fail.
    pub quarantine: Gauge,
}

impl FilterMetrics {
    fn new(registry: &Registry, filter: &str) -> Result<FilterMetrics, MetricError> {
        let labels: &[(&str, &str)] = &[("filter", filter)];
        let counter = |name, help| registry.counter(name, help, labels);
        let trap = |kind: TrapKind| {
            let labels = [("filter", filter), ("reason", kind.name())];
            registry.counter("tollgate_filter_traps_total", "Failures of the filter's instances.", &labels)
        };
        Ok(FilterMetrics {
            calls: counter("tollgate_filter_calls_total", "Calls into the filter.")?,
            time: registry.histogram(
                "tollgate_filter_call_seconds",
                "Time of calls into the filter; one call in sixteen is timed.",
                labels,
                Buckets::CallTime,
            )?,
            traps: [trap(TrapKind::Trap)?, trap(TrapKind::Timeout)?, trap(TrapKind::Memory)?, trap(TrapKind::Stack)?],
            failed_streams: counter(
                "tollgate_filter_failed_streams_total",
                "Streams that were denied or bypassed because the filter had failed.",
            )?,
            rebuilds: counter(
                "tollgate_filter_rebuilds_total",
                "Instances that took the place of one that had failed.",
            )?,
            over_budget: counter(
                "tollgate_filter_rebuild_budget_exhausted_total",
                "Failures after which a worker had no instance, because it may spend no more time on making them.",
            )?,
            memory: registry.gauge(
                "tollgate_filter_memory_bytes",
                "Linear memory of the filter's instances.",
                labels,
            )?,
            host_memory: registry.gauge(
                "tollgate_filter_host_memory_bytes",
                "What the proxy keeps for the filter's instances outside of their memory.",
                labels,
            )?,
            instances: registry.gauge("tollgate_filter_instances", "Instances that are ready.", labels)?,
            quarantine: registry.gauge(
                "tollgate_filter_quarantine_instances",
                "Instances that serve only clients whose requests have made the filter fail.",
                labels,
            )?,
        })
    }
}

/// A filter of a snapshot.
pub struct Plugin {
    /// Who it is.
    pub info: Arc<PluginInfo>,
    /// Its code.
    pub code: Arc<CompiledModule>,
    /// What becomes of streams when it fails.
    pub on_failure: OnFailure,
    /// What it means by pausing in the header phase.
    pub headers_pause: HeadersPause,
    /// Its figures.
    pub metrics: FilterMetrics,
    /// Whose requests have made it fail.
    pub failures: FailureLog,
    /// It was said that making instances would take too much time.
    pub(in crate::wasm) said_over_budget: LogLimiter,
    /// It was told how to get bodies while it holds heads.
    pub(in crate::wasm) hinted: AtomicBool,
    /// The last thing that went wrong with it.
    pub last_error: arc_swap::ArcSwapOption<String>,
    pub(in crate::wasm) engine: Arc<Engine>,
    pub(in crate::wasm) env: Arc<FilterEnv>,
    pub(in crate::wasm) call_time: Duration,
    pub(in crate::wasm) memory_limit: usize,
    pub(super) host_memory_limit: usize,
}

/// A configuration value as a filter gets it: text as it stands, nothing as nothing, everything else as JSON.
fn bytes(value: &serde_json::Value) -> Vec<u8> {
    match value {
        serde_json::Value::Null => Vec::new(),
        serde_json::Value::String(text) => text.clone().into_bytes(),
        value => value.to_string().into_bytes(),
    }
}

impl Plugin {
    /// The filter of this configuration, with this code.
    pub fn new(
        config: &model::Filter,
        code: Arc<CompiledModule>,
        engine: &Arc<Engine>,
        world: &Arc<FilterEnv>,
    ) -> Result<Plugin, MetricError> {
        let vm_id = config.vm_id.clone().unwrap_or_else(|| config.name.clone());
        Ok(Plugin {
            info: Arc::new(PluginInfo {
                name: config.name.clone(),
                root_id: config.root_id.clone(),
                estate: world.shared.estate(&vm_id),
                holdings: world.shared.holdings(&config.name),
                vm_id,
                config: bytes(&config.config),
                vm_config: bytes(&config.vm_config),
                env: config.env.clone(),
                voice: FilterLog::default(),
            }),
            code,
            on_failure: config.on_failure,
            headers_pause: config.headers_pause,
            metrics: FilterMetrics::new(&world.shared.registry, &config.name)?,
            failures: FailureLog::default(),
            said_over_budget: LogLimiter::default(),
            hinted: AtomicBool::new(false),
            last_error: arc_swap::ArcSwapOption::empty(),
            engine: engine.clone(),
            env: world.clone(),
            call_time: config.limits.call_time.0,
            memory_limit: usize::try_from(config.limits.memory.0).unwrap_or(usize::MAX),
            host_memory_limit: usize::try_from(config.limits.host_memory.0).unwrap_or(usize::MAX),
        })
    }

    /// The same code with another configuration.
    pub fn configured_as(&self, config: &model::Filter) -> Result<Plugin, MetricError> {
        Plugin::new(config, self.code.clone(), &self.engine, &self.env)
    }

    /// Whether both can run in one VM; see [`Machine`](super::Machine).
    pub(super) fn shares_vm_with(&self, other: &Plugin) -> bool {
        let (one, other_one) = (&self.info, &other.info);
        one.vm_id == other_one.vm_id
            && self.code.hash == other.code.hash
            && one.vm_config == other_one.vm_config
            && one.env == other_one.env
            && self.memory_limit == other.memory_limit
            && self.host_memory_limit == other.host_memory_limit
    }

    /// Half of the time that a call may take, and how many ticks of the engine that is.
    pub(in crate::wasm) fn half_call(&self) -> (Duration, u64) {
        let half = self.call_time / 2;
        (half, crate::wasm::engine::clock::ticks(half))
    }
}
