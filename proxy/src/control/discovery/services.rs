//! The services that clusters ask for: what is known of their endpoints, who uses them, and who waits for them.
//! Where the endpoints come from is the business of [`dns`](super::dns) and of [watches](super::watches).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, oneshot};

use super::table::{ServiceState, Table};
use crate::{config::model::Endpoint, observe::target};

/// How long a service is looked for after a request for its endpoints, unless a cluster uses it by then.
const LEASE: Duration = Duration::from_secs(60);

/// The endpoints of a service, because they have changed.
#[derive(Debug)]
pub(crate) struct Discovered {
    pub(crate) service: Arc<str>,
    pub(crate) endpoints: Vec<Endpoint>,
    /// When the answer arrived.
    pub(crate) arrived: Instant,
}

/// The endpoints of services, by name.
pub(crate) type Known = HashMap<Arc<str>, Vec<Endpoint>>;

/// All services.
pub(super) struct Services {
    all: FxHashMap<Arc<str>, Service>,
    waiting: VecDeque<Waiting>,
    table: Arc<Table>,
    out: mpsc::UnboundedSender<Discovered>,
}

/// What is known of a service.
struct Service {
    is_wanted: bool,
    /// Until when it is looked for although it is not wanted.
    lease: Instant,
    /// What was found last. Before anything is known: the endpoints that need no answer.
    endpoints: Vec<Endpoint>,
    is_known: bool,
}

/// A request for endpoints that are not all known yet.
struct Waiting {
    services: Vec<Arc<str>>,
    until: Instant,
    done: oneshot::Sender<Known>,
}

impl Services {
    pub(super) fn new(table: Arc<Table>, out: mpsc::UnboundedSender<Discovered>) -> Services {
        Services { all: FxHashMap::default(), waiting: VecDeque::new(), table, out }
    }

    /// Adds a service, or extends its lease. Returns whether it is new, so that it has to be looked for.
    pub(super) fn add(&mut self, service: &Arc<str>) -> bool {
        let lease = Instant::now() + LEASE;
        if let Some(known) = self.all.get_mut(service) {
            known.lease = lease;
            return false;
        }
        let entry = Service { is_wanted: false, lease, endpoints: Vec::new(), is_known: false };
        self.all.insert(service.clone(), entry);
        true
    }

    /// Passes on the endpoints of a service from now on.
    pub(super) fn want(&mut self, service: &Arc<str>) {
        let Some(entry) = self.all.get_mut(service) else { return };
        entry.is_wanted = true;
        if entry.is_known {
            let (service, endpoints) = (service.clone(), entry.endpoints.clone());
            let _ = self.out.send(Discovered { service, endpoints, arrived: Instant::now() });
        }
    }

    pub(super) fn remove(&mut self, service: &str) {
        self.all.remove(service);
        self.table.remove(service);
    }

    /// The services that nothing uses.
    pub(super) fn unused(&self, now: Instant) -> Vec<Arc<str>> {
        let unused = self.all.iter().filter(|(_, entry)| !entry.is_wanted && entry.lease < now);
        unused.map(|(service, _)| service.clone()).collect()
    }

    /// Sets what is known of a service, and passes changes on. While it is not known, what was known before stays.
    pub(super) fn set(
        &mut self,
        service: &Arc<str>,
        state: ServiceState,
        (endpoints, is_known): (Vec<Endpoint>, bool),
        arrived: Instant,
    ) {
        let Some(entry) = self.all.get_mut(service) else { return };
        self.table.set(service, state);
        if entry.is_known && (!is_known || entry.endpoints == endpoints) {
            return;
        }
        if endpoints.is_empty() && entry.is_known && !entry.endpoints.is_empty() {
            tracing::warn!(target: target::UPSTREAM, service = &**service, "no endpoints are left");
        }
        (entry.endpoints, entry.is_known) = (endpoints, is_known);
        if is_known && entry.is_wanted {
            let (service, endpoints) = (service.clone(), entry.endpoints.clone());
            let _ = self.out.send(Discovered { service, endpoints, arrived });
        }
    }

    /// Answers when all of the services are known, at the latest at this time.
    pub(super) fn wait(&mut self, services: Vec<Arc<str>>, until: Instant, done: oneshot::Sender<Known>) {
        self.waiting.push_back(Waiting { services, until, done });
    }

    /// When the next request has waited long enough.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }

    /// Answers the requests for services that are all known, and those that have timed out.
    pub(super) fn answer_waiting(&mut self, now: Instant) {
        let all = &self.all;
        let is_known = |service: &Arc<str>| all.get(service).is_none_or(|entry| entry.is_known);
        let is_over = |waiting: &Waiting| waiting.until <= now || waiting.services.iter().all(is_known);
        let (over, left) = std::mem::take(&mut self.waiting).into_iter().partition::<VecDeque<_>, _>(is_over);
        self.waiting = left;
        for Waiting { services, done, .. } in over {
            let known = services.into_iter().filter_map(|service| {
                let endpoints = self.all.get(&service)?.endpoints.clone();
                Some((service, endpoints))
            });
            let _ = done.send(known.collect());
        }
    }
}
