//! What a VM's instances are created from: a compiled module with a VM's configuration, and the filters that share it.
//! Instances are created on the control thread; workers only receive ready ones.
//!
//! Filters share a VM if everything that defines it is the same: the `vm_id`, the code, the VM's configuration, the
//! environment and the memory limits (Envoy's key is the first three). A filter without a `vm_id` has its own VM,
//! because a failure in a VM affects all of its filters.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tollgate_abi::proxy_wasm::ALLOCATORS;
use wasmtime::{Store, TypedFunc};

use super::{
    Exports, Instance,
    availability::Availability,
    plugin::Plugin,
    trap::{TrapKind, describe},
};
use crate::{
    chain::charge::MemoryBudget,
    digest::sha256_hex,
    observe::{self, target},
    wasm::{
        engine::clock,
        host::{FIRST_ROOT, Host, Phase, plugin_info::PluginInfo},
        stores::known_names::{KnownNames, NameAnswers},
    },
};

/// The time limit for configuring a filter, as a multiple of its `call_time`.
const CONFIGURE_FACTOR: u32 = 20;

/// A VM's module, configuration and filters.
pub struct VmTemplate {
    /// The filters that share the VM, at least one; the first root context belongs to the first filter.
    plugins: Vec<Arc<Plugin>>,
    /// A spare instance for the first worker whose own fails, so that no request waits for a new one.
    spare: Mutex<Option<Instance>>,
    /// Number of spares that workers hold themselves.
    pub(in crate::wasm) kept: AtomicUsize,
    /// Which workers have an instance.
    pub availability: Availability,
    /// Recent average of the processor time that creating an instance takes, in nanoseconds.
    making: AtomicU64,
    /// What its filters were told about clusters and variants while they were configured.
    name_answers: Arc<NameAnswers>,
    /// Identifies everything that its instances are made of.
    key: VmKey,
    /// What its first instance says about each filter.
    facts: OnceLock<Box<[FilterFacts]>>,
}

/// A digest of everything that a VM's instances are made of: code, VM configuration, environment, memory limits, and the
/// filters with their names and configurations. As long as it is the same, instances are kept.
pub type VmKey = String;

/// What an instance says about one of its filters.
#[derive(Debug, Clone)]
pub struct FilterFacts {
    /// The callbacks that it, or a variant of it, exports and subscribes to, as bits of
    /// [`phase`](tollgate_abi::fast::phase).
    pub phases: u32,
    /// Whether it, or a variant of it, has a timer tick.
    pub ticks: bool,
    /// The variants that its routes select, by filter and variant.
    pub selections: BTreeSet<(String, String)>,
}

/// Why an instance could not be created.
#[derive(Debug, thiserror::Error)]
pub enum InstantiateError {
    /// The filter rejects its configuration and gives reasons: paths in it, and messages.
    #[error("{}", list(.0))]
    Config(Vec<(String, String)>),
    /// The filter refuses to start or rejects its configuration without a reason. Fields: the function, and what it
    /// logged.
    #[error("it returned false from `{0}`{hint}", hint = logged(.1))]
    Refused(&'static str, String),
    /// The filter trapped or timed out. Fields: the function, the reason, and what it logged before.
    #[error("it failed in `{0}`: {1}{hint}", hint = logged(.2))]
    Trapped(&'static str, String, String),
}

/// Why an instance could not be created, with the filter that caused it.
#[derive(Debug, thiserror::Error)]
#[error("{}{error}", variant.as_ref().map_or_else(String::new, |name| format!("variant `{name}`: ")))]
pub struct SetupError {
    /// The index of the filter in the template.
    pub filter: usize,
    /// The filter's variant, if the error is in one.
    pub variant: Option<String>,
    /// Why.
    pub error: InstantiateError,
}

/// A root context of a template's instances: a filter's, or that of a variant.
pub struct TemplateRoot<'t> {
    /// The index of the filter in the template.
    pub filter: usize,
    /// The filter.
    pub plugin: &'t Arc<Plugin>,
    /// The variant's name.
    pub variant: Option<&'t str>,
    /// The filter's identity, with the configuration of this root context.
    pub(in crate::wasm) info: &'t Arc<PluginInfo>,
}

/// Formats what a filter has logged, such as a panic's text, as a part of a message.
fn logged(said: &str) -> String {
    let line = said.lines().map(str::trim_end).collect::<Vec<_>>().join(" ");
    if line.is_empty() { line } else { format!("; it logged: {line}") }
}

fn list(errors: &[(String, String)]) -> String {
    let each = errors.iter().map(|(path, message)| match path.is_empty() {
        true => message.clone(),
        false => format!("{path}: {message}"),
    });
    each.collect::<Vec<_>>().join("; ")
}

impl VmTemplate {
    /// Creates a template for a single filter.
    pub fn of(plugin: Arc<Plugin>) -> Arc<VmTemplate> {
        VmTemplate::new(vec![plugin])
    }

