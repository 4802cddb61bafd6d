//! A cluster's endpoints at one moment, and the balancers that choose among them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwapOption;

use super::{
    balancer::Balancer,
    endpoint::Endpoint,
    locality,
    priority::{self, LevelHealth, LevelLoad, PrioritySet},
    settings::ClusterSettings,
    subset::{MetadataMatch, Subsets},
};
use crate::config::{model, units::Address};

/// A cluster's endpoints at one moment. It changes as a whole: whoever holds one sees no later change.
#[derive(Debug)]
pub struct Membership {
    /// The endpoints, each address once, with their weights.
    pub members: Arc<[Member]>,
    config: Arc<model::Balancer>,
    /// All members.
    whole: View,
    /// Whether all members are in use, for all requests.
    is_whole: AtomicBool,
    /// The members by their metadata.
    pub(super) subsets: Option<Box<Subsets>>,
    /// The number of memberships of the cluster before this one, so that the newer of two can be told.
    pub(super) generation: u64,
}

/// The endpoints of a cluster or of one of its subsets, and which of them are in use.
#[derive(Debug)]
pub(super) struct View {
    members: Arc<[Member]>,
    /// The level of each member, from 0: its priority and, with `locality: failover`, its distance, without gaps.
    levels: Box<[u16]>,
    /// Chooses among all members.
    all: Arc<PrioritySet>,
    /// Whether `available` is used.
    has_unhealthy: AtomicBool,
    /// Chooses among the members that are in use while some are unhealthy.
    available: ArcSwapOption<PrioritySet>,
}

