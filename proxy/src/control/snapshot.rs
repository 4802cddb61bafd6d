//! Builds a snapshot from a configuration: compiled filters, configured instances, clusters, logs, sockets. Building
//! one changes nothing; only delivering it to the workers activates it.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use tollgate_abi::fast::phase;

use super::{
    certificates::Certificates,
    selections, unused,
    vms::{self, Vms},
};
use crate::{
    builtins,
    config::{
        Diagnostic, Diagnostics, Loaded,
        model::{self, Protocol},
        units::Address,
    },
    digest::sha256_hex,
    exchange::{ConnectionMetrics, GrpcMethodMetrics, ListenerMetrics, RejectReason},
    listener::{
        chains::ChainMatch,
        socket::{self, AddressClaim, ListenerShared},
    },
    observe::{AccessLog, Buckets, Counter, LogWriter, MetricError, Registry, target},
    snapshot::{ConfiguredCluster, FilterChain, ListenerParts, Snapshot, Sockets},
    tcp,
    tls::HandshakeError,
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
        let node = self.clusters.node(loaded.config.node.as_ref());
        let resolve = |path: &std::path::Path| loaded.source.resolve(path);
        let mut certificates = Certificates::new(&loaded.source, &resolve);
        for (index, source) in loaded.config.sources.iter().enumerate() {
            certificates.of_source(index, source, &mut wrong);
        }
        let before: HashMap<ClusterId, [u8; 32]> = previous
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
        let names = clusters.iter().map(|cluster| cluster.handle.name().clone()).collect();
        let filters = loaded.config.filters.iter().map(|f| (f.name.clone(), f.variants.keys().cloned().collect()));
        let known = KnownNames {
            clusters: Arc::new(names),
            more_may_come: loaded.config.may_get_clusters(),
            filters: Arc::new(filters.collect()),
        };
        let env = FilterEnv::new(self.clusters.clone(), Some(known.clone()), self.shared.clone());

        let mut hash = loaded.hash();
        let mut plugins = Vec::new();
        for (index, filter) in loaded.config.filters.iter().enumerate() {
            let pointer = format!("/filters/{index}");
            let is_supplied = index >= files.config.filters.len();
            let code = match modules.and_then(|modules| modules.get(index)) {
                Some(code) if !is_supplied => Ok(code.clone()),
                _ => self.module(filter, &loaded, previous, compiled),
            };
            let code = code.or_else(|error| {
                let running = previous.into_iter().flat_map(|previous| &previous.plugins);
                let mut running = running.filter(|running| is_supplied && running.info.name == filter.name);
                let same = running.find(|running| running.code.source == module_path(filter, &loaded));
                keep(&error.0, "filter", &filter.name, same.map(|running| running.code.clone())).ok_or(error)
            });
            let plugin =
                code.and_then(|code| Plugin::new(filter, code, &self.engine, &env).map_err(|e| (e.to_string(), None)));
            match plugin {
                Err((message, help)) => {
                    wrong.push(loaded.source.diagnostic(&format!("{pointer}/wasm"), message, help));
                }
                Ok(plugin) => {
                    hash.push_str(&plugin.code.hash);
                    plugins.push(Arc::new(plugin));
                }
            }
        }
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
            check_chains(&loaded, &listeners, &phases, &mut wrong);
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

    /// Makes the listeners. Those from `kept_from` on keep their certificates if they cannot be loaded again.
    #[expect(clippy::too_many_arguments, reason = "one step of a build, which has all of these")]
    fn listeners(
        &self,
        loaded: &Loaded,
        kept_from: usize,
        previous: Option<&Snapshot>,
        plugins: &[Arc<Plugin>],
        extent: BuildMode,
        certificates: &mut Certificates<'_>,
        wrong: &mut Vec<Diagnostic>,
    ) -> Vec<Arc<ListenerParts>> {
        let config = &loaded.config;
        let by_name: HashMap<&str, &Arc<Plugin>> = plugins.iter().map(|p| (p.info.name.as_str(), p)).collect();
        let running: HashMap<&str, &Arc<ListenerParts>> =
            previous.into_iter().flat_map(|p| &p.listeners).map(|l| (l.config.name.as_str(), l)).collect();
        let mut all = Vec::new();
        for (index, (listener, sha256)) in config.listeners.iter().zip(loaded.source.listener_hashes()).enumerate() {
            let pointer = format!("/listeners/{index}");
            let before = running.get(listener.name.as_str()).copied();
            let filters: Vec<_> =
                listener.chain.iter().filter_map(|name| by_name.get(name.as_str())).map(|p| Arc::clone(p)).collect();
            // The contents of TLS files are not part of the hash.
            if let Some(same) = before.filter(|before| before.sha256 == sha256 && before.tls().next().is_none())
                && let [chain] = &same.chains[..]
                && chain.filters.len() == filters.len()
                && chain.filters.iter().zip(&filters).all(|(one, other)| Arc::ptr_eq(one, other))
            {
                all.push(same.clone());
                continue;
            }
            // A trial creates no files.
            let wanted = listener.access_log.clone().filter(|_| extent != BuildMode::Trial);
            let located = wanted.map(|mut log| {
                if !matches!(&*log.to, "stdout" | "stderr") {
                    log.to = loaded.source.resolve(&log.to).display().to_string();
                }
                log
            });
            let access_log = match located.map(|log| AccessLog::open(&log, &self.log_writer)) {
                None => None,
                Some(Ok(log)) => Some(log),
                Some(Err(e)) => {
                    wrong.push(loaded.source.diagnostic(&format!("{pointer}/access_log"), e.to_string(), None));
                    continue;
                }
            };
            let figures =
                match SnapshotBuilder::listener_metrics(&self.registry, &listener.name, listener.tls.is_some()) {
                    // Methods that were seen before are kept.
                    Ok(figures) => ListenerMetrics {
                        methods: before.map_or(figures.methods, |l| l.metrics.methods.clone()),
                        ..figures
                    },
                    Err(e) => {
                        wrong.push(loaded.source.diagnostic(&pointer, e.to_string(), None));
                        continue;
                    }
                };
            let takes_tcp = matches!(listener.protocol, Protocol::Tcp | Protocol::Auto);
            let tcp = match takes_tcp.then(|| self.tcp_figures(&listener.name, &figures)).transpose() {
                Ok(tcp) => tcp,
                Err(e) => {
                    wrong.push(loaded.source.diagnostic(&pointer, e.to_string(), None));
                    continue;
                }
            };
            let shared = before.map_or_else(|| Arc::new(ListenerShared::default()), |l| l.shared.clone());
            let running = before.and_then(|before| before.tls().next());
            let mut errors = Vec::new();
            let mut tls = certificates.of_listener(index, listener, running.map(|tls| &**tls), &mut errors);
            if let Some(error) = errors.first() {
                let same =
                    running.filter(|_| index >= kept_from && before.is_some_and(|before| before.sha256 == sha256));
                tls = keep(&error.message, "listener", &listener.name, same.cloned());
                wrong.extend(errors.into_iter().filter(|_| tls.is_none()));
            }
            // No configuration offers more than one yet.
            let chains = vec![FilterChain { matches: ChainMatch::default(), tls, filters }];
            let config = listener.clone();
            all.push(Arc::new(ListenerParts { config, sha256, chains, access_log, metrics: figures, tcp, shared }));
        }
        all
    }

    /// Opens sockets for listeners that are new or have another address.
    fn sockets(
        &self,
        loaded: &Loaded,
        previous: Option<&Snapshot>,
        listeners: &[Arc<ListenerParts>],
        claim: AddressClaim,
        wrong: &mut Vec<Diagnostic>,
    ) -> Vec<Sockets> {
        let mut sockets: Vec<Sockets> = (0..self.workers).map(|_| Sockets::default()).collect();
        let held: Vec<&Address> =
            previous.into_iter().flat_map(|p| &p.listeners).flat_map(|l| l.config.all_addresses()).collect();
        for (index, listener) in listeners.iter().enumerate() {
            let config = &listener.config;
            for (nth, address) in config.all_addresses().enumerate() {
                let mut cannot = |address: &dyn std::fmt::Display, error: std::io::Error, help: Option<&str>| {
                    let pointer = match nth.checked_sub(1) {
                        None => format!("/listeners/{index}/address"),
                        Some(nth) => format!("/listeners/{index}/addresses/{nth}"),
                    };
                    let message = format!("cannot listen on {address}: {error}");
                    wrong.push(loaded.source.diagnostic(&pointer, message, help.map(str::to_owned)));
                };
                // Sockets belong to an address, not to a listener, whose name may have changed.
                let mut before = previous.into_iter().flat_map(|p| &p.listeners).map(|l| &l.config);
                let before = before.find(|before| before.all_addresses().any(|a| a == address));
                if before.is_none() {
                    let opened = sockets[0].streams.keys();
                    let claim = if overlapped(address, held.iter().copied().chain(opened)) {
                        AddressClaim::Shared
                    } else {
                        claim
                    };
                    match socket::open(address, &config.socket, self.workers, claim) {
                        Ok(new) => {
                            sockets.iter_mut().zip(new).for_each(|(all, s)| _ = all.streams.insert(address.clone(), s))
                        }
                        Err(e) => {
                            let help = refused_address(address, e.kind());
                            cannot(address, e, help);
                        }
                    }
                }
                #[cfg(feature = "http3")]
                if let Some(inet) = address.inet()
                    && config.http3
                    && !before.is_some_and(|before| before.http3)
                {
                    // Not alongside existing ones: their connections would lose datagrams to the new socket.
                    let opened = sockets[0].datagrams.keys();
                    let claim = if overlapped(address, opened) { AddressClaim::Shared } else { claim };
                    match socket::listen_datagrams(inet, self.workers, claim) {
                        Ok(new) => sockets
                            .iter_mut()
                            .zip(new)
                            .for_each(|(all, s)| _ = all.datagrams.insert(address.clone(), s)),
                        Err(e) => {
                            // The connections of the listener's previous HTTP/3 still use its socket.
                            let help = match overlapped(address, held.iter().copied().filter(|held| *held != address)) {
                                true => {
                                    "while HTTP/3 is on another address of the same port, clients' connections there would be \
                                     lost; `tollgate run --replace PID` replaces this process with the new addresses"
                                }
                                false => {
                                    "if HTTP/3 has just been turned off, its connections are still draining: try again later"
                                }
                            };
                            let used = e.kind() == std::io::ErrorKind::AddrInUse;
                            cannot(&format_args!("{address} over UDP"), e, used.then_some(help));
                        }
                    }
                }
            }
        }
        sockets
    }

    /// Creates the metrics of a listener.
    pub(crate) fn listener_metrics(r: &Registry, listener: &str, tls: bool) -> Result<ListenerMetrics, MetricError> {
        let labels: &[(&str, &str)] = &[("listener", listener)];
        let bytes = |direction| {
            let labels = [("listener", listener), ("direction", direction)];
            r.counter("tollgate_body_bytes_total", "Bytes of requests' and responses' bodies.", &labels)
        };
        let refused = |index: usize| {
            let labels = [("listener", listener), ("reason", RejectReason::ALL[index].1)];
            r.counter(
                "tollgate_connections_refused_total",
                "Connections refused or closed because of the client's behavior, by reason.",
                &labels,
            )
        };
        let flags = tollgate_abi::fast::flag::NAMES.iter().map(|(bit, name)| {
            let labels = [("listener", listener), ("flag", name)];
            Ok((*bit, r.counter("tollgate_response_flags_total", "Requests by response flag.", &labels)?))
        });
        Ok(ListenerMetrics {
            requests: by_class(
                r,
                "tollgate_requests_total",
                "Requests by status class; none: no status was sent.",
                labels,
            )?,
            duration: r.histogram(
                "tollgate_request_duration_seconds",
                "From a request's head to the end of its response.",
                labels,
                Buckets::Latency,
            )?,
            active: r.gauge("tollgate_requests_active", "In-flight requests.", labels)?,
            bytes: [bytes("request")?, bytes("response")?],
            flags: flags.collect::<Result<_, MetricError>>()?,
            methods: Arc::new(GrpcMethodMetrics::new(r.clone(), listener)),
            tunnels: r.gauge("tollgate_tunnels_active", "Active upgraded and CONNECT requests.", labels)?,
            connections: ConnectionMetrics {
                accepted: r.counter("tollgate_connections_total", "Connections accepted.", labels)?,
                active: r.gauge("tollgate_connections_active", "Connections open.", labels)?,
                refused: [
                    refused(0)?,
                    refused(1)?,
                    refused(2)?,
                    refused(3)?,
                    refused(4)?,
                    refused(5)?,
                    refused(6)?,
                    refused(7)?,
                    refused(8)?,
                ],
                handshakes: tls.then(|| SnapshotBuilder::handshakes(r, listener)).transpose()?,
                reject_log: Arc::default(),
            },
        })
    }

    /// Creates the counters of a listener's failed handshakes, by cause.
    fn handshakes(r: &Registry, listener: &str) -> Result<Arc<[Counter]>, MetricError> {
        let counter = |(_, reason): (HandshakeError, &str)| {
            let labels = [("listener", listener), ("reason", reason)];
            r.counter("tollgate_tls_handshake_failures_total", "TLS handshakes with clients that failed.", &labels)
        };
        HandshakeError::ALL.into_iter().map(counter).collect()
    }

    fn tcp_figures(&self, listener: &str, figures: &ListenerMetrics) -> Result<tcp::TcpMetrics, MetricError> {
        let (r, labels) = (&self.registry, [("listener", listener)]);
        let bytes = |direction| {
            let labels = [("listener", listener), ("direction", direction)];
            r.counter("tollgate_tcp_bytes_total", "Bytes received from TCP clients, and sent to them.", &labels)
        };
        Ok(tcp::TcpMetrics {
            connections: r.counter("tollgate_tcp_connections_total", "TCP connections.", &labels)?,
            active: r.gauge("tollgate_tcp_connections_active", "Active TCP connections.", &labels)?,
            bytes: [bytes("received")?, bytes("sent")?],
            flags: figures.flags.clone(),
        })
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

/// Whether an address includes one of these, or one of them includes it. While both exist, the kernel shares
/// connections between them.
fn overlapped<'a>(address: &Address, mut others: impl Iterator<Item = &'a Address>) -> bool {
    others.any(|other| other.overlaps(address))
}

/// Returns advice on an address that cannot be listened on.
fn refused_address(address: &Address, error: std::io::ErrorKind) -> Option<&'static str> {
    match (address.inet()?.port(), error) {
        (1..1024, std::io::ErrorKind::PermissionDenied) => Some(
            "ports below 1024 need CAP_NET_BIND_SERVICE (`AmbientCapabilities=` in a systemd unit, or `setcap \
             cap_net_bind_service=+ep` on the executable), or a lower `net.ipv4.ip_unprivileged_port_start`",
        ),
        (_, std::io::ErrorKind::AddrInUse) => {
            Some("another process listens on this address; `tollgate run --replace PID` replaces a running Tollgate")
        }
        _ => None,
    }
}

