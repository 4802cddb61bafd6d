//! Endpoints from DNS: looks names up periodically.
//!
//! A service consists of one or more names; a name that several services have is looked up once. A lookup that fails never
//! takes anything away, and an empty answer only by the rule of [`OnEmpty`](crate::config::model::OnEmpty).
//!
//! `lookup` asks name servers, with the settings of `system`; `answer` and `state` decide what an answer means, `endpoints`
//! turns it into endpoints, and `pace` bounds how fast lookups start.

mod answer;
mod endpoints;
mod lookup;
mod state;
mod system;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustc_hash::FxHashMap;
use tokio::{sync::mpsc, task::spawn_local, time::timeout};

use self::{
    answer::Found,
    lookup::{Lookups, Question},
    state::{NameState, Outcome},
    system::System,
};
use super::{pace::Pace, services::Services, table::ServiceState};
use crate::{
    config::{
        Dependencies,
        model::{Dns, DnsDiscovery, DnsQuery, Endpoint},
        units::Address,
    },
    control::watch::Watcher,
    observe::{Counter, MetricError, Registry, shard, target},
};

/// The most lookups at the same time.
const MAX_LOOKUPS: usize = 128;

/// The limit on the duration of a lookup with all its queries.
const LOOKUP_TIME: Duration = Duration::from_secs(15);

/// The time between the starts of two lookups, so that a thousand names whose time to live ends together do not make a
/// burst of queries.
const GAP: Duration = Duration::from_millis(2);

/// How many lookups may start without a gap after a pause.
const BURST: u32 = 16;

/// Lookups by outcome.
pub(super) struct Counters {
    answered: Counter,
    empty: Counter,
    failed: Counter,
}

impl Counters {
    pub(super) fn new(registry: &Registry) -> Result<Counters, MetricError> {
        let of = |result| {
            registry.counter("tollgate_dns_lookups_total", "Lookups of host names, by result.", &[("result", result)])
        };
        Ok(Counters { answered: of("answered")?, empty: of("empty")?, failed: of("failed")? })
    }

    fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Addresses => &self.answered,
            Outcome::Empty => &self.empty,
            Outcome::Failed => &self.failed,
        };
        counter.inc(shard());
    }
}

/// A lookup that has ended.
pub(super) struct Lookup {
    question: Arc<Question>,
    result: Result<Found, String>,
}

/// Looks up the names of services.
pub(super) struct Finder {
    start: Instant,
    config: Dns,
    system: System,
    /// By name servers; none: those of the system.
    lookups: FxHashMap<Box<[SocketAddr]>, Lookups>,
    names: FxHashMap<Arc<Question>, Name>,
    services: FxHashMap<Arc<str>, Vec<Item>>,
    /// When names are due. An entry whose number is not the name's is obsolete.
    due: BinaryHeap<Reverse<(Duration, u64, Due)>>,
    number: u64,
    pace: Pace,
    running: usize,
    counters: Counters,
    found: mpsc::UnboundedSender<Lookup>,
}

/// A question in the heap, whose order depends only on the time and the number.
struct Due(Arc<Question>);

