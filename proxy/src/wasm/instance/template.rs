//! What a VM's instances are created from: a compiled module with a VM's configuration, and the filters that share it.
//! Instances are created on the control thread; workers only receive ready ones.

use std::{
    fmt::Write,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustc_hash::FxHashSet;
use tollgate_abi::proxy_wasm::ALLOCATORS;
use wasmtime::{Store, TypedFunc};

use super::{
    Exports, Instance,
    availability::Availability,
    facts::{Facts, FilterFacts},
    gauges::VmGauges,
    groups::{Sharing, VmKey, key},
    plugin::Plugin,
    trap::{TrapKind, describe},
};
use crate::{
    chain::charge::MemoryBudget,
    observe::{self, target},
    wasm::{
        engine::clock,
        host::{
            FIRST_ROOT, Host, Phase,
            definitions::define_metric,
            plugin_info::{PluginInfo, RootIdentity},
        },
        stores::known_names::{KnownNames, NameAnswers},
    },
};

/// The time limit for configuring a filter, as a multiple of its `call_time`.
const CONFIGURE_FACTOR: u32 = 20;

/// A VM's module, configuration and filters.
pub struct VmTemplate {
    /// The filters that share the VM, at least one; the first root context belongs to the first filter. If they share the
    /// root context, filters can join and leave.
    plugins: ArcSwap<Vec<Arc<Plugin>>>,
    sharing: Sharing,
    /// The gauges of its instances.
    pub(in crate::wasm) gauges: VmGauges,
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
    facts: Arc<OnceLock<Facts>>,
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
        VmTemplate::new(vec![plugin], Sharing::Vm)
    }

    /// Creates a template for filters that share a VM, in this order.
    pub fn new(plugins: Vec<Arc<Plugin>>, sharing: Sharing) -> Arc<VmTemplate> {
        let key = key(&plugins, sharing);
        VmTemplate::with_key(plugins, sharing, key)
    }

    /// The same VM with filters whose configurations were converted to the types that they expect.
    pub fn converted(&self, plugins: Vec<Arc<Plugin>>) -> Arc<VmTemplate> {
        self.gauges.leave(&self.plugins());
        VmTemplate::with_key(plugins, self.sharing, self.key.clone())
    }

    /// The VM of the first filter alone, for the same instances. For equal filters that cannot share a root context.
    pub fn separated(&self, key: VmKey) -> Arc<VmTemplate> {
        let mut first = (*self.plugins()).clone();
        self.gauges.leave(&first);
        first.truncate(1);
        self.gauges.join(&first);
        Arc::new(VmTemplate {
            key,
            plugins: ArcSwap::from_pointee(first),
            sharing: Sharing::Vm,
            gauges: self.gauges.clone(),
            spare: Mutex::new(None),
            kept: AtomicUsize::new(0),
            availability: Availability::default(),
            making: AtomicU64::new(self.making.load(Ordering::Relaxed)),
            name_answers: self.name_answers.clone(),
            facts: self.facts.clone(),
        })
    }

    /// Creates a template with a key that was computed before.
    pub fn with_key(plugins: Vec<Arc<Plugin>>, sharing: Sharing, key: VmKey) -> Arc<VmTemplate> {
        let gauges = VmGauges::new(plugins[0].env.shared.registry.shards());
        gauges.join(&plugins);
        Arc::new(VmTemplate {
            plugins: ArcSwap::from_pointee(plugins),
            sharing,
            gauges,
            spare: Mutex::new(None),
            kept: AtomicUsize::new(0),
            availability: Availability::default(),
            making: AtomicU64::new(0),
            name_answers: Arc::default(),
            key,
            facts: Arc::default(),
        })
    }

    /// The filters that share the VM, in the order of their root contexts.
    pub fn plugins(&self) -> Arc<Vec<Arc<Plugin>>> {
        self.plugins.load_full()
    }

    /// Replaces the filters that share the root context, without new instances. Workers see the change when they apply the
    /// configuration.
    pub fn set_plugins(&self, plugins: Vec<Arc<Plugin>>) {
        debug_assert!(self.sharing == Sharing::RootContext && !plugins.is_empty(), "filters can join and leave");
        self.gauges.pass_on(&self.plugins(), &plugins);
        let (first, stores) = VmTemplate::filters_of(&plugins);
        if let Some(spare) = &mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner) {
            spare.store.data_mut().retain_filters(&first, &stores);
        }
        self.plugins.store(Arc::new(plugins));
    }

    /// The arguments of [`Host::retain_filters`] for these filters.
    pub(in crate::wasm) fn filters_of(plugins: &[Arc<Plugin>]) -> (Arc<[Arc<PluginInfo>]>, FxHashSet<usize>) {
        (plugins[0].infos().cloned().collect(), plugins.iter().map(|plugin| plugin.info.store_address()).collect())
    }

    /// Makes filters that share the root context owners of its metrics, as if each had defined them.
    pub fn define_metrics<'p>(&self, plugins: impl Iterator<Item = &'p Arc<Plugin>>) {
        let metrics = self.facts.get().map_or(&[][..], |facts| &facts.metrics);
        for plugin in plugins {
            for (kind, name) in metrics {
                // A failure is logged. The guest gets the status when it uses the metric for this filter.
                let _ = define_metric(&plugin.info, &plugin.env, *kind, name);
            }
        }
    }

    /// What its filters share.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// The filters that the guest is configured for: all that share the VM, but only the first that shares a root context.
    /// Their counters count the instances.
    pub fn configured<'p>(&self, plugins: &'p [Arc<Plugin>]) -> &'p [Arc<Plugin>] {
        match self.sharing {
            Sharing::Vm => plugins,
            Sharing::RootContext => &plugins[..1],
        }
    }

    /// The root contexts of these filters in order: those of the filters, then those of their variants. Filters that share
    /// a root context are represented by the first one.
    pub fn roots<'p>(&self, plugins: &'p [Arc<Plugin>]) -> impl Iterator<Item = TemplateRoot<'p>> {
        let represented = self.configured(plugins);
        let filters = || represented.iter().enumerate();
        let own = filters().map(|(filter, plugin)| TemplateRoot { filter, plugin, variant: None, info: &plugin.info });
        let variants = filters().flat_map(|(filter, plugin)| {
            let variant = move |(name, info)| TemplateRoot { filter, plugin, variant: Some(name), info };
            plugin.variants.iter().map(|(name, info)| (name.as_str(), info)).map(variant)
        });
        own.chain(variants)
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

    /// What its first instance said about each of its filters; empty before there was one.
    pub fn facts_of<'t>(
        &'t self,
        plugins: &'t [Arc<Plugin>],
    ) -> impl Iterator<Item = (&'t Arc<Plugin>, &'t FilterFacts)> {
        let all = self.facts.get().map_or(&[][..], |facts| &facts.filters);
        let of = move |index| all.get(if self.sharing == Sharing::RootContext { 0 } else { index });
        plugins.iter().enumerate().filter_map(move |(index, plugin)| Some((plugin, of(index)?)))
    }

    /// Whether its first instance did something that concerns only one filter, so that equal filters cannot share it.
    pub fn has_named_effect(&self) -> bool {
        self.facts.get().is_some_and(|facts| facts.has_named_effect)
    }

    /// The names of its filters, for messages.
    pub fn names(&self) -> String {
        const LISTED: usize = 5;
        let plugins = self.plugins();
        let listed = plugins.iter().take(LISTED).map(|p| p.info.name.as_str());
        let mut text = listed.collect::<Vec<_>>().join(", ");
        if plugins.len() > LISTED {
            let _ = write!(text, " and {} more", plugins.len() - LISTED);
        }
        text
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
        let plugins = self.plugins();
        let built = self.make(&plugins, most);
        let made_in = clock::processor_time().saturating_sub(before);
        let known = self.making.load(Ordering::Relaxed);
        let now = u64::try_from(made_in.as_nanos()).unwrap_or(u64::MAX);
        // A concurrent update may be lost: it is only an estimate.
        self.making.store(if known == 0 { now } else { known / 4 * 3 + now / 4 }, Ordering::Relaxed);
        let instance = built.map(|(store, exports)| Instance { store, exports, made_in })?;
        self.facts.get_or_init(|| Facts::of(self.roots(&plugins), &instance));
        self.configured(&plugins).iter().for_each(|plugin| plugin.metrics.created.inc(observe::shard()));
        Ok(instance)
    }

    fn make(&self, plugins: &[Arc<Plugin>], most: Duration) -> Result<(Store<Host>, Exports), SetupError> {
        let first = &plugins[0];
        let infos: Arc<[_]> = self.roots(plugins).map(|root| root.info.clone()).collect();
        let ledger = MemoryBudget::new(first.host_memory_limit, Some(self.gauges.host_memory.clone()));
        let shared = self.sharing == Sharing::RootContext;
        let answers = self.name_answers.clone();
        let host = Host::new(infos.clone(), shared, first.env.clone(), answers, first.memory_limit, ledger);
        let mut store = Store::new(first.engine.wasmtime(), host);
        store.limiter(|host| &mut host.limiter);
        clock::install(&mut store);
        let call_time = |plugin: &Plugin| plugin.settings().call_time;
        // Equal filters may have different time limits.
        let longest = if shared { plugins.iter().map(|plugin| call_time(plugin)).max() } else { None };
        let bound = |plugin: &Plugin| (longest.unwrap_or(call_time(plugin)) * CONFIGURE_FACTOR).min(most);
        let (before, mut all) = (clock::processor_time(), bound(first));
        clock::start(&mut store, bound(first));
        let started = Instant::now();
        let exports =
            VmTemplate::start(first, &mut store).map_err(|error| SetupError { filter: 0, variant: None, error })?;
        for (index, root) in self.roots(plugins).enumerate() {
            let bound = bound(root.plugin);
            if index > 0 {
                clock::start(&mut store, bound);
                all += bound;
            }
            let identity = RootIdentity { number: index as u32, root: index, infos: infos.clone() };
            let mut configured = configure(&mut store, &exports, &identity);
            // Code that cannot be interrupted is checked afterwards.
            if configured.is_ok() && clock::processor_time().saturating_sub(before) > all {
                configured = Err(trapped("proxy_on_configure", &mut store, &wasmtime::Trap::Interrupt.into()));
            }
            let variant = root.variant.map(str::to_owned);
            configured.map_err(|error| SetupError { filter: root.filter, variant, error })?;
        }
        clock::end(&mut store);
        store.data_mut().begin_running();
        tracing::debug!(
            target: target::WASM,
            filter = self.names(), us = started.elapsed().as_micros() as u64, "instance ready"
        );
        Ok((store, exports))
    }

    /// Runs a module's start functions, before it has any context.
    fn start(first: &Plugin, store: &mut Store<Host>) -> Result<Exports, InstantiateError> {
        let code = &first.code;
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
        Ok(Exports::find(&first.engine, &instance, store))
    }
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
fn configure(store: &mut Store<Host>, exports: &Exports, identity: &RootIdentity) -> Result<(), InstantiateError> {
    let (root, info) = (FIRST_ROOT + identity.root as u32, identity.info());
    store.data_mut().act_for(identity, root);
    store.data_mut().last_logged.clear();
    if let Some(create) = &exports.context_create {
        create.call(&mut *store, (root, 0)).map_err(|e| trapped("proxy_on_context_create", store, &e))?;
    }
    let mut ask = |name: &'static str, phase, f: &Option<TypedFunc<(u32, u32), u32>>, size: usize| {
        let Some(f) = f else { return Ok(()) };
        store.data_mut().phase = phase;
        store.data_mut().act_for(identity, root);
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
