//! A filter of a snapshot: its code with its configuration, from which instances are made.
//!
//! Instances are made, started and configured on the control thread; a worker only ever gets one that is ready.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::AtomicU32},
    time::{Duration, Instant},
};

use tollgate_abi::proxy_wasm::ALLOCATORS;
use wasmtime::{Store, TypedFunc};

use super::{
    clock,
    engine::Engine,
    host::{Host, Phase},
    instance::{Exports, Instance, describe},
    module::Code,
    voice::Voice,
    world::World,
};
use crate::{
    config::model::{self, HeadersPause, OnFailure},
    observe::{Counter, Gauge, Histogram, Ladder, MetricError, Registry},
};

/// Configuring a filter may take this many times as long as a call.
const CONFIGURE_FACTOR: u32 = 20;

/// The id of an instance's root context. Ids of streams follow.
pub const ROOT: u32 = 1;

/// Who a filter is: what it can ask about itself.
#[derive(Debug)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// The name of its root context.
    pub root_id: String,
    /// Filters with the same one share data.
    pub vm_id: String,
    /// Its configuration.
    pub config: Vec<u8>,
    /// Its VM's configuration.
    pub vm_config: Vec<u8>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its lines in the log.
    pub voice: Voice,
}

impl Identity {
    /// Logs that the filter has done something that cannot be.
    pub fn complain(&self, line: std::fmt::Arguments<'_>) {
        self.voice.say(&self.name, tracing::Level::WARN, line);
    }
}

/// A filter's figures, over all workers.
#[derive(Clone)]
pub struct Figures {
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
    /// Bytes of linear memory, over all instances.
    pub memory: Gauge,
    /// Instances that are ready.
    pub instances: Gauge,
}

/// Why an instance has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapKind {
    /// It has trapped: a panic, an `unreachable`, an access out of bounds.
    Trap,
    /// A call took too long.
    Timeout,
    /// It has asked for more memory than it may have.
    Memory,
    /// It has used up its stack.
    Stack,
}

impl TrapKind {
    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            TrapKind::Trap => "trap",
            TrapKind::Timeout => "timeout",
            TrapKind::Memory => "memory",
            TrapKind::Stack => "stack",
        }
    }
}

impl Figures {
    fn new(registry: &Registry, filter: &str) -> Result<Figures, MetricError> {
        let labels: &[(&str, &str)] = &[("filter", filter)];
        let counter = |name, help| registry.counter(name, help, labels);
        let trap = |kind: TrapKind| {
            let labels = [("filter", filter), ("reason", kind.name())];
            registry.counter("tollgate_filter_traps_total", "Failures of the filter's instances.", &labels)
        };
        Ok(Figures {
            calls: counter("tollgate_filter_calls_total", "Calls into the filter.")?,
            time: registry.histogram(
                "tollgate_filter_call_seconds",
                "Time of calls into the filter; one call in sixteen is timed.",
                labels,
                Ladder::CallTime,
            )?,
            traps: [trap(TrapKind::Trap)?, trap(TrapKind::Timeout)?, trap(TrapKind::Memory)?, trap(TrapKind::Stack)?],
            failed_streams: counter(
                "tollgate_filter_failed_streams_total",
                "Streams that were denied or bypassed because the filter had failed.",
            )?,
            rebuilds: counter("tollgate_filter_rebuilds_total", "Instances made anew after a failure.")?,
            memory: registry.gauge(
                "tollgate_filter_memory_bytes",
                "Linear memory of the filter's instances.",
                labels,
            )?,
            instances: registry.gauge("tollgate_filter_instances", "Instances that are ready.", labels)?,
        })
    }
}

/// A filter of a snapshot.
pub struct Plugin {
    /// Who it is.
    pub identity: Arc<Identity>,
    /// Its code.
    pub code: Arc<Code>,
    /// What becomes of streams when it fails.
    pub on_failure: OnFailure,
    /// What it means by pausing in the header phase.
    pub headers_pause: HeadersPause,
    /// Its figures.
    pub figures: Figures,
    /// The last thing that went wrong with it.
    pub last_error: arc_swap::ArcSwapOption<String>,
    /// An instance that stands ready for the worker whose own fails first, so that no request waits for another one.
    pub spare: Mutex<Option<Instance>>,
    /// How often in a row its instances have failed soon after they were made.
    pub crashes: AtomicU32,
    engine: Arc<Engine>,
    world: Arc<World>,
    call_time: Duration,
    memory_limit: usize,
}

