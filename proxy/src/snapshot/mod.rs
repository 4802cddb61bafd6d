//! A complete configuration as the workers run it, and the difference to the one before ([`Delta`]). Built by `control`,
//! applied by `worker`.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::SystemTime};

use crate::{
    builtins,
    config::{Dependencies, Diagnostics, Loaded, model, units::Address},
    digest::sha256_hex,
    exchange::ListenerMetrics,
    listener::{chains::ChainMatch, socket::ListenerShared},
    net::ListenSocket,
    observe::AccessLog,
    tcp,
    tls::{self, ServerTls},
    upstream::{Cluster, ClusterHandle, Clusters},
    wasm::{CompiledModule, Instance, Plugin, VmTemplate},
};

/// A snapshot of one configuration that is running or about to be.
pub struct Snapshot {
    /// The number of the files' configuration, starting at 1. What sources supply does not change it.
    pub version: u64,
    /// A hash of the configuration, all modules and all TLS files.
    pub hash: String,
    /// When the snapshot was built.
    pub created: SystemTime,
    /// The configuration's files.
    pub loaded: Loaded,
    /// The configuration in effect: the files, and the listeners and filters that sources supply.
    pub effective: Loaded,
    /// The clusters, in the order of the configuration.
    pub clusters: Vec<ConfiguredCluster>,
    /// The directory of clusters.
    pub directory: Arc<Clusters>,
    /// The filters, in the order of the configuration.
    pub plugins: Vec<Arc<Plugin>>,
    /// The templates of the filters' VMs: one per filter, or shared.
    pub templates: Vec<Arc<VmTemplate>>,
    /// The parts of the listeners, in the order of the configuration.
    pub listeners: Vec<Arc<ListenerParts>>,
    /// The files that the snapshot was built from, and the directories that it searched for some of them.
    pub files: Dependencies,
    /// Digests of the TLS files among them.
    pub tls: tls::Digests,
    /// Warnings beyond those about the file itself.
    pub warnings: Diagnostics,
}

impl Snapshot {
    /// Whether the snapshot was built from the same configuration in effect, modules, certificates and keys.
    pub fn is_made_of(&self, loaded: &Loaded) -> bool {
        let same_module = |path: &PathBuf| {
            let read = CompiledModule::read(path, &loaded.config.compile);
            let hash = read.map(|bytes| sha256_hex(&bytes)).unwrap_or_default();
            self.plugins.iter().any(|p| p.code.source == path.display().to_string() && p.code.hash == hash)
        };
        let filters = loaded.config.filters.iter().filter(|filter| builtins::name(&filter.wasm).is_none());
        let mut modules = filters.map(|filter| loaded.source.resolve(&filter.wasm));
        self.effective.hash() == loaded.hash() && modules.all(|path| same_module(&path)) && self.tls.are_current()
    }
}

/// A cluster in a configuration. What it looks like now is found through the handle, since its endpoints may change without
/// the configuration.
pub struct ConfiguredCluster {
    /// The handle.
    pub handle: ClusterHandle,
    /// A hash of its section.
    pub sha256: [u8; 32],
}

/// What a worker has to do to get from one configuration to the next.
pub struct Delta {
    /// The next configuration.
    pub snapshot: Arc<Snapshot>,
    /// Clusters that are new or have changed.
    pub clusters: Arc<[(ClusterHandle, Arc<Cluster>)]>,
    /// An instance of each VM that is new or has changed. All other VMs stay.
    pub instances: Vec<(Arc<VmTemplate>, Instance)>,
    /// New sockets.
    pub sockets: Sockets,
}

/// The parts of a listener, from which workers create their own. They stay the same `Arc` as long as nothing about the
/// listener changes.
pub struct ListenerParts {
    /// The configuration.
    pub config: Arc<model::Listener>,
    /// A hash of the configuration.
    pub sha256: [u8; 32],
    /// The filter chains, at least one. The first one that matches a connection serves it.
    pub chains: Vec<FilterChain>,
    /// The access log.
    pub access_log: Option<AccessLog>,
    /// The metrics.
    pub metrics: ListenerMetrics,
    /// Metrics of TCP connections, if the listener accepts any.
    pub tcp: Option<tcp::TcpMetrics>,
    /// State shared by the workers.
    pub shared: Arc<ListenerShared>,
}

impl ListenerParts {
    /// The TLS settings of all chains.
    pub fn tls(&self) -> impl Iterator<Item = &Arc<ServerTls>> {
        self.chains.iter().filter_map(|chain| chain.tls.as_ref())
    }
}

/// A filter chain of a listener.
pub struct FilterChain {
    /// The connections that it serves.
    pub matches: ChainMatch,
    /// TLS; `None` for plaintext.
    pub tls: Option<Arc<ServerTls>>,
    /// The filters, in order.
    pub filters: Vec<Arc<Plugin>>,
}

/// New sockets by address.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For connections.
    pub streams: HashMap<Address, ListenSocket>,
    /// For HTTP/3.
    #[cfg(feature = "http3")]
    pub datagrams: HashMap<Address, std::net::UdpSocket>,
}
