//! Applies what was built: publishes clusters, sends each worker its [`Delta`], and follows up on what the change removed.

use std::{rc::Rc, sync::Arc, time::Instant};

use rustc_hash::FxHashSet;
use tokio::sync::{mpsc::WeakUnboundedSender, oneshot};

use super::{
    discovery::{Discovery, Known, Settings},
    load::cache_dir,
    resources::Resources,
    snapshot::{Built, SnapshotBuilder},
    status::Status,
};
use crate::{
    config::Loaded,
    listener::socket,
    observe::{log::LogHandle, target},
    snapshot::{Delta, Snapshot},
    upstream::{Cluster, ClusterHandle},
    worker::{
        Command,
        mailbox::{ClusterUpdate, Mailbox, NextState},
    },
};

/// Brings configurations to the workers.
pub(crate) struct Rollout {
    pub(crate) builder: Arc<SnapshotBuilder>,
    /// Weak, because a worker ends when all senders of its commands are dropped.
    pub(crate) workers: Vec<WeakUnboundedSender<Command>>,
    /// Leads to the health checks.
    pub(crate) health: Arc<Mailbox>,
    pub(crate) resources: Resources,
    pub(crate) discovery: Discovery,
    pub(crate) status: Rc<Status>,
    pub(crate) log: LogHandle,
}

impl Rollout {
    /// Delivers a configuration to the workers, and waits until all of them have applied it.
    pub(crate) async fn apply(&mut self, built: Built) -> Arc<Snapshot> {
        let Built { snapshot, clusters, vms, settings, joined, mut sockets, env } = built;
        let found = self.look_up(&snapshot.loaded, &clusters).await;
        for listener in &snapshot.listeners {
            listener.shared.set_limit(listener.config.limits.connections);
        }
        // Not earlier: clients that connected to the sockets of an abandoned configuration would be reset.
        for listener in &snapshot.listeners {
            let config = &listener.config;
            for (address, socket) in sockets.iter().flat_map(|sockets| &sockets.streams) {
                if config.all_addresses().any(|listened| listened == address)
                    && let Err(e) = socket.listen(socket::backlog(&config.socket))
                {
                    tracing::error!(target: target::LISTENER, listener = config.name, "cannot listen on {address}: {e}");
                }
            }
        }
        for (plugin, settings) in settings {
            plugin.set_settings(settings);
        }
        for (template, plugins) in joined {
            template.set_plugins(plugins);
        }
        let mut clusters = self.builder.publish(clusters);
        for (handle, cluster) in &mut clusters {
            if let Some(endpoints) = cluster.service.as_ref().and_then(|service| found.get(&**service))
                && !cluster.has_endpoints(endpoints)
            {
                *cluster = self.builder.clusters.publish(handle, &cluster.with_endpoints(endpoints));
            }
        }
        let clusters: Arc<[_]> = clusters.into();
        let mut deltas: Vec<Delta> = Vec::with_capacity(self.workers.len());
        sockets.resize_with(self.workers.len(), Default::default);
        for sockets in sockets {
            let (snapshot, clusters) = (snapshot.clone(), clusters.clone());
            deltas.push(Delta { snapshot, clusters, instances: Vec::new(), sockets });
        }
        for (template, instances) in vms {
            let each = deltas.iter_mut().zip(instances);
            each.for_each(|(delta, instance)| delta.instances.push((template.clone(), instance)));
        }
        let since = Instant::now();
        let checked = clusters.iter().map(|(handle, cluster)| {
            let next = NextState::Is(cluster.clone());
            ClusterUpdate { handle: handle.clone(), next, since }
        });
        self.health.post(&checked.collect::<Vec<_>>());
        // At the start nothing can be removed, and requests may need clusters that were kept from the last run.
        let is_first = self.status.current.load().is_none();
        if is_first {
            self.tell_sources(&snapshot).await;
        }
        let mut waiting = Vec::new();
        for (worker, delta) in self.workers.iter().zip(deltas) {
            let (done, applied) = oneshot::channel();
            if let Some(worker) = worker.upgrade() {
                let _ = worker.send(Command::Apply(Box::new(delta), done));
            }
            waiting.push(applied);
        }
        for applied in waiting {
            let _ = applied.await;
        }
        env.settle();
        if let Err(e) = self.log.reload(&snapshot.loaded.config.log) {
            tracing::warn!(target: target::LOG, "cannot change the log level: {e}");
        }
        let source = &snapshot.loaded.source;
        let same_files = self.status.current.load().as_ref().is_some_and(|old| Arc::ptr_eq(&old.loaded.source, source));
        if same_files && clusters.is_empty() {
            return self.end(snapshot);
        }
        // Only now, when no worker has a listener that may need a cluster that is gone.
        if !is_first {
            self.tell_sources(&snapshot).await;
        }
        self.end(snapshot)
    }

    /// Tells the sources of resources which files run, and thereby starts, changes and ends them.
    async fn tell_sources(&self, snapshot: &Snapshot) {
        let Loaded { config, source, .. } = &snapshot.loaded;
        let (sources, grace, cache) = (config.sources.clone(), config.drain_timeout.0, cache_dir(&snapshot.loaded));
        self.resources.applied(source.clone(), snapshot.version, sources, grace, cache).await;
    }

    /// Makes the snapshot the running one, and drops what it does not use.
    fn end(&self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        self.status.current.store(Some(snapshot.clone()));
        self.builder.forget_unused(&snapshot);
        self.builder.clusters.reclaim();
        snapshot
    }

    /// Waits for the endpoints of new and changed clusters that have to be found, so that these begin with endpoints.
    async fn look_up(&self, loaded: &Loaded, clusters: &[(ClusterHandle, Arc<Cluster>)]) -> Known {
        let Loaded { config, source, .. } = loaded;
        self.discovery.configure(Settings::of(config, source.dir()));
        let changed: FxHashSet<&str> = clusters.iter().map(|(handle, _)| &**handle.name()).collect();
        let found =
            config.clusters.iter().filter(|cluster| changed.contains(&*cluster.name) && cluster.query().is_some());
        let found: FxHashSet<&str> = found.map(|cluster| &*cluster.name).collect();
        let found = clusters.iter().filter(|(handle, _)| found.contains(&**handle.name()));
        let services: Vec<Arc<str>> =
            found.filter_map(|(_, cluster)| Some((**cluster.service.as_ref()?).into())).collect();
        match services.is_empty() {
            true => Known::default(),
            false => self.discovery.endpoints(services, config.dns.initial_wait.0).await,
        }
    }
}
