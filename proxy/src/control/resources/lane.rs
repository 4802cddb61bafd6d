//! The fast lane for clusters: brings a cluster or its endpoints to the workers without a new configuration.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use crate::{
    config::model,
    tls::ClientTls,
    upstream::{Cluster, ClusterHandle, ClusterId, Clusters},
    worker::mailbox::{ClusterUpdate, Mailbox, NextState},
};

/// Changes clusters, and tells workers and health checks.
pub(super) struct ClusterLane {
    clusters: Arc<Clusters>,
    workers: usize,
    /// The mailboxes of the workers and of the health checks.
    mailboxes: Vec<Arc<Mailbox>>,
    /// The clusters that take their endpoints from a service, and the other way round.
    users: FxHashMap<Arc<str>, Vec<ClusterHandle>>,
    services: FxHashMap<ClusterId, Arc<str>>,
    /// Updates that were not sent yet.
    updates: Vec<ClusterUpdate>,
}

impl ClusterLane {
    pub(super) fn new(clusters: Arc<Clusters>, workers: usize, mailboxes: Vec<Arc<Mailbox>>) -> ClusterLane {
        let (users, services) = (FxHashMap::default(), FxHashMap::default());
        ClusterLane { clusters, workers, mailboxes, users, services, updates: Vec::new() }
    }

    /// Adds or changes a cluster. `endpoints` are those of its service, if it has one and they are known. `since`: when the
    /// change reached the proxy.
    pub(super) fn set_cluster(
        &mut self,
        config: &model::Cluster,
        tls: Option<Arc<ClientTls>>,
        endpoints: Option<&[model::Endpoint]>,
        since: Instant,
    ) {
        let handle = self.clusters.handle(&config.name);
        let is_same = self.follow(&handle, config);
        // The files have decided where the proxy is.
        let node = self.clusters.node(None);
        let mut cluster = Cluster::with_tls(config, handle.current().as_ref(), tls, self.workers, node);
        if config.is_discovered() {
            // Endpoints of another service do not stay.
            let unknown = if is_same { None } else { Some(config.known_endpoints()) };
            if let Some(endpoints) = endpoints.or(unknown.as_deref()) {
                cluster = cluster.with_endpoints(endpoints);
            }
        }
        self.publish(handle, cluster, since);
    }

    /// Notes which service a cluster of the configuration's files takes its endpoints from, and gives it those that are
    /// known.
    pub(super) fn adopt(&mut self, config: &model::Cluster, endpoints: Option<&[model::Endpoint]>, since: Instant) {
        let handle = self.clusters.handle(&config.name);
        self.follow(&handle, config);
        if let Some((cluster, endpoints)) = handle.current().zip(endpoints)
            && !cluster.has_endpoints(endpoints)
        {
            self.publish(handle, cluster.with_endpoints(endpoints), since);
        }
    }

    /// Changes the endpoints of a service.
    pub(super) fn set_endpoints(&mut self, service: &str, endpoints: &[model::Endpoint], since: Instant) {
        for handle in self.users.get(service).cloned().unwrap_or_default() {
            if let Some(cluster) = handle.current().filter(|cluster| !cluster.has_endpoints(endpoints)) {
                self.publish(handle, cluster.with_endpoints(endpoints), since);
            }
        }
    }

    /// Removes a cluster. Requests that began before can use it for the time of `grace`.
    pub(super) fn remove_cluster(&mut self, name: &str, grace: Duration, since: Instant) {
        let Some(handle) = self.clusters.find(name) else { return };
        self.unfollow(&handle);
        if let Some(last) = self.clusters.withdraw(&handle) {
            self.updates.push(ClusterUpdate { handle, next: NextState::Gone { last, grace }, since });
        }
    }

    /// Sends all updates since the last call.
    pub(super) fn flush(&mut self) {
        if self.updates.is_empty() {
            return;
        }
        let updates = std::mem::take(&mut self.updates);
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(&updates));
    }

    fn publish(&mut self, handle: ClusterHandle, cluster: Arc<Cluster>, since: Instant) {
        let now = self.clusters.publish(&handle, &cluster);
        self.updates.push(ClusterUpdate { handle, next: NextState::Is(now), since });
    }

    /// Notes the service of a cluster. Returns whether it is the same as before.
    fn follow(&mut self, handle: &ClusterHandle, config: &model::Cluster) -> bool {
        let service = config.service().map(Arc::<str>::from);
        if self.services.get(&handle.id()) == service.as_ref() {
            return true;
        }
        self.unfollow(handle);
        if let Some(service) = service {
            self.users.entry(service.clone()).or_default().push(handle.clone());
            self.services.insert(handle.id(), service);
        }
        false
    }

    fn unfollow(&mut self, handle: &ClusterHandle) {
        let Some(service) = self.services.remove(&handle.id()) else { return };
        if let Some(users) = self.users.get_mut(&service) {
            users.retain(|user| user.id() != handle.id());
            if users.is_empty() {
                self.users.remove(&service);
            }
        }
    }
}
