//! A cluster's endpoints at one moment, and the balancer that chooses among them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwapOption;

use super::{balancer::Balancer, endpoint::Endpoint, settings::ClusterSettings};
use crate::config::{model, units::Address};

/// A cluster's endpoints at one moment. It changes as a whole: whoever holds one sees no later change.
#[derive(Debug)]
pub struct Membership {
    /// The endpoints, each address once, with their weights.
    pub members: Box<[Member]>,
    config: model::Balancer,
    /// Chooses among all members.
    balancer: Arc<Balancer>,
    /// Whether unhealthy endpoints are excluded: some are unhealthy, and enough are healthy.
    excludes_unhealthy: AtomicBool,
    /// Chooses among the healthy members, while the others are excluded.
    healthy: ArcSwapOption<Balancer>,
    /// The number of memberships of the cluster before this one, so that the newer of two can be told.
    pub(super) generation: u64,
}

/// The endpoints of a cluster that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndpointSelection {
    /// All endpoints, because all are healthy.
    All,
    /// The healthy endpoints.
    Healthy,
    /// All endpoints, because too few are healthy (panic threshold).
    Panic,
}

/// An endpoint and its weight in one membership. 0: it receives no requests.
#[derive(Debug, Clone)]
pub struct Member {
    /// The endpoint, which other memberships of the cluster share.
    pub endpoint: Arc<Endpoint>,
    /// Its share of the requests, relative to the other weights.
    pub weight: u32,
    /// Its priority: 0 is the highest.
    pub priority: u32,
    /// Where it is, if that is known.
    pub locality: Option<Arc<model::Locality>>,
    /// Its properties, if it has any.
    pub metadata: Option<Arc<model::Metadata>>,
}

impl Member {
    /// Whether this is what the configuration describes.
    pub(super) fn is(&self, config: &model::Endpoint) -> bool {
        self.endpoint.address == config.address
            && self.endpoint.hostname.as_deref() == config.hostname.as_deref()
            && self.weight == config.weight
            && self.priority == config.priority
            && self.locality.as_deref() == config.locality.as_deref()
            && self.metadata.as_deref() == config.metadata.as_deref()
    }
}

/// A property of an endpoint as a shared object. Most endpoints of a cluster have the same as the one before.
fn shared<T: Clone + PartialEq>(property: Option<&T>, before: Option<&Arc<T>>) -> Option<Arc<T>> {
    let property = property?;
    Some(before.filter(|before| ***before == *property).map_or_else(|| Arc::new(property.clone()), Arc::clone))
}

impl Membership {
    /// Creates a membership. The endpoints of the `previous` one stay the same where their addresses do. An address that is
    /// listed twice becomes one endpoint with both weights, and what else the first entry has.
    pub(super) fn new(
        endpoints: &[model::Endpoint],
        settings: &ClusterSettings,
        previous: Option<&Membership>,
    ) -> Arc<Membership> {
        let known: HashMap<&Address, &Arc<Endpoint>> =
            previous.into_iter().flat_map(|p| &p.members).map(|m| (&m.endpoint.address, &m.endpoint)).collect();
        let mut members: Vec<Member> = Vec::with_capacity(endpoints.len());
        let mut indices = HashMap::with_capacity(endpoints.len());
        for config in endpoints {
            let address = &config.address;
            let index = *indices.entry(address).or_insert(members.len());
            match members.get_mut(index) {
                Some(member) => member.weight = member.weight.saturating_add(config.weight),
                None => {
                    let (hostname, known) = (config.hostname.as_deref(), known.get(address).copied());
                    let endpoint = Endpoint::new(address, hostname, &settings.transport, known);
                    let last = members.last();
                    let locality = shared(config.locality.as_deref(), last.and_then(|last| last.locality.as_ref()));
                    let metadata = shared(config.metadata.as_deref(), last.and_then(|last| last.metadata.as_ref()));
                    let (weight, priority) = (config.weight, config.priority);
                    members.push(Member { endpoint, weight, priority, locality, metadata });
                }
            }
        }
        Membership::of(members, settings, previous)
    }

    fn of(members: Vec<Member>, settings: &ClusterSettings, previous: Option<&Membership>) -> Arc<Membership> {
        let before = previous.map(|previous| previous.with_balancer(Arc::clone));
        let membership = Membership {
            config: settings.balancer,
            balancer: Balancer::new(&settings.balancer, &members, before.as_ref()),
            members: members.into(),
            excludes_unhealthy: AtomicBool::new(false),
            healthy: ArcSwapOption::empty(),
            generation: previous.map_or(0, |previous| previous.generation + 1),
        };
        // Its endpoints may be known to be unhealthy.
        membership.apply_health(settings);
        Arc::new(membership)
    }

    /// The number of healthy endpoints with a weight, and the number of all with a weight.
    pub(super) fn health(&self) -> (usize, usize) {
        let weighted = || self.members.iter().filter(|member| member.weight > 0);
        (weighted().filter(|member| member.endpoint.is_healthy()).count(), weighted().count())
    }

    /// Passes the balancer over the endpoints that are in use.
    pub(super) fn with_balancer<T>(&self, pick: impl FnOnce(&Arc<Balancer>) -> T) -> T {
        if !self.excludes_unhealthy.load(Relaxed) {
            return pick(&self.balancer);
        }
        pick(self.healthy.load().as_ref().unwrap_or(&self.balancer))
    }

    /// Decides whether to exclude unhealthy endpoints after the health of one has changed: they are excluded unless
    /// less than the panic threshold's percentage are healthy. Not done per request, so that requests do not pay for it.
    pub(super) fn apply_health(&self, settings: &ClusterSettings) -> EndpointSelection {
        let Some(check) = &settings.health_check else { return EndpointSelection::All };
        self.balancer.refresh();
        let (healthy, all) = self.health();
        let selection = match healthy {
            _ if healthy == all => EndpointSelection::All,
            _ if healthy * 100 < all * check.panic_threshold as usize => EndpointSelection::Panic,
            _ => EndpointSelection::Healthy,
        };
        let are_excluded = selection == EndpointSelection::Healthy;
        let healthy = are_excluded.then(|| {
            let healthy = self.members.iter().filter(|member| member.endpoint.is_healthy());
            let before = self.with_balancer(Arc::clone);
            Balancer::new(&self.config, &healthy.cloned().collect::<Vec<_>>(), Some(&before))
        });
        self.healthy.store(healthy);
        self.excludes_unhealthy.store(are_excluded, Relaxed);
        selection
    }

    /// The same endpoints under other settings of the cluster.
    pub(super) fn reached_by(self: &Arc<Self>, settings: &ClusterSettings) -> Arc<Membership> {
        let same = self.members.iter().all(|member| member.endpoint.transport.is_like(&settings.transport));
        if same && self.config == settings.balancer {
            return Arc::clone(self);
        }
        let member = |member: &Member| {
            let before = &member.endpoint;
            let hostname = before.hostname.as_deref();
            let endpoint = Endpoint::new(&before.address, hostname, &settings.transport, Some(before));
            Member { endpoint, ..member.clone() }
        };
        Membership::of(self.members.iter().map(member).collect(), settings, Some(self))
    }

    /// Whether one of the members is this endpoint.
    pub(super) fn contains(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.members.iter().any(|member| Arc::ptr_eq(&member.endpoint, endpoint))
    }
}