    /// Creates a template for filters that share a VM, in this order.
    pub fn new(plugins: Vec<Arc<Plugin>>) -> Arc<VmTemplate> {
        let key = key(&plugins);
        VmTemplate::with_key(plugins, key)
    }

    /// The same VM with filters whose configurations were converted to the types that they expect.
    pub fn converted(&self, plugins: Vec<Arc<Plugin>>) -> Arc<VmTemplate> {
        VmTemplate::with_key(plugins, self.key.clone())
    }

    fn with_key(plugins: Vec<Arc<Plugin>>, key: VmKey) -> Arc<VmTemplate> {
        Arc::new(VmTemplate {
            plugins,
            spare: Mutex::new(None),
            kept: AtomicUsize::new(0),
            availability: Availability::default(),
            making: AtomicU64::new(0),
            name_answers: Arc::default(),
            key,
            facts: OnceLock::new(),
        })
    }

    /// Groups filters into templates, in the order of each group's first filter.
    pub fn shared_by(plugins: &[Arc<Plugin>]) -> Vec<Arc<VmTemplate>> {
        let mut groups: Vec<Vec<Arc<Plugin>>> = Vec::new();
        for plugin in plugins {
            match groups.iter_mut().find(|group| group[0].shares_vm_with(plugin)) {
                Some(group) => group.push(plugin.clone()),
                None => groups.push(vec![plugin.clone()]),
            }
        }
        groups.into_iter().map(VmTemplate::new).collect()
    }

    /// The filters that share the VM, in the order of their root contexts.
    pub fn plugins(&self) -> &[Arc<Plugin>] {
        &self.plugins
    }

    /// The root contexts in order: those of the filters, then those of their variants.
    pub fn roots(&self) -> impl Iterator<Item = TemplateRoot<'_>> {
        let filters = || self.plugins.iter().enumerate();
        let own = filters().map(|(filter, plugin)| TemplateRoot { filter, plugin, variant: None, info: &plugin.info });
        let variants = filters().flat_map(|(filter, plugin)| {
            let variant = move |(name, info)| TemplateRoot { filter, plugin, variant: Some(name), info };
            plugin.variants.iter().map(|(name, info)| (name.as_str(), info)).map(variant)
        });
        own.chain(variants)
    }

    /// The indices of the root contexts of a filter and its variants.
    fn roots_of(&self, filter: usize) -> impl Iterator<Item = usize> {
        self.roots().enumerate().filter(move |(_, root)| root.filter == filter).map(|(index, _)| index)
    }

    /// Identifies everything that its instances are made of.
    pub fn key(&self) -> &VmKey {
        &self.key
    }

    /// Whether its instances are also right for a configuration with these clusters.
    pub fn fits(&self, known: &KnownNames) -> bool {
        self.name_answers.hold_in(known)
    }

    /// A hash of what its filters were told about clusters and variants while they were configured. With the same
    /// [`key`](VmTemplate::key), templates with different hashes do not share instances.
    pub fn answers(&self) -> [u8; 32] {
        self.name_answers.sha256()
    }

    /// What its first instance said about each filter; empty before there was one.
    pub fn facts(&self) -> &[FilterFacts] {
        self.facts.get().map_or(&[], |facts| facts)
    }