/// Why an instance could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InstantiateError {
    /// The filter refuses its configuration, and says why: places in it, and messages.
    #[error("{}", list(.0))]
    Config(Vec<(String, String)>),
    /// The filter refuses to start, or its configuration, without a reason.
    #[error("it returned false from `{0}`{hint}", hint = if .1.is_empty() { String::new() } else { format!("; it logged: {}", .1) })]
    Refused(&'static str, String),
    /// It trapped, or took too long.
    #[error("it failed in `{0}`: {1}")]
    Trapped(&'static str, String),
}

fn list(errors: &[(String, String)]) -> String {
    let each = errors.iter().map(|(path, message)| match path.is_empty() {
        true => message.clone(),
        false => format!("{path}: {message}"),
    });
    each.collect::<Vec<_>>().join("; ")
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
        code: Arc<Code>,
        engine: &Arc<Engine>,
        world: &Arc<World>,
    ) -> Result<Plugin, MetricError> {
        Ok(Plugin {
            identity: Arc::new(Identity {
                name: config.name.clone(),
                root_id: config.root_id.clone(),
                vm_id: config.vm_id.clone().unwrap_or_else(|| config.name.clone()),
                config: bytes(&config.config),
                vm_config: bytes(&config.vm_config),
                env: config.env.clone(),
                voice: Voice::default(),
            }),
            code,
            on_failure: config.on_failure,
            headers_pause: config.headers_pause,
            figures: Figures::new(&world.shared.registry, &config.name)?,
            last_error: arc_swap::ArcSwapOption::empty(),
            spare: Mutex::new(None),
            crashes: AtomicU32::new(0),
            engine: engine.clone(),
            world: world.clone(),
            call_time: config.limits.call_time.0,
            memory_limit: usize::try_from(config.limits.memory.0).unwrap_or(usize::MAX),
        })
    }

    /// What it sees of the world.
    pub(super) fn world(&self) -> &World {
        &self.world
    }

    /// Half of the time that a call may take, and how many ticks of the engine that is.
    pub(super) fn half_call(&self) -> (Duration, u64) {
        let half = self.call_time / 2;
        (half, Engine::ticks(half))
    }

    /// Makes an instance: started and configured. Takes from microseconds to as long as the filter's configuring takes.
    pub fn instantiate(&self) -> Result<Instance, InstantiateError> {
        let host = Host::new(self.identity.clone(), self.world.clone(), self.memory_limit);
        let mut store = Store::new(self.engine.wasmtime(), host);
        store.limiter(|host| &mut host.limiter);
        clock::install(&mut store);
        clock::start(&mut store, self.call_time * CONFIGURE_FACTOR);
        let trapped = |place: &'static str| {
            move |e: wasmtime::Error| {
                let reason = match describe(&e) {
                    (TrapKind::Timeout, _) => {
                        format!(
                            "it took longer than {CONFIGURE_FACTOR} times its `call_time`, which is what configuring may take"
                        )
                    }
                    (_, reason) => reason,
                };
                InstantiateError::Trapped(place, reason)
            }
        };
        let started = Instant::now();

        let instance = self.code.pre.instantiate(&mut store).map_err(trapped("start"))?;
        store.data_mut().memory = instance.get_memory(&mut store, "memory");
        let allocator = ALLOCATORS.iter().find_map(|name| instance.get_func(&mut store, name));
        store.data_mut().allocate = allocator.and_then(|f| f.typed(&store).ok());
        // A reactor has `_initialize` (and perhaps a `main`), a command `_start`.
        for name in ["_initialize", "_start"] {
            if let Ok(start) = instance.get_typed_func::<(), ()>(&mut store, name) {
                start.call(&mut store, ()).map_err(trapped(name))?;
                break;
            }
        }
        if instance.get_func(&mut store, "_initialize").is_some()
            && let Ok(main) = instance.get_typed_func::<(u32, u32), u32>(&mut store, "main")
        {
            main.call(&mut store, (0, 0)).map_err(trapped("main"))?;
        }

        let exports = Exports::find(&instance, &mut store);
        store.data_mut().abi = self.code.abi;
        store.data_mut().root = ROOT;
        store.data_mut().effective = ROOT;
        if let Some(create) = &exports.context_create {
            create.call(&mut store, (ROOT, 0)).map_err(trapped("proxy_on_context_create"))?;
        }
        let mut ask = |name: &'static str, phase, f: &Option<TypedFunc<(u32, u32), u32>>, size: usize| {
            let Some(f) = f else { return Ok(()) };
            store.data_mut().phase = phase;
            store.data_mut().effective = ROOT;
            let agreed = f.call(&mut store, (ROOT, size as u32)).map_err(trapped(name))? != 0;
            let errors = std::mem::take(&mut store.data_mut().config_errors);
            match (agreed, errors.is_empty()) {
                (_, false) => Err(InstantiateError::Config(errors)),
                (false, true) => Err(InstantiateError::Refused(name, std::mem::take(&mut store.data_mut().said))),
                (true, true) => Ok(()),
            }
        };
        ask("proxy_on_vm_start", Phase::VmStart, &exports.vm_start, self.identity.vm_config.len())?;
        ask("proxy_on_configure", Phase::Configure, &exports.configure, self.identity.config.len())?;
        store.data_mut().phase = Phase::Running;
        tracing::debug!(filter = self.identity.name, us = started.elapsed().as_micros() as u64, "instance ready");
        Ok(Instance { store, exports })
    }
}
