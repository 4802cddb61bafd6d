//! A complete configuration as the workers run it: its clusters, filters and listeners. Built by `control`, applied by
//! `worker`.

use std::{path::PathBuf, rc::Rc, sync::Arc, time::SystemTime};

use crate::{
    builtins,
    config::{Diagnostics, Loaded, model, units::Address},
    digest::sha256_hex,
    exchange::ListenerMetrics,
    listener::socket::ListenerShared,
    net::ListenSocket,
    observe::AccessLog,
    tcp,
    tls::{self, ServerTls},
    upstream::{Cluster, ClusterHandle, Clusters},
    wasm::{CompiledModule, Plugin, Vm, VmTemplate, WasmFilter},
};

/// A snapshot of one configuration that is running or about to be.
pub struct Snapshot {
    /// The number of the snapshot, starting at 1.
    pub version: u64,
    /// A hash of the configuration, all modules and all TLS files.
    pub hash: String,
    /// When the snapshot was built.
    pub created: SystemTime,
    /// The configuration.
    pub loaded: Loaded,
    /// The clusters, in the order of the configuration.
    pub clusters: Vec<(ClusterHandle, Arc<Cluster>)>,
    /// The directory of clusters.
    pub directory: Arc<Clusters>,
    /// The filters, in the order of the configuration.
    pub plugins: Vec<Arc<Plugin>>,
    /// The templates of the filters' VMs: one per filter, or shared.
    pub templates: Vec<Arc<VmTemplate>>,
    /// The parts of the listeners, in the order of the configuration.
    pub listeners: Vec<ListenerParts>,
    /// The files that the snapshot was built from.
    pub files: Vec<PathBuf>,
    /// Digests of the TLS files among them.
    pub tls: tls::Digests,
    /// Warnings beyond those about the file itself.
    pub warnings: Diagnostics,
}

impl Snapshot {
    /// Returns a worker's filters, in the order of the configuration.
    pub fn in_order(&self, vms: &[Rc<Vm>]) -> Vec<Rc<WasmFilter>> {
        let mut filters: Vec<_> = vms.iter().flat_map(Vm::filters).collect();
        let place = |filter: &WasmFilter| self.plugins.iter().position(|p| std::ptr::eq(&**p, filter.plugin()));
        filters.sort_by_key(|filter| place(filter));
        filters
    }

    /// Whether the snapshot was built from the same configuration, modules, certificates and keys.
    pub fn is_made_of(&self, loaded: &Loaded) -> bool {
        let same_module = |path: &PathBuf| {
            let read = CompiledModule::read(path, &loaded.config.compile);
            let hash = read.map(|bytes| sha256_hex(&bytes)).unwrap_or_default();
            self.plugins.iter().any(|p| p.code.source == path.display().to_string() && p.code.hash == hash)
        };
        let filters = loaded.config.filters.iter().filter(|filter| builtins::name(&filter.wasm).is_none());
        let mut modules = filters.map(|filter| loaded.source.resolve(&filter.wasm));
        self.loaded.hash() == loaded.hash() && modules.all(|path| same_module(&path)) && self.tls.are_current()
    }
}

/// The parts of a listener, from which workers create their own.
pub struct ListenerParts {
    /// The configuration.
    pub config: Arc<model::Listener>,
    /// Indices of the filters in the snapshot's list.
    pub chain: Vec<usize>,
    /// The access log.
    pub access_log: Option<AccessLog>,
    /// The metrics.
    pub metrics: ListenerMetrics,
    /// Metrics of TCP connections, if the listener accepts any.
    pub tcp: Option<tcp::TcpMetrics>,
    /// TLS; `None` for plaintext.
    pub tls: Option<Arc<ServerTls>>,
    /// State shared by the workers.
    pub shared: Arc<ListenerShared>,
}

/// New sockets, each with the listener's index and the address.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For connections.
    pub streams: Vec<(usize, Address, ListenSocket)>,
    /// For HTTP/3.
    #[cfg(feature = "http3")]
    pub datagrams: Vec<(usize, Address, std::net::UdpSocket)>,
}
