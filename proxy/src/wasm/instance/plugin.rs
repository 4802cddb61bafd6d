//! A filter of a snapshot: its compiled module with its configuration. It runs in a VM, alone or with others; see
//! [`VmTemplate`](super::template::VmTemplate).

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::{compiled::CompiledModule, failures::FailureLog, trap::TrapKind};
use crate::{
    config::model::{self, HeadersPause, OnFailure},
    observe::{Buckets, Counter, Histogram, LogLimiter, MetricError, Registry, SumGauge},
    wasm::{
        engine::Engine,
        host::{filter_log::FilterLog, plugin_info::PluginInfo},
        stores::env::FilterEnv,
    },
};

/// A filter's metrics, summed over all workers. Instances and their memory are counted by the templates that the filter
/// belongs to (`VmGauges`).
#[derive(Clone)]
pub struct FilterMetrics {
    /// Calls into the filter.
    pub calls: Counter,
    /// Seconds spent in calls: a sample, scaled up.
    pub time: Histogram,
    /// Failures by reason.
    pub traps: [Counter; 4],
    /// Streams that were denied or bypassed because the filter had failed.
    pub failed_streams: Counter,
    /// Instances created, for whatever reason.
    pub created: Counter,
    /// Instances created to replace failed ones.
    pub rebuilds: Counter,
    /// Failures after which a worker had no replacement, because creating one would have exceeded the time budget.
    pub over_budget: Counter,
    /// Bytes of linear memory, over all instances.
    pub memory: SumGauge,
    /// Bytes that the host holds for all instances.
    pub host_memory: SumGauge,
    /// Ready instances.
    pub instances: SumGauge,
    /// Instances reserved for clients whose requests made the filter fail.
    pub quarantine: SumGauge,
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
            created: counter("tollgate_filter_instances_created_total", "Instances created.")?,
            rebuilds: counter("tollgate_filter_rebuilds_total", "Instances created to replace failed ones.")?,
            over_budget: counter(
                "tollgate_filter_rebuild_budget_exhausted_total",
                "Failures after which a worker had no instance, because its time budget for creating them was used up.",
            )?,
            memory: registry.sum_gauge(
                "tollgate_filter_memory_bytes",
                "Linear memory of the filter's instances.",
                labels,
            )?,
            host_memory: registry.sum_gauge(
                "tollgate_filter_host_memory_bytes",
                "Memory that the proxy holds for the filter's instances outside their linear memory.",
                labels,
            )?,
            instances: registry.sum_gauge("tollgate_filter_instances", "Ready instances.", labels)?,
            quarantine: registry.sum_gauge(
                "tollgate_filter_quarantine_instances",
                "Instances that serve only clients whose requests made the filter fail.",
                labels,
            )?,
        })
    }
}

/// Settings of a filter that take effect without new instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilterSettings {
    /// How its streams are handled when it fails.
    pub on_failure: OnFailure,
    /// What pausing in the header phase means for it.
    pub headers_pause: HeadersPause,
    /// The time limit of a call.
    pub call_time: Duration,
}

impl FilterSettings {
    /// The settings in a filter's configuration.
    pub fn new(config: &model::Filter) -> FilterSettings {
        let call_time = config.limits.call_time.0;
        FilterSettings { on_failure: config.on_failure, headers_pause: config.headers_pause, call_time }
    }

    /// Half of the call time limit, as a duration and in the engine's ticks.
    pub(in crate::wasm) fn half_call(&self) -> (Duration, u64) {
        let half = self.call_time / 2;
        (half, crate::wasm::engine::clock::ticks(half))
    }
}

/// A filter with its configuration. It stays the same over changes of the configuration that need no new instances of it.
pub struct Plugin {
    /// Its name, configuration and owners.
    pub info: Arc<PluginInfo>,
    /// Its variants: their names, and its identity with their configuration.
    pub variants: Vec<(String, Arc<PluginInfo>)>,
    /// Its compiled module.
    pub code: Arc<CompiledModule>,
    /// What can change without new instances. Workers copy it when they apply a configuration.
    settings: ArcSwap<FilterSettings>,
    /// Its metrics.
    pub metrics: FilterMetrics,
    /// The clients and paths that made it fail.
    pub failures: FailureLog,
    /// Limits the log line about the exhausted time budget for creating instances.
    pub(in crate::wasm) over_budget_limiter: LogLimiter,
    /// Whether the log line on how to receive bodies while pausing heads was written.
    pub(in crate::wasm) stall_hint_logged: AtomicBool,
    /// The last error.
    pub last_error: ArcSwapOption<String>,
    /// Whether its configuration has a `vm_id`.
    pub(super) has_vm_id: bool,
    pub(in crate::wasm) engine: Arc<Engine>,
    pub(in crate::wasm) env: Arc<FilterEnv>,
    pub(in crate::wasm) memory_limit: usize,
    pub(super) host_memory_limit: usize,
}