impl PartialEq for Due {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// A name that is looked up.
#[derive(Default)]
struct Name {
    state: NameState,
    /// The services that have it.
    users: Vec<Arc<str>>,
    /// The number of its entry among those that are due; `None` while it is being looked up.
    number: Option<u64>,
    /// Whether to look it up again immediately, because the settings have changed during the lookup.
    again: bool,
    /// Whether any lookup has ended.
    is_tried: bool,
}

/// A part of a service.
enum Item {
    Known(Endpoint),
    Name { discovery: DnsDiscovery, template: Endpoint, question: Arc<Question> },
}

impl Item {
    /// The parts of what a cluster asks for.
    fn all(query: DnsQuery) -> Vec<Item> {
        let named = |discovery: DnsDiscovery, template: Endpoint| {
            let question = Arc::new(Question::new(&discovery));
            Item::Name { discovery, template, question }
        };
        let item = |endpoint: Endpoint| match &endpoint.address {
            Address::Host(name, port) => named(DnsDiscovery::new(name, *port), endpoint),
            _ => Item::Known(endpoint),
        };
        match query {
            DnsQuery::Name(discovery) => {
                let template = Endpoint::new(Address::Host("".into(), 0), 1);
                vec![named(discovery, template)]
            }
            DnsQuery::Endpoints(list) => list.into_iter().map(item).collect(),
        }
    }
}

fn questions(items: &[Item]) -> impl Iterator<Item = &Arc<Question>> {
    items.iter().filter_map(|item| match item {
        Item::Known(_) => None,
        Item::Name { question, .. } => Some(question),
    })
}

/// The endpoints of a service by what is known.
fn composed(items: &[Item], names: &FxHashMap<Arc<Question>, Name>) -> Vec<Endpoint> {
    let mut all = Vec::new();
    for item in items {
        match item {
            Item::Known(endpoint) => all.push(endpoint.clone()),
            Item::Name { discovery, template, question } => {
                let answer = names.get(question).and_then(|name| name.state.answer(discovery.on_empty));
                all.extend(answer.into_iter().flat_map(|answer| endpoints::endpoints(discovery, template, answer)));
            }
        }
    }
    all
}

impl Finder {
    pub(super) fn new(counters: Counters, found: mpsc::UnboundedSender<Lookup>) -> Finder {
        let config = Dns::default();
        Finder {
            start: Instant::now(),
            system: System::read(&config),
            config,
            lookups: FxHashMap::default(),
            names: FxHashMap::default(),
            services: FxHashMap::default(),
            due: BinaryHeap::new(),
            number: 0,
            pace: Pace::new(GAP, BURST),
            running: 0,
            counters,
            found,
        }
    }

    /// Looks names up by these settings from now on.
    pub(super) fn configure(&mut self, config: &Dns, watcher: &mut Watcher) {
        if self.config != *config {
            self.config = config.clone();
            self.watch(watcher);
            self.reset(System::read(&self.config));
        }
    }

    /// Reads the system's files again.
    pub(super) fn read_again(&mut self, watcher: &mut Watcher) {
        self.watch(watcher);
        if let Some(system) = self.system.read_again(&self.config) {
            self.reset(system);
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Watches the system's files.
    pub(super) fn watch(&self, watcher: &mut Watcher) {
        let files = vec![self.config.resolv_conf.clone(), self.config.hosts.clone()];
        watcher.watch(Dependencies { files, folders: Vec::new() });
    }

    /// Looks all names up with other settings: they may have other addresses now.
    fn reset(&mut self, system: System) {
        self.system = system;
        self.lookups.clear();
        self.names.values_mut().for_each(|name| name.state.is_spread = false);
        let all: Vec<_> = self.names.keys().cloned().collect();
        for question in all {
            self.schedule(&question, Duration::ZERO);
        }
    }

    /// Looks a service up from now on.
    pub(super) fn add(&mut self, service: &Arc<str>, query: DnsQuery, services: &mut Services) {
        let items = Item::all(query);
        let questions: Vec<_> = questions(&items).cloned().collect();
        self.services.insert(service.clone(), items);
        for question in questions {
            let name = self.names.entry(question.clone()).or_default();
            let is_new = name.users.is_empty();
            if !name.users.contains(service) {
                name.users.push(service.clone());
            }
            if is_new {
                self.schedule(&question, Duration::ZERO);
            }
        }
        self.update(service, Instant::now(), services);
    }

    /// Stops looking a service up.
    pub(super) fn remove(&mut self, service: &Arc<str>) {
        let Some(items) = self.services.remove(service) else { return };
        for question in questions(&items) {
            let Some(name) = self.names.get_mut(question) else { continue };
            name.users.retain(|user| user != service);
            if name.users.is_empty() {
                self.names.remove(question);
            }
        }
    }

    /// Sets when a name is looked up next.
    fn schedule(&mut self, question: &Arc<Question>, wait: Duration) {
        let at = self.now() + wait;
        let Some(name) = self.names.get_mut(question) else { return };
        if name.is_tried && name.number.is_none() && wait.is_zero() {
            name.again = true;
            return;
        }
        self.number += 1;
        name.number = Some(self.number);
        self.due.push(Reverse((at, self.number, Due(question.clone()))));
    }

    /// Starts the lookups that are due. Returns when there may be others.
    pub(super) fn start_due(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, number, Due(question)))) = self.due.peek() {
            let (at, number, question) = (*at, *number, question.clone());
            if self.names.get(&question).is_none_or(|name| name.number != Some(number)) {
                self.due.pop();
                continue;
            }
            let now = self.now();
            if at > now {
                return Some(self.start + at);
            }
            // The end of one of them is noticed.
            if self.running >= MAX_LOOKUPS {
                return None;
            }
            if let Err(at) = self.pace.take(now) {
                return Some(self.start + at);
            }
            self.due.pop();
            if let Some(name) = self.names.get_mut(&question) {
                name.number = None;
            }
            self.begin(question);
        }
        None
    }

