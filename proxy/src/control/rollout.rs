//! Applies what was built: publishes clusters, sends each worker its [`Delta`], and follows up on what the change removed.

use std::{collections::HashSet, rc::Rc, sync::Arc};

use tokio::sync::{mpsc::WeakUnboundedSender, oneshot};

use super::{
    snapshot::{Built, SnapshotBuilder},
    status::Status,
};
use crate::{
    listener::socket,
    observe::{log::LogHandle, target},
    snapshot::{Delta, Snapshot},
    upstream::{ClusterId, HealthChecks},
    worker::Command,
};

/// Brings configurations to the workers.
pub(crate) struct Rollout {
    pub(crate) builder: Arc<SnapshotBuilder>,
    /// Weak, because a worker ends when all senders of its commands are dropped.
    pub(crate) workers: Vec<WeakUnboundedSender<Command>>,
    pub(crate) checks: HealthChecks,
    pub(crate) status: Rc<Status>,
    pub(crate) log: LogHandle,
}

impl Rollout {
    /// Delivers a configuration to the workers, and waits until all of them have applied it.
    pub(crate) async fn apply(&mut self, built: Built) -> Arc<Snapshot> {
        let Built { snapshot, clusters, vms, settings, mut sockets, env } = built;
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
        let before = self.status.current.load_full();
        let kept: HashSet<ClusterId> = snapshot.clusters.iter().map(|cluster| cluster.handle.id()).collect();
        let removed = before.iter().flat_map(|before| &before.clusters).map(|cluster| &cluster.handle);
        let removed: Arc<[_]> = removed.filter(|handle| !kept.contains(&handle.id())).cloned().collect();
        self.builder.publish(&clusters);
        let clusters: Arc<[_]> = clusters.into();
        let mut deltas: Vec<Delta> = Vec::with_capacity(self.workers.len());
        sockets.resize_with(self.workers.len(), Default::default);
        for sockets in sockets {
            let (snapshot, clusters, removed) = (snapshot.clone(), clusters.clone(), removed.clone());
            deltas.push(Delta { snapshot, clusters, removed, instances: Vec::new(), sockets });
        }
        for (template, instances) in vms {
            let each = deltas.iter_mut().zip(instances);
            each.for_each(|(delta, instance)| delta.instances.push((template.clone(), instance)));
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
        clusters.iter().for_each(|(handle, cluster)| self.checks.set(handle, cluster));
        for handle in &*removed {
            self.checks.remove(handle);
            self.builder.clusters.publish(handle, None);
        }
        self.status.current.store(Some(snapshot.clone()));
        self.builder.forget_unused(&snapshot);
        self.builder.clusters.reclaim();
        snapshot
    }
}
