//! Applies what was built: publishes clusters, sends each worker its [`Delta`], and follows up on what the change removed.

use std::{
    collections::HashSet,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc::WeakUnboundedSender, oneshot};

use super::{
    snapshot::{Built, SnapshotBuilder},
    status::Status,
};
use crate::{
    listener::socket,
    observe::{log::LogHandle, target},
    snapshot::{Delta, Snapshot},
    upstream::{ClusterHandle, ClusterId},
    worker::{
        Command, WorkerHandle,
        mailbox::{ClusterUpdate, Mailbox, NextState},
    },
};

/// Brings configurations to the workers.
pub(crate) struct Rollout {
    pub(crate) builder: Arc<SnapshotBuilder>,
    pub(crate) workers: Vec<WorkerPort>,
    /// Leads to the health checks.
    pub(crate) health: Arc<Mailbox>,
    pub(crate) status: Rc<Status>,
    pub(crate) log: LogHandle,
}

/// What leads to a worker.
pub(crate) struct WorkerPort {
    /// Weak, because a worker ends when all senders of its commands are dropped.
    pub(crate) commands: WeakUnboundedSender<Command>,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl WorkerPort {
    /// The port of a worker.
    pub(crate) fn of(worker: &WorkerHandle) -> WorkerPort {
        WorkerPort { commands: worker.commands.downgrade(), mailbox: worker.mailbox.clone() }
    }
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
        let removed: Vec<_> = removed.filter(|handle| !kept.contains(&handle.id())).cloned().collect();
        let clusters: Arc<[_]> = self.builder.publish(clusters).into();
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
        let mut waiting = Vec::new();
        for (worker, delta) in self.workers.iter().zip(deltas) {
            let (done, applied) = oneshot::channel();
            if let Some(worker) = worker.commands.upgrade() {
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
        let since = Instant::now();
        let checked = clusters.iter().map(|(handle, cluster)| {
            let next = NextState::Is(cluster.clone());
            ClusterUpdate { handle: handle.clone(), next, since }
        });
        self.health.post(&checked.collect::<Vec<_>>());
        self.remove(&removed, snapshot.loaded.config.drain_timeout.0);
        self.status.current.store(Some(snapshot.clone()));
        self.builder.forget_unused(&snapshot);
        self.builder.clusters.reclaim();
        snapshot
    }

    /// Removes clusters that no configuration has any more. Only now, when no worker has a listener that may need them.
    fn remove(&mut self, removed: &[ClusterHandle], grace: Duration) {
        let mut updates = Vec::new();
        for handle in removed {
            if let Some(last) = self.builder.clusters.withdraw(handle) {
                let next = NextState::Gone { last, grace };
                updates.push(ClusterUpdate { handle: handle.clone(), next, since: Instant::now() });
            }
        }
        self.post(&updates);
    }

    /// Tells workers and health checks about changes of clusters.
    fn post(&self, updates: &[ClusterUpdate]) {
        self.workers
            .iter()
            .map(|worker| &worker.mailbox)
            .chain([&self.health])
            .for_each(|mailbox| mailbox.post(updates));
    }
}