    fn begin(&mut self, question: Arc<Question>) {
        let (found, lookups) = (self.found.clone(), self.lookups(&question));
        self.running += 1;
        spawn_local(async move {
            let result = look_up(lookups, &question).await;
            let _ = found.send(Lookup { question, result });
        });
    }

    /// What answers a question: by its own name servers or the system's.
    fn lookups(&mut self, question: &Question) -> Result<Lookups, String> {
        if let Some(lookups) = self.lookups.get(&question.servers) {
            return Ok(lookups.clone());
        }
        let lookups = Lookups::new(&self.config, &self.system, &question.servers)?;
        self.lookups.insert(question.servers.clone(), lookups.clone());
        Ok(lookups)
    }

    /// Handles the result of a lookup.
    pub(super) fn finished(&mut self, Lookup { question, result }: Lookup, services: &mut Services) {
        self.running -= 1;
        let (now, arrived) = (self.now(), Instant::now());
        let Some(name) = self.names.get_mut(&question) else { return };
        if name.number.is_some() {
            // It was removed and added again meanwhile.
            return;
        }
        let before = name.state.attempts;
        let (outcome, wait) = name.state.record(result, now, question.limits, fastrand::f64());
        (name.is_tried, _) = (true, self.counters.count(outcome));
        let wait = if std::mem::take(&mut name.again) { Duration::ZERO } else { wait };
        let host = question.name();
        match (before, name.state.attempts, &name.state.error) {
            (0, 1, Some((_, error))) => tracing::warn!(target: target::UPSTREAM, host, "host not found: {error}"),
            (1.., 0, _) => tracing::info!(target: target::UPSTREAM, host, "host found again"),
            _ => {}
        }
        let users = name.users.clone();
        name.number = Some(0);
        self.schedule(&question, wait);
        for service in &users {
            self.update(service, arrived, services);
        }
    }

    /// Passes on what is known of a service.
    fn update(&self, service: &Arc<str>, arrived: Instant, services: &mut Services) {
        let Some(items) = self.services.get(service) else { return };
        let names: Vec<&Name> = questions(items).filter_map(|question| self.names.get(question)).collect();
        let wall = |at: Duration| SystemTime::now() - self.now().saturating_sub(at);
        let oldest = names.iter().map(|name| name.state.answered).min().flatten();
        let last = names.iter().filter_map(|name| name.state.error.clone()).max_by_key(|(at, _)| *at);
        let state = ServiceState {
            source: "dns",
            answered: oldest.map(wall),
            attempts: names.iter().map(|name| name.state.attempts).max().unwrap_or_default(),
            error: last.map(|(at, error)| (wall(at), error)),
            states: Vec::new(),
        };
        let are_tried = names.iter().all(|name| name.is_tried);
        let is_known = are_tried && names.iter().any(|name| name.state.is_known());
        services.set(service, state, (composed(items, &self.names), is_known), arrived);
    }
}

/// Answers a question, within the limit.
async fn look_up(lookups: Result<Lookups, String>, question: &Question) -> Result<Found, String> {
    let late = |_| Err(format!("{}: no answer within {LOOKUP_TIME:?}", question.name()));
    timeout(LOOKUP_TIME, lookups?.answer(question)).await.unwrap_or_else(late)
}