impl Plugin {
    /// Creates the filter of this configuration with this module.
    pub fn new(
        config: &model::Filter,
        code: Arc<CompiledModule>,
        engine: &Arc<Engine>,
        env: &Arc<FilterEnv>,
    ) -> Result<Plugin, MetricError> {
        let vm_id = config.vm_id.clone().unwrap_or_else(|| config.name.clone());
        let info = PluginInfo {
            name: config.name.clone(),
            root_id: config.root_id.clone(),
            vm_store: env.shared.vm_store(&vm_id),
            store: env.shared.filter_store(&config.name),
            vm_id,
            config: config.config.to_guest(),
            vm_config: config.vm_config.to_guest(),
            env: config.env.clone(),
            log: Arc::new(FilterLog::default()),
        };
        let variant = |config: &model::JsonText| Arc::new(PluginInfo { config: config.to_guest(), ..info.clone() });
        Ok(Plugin {
            variants: config.variants.iter().map(|(name, config)| (name.clone(), variant(config))).collect(),
            info: Arc::new(info),
            code,
            settings: ArcSwap::from_pointee(FilterSettings::new(config)),
            metrics: FilterMetrics::new(&env.shared.registry, &config.name)?,
            failures: FailureLog::default(),
            over_budget_limiter: LogLimiter::default(),
            stall_hint_logged: AtomicBool::new(false),
            last_error: ArcSwapOption::empty(),
            has_vm_id: config.vm_id.is_some(),
            engine: engine.clone(),
            env: env.clone(),
            memory_limit: usize::try_from(config.limits.memory.0).unwrap_or(usize::MAX),
            host_memory_limit: usize::try_from(config.limits.host_memory.0).unwrap_or(usize::MAX),
        })
    }

    /// Whether it and an equal filter have the same configurations, after conversion of one of them.
    pub fn is_configured_like(&self, equal: &Plugin) -> bool {
        self.infos().map(|info| &info.config).eq(equal.infos().map(|info| &info.config))
    }

    /// The same filter with the converted configurations of an equal filter.
    pub fn configured_like(&self, equal: &Plugin) -> Plugin {
        let as_equal =
            |own: &PluginInfo, other: &PluginInfo| Arc::new(PluginInfo { config: other.config.clone(), ..own.clone() });
        let variants = equal.variants.iter().map(|(name, other)| (name.clone(), as_equal(&self.info, other)));
        Plugin {
            variants: variants.collect(),
            info: as_equal(&self.info, &equal.info),
            code: self.code.clone(),
            settings: ArcSwap::from_pointee(self.settings()),
            metrics: self.metrics.clone(),
            failures: FailureLog::default(),
            over_budget_limiter: LogLimiter::default(),
            stall_hint_logged: AtomicBool::new(false),
            last_error: ArcSwapOption::empty(),
            engine: self.engine.clone(),
            env: self.env.clone(),
            ..*self
        }
    }

    /// The same module with another configuration.
    pub fn configured_as(&self, config: &model::Filter) -> Result<Plugin, MetricError> {
        Plugin::new(config, self.code.clone(), &self.engine, &self.env)
    }

    /// Its identity, and those of its variants.
    pub(in crate::wasm) fn infos(&self) -> impl Iterator<Item = &Arc<PluginInfo>> {
        [&self.info].into_iter().chain(self.variants.iter().map(|(_, info)| info))
    }

    /// The settings that can change without new instances.
    pub fn settings(&self) -> FilterSettings {
        **self.settings.load()
    }

    /// Changes these settings. Workers see them when they apply the configuration.
    pub fn set_settings(&self, settings: FilterSettings) {
        self.settings.store(Arc::new(settings));
    }
}
