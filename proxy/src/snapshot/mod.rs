//! One complete configuration as the workers run it: its clusters, filters and listeners. Built by `control`, taken over by `worker`.

use std::{path::PathBuf, rc::Rc, sync::Arc, time::SystemTime};

use crate::{
    builtins,
    chain::route::{Clusters, RetryPolicy},
    config::{Diagnostics, Loaded, Node, Source, model, units::Address},
    exchange::{ClusterMetrics, ListenerMetrics},
    listener::socket::ListenerShared,
    net::ListenSocket,
    observe::AccessLog,
    tcp,
    tls::{self, ServerTls},
    upstream::Cluster,
    wasm::{CompiledModule, Plugin, Vm, VmTemplate, WasmFilter, content_hash},
};

/// One configuration in force, or about to be.
pub struct Snapshot {
    /// Counts snapshots, from 1.
    pub version: u64,
    /// A hash of the configuration, of all modules and of all files of TLS.
    pub hash: String,
    /// When it was made.
    pub created: SystemTime,
    /// The configuration.
    pub loaded: Loaded,
    /// The clusters.
    pub clusters: Arc<Clusters>,
    /// The filters, in the order of the configuration.
    pub plugins: Vec<Arc<Plugin>>,
    /// What they run in: each alone, or with others.
    pub machines: Vec<Arc<VmTemplate>>,
    /// What workers need to know of listeners, in the order of the configuration.
    pub listeners: Vec<ListenerParts>,
    /// The clusters' figures.
    pub cluster_figures: Vec<(Box<str>, ClusterMetrics)>,
    /// The clusters' figures for TCP connections.
    pub tcp_clusters: Vec<(Box<str>, tcp::TcpClusterMetrics)>,
    /// The clusters' own retries.
    pub retries: Vec<(Box<str>, RetryPolicy)>,
    /// Files that it was made from.
    pub files: Vec<PathBuf>,
    /// What the files of TLS among them have held.
    pub tls: tls::Digests,
    /// What is probably not meant, beyond what could be seen in the file alone.
    pub warnings: Diagnostics,
}

impl Snapshot {
    /// The clusters with their configurations, in the order of these.
    pub fn configured_clusters(&self) -> impl Iterator<Item = (&Arc<Cluster>, &model::Cluster)> {
        self.loaded.config.clusters.iter().filter_map(|config| Some((self.clusters.get(&config.name)?, config)))
    }

    /// A worker's filters, in the order of the configuration.
    pub fn in_order(&self, vms: &[Rc<Vm>]) -> Vec<Rc<WasmFilter>> {
        let mut filters: Vec<_> = vms.iter().flat_map(Vm::filters).collect();
        let place = |filter: &WasmFilter| self.plugins.iter().position(|p| std::ptr::eq(&**p, filter.plugin()));
        filters.sort_by_key(|filter| place(filter));
        filters
    }

    /// Whether it was made of the same configuration, the same modules, and the same certificates and keys.
    pub fn is_made_of(&self, loaded: &Loaded) -> bool {
        let same_module = |path: &PathBuf| {
            let read = CompiledModule::read(path, &loaded.config.compile);
            let hash = read.map(|bytes| content_hash(&bytes)).unwrap_or_default();
            self.plugins.iter().any(|p| p.code.source == path.display().to_string() && p.code.hash == hash)
        };
        self.loaded.hash() == loaded.hash() && modules(&loaded.source).iter().all(same_module) && self.tls.are_current()
    }
}

pub(crate) fn modules(source: &Source) -> Vec<PathBuf> {
    let filters = source.root().get("filters").map_or(&[][..], Node::items).iter();
    let modules = filters.filter_map(|f| f.get("wasm")?.as_str()).filter(|wasm| builtins::name(wasm).is_none());
    modules.map(|wasm| source.resolve(wasm)).collect()
}

/// What a worker's listener is made from.
pub struct ListenerParts {
    /// The configuration.
    pub config: Arc<model::Listener>,
    /// Indices of its filters in the snapshot's list.
    pub chain: Vec<usize>,
    /// Its log.
    pub access_log: Option<AccessLog>,
    /// Its figures.
    pub figures: ListenerMetrics,
    /// Its figures for TCP connections, if it takes any.
    pub tcp: Option<tcp::TcpMetrics>,
    /// Its TLS; none: everything is plain.
    pub tls: Option<Arc<ServerTls>>,
    /// What its workers share.
    pub shared: Arc<ListenerShared>,
}

/// New sockets: the listener's index, its address, and the socket.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For connections.
    pub streams: Vec<(usize, Address, ListenSocket)>,
    /// For HTTP/3.
    #[cfg(feature = "http3")]
    pub datagrams: Vec<(usize, Address, std::net::UdpSocket)>,
}
