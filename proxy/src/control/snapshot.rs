//! Builds a snapshot from a configuration: compiled filters, configured instances, clusters, logs, sockets. Building
//! one changes nothing; only delivering it to the workers activates it.

mod chains;
mod listeners;
mod sockets;

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use rustc_hash::FxHashMap;

use super::{
    certificates::Certificates,
    selections, unused,
    vms::{self, Vms},
};
use crate::{
    builtins,
    config::{Diagnostic, Diagnostics, Loaded, model},
    digest::sha256_hex,
    listener::socket::AddressClaim,
    observe::{LogWriter, Registry, target},
    snapshot::{ConfiguredCluster, Snapshot, Sockets},
    upstream::{Cluster, ClusterHandle, ClusterId, Clusters},
    wasm::{
        CompiledModule, Compiler, Engine, FilterEnv, FilterSettings, Instance, KnownNames, LoadError, Plugin,
        SharedStore, VmTemplate,
    },
};

/// Builds snapshots. Lives as long as the process.
pub struct SnapshotBuilder {
    /// Compiles filters.
    pub engine: Arc<Engine>,
    /// Data that filters share.
    pub shared: Arc<SharedStore>,
    /// The metrics registry.
    pub registry: Registry,
    /// The writer of access logs.
    pub log_writer: LogWriter,
    /// The directory of clusters.
    pub clusters: Arc<Clusters>,
    /// The number of workers.
    pub workers: usize,
}

/// A snapshot, and what differs from the one before.
pub struct Built {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Clusters that are new or have changed.
    pub clusters: Vec<(ClusterHandle, Arc<Cluster>)>,
    /// VMs that are new or have changed, each with one instance per worker (a trial: with one).
    pub vms: Vec<(Arc<VmTemplate>, Vec<Instance>)>,
    /// Filters that stay, with the settings that they get.
    pub settings: Vec<(Arc<Plugin>, FilterSettings)>,
    /// VMs that stay but are shared by other filters than before, with these filters.
    pub joined: Vec<(Arc<VmTemplate>, Vec<Arc<Plugin>>)>,
    /// Per worker, sockets for addresses that listeners do not have yet.
    pub sockets: Vec<Sockets>,
    /// The environment of the new VMs.
    pub env: Arc<FilterEnv>,
}

/// What a snapshot is built from.
pub(crate) struct Input<'i> {
    /// The configuration's files.
    pub(crate) files: Loaded,
    /// The files, followed by what sources supply.
    pub(crate) effective: Loaded,
    /// Modules that were compiled before, one per filter of the files, which may have changed since.
    pub(crate) modules: Option<&'i [Arc<CompiledModule>]>,
    /// Modules that earlier attempts have compiled. Gets those of this one.
    pub(crate) compiled: &'i Compiled,
    /// The version of the files' configuration.
    pub(crate) version: u64,
}

/// Compiled modules.
pub(crate) type Compiled = RefCell<Vec<Arc<CompiledModule>>>;

/// How much to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildMode {
    /// One instance of each filter and no sockets, for `tollgate check` and benchmarks.
    Trial,
    /// Everything.
    Full(AddressClaim),
}

impl SnapshotBuilder {
    /// Creates the builder.
    pub fn new(workers: usize, compiler: Compiler) -> anyhow::Result<SnapshotBuilder> {
        let registry = Registry::new(workers);
        crate::observe::metrics::register_process(&registry, env!("CARGO_PKG_VERSION"))?;
        Ok(SnapshotBuilder {
            engine: Engine::new(compiler).map_err(|e| anyhow::anyhow!("the WebAssembly engine cannot start: {e:#}"))?,
            shared: SharedStore::new(registry.clone()),
            log_writer: LogWriter::start(&registry)?,
            clusters: Arc::default(),
            registry,
            workers,
        })
    }