    /// The names of its filters, for messages.
    pub fn names(&self) -> String {
        self.plugins.iter().map(|p| p.info.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Stores a spare instance for the first worker that needs one. Returns it if there is one already.
    pub fn put_by(&self, instance: Instance) -> Option<Instance> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.is_some() {
            return Some(instance);
        }
        *spare = Some(instance);
        None
    }

    /// Takes the spare instance.
    pub(in crate::wasm) fn take_spare(&self) -> Option<Instance> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether there is a spare instance.
    pub(in crate::wasm) fn has_spare(&self) -> bool {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Number of spare instances: the shared one and those that workers hold.
    pub fn spares(&self) -> usize {
        usize::from(self.has_spare()) + self.kept.load(Ordering::Relaxed)
    }

    /// Recent average of the processor time that creating an instance takes.
    pub(in crate::wasm) fn making(&self) -> Duration {
        Duration::from_nanos(self.making.load(Ordering::Relaxed))
    }

    /// Creates an instance: started, with all filters configured. Takes from microseconds up to the configuration time
    /// limit.
    pub fn instantiate(&self) -> Result<Instance, SetupError> {
        self.instantiate_within(Duration::MAX)
    }

    /// Like [`instantiate`](Self::instantiate), but gives up if the module's start, or one filter's configuration,
    /// takes longer than `most`.
    pub(in crate::wasm) fn instantiate_within(&self, most: Duration) -> Result<Instance, SetupError> {
        let before = clock::processor_time();
        let built = self.make(most);
        let made_in = clock::processor_time().saturating_sub(before);
        let known = self.making.load(Ordering::Relaxed);
        let now = u64::try_from(made_in.as_nanos()).unwrap_or(u64::MAX);
        // A concurrent update may be lost: it is only an estimate.
        self.making.store(if known == 0 { now } else { known / 4 * 3 + now / 4 }, Ordering::Relaxed);
        let instance = built.map(|(store, exports)| Instance { store, exports, made_in })?;
        let facts = |filter| FilterFacts {
            phases: self.roots_of(filter).fold(0, |all, root| all | instance.phases(root)),
            ticks: self.roots_of(filter).any(|root| instance.ticks(root)),
            selections: self.roots_of(filter).flat_map(|root| instance.selections(root)).collect(),
        };
        self.facts.get_or_init(|| (0..self.plugins.len()).map(facts).collect());
        self.plugins.iter().for_each(|plugin| plugin.metrics.created.inc(observe::shard()));
        Ok(instance)
    }

    fn make(&self, most: Duration) -> Result<(Store<Host>, Exports), SetupError> {
        let first = &self.plugins[0];
        let infos = self.roots().map(|root| root.info.clone());
        // Like linear memory, the host memory of a shared VM is charged to its first filter.
        let ledger = MemoryBudget::new(first.host_memory_limit, Some(first.metrics.host_memory.clone()));
        let host = Host::new(infos, first.env.clone(), self.name_answers.clone(), first.memory_limit, ledger);
        let mut store = Store::new(first.engine.wasmtime(), host);
        store.limiter(|host| &mut host.limiter);
        clock::install(&mut store);
        let bound = |plugin: &Plugin| (plugin.settings().call_time * CONFIGURE_FACTOR).min(most);
        let (before, mut all) = (clock::processor_time(), bound(first));
        clock::start(&mut store, bound(first));
        let started = Instant::now();
        let exports = self.start(&mut store).map_err(|error| SetupError { filter: 0, variant: None, error })?;
        for (index, root) in self.roots().enumerate() {
            let bound = bound(root.plugin);
            if index > 0 {
                clock::start(&mut store, bound);
                all += bound;
            }
            let mut configured = configure(&mut store, &exports, index, root.info);
            // Code that cannot be interrupted is checked afterwards.
            if configured.is_ok() && clock::processor_time().saturating_sub(before) > all {
                configured = Err(trapped("proxy_on_configure", &mut store, &wasmtime::Trap::Interrupt.into()));
            }
            let variant = root.variant.map(str::to_owned);
            configured.map_err(|error| SetupError { filter: root.filter, variant, error })?;
        }
        clock::end(&mut store);
        store.data_mut().phase = Phase::Running;
        tracing::debug!(
            target: target::WASM,
            filter = self.names(), us = started.elapsed().as_micros() as u64, "instance ready"
        );
        Ok((store, exports))
    }

    /// Runs a module's start functions, before it has any context.
    fn start(&self, store: &mut Store<Host>) -> Result<Exports, InstantiateError> {
        let code = &self.plugins[0].code;
        let instance = code.pre.instantiate(&mut *store).map_err(|e| trapped("start", store, &e))?;
        store.data_mut().memory = instance.get_memory(&mut *store, "memory");
        let allocator = ALLOCATORS.iter().find_map(|name| instance.get_func(&mut *store, name));
        store.data_mut().allocate = allocator.and_then(|f| f.typed(&*store).ok()).map(Box::new);
        // A reactor has `_initialize` (and perhaps a `main`), a command `_start`.
        for name in ["_initialize", "_start"] {
            if let Ok(start) = instance.get_typed_func::<(), ()>(&mut *store, name) {
                start.call(&mut *store, ()).map_err(|e| trapped(name, store, &e))?;
                break;
            }
        }
        if instance.get_func(&mut *store, "_initialize").is_some()
            && let Ok(main) = instance.get_typed_func::<(u32, u32), u32>(&mut *store, "main")
        {
            main.call(&mut *store, (0, 0)).map_err(|e| trapped("main", store, &e))?;
        }
        store.data_mut().abi = code.abi;
        Ok(Exports::find(&self.plugins[0].engine, &instance, store))
    }
}

/// Computes a VM's key. Each part is preceded by its length, so that no two lists of parts look the same.
fn key(plugins: &[Arc<Plugin>]) -> VmKey {
    let mut all = Vec::new();
    let mut part = |bytes: &[u8]| {
        all.extend_from_slice(&bytes.len().to_le_bytes());
        all.extend_from_slice(bytes);
    };
    let first = &plugins[0];
    part(first.code.hash.as_bytes());
    part(first.info.vm_id.as_bytes());
    part(&first.info.vm_config);
    part(&first.memory_limit.to_le_bytes());
    part(&first.host_memory_limit.to_le_bytes());
    part(&first.info.env.len().to_le_bytes());
    for (name, value) in &first.info.env {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    for plugin in plugins {
        part(plugin.info.name.as_bytes());
        part(plugin.info.root_id.as_bytes());
        part(&plugin.info.config);
        part(&plugin.variants.len().to_le_bytes());
        for (name, variant) in &plugin.variants {
            part(name.as_bytes());
            part(&variant.config);
        }
    }
    sha256_hex(&all)
}

fn trapped(place: &'static str, store: &mut Store<Host>, error: &wasmtime::Error) -> InstantiateError {
    let host = store.data_mut();
    let reason = match describe(error) {
        (TrapKind::Timeout, _) => {
            format!("it took longer than {CONFIGURE_FACTOR} times its `call_time`, the limit for configuring a filter")
        }
        // Most languages trap when an allocation fails and give no reason.
        (TrapKind::Trap | TrapKind::Memory, reason) if host.limiter.denied => {
            format!("it needs more memory than `limits.memory` allows: {reason}")
        }
        (_, reason) => reason,
    };
    InstantiateError::Trapped(place, reason, std::mem::take(&mut host.last_logged))
}

/// Creates a root context and configures it. As in Envoy, `proxy_on_vm_start` is called for every root context of the VM,
/// because SDKs hand it to the filter's own code.
fn configure(
    store: &mut Store<Host>,
    exports: &Exports,
    index: usize,
    info: &PluginInfo,
) -> Result<(), InstantiateError> {
    let root = FIRST_ROOT + index as u32;
    store.data_mut().act_for(index, root);
    store.data_mut().last_logged.clear();
    if let Some(create) = &exports.context_create {
        create.call(&mut *store, (root, 0)).map_err(|e| trapped("proxy_on_context_create", store, &e))?;
    }
    let mut ask = |name: &'static str, phase, f: &Option<TypedFunc<(u32, u32), u32>>, size: usize| {
        let Some(f) = f else { return Ok(()) };
        store.data_mut().phase = phase;
        store.data_mut().act_for(index, root);
        let agreed = f.call(&mut *store, (root, size as u32)).map_err(|e| trapped(name, store, &e))? != 0;
        let errors = std::mem::take(&mut store.data_mut().config_errors);
        match (agreed, errors.is_empty()) {
            (_, false) => Err(InstantiateError::Config(errors)),
            (false, true) => Err(InstantiateError::Refused(name, std::mem::take(&mut store.data_mut().last_logged))),
            (true, true) => Ok(()),
        }
    };
    ask("proxy_on_vm_start", Phase::VmStart, &exports.vm_start, info.vm_config.len())?;
    ask("proxy_on_configure", Phase::Configure, &exports.configure, info.config.len())
}