/// Rejects filters that would never be called, since traffic would bypass them.
fn check_chains(
    loaded: &Loaded,
    listeners: &[Arc<ListenerParts>],
    phases: &HashMap<&str, u32>,
    wrong: &mut Vec<Diagnostic>,
) {
    for (index, listener) in listeners.iter().enumerate() {
        let config = &listener.config;
        let sees = |name: &str| phases.get(name).copied().unwrap_or_default();
        let any_sees = |kind| config.chain.iter().any(|name| sees(name) & kind != 0);
        let to_cluster = config.cluster.as_deref();
        for (nth, name) in config.chain.iter().enumerate() {
            let (http, tcp) = (sees(name) & phase::HTTP != 0, sees(name) & phase::TCP != 0);
            let (message, help) = match (config.protocol, http, tcp) {
                (Protocol::Tcp, true, false) => no_part(name, "TCP connections", &config.name),
                (Protocol::Http | Protocol::Http1 | Protocol::Http2, false, true) => {
                    no_part(name, "requests", &config.name)
                }
                // A client whose bytes do not look like HTTP here, but do to the upstream, would bypass the filter.
                (Protocol::Auto, true, false) if config.tcp.clusters.is_empty() && to_cluster.is_some() => (
                    format!(
                        "filter `{name}` sees requests only; with `protocol: auto`, TCP connections bypass it and go \
                         to cluster `{}`",
                        to_cluster.unwrap_or_default()
                    ),
                    "write `protocol: http`, or name clusters for TCP connections under `tcp.clusters`".to_owned(),
                ),
                (Protocol::Auto, false, true) if to_cluster.is_some() && !any_sees(phase::HTTP) => (
                    format!(
                        "filter `{name}` sees TCP connections only; with `protocol: auto`, requests bypass it and go to \
                         cluster `{}`",
                        to_cluster.unwrap_or_default()
                    ),
                    "write `protocol: tcp`, or add a filter for requests, such as `builtin:router`".to_owned(),
                ),
                _ => continue,
            };
            wrong.push(loaded.source.diagnostic(&format!("/listeners/{index}/chain/{nth}"), message, Some(help)));
        }
    }
}

/// Returns the error and help for a filter that its listener never calls.
fn no_part(filter: &str, what: &str, listener: &str) -> (String, String) {
    let help = format!("`protocol` of listener `{listener}` decides what its filters see");
    (format!("filter `{filter}` does not handle {what}"), help)
}

fn by_class(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[(&str, &str)],
) -> Result<[crate::observe::Counter; 6], MetricError> {
    let class = |class| registry.counter(name, help, &[labels, &[("class", class)]].concat());
    Ok([class("none")?, class("1xx")?, class("2xx")?, class("3xx")?, class("4xx")?, class("5xx")?])
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn an_unavailable_address_comes_with_advice() {
        let help = |address: &str, kind| refused_address(&address.parse().unwrap(), kind).unwrap_or_default();
        assert!(help("0.0.0.0:80", ErrorKind::PermissionDenied).contains("CAP_NET_BIND_SERVICE"));
        assert!(help("0.0.0.0:80", ErrorKind::AddrInUse).contains("--replace"));
        assert_eq!(help("0.0.0.0:8080", ErrorKind::PermissionDenied), "");
        assert_eq!(help("unix:/run/a.sock", ErrorKind::PermissionDenied), "");
    }
}