    /// Makes clusters the current ones of their names. Returns them with what has changed since they were built.
    pub(crate) fn publish(&self, clusters: Vec<(ClusterHandle, Arc<Cluster>)>) -> Vec<(ClusterHandle, Arc<Cluster>)> {
        let publish = |(handle, cluster)| {
            let now = self.clusters.publish(&handle, &cluster);
            (handle, now)
        };
        clusters.into_iter().map(publish).collect()
    }

    /// Drops metrics and shared data that the current configuration does not use.
    pub fn forget_unused(&self, current: &Snapshot) {
        self.shared.forget_unused();
        let filters: HashSet<_> = current.plugins.iter().map(|p| p.info.name.as_str()).collect();
        let listeners: HashSet<_> = current.listeners.iter().map(|l| l.config.name.as_str()).collect();
        let names = |label: &str, value: &str| match label {
            "filter" => filters.contains(value),
            "listener" => listeners.contains(value),
            _ => true,
        };
        self.registry.retain(|_, labels| labels.iter().all(|(label, value)| names(label, value)));
    }

    /// Builds a snapshot, or returns all errors in the configuration.
    pub fn build(&self, loaded: Loaded, previous: Option<&Snapshot>, extent: BuildMode) -> Result<Built, Diagnostics> {
        let version = previous.map_or(1, |previous| previous.version + 1);
        let (files, effective, compiled) = (loaded.clone(), loaded, &Compiled::default());
        let input = Input { files, effective, modules: None, compiled, version };
        self.build_from(input, previous, extent)
    }