/// The endpoints of a cluster that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndpointSelection {
    /// All endpoints, because all are available.
    All,
    /// The available endpoints: those that are healthy and not ejected.
    Available,
    /// All endpoints of some priorities, because too few of them are available (panic threshold).
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
            && self.endpoint.is_resolved_to(config.resolved.as_ref())
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
            previous.into_iter().flat_map(|p| &*p.members).map(|m| (&m.endpoint.address, &m.endpoint)).collect();
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
                    if known.is_none() && settings.starts_unhealthy() {
                        endpoint.state.healthy.store(false, Relaxed);
                    }
                    endpoint.resolve(config.resolved.as_ref());
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
        let members: Arc<[Member]> = members.into();
        let whole = View::new(Arc::clone(&members), settings, previous.map(|previous| &previous.whole));
        let subsets = settings.subsets.as_ref().map(|subsets| {
            let previous = previous.and_then(|previous| previous.subsets.as_deref());
            Box::new(Subsets::new(settings, subsets, &members, previous))
        });
        let generation = previous.map_or(0, |previous| previous.generation + 1);
        let is_whole = AtomicBool::new(subsets.is_none());
        let config = Arc::clone(&settings.balancer);
        let membership = Membership { members, config, whole, is_whole, subsets, generation };
        // Its endpoints may be known to be unhealthy.
        membership.apply_health(settings);
        Arc::new(membership)
    }

    /// The number of available endpoints with a weight, and the number of all with a weight.
    pub(super) fn health(&self) -> (usize, usize) {
        self.whole.health()
    }

    /// Whether all endpoints are in use and there are no subsets: the usual case, which costs one branch.
    pub(super) fn is_undivided(&self) -> bool {
        self.is_whole.load(Relaxed)
    }

    /// All endpoints.
    pub(super) fn all(&self) -> &PrioritySet {
        &self.whole.all
    }

    /// Picks among the endpoints for a request whose route wants those with these properties; `None` if there are none. `cursor`
    /// is the position of round robin of the whole cluster; subsets have their own.
    pub(super) fn pick<T>(
        &self,
        wanted: Option<&MetadataMatch>,
        cursor: &AtomicU64,
        pick: impl FnOnce(&PrioritySet, &AtomicU64) -> Option<T>,
    ) -> Option<T> {
        let whole = (&self.whole, cursor);
        let (view, cursor) = match &self.subsets {
            None => whole,
            Some(subsets) => subsets.choose(wanted, whole)?,
        };
        view.with_set(|set| pick(set, cursor))
    }

    /// Decides which endpoints are in use after one has become available or unavailable: the available ones, and in priorities
    /// that are in panic, all. Not done per request, so that requests do not pay for it.
    pub(super) fn apply_health(&self, settings: &ClusterSettings) -> EndpointSelection {
        let is_watched = settings.health_check.is_some() || settings.outlier_detection.is_some();
        if !is_watched && !self.whole.has_unhealthy.load(Relaxed) {
            return EndpointSelection::All;
        }
        let subsets = self.subsets.iter().flat_map(|subsets| subsets.views());
        subsets.for_each(|view| _ = view.apply_health(settings));
        let selection = self.whole.apply_health(settings);
        self.is_whole.store(self.subsets.is_none() && selection == EndpointSelection::All, Relaxed);
        selection
    }

    /// The same endpoints under other settings of the cluster.
    pub(super) fn reached_by(self: &Arc<Self>, settings: &ClusterSettings) -> Arc<Membership> {
        let same = self.members.iter().all(|member| member.endpoint.transport.is_like(&settings.transport));
        if same && self.config == settings.balancer && self.is_divided_by(settings) {
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

    fn is_divided_by(&self, settings: &ClusterSettings) -> bool {
        match (&self.subsets, &settings.subsets) {
            (None, None) => true,
            (Some(subsets), Some(settings)) => subsets.is_by(settings),
            _ => false,
        }
    }

    /// Whether one of the members is this endpoint.
    pub(super) fn contains(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.members.iter().any(|member| Arc::ptr_eq(&member.endpoint, endpoint))
    }
}

impl View {
    /// A view of these members. The balancers of the one `before` serve until the tables of new ones are built.
    pub(super) fn new(members: Arc<[Member]>, settings: &ClusterSettings, before: Option<&View>) -> View {
        let levels = levels(&members, settings);
        let before = before.map(|before| before.with_set(Arc::clone));
        // All are healthy until they are known not to be.
        let (set, _) = priorities(settings, &members, &levels, |_| true, 0, before.as_deref());
        View {
            members,
            levels,
            all: Arc::new(set),
            has_unhealthy: AtomicBool::new(false),
            available: ArcSwapOption::empty(),
        }
    }

    /// The number of available endpoints with a weight, and the number of all with a weight.
    pub(super) fn health(&self) -> (usize, usize) {
        let weighted = || self.members.iter().filter(|member| member.weight > 0);
        (weighted().filter(|member| member.endpoint.is_available()).count(), weighted().count())
    }

    pub(super) fn has_endpoints(&self) -> bool {
        !self.members.is_empty()
    }

    /// Passes the priorities with the endpoints that are in use.
    pub(super) fn with_set<T>(&self, pick: impl FnOnce(&Arc<PrioritySet>) -> T) -> T {
        if !self.has_unhealthy.load(Relaxed) {
            return pick(&self.all);
        }
        pick(self.available.load().as_ref().unwrap_or(&self.all))
    }

    fn apply_health(&self, settings: &ClusterSettings) -> EndpointSelection {
        self.all.refresh();
        let (available, all) = self.health();
        if available == all {
            self.has_unhealthy.store(false, Relaxed);
            self.available.store(None);
            return EndpointSelection::All;
        }
        let is_available = |member: &Member| member.endpoint.is_available();
        let before = self.with_set(Arc::clone);
        let threshold = settings.balancer.panic_threshold();
        let (set, loads) = priorities(settings, &self.members, &self.levels, is_available, threshold, Some(&before));
        self.available.store(Some(Arc::new(set)));
        self.has_unhealthy.store(true, Relaxed);
        match loads.iter().any(|load| load.is_panicking && load.percent > 0) {
            true => EndpointSelection::Panic,
            false => EndpointSelection::Available,
        }
    }
}

/// The level of each member.
fn levels(members: &[Member], settings: &ClusterSettings) -> Box<[u16]> {
    let is_failover = settings.balancer.locality_policy() == Some(model::LocalityPolicy::Failover);
    let rank = |member: &Member| {
        let distance = if is_failover { locality::distance(member.locality.as_deref(), &settings.node) } else { 0 };
        (member.priority, distance)
    };
    let ranks: Vec<_> = members.iter().map(rank).collect();
    // Levels without endpoints of any weight would get no requests anyway.
    let used = members.iter().zip(&ranks).filter(|(member, _)| member.weight > 0);
    let distinct: BTreeSet<_> = used.map(|(_, rank)| *rank).collect();
    ranks.iter().map(|rank| distinct.range(..*rank).count().min(distinct.len().saturating_sub(1)) as u16).collect()
}

/// The members of a level.
fn in_level<'m>(members: &'m [Member], levels: &'m [u16], level: usize) -> impl Iterator<Item = &'m Member> {
    members.iter().zip(levels).filter(move |(_, of)| usize::from(**of) == level).map(|(member, _)| member)
}

fn health_of(members: &[Member], levels: &[u16], level: usize, is_healthy: impl Fn(&Member) -> bool) -> LevelHealth {
    let weighted = || in_level(members, levels, level).filter(|member| member.weight > 0);
    LevelHealth { healthy: weighted().filter(|member| is_healthy(member)).count(), all: weighted().count() }
}

/// Shares the requests among the levels, and creates their balancers: over the healthy members, or all if a level is in panic.
fn priorities(
    settings: &ClusterSettings,
    members: &[Member],
    levels: &[u16],
    is_healthy: impl Fn(&Member) -> bool,
    panic_threshold: u32,
    before: Option<&PrioritySet>,
) -> (PrioritySet, Vec<LevelLoad>) {
    let count = levels.iter().max().map_or(1, |last| usize::from(*last) + 1);
    let health: Vec<_> = (0..count).map(|level| health_of(members, levels, level, &is_healthy)).collect();
    let loads = priority::loads(&health, settings.balancer.overprovisioning_factor(), panic_threshold);
    let set = PrioritySet::new(loads.iter().enumerate().map(|(level, load)| {
        let is_used = |member: &Member| load.is_panicking || is_healthy(member);
        let before = before.and_then(|before| before.balancer(level));
        (load.percent, balancer_of(settings, members, levels, level, is_used, before))
    }));
    (set, loads)
}

/// The balancer over the members of a level that are used.
fn balancer_of(
    settings: &ClusterSettings,
    members: &[Member],
    levels: &[u16],
    level: usize,
    is_used: impl Fn(&Member) -> bool,
    before: Option<&Arc<Balancer>>,
) -> Arc<Balancer> {
    let config = &settings.balancer;
    let all: Vec<_> = in_level(members, levels, level).collect();
    let used = || all.iter().copied().filter(|member| is_used(member));
    match config.locality.as_ref().filter(|locality| locality.policy != model::LocalityPolicy::Failover) {
        Some(locality) => {
            let mut used: Vec<Member> = used().cloned().collect();
            locality::weigh(&mut used, &all, locality, &settings.node, config.overprovisioning_factor());
            Balancer::new(config, &used, before)
        }
        None if used().count() == members.len() => Balancer::new(config, members, before),
        None => Balancer::new(config, &used().cloned().collect::<Vec<_>>(), before),
    }
}