    /// The same, with what sources supply.
    pub(crate) fn build_from(
        &self,
        input: Input<'_>,
        previous: Option<&Snapshot>,
        extent: BuildMode,
    ) -> Result<Built, Diagnostics> {
        let Input { files, effective: loaded, modules, compiled, version } = input;
        // Files on disk may have changed since the configuration was applied. That is the business of a reload.
        let same_files = previous.is_some_and(|previous| previous.version == version);
        let mut wrong = Vec::new();
        let resolve = |path: &std::path::Path| loaded.source.resolve(path);
        let mut certificates = Certificates::new(&loaded.source, &resolve);
        for (index, source) in loaded.config.sources.iter().enumerate() {
            certificates.of_source(index, source, &mut wrong);
        }
        let (clusters, changed) = self.clusters(&loaded, previous, same_files, &mut certificates, &mut wrong);
        let names = clusters.iter().map(|cluster| cluster.handle.name().clone()).collect();
        let filters = loaded.config.filters.iter().map(|f| (f.name.clone(), f.variants.keys().cloned().collect()));
        let known = KnownNames {
            clusters: Arc::new(names),
            more_may_come: loaded.config.may_get_clusters(),
            filters: Arc::new(filters.collect()),
        };
        let env = FilterEnv::new(self.clusters.clone(), Some(known.clone()), self.shared.clone());

        let mut hash = loaded.hash();
        let mut plugins = self.plugins(&loaded, &files, modules, previous, compiled, &env, &mut wrong);
        plugins.iter().for_each(|plugin| hash.push_str(&plugin.code.hash));
        let vms = vms::plan(&loaded, &known, previous, &mut plugins, &mut wrong);
        let Vms { templates, new: mut vms, settings, joined } = vms;
        let listeners = {
            let kept_from = if same_files { 0 } else { files.config.listeners.len() };
            self.listeners(&loaded, kept_from, previous, &plugins, extent, &mut certificates, &mut wrong)
        };
        let (tls, mut warnings) = certificates.end();
        hash.push_str(&tls.text());
        if wrong.is_empty() {
            let facts = || templates.iter().flat_map(|(template, filters)| template.facts_of(filters));
            let phases: HashMap<&str, u32> = facts().map(|(p, facts)| (p.info.name.as_str(), facts.phases)).collect();
            chains::check(&loaded, &listeners, &phases, &mut wrong);
            let ticking = facts().filter(|(_, facts)| facts.ticks).map(|(plugin, _)| plugin.info.name.as_str());
            warnings.extend(unused::warnings(&loaded, &ticking.collect::<Vec<_>>()));
            let selected = facts().map(|(plugin, facts)| (plugin.info.name.as_str(), &facts.selections));
            warnings.extend(selections::warnings(&loaded, &selected.collect::<Vec<_>>()));
        }
        if extent != BuildMode::Trial && wrong.is_empty() {
            // One more instance than workers: the spare.
            'all: for (template, instances) in &mut vms {
                while instances.len() <= self.workers {
                    // The first instance accepted the configuration, so the others do too, unless the filter is
                    // nondeterministic.
                    match template.instantiate() {
                        Ok(instance) => instances.push(instance),
                        Err(e) => {
                            let name = &template.plugins()[e.filter].info.name;
                            let index = loaded.config.filters.iter().position(|filter| filter.name == *name);
                            let pointer = format!("/filters/{}/wasm", index.unwrap_or_default());
                            let message = format!("filter `{name}` could not be set up again: {e}");
                            wrong.push(loaded.source.diagnostic(&pointer, message, None));
                            break 'all;
                        }
                    }
                }
            }
        }
        // Last: unix sockets accept connections from here on.
        let sockets = match extent {
            BuildMode::Full(claim) if wrong.is_empty() => {
                self.sockets(&loaded, previous, &listeners, claim, &mut wrong)
            }
            _ => Vec::new(),
        };
        if !wrong.is_empty() {
            return Err(Diagnostics::new(loaded.source.clone(), wrong));
        }
        let snapshot = Snapshot {
            version,
            hash: sha256_hex(hash.as_bytes())[..16].to_owned(),
            created: SystemTime::now(),
            clusters,
            directory: self.clusters.clone(),
            plugins,
            templates: templates.into_iter().map(|(template, _)| template).collect(),
            listeners,
            files: loaded.source.dependencies(),
            tls,
            warnings: Diagnostics::new(loaded.source.clone(), warnings),
            loaded: files,
            effective: loaded,
        };
        for (template, instances) in &mut vms {
            if instances.len() > self.workers
                && let Some(spare) = instances.pop()
            {
                template.put_by(spare);
            }
        }
        Ok(Built { snapshot: Arc::new(snapshot), clusters: changed, vms, settings, joined, sockets, env })
    }

    /// Makes the clusters of the configuration. Returns all of them, and those that are new or have changed.
    fn clusters(
        &self,
        loaded: &Loaded,
        previous: Option<&Snapshot>,
        same_files: bool,
        certificates: &mut Certificates<'_>,
        wrong: &mut Vec<Diagnostic>,
    ) -> (Vec<ConfiguredCluster>, Vec<(ClusterHandle, Arc<Cluster>)>) {
        let node = self.clusters.node(loaded.config.node.as_ref());
        let before: FxHashMap<ClusterId, [u8; 32]> = previous
            .into_iter()
            .flat_map(|previous| &previous.clusters)
            .map(|cluster| (cluster.handle.id(), cluster.sha256))
            .collect();
        let (mut clusters, mut changed) = (Vec::with_capacity(loaded.config.clusters.len()), Vec::new());
        for (index, (config, sha256)) in loaded.config.clusters.iter().zip(loaded.source.cluster_hashes()).enumerate() {
            let handle = self.clusters.handle(&config.name);
            let current = handle.current();
            let mut errors = Vec::new();
            let mut tls = certificates.of_cluster(index, config, current.as_ref(), &mut errors);
            match errors.is_empty() || !same_files {
                true => wrong.append(&mut errors),
                false => tls = current.as_ref().and_then(|current| current.transport.tls.clone()),
            }
            let same_tls = current.as_ref().is_some_and(|now| match (&now.transport.tls, &tls) {
                (None, None) => true,
                (Some(now), Some(tls)) => Arc::ptr_eq(now, tls),
                _ => false,
            });
            if !same_tls || before.get(&handle.id()) != Some(&sha256) {
                let cluster = Cluster::with_tls(config, current.as_ref(), tls, self.workers, node);
                changed.push((handle.clone(), cluster));
            }
            clusters.push(ConfiguredCluster { handle, sha256 });
        }
        (clusters, changed)
    }

    /// Makes the plugins of the configuration's filters, apart from those with errors.
    #[expect(clippy::too_many_arguments, reason = "one step of a build, which has all of these")]
    fn plugins(
        &self,
        loaded: &Loaded,
        files: &Loaded,
        modules: Option<&[Arc<CompiledModule>]>,
        previous: Option<&Snapshot>,
        compiled: &Compiled,
        env: &Arc<FilterEnv>,
        wrong: &mut Vec<Diagnostic>,
    ) -> Vec<Arc<Plugin>> {
        let mut plugins = Vec::new();
        for (index, filter) in loaded.config.filters.iter().enumerate() {
            let pointer = format!("/filters/{index}");
            let is_supplied = index >= files.config.filters.len();
            let code = match modules.and_then(|modules| modules.get(index)) {
                Some(code) if !is_supplied => Ok(code.clone()),
                _ => self.module(filter, loaded, previous, compiled),
            };
            let code = code.or_else(|error| {
                let running = previous.into_iter().flat_map(|previous| &previous.plugins);
                let mut running = running.filter(|running| is_supplied && running.info.name == filter.name);
                let same = running.find(|running| running.code.source == module_path(filter, loaded));
                keep(&error.0, "filter", &filter.name, same.map(|running| running.code.clone())).ok_or(error)
            });
            let plugin =
                code.and_then(|code| Plugin::new(filter, code, &self.engine, env).map_err(|e| (e.to_string(), None)));
            match plugin {
                Err((message, help)) => {
                    wrong.push(loaded.source.diagnostic(&format!("{pointer}/wasm"), message, help));
                }
                Ok(plugin) => plugins.push(Arc::new(plugin)),
            }
        }
        plugins
    }

    /// Compiles a filter's module, unless it is running or compiled. An error consists of a message and help.
    fn module(
        &self,
        filter: &model::Filter,
        loaded: &Loaded,
        previous: Option<&Snapshot>,
        compiled: &Compiled,
    ) -> Result<Arc<CompiledModule>, (String, Option<String>)> {
        let refused = |e: LoadError| (e.to_string(), e.help());
        let read;
        let (source, bytes, hash): (String, &[u8], String) = match builtins::name(&filter.wasm) {
            Some(name) => {
                let module = builtins::module(name).zip(builtins::hash(name));
                let (bytes, hash) = module.ok_or_else(|| (format!("there is no built-in filter `{name}`"), None))?;
                (filter.wasm.clone(), bytes, hash.to_owned())
            }
            None => {
                let path = loaded.source.resolve(&filter.wasm);
                read = CompiledModule::read(&path, &loaded.config.compile).map_err(refused)?;
                (module_path(filter, loaded), &read, sha256_hex(&read))
            }
        };
        let mut compiled = compiled.borrow_mut();
        let running = previous.into_iter().flat_map(|p| &p.plugins).map(|p| &p.code);
        if let Some(code) = running.chain(&*compiled).find(|code| code.hash == hash && code.source == source) {
            return Ok(code.clone());
        }
        let code = CompiledModule::load(&self.engine, &source, bytes, &loaded.config.compile).map_err(refused)?;
        compiled.push(code.clone());
        Ok(code)
    }
}

/// Returns the path of a filter's module, as the module's `source` has it.
fn module_path(filter: &model::Filter, loaded: &Loaded) -> String {
    loaded.source.resolve(&filter.wasm).display().to_string()
}

/// Keeps what runs of a resource that has not changed, although its files can no longer be used: neither a source nor a
/// build for another resource waits until they are mended.
fn keep<T>(error: &str, kind: &str, name: &str, running: Option<T>) -> Option<T> {
    if running.is_some() {
        tracing::warn!(target: target::CONFIG, "{kind} `{name}` keeps its previous files: {error}");
    }
    running
}
