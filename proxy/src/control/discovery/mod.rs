//! Endpoints from DNS: looks names up periodically, on a dedicated thread, and passes changes on to the
//! [resources](super::resources).
//!
//! A [service](DnsQuery) is what a cluster asks for. It consists of one or more names; a name that several services have is
//! looked up once. A lookup that fails never takes anything away, and an empty answer only by the rule of
//! [`OnEmpty`](crate::config::model::OnEmpty) ([`state`]).
//!
//! `lookup` asks name servers, with the settings of `system`; `answer` and `state` decide what an answer means, `endpoints`
//! turns it into endpoints, `pace` bounds how fast lookups start, and `table` is what operators see.

mod answer;
mod endpoints;
mod lookup;
mod pace;
mod state;
mod system;
mod table;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustc_hash::FxHashMap;
use tokio::{
    sync::{mpsc, oneshot},
    task::{LocalSet, spawn_local},
    time::{sleep_until, timeout},
};

use self::{
    answer::Found,
    lookup::{Lookups, Question},
    pace::Pace,
    state::{NameState, Outcome},
    system::System,
};
use super::watch::Watcher;
use crate::{
    config::{
        Dependencies,
        model::{Dns, DnsDiscovery, DnsQuery, Endpoint, OnEmpty},
        units::Address,
    },
    observe::{Counter, MetricError, Registry, shard, target},
};

pub(crate) use self::table::{ServiceState, Table};

/// The most lookups at the same time.
const MAX_LOOKUPS: usize = 128;

/// The limit on the duration of a lookup with all its queries.
const LOOKUP_TIME: Duration = Duration::from_secs(15);

/// How long a service is looked up after a request for its endpoints, unless a cluster uses it by then.
const LEASE: Duration = Duration::from_secs(60);

/// The endpoints of a service, because they have changed.
#[derive(Debug)]
pub(crate) struct Discovered {
    pub(crate) service: Arc<str>,
    pub(crate) endpoints: Vec<Endpoint>,
    /// When the answer arrived.
    pub(crate) arrived: Instant,
}

/// What the thread is asked to do.
enum Request {
    Configure(Dns),
    Want(Arc<str>),
    Unwant(Arc<str>),
    Endpoints { services: Vec<Arc<str>>, wait: Duration, done: oneshot::Sender<Known> },
}

/// The endpoints of services, by name.
pub(crate) type Known = HashMap<Arc<str>, Vec<Endpoint>>;

/// A handle of the thread.
#[derive(Clone)]
pub(crate) struct Discovery {
    requests: mpsc::UnboundedSender<Request>,
    /// What lookups have found.
    pub(crate) table: Arc<Table>,
}

impl Discovery {
    /// Starts the thread. It sends changes to `out`.
    ///
    /// # Errors The thread cannot be started.
    pub(crate) fn start(registry: &Registry, out: mpsc::UnboundedSender<Discovered>) -> anyhow::Result<Discovery> {
        let (discovery, inbox) = Discovery::channel();
        let counters = Counters::new(registry)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let table = discovery.table.clone();
        thread::Builder::new().name("tollgate-lookup".into()).spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                let (found, results) = mpsc::unbounded_channel();
                Finder::new(counters, table, out, found).run(inbox, results).await;
            });
        })?;
        Ok(discovery)
    }

    fn channel() -> (Discovery, mpsc::UnboundedReceiver<Request>) {
        let (requests, inbox) = mpsc::unbounded_channel();
        (Discovery { requests, table: Arc::default() }, inbox)
    }

    /// A handle without a thread.
    #[cfg(test)]
    pub(crate) fn none() -> Discovery {
        Discovery::channel().0
    }

    /// Sets how names are looked up.
    pub(crate) fn configure(&self, config: &Dns) {
        self.send(Request::Configure(config.clone()));
    }

    /// Looks a service up from now on. Sends its endpoints if they are known, and then each change.
    pub(crate) fn want(&self, service: &Arc<str>) {
        self.send(Request::Want(service.clone()));
    }

    /// Stops looking a service up.
    pub(crate) fn unwant(&self, service: &Arc<str>) {
        self.send(Request::Unwant(service.clone()));
    }

    /// Returns the endpoints of services when all are known, at the latest after `wait`. A service that is unknown by then
    /// has only the endpoints that need no lookup.
    pub(crate) async fn endpoints(&self, services: Vec<Arc<str>>, wait: Duration) -> Known {
        let (done, known) = oneshot::channel();
        self.send(Request::Endpoints { services, wait, done });
        known.await.unwrap_or_default()
    }

    fn send(&self, request: Request) {
        // The thread ends with the process.
        let _ = self.requests.send(request);
    }
}

/// Lookups by outcome.
struct Counters {
    answered: Counter,
    empty: Counter,
    failed: Counter,
}

impl Counters {
    fn new(registry: &Registry) -> Result<Counters, MetricError> {
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
type Lookup = (Arc<Question>, Result<Found, String>);

/// The state of the thread.
struct Finder {
    start: Instant,
    config: Dns,
    system: System,
    /// By name servers; none: those of the system.
    lookups: FxHashMap<Box<[std::net::SocketAddr]>, Lookups>,
    names: FxHashMap<Arc<Question>, Name>,
    services: FxHashMap<Arc<str>, Service>,
    /// When names are due. An entry whose number is not the name's is obsolete.
    due: BinaryHeap<Reverse<(Duration, u64, Due)>>,
    number: u64,
    pace: Pace,
    running: usize,
    waiting: VecDeque<Waiting>,
    counters: Counters,
    table: Arc<Table>,
    out: mpsc::UnboundedSender<Discovered>,
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

/// What a cluster asks for.
struct Service {
    items: Vec<Item>,
    is_wanted: bool,
    /// Until when it is looked up although it is not wanted.
    lease: Instant,
    /// What was found last; `None` before anything is known.
    endpoints: Option<Vec<Endpoint>>,
}

/// A part of a service.
enum Item {
    Known(Endpoint),
    Name { discovery: DnsDiscovery, template: Endpoint, question: Arc<Question> },
}

/// A request for endpoints that are not all known yet.
struct Waiting {
    services: Vec<Arc<str>>,
    until: Instant,
    done: oneshot::Sender<Known>,
}

impl Service {
    fn new(query: DnsQuery) -> Service {
        let named = |discovery: DnsDiscovery, template: Endpoint| {
            let question = Arc::new(Question::new(&discovery));
            Item::Name { discovery, template, question }
        };
        let item = |endpoint: Endpoint| match &endpoint.address {
            Address::Host(name, port) => named(DnsDiscovery::new(name, *port), endpoint),
            _ => Item::Known(endpoint),
        };
        let items = match query {
            DnsQuery::Name(discovery) => {
                let template = Endpoint::new(Address::Host("".into(), 0), 1);
                vec![named(discovery, template)]
            }
            DnsQuery::Endpoints(list) => list.into_iter().map(item).collect(),
        };
        Service { items, is_wanted: false, lease: Instant::now() + LEASE, endpoints: None }
    }

    fn questions(&self) -> impl Iterator<Item = (&Arc<Question>, OnEmpty)> {
        self.items.iter().filter_map(|item| match item {
            Item::Known(_) => None,
            Item::Name { question, discovery, .. } => Some((question, discovery.on_empty)),
        })
    }

    /// Its endpoints by what is known.
    fn composed(&self, names: &FxHashMap<Arc<Question>, Name>) -> Vec<Endpoint> {
        let mut all = Vec::new();
        for item in &self.items {
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
}

impl Finder {
    fn new(
        counters: Counters,
        table: Arc<Table>,
        out: mpsc::UnboundedSender<Discovered>,
        found: mpsc::UnboundedSender<Lookup>,
    ) -> Finder {
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
            pace: Pace::default(),
            running: 0,
            waiting: VecDeque::new(),
            counters,
            table,
            out,
            found,
        }
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Request>, mut results: mpsc::UnboundedReceiver<Lookup>) {
        let mut watcher = Watcher::new(Arc::default());
        self.watch(&mut watcher);
        loop {
            let next = self.start_due();
            let waiting = self.waiting.iter().map(|waiting| waiting.until).min();
            let next = [next, waiting].into_iter().flatten().min();
            tokio::select! {
                request = inbox.recv() => match request {
                    Some(Request::Configure(config)) => {
                        if self.config != config {
                            self.config = config;
                            self.watch(&mut watcher);
                            self.reset(System::read(&self.config));
                        }
                    }
                    Some(request) => self.handle(request),
                    None => return,
                },
                Some((question, result)) = results.recv() => self.finished(&question, result),
                () = watcher.changed() => {
                    self.watch(&mut watcher);
                    if let Some(system) = self.system.read_again(&self.config) {
                        self.reset(system);
                    }
                }
                () = at(next) => self.answer_waiting(Instant::now()),
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn watch(&self, watcher: &mut Watcher) {
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

    fn handle(&mut self, request: Request) {
        match request {
            Request::Configure(_) => {}
            Request::Want(service) => {
                self.add(&service);
                if let Some(entry) = self.services.get_mut(&service) {
                    entry.is_wanted = true;
                    if let Some(endpoints) = entry.endpoints.clone() {
                        let _ = self.out.send(Discovered { service, endpoints, arrived: Instant::now() });
                    }
                }
            }
            Request::Unwant(service) => self.remove(&service),
            Request::Endpoints { services, wait, done } => {
                let now = Instant::now();
                let over: Vec<_> = self.services.iter().filter(|(_, s)| !s.is_wanted && s.lease < now).collect();
                let over: Vec<_> = over.into_iter().map(|(name, _)| name.clone()).collect();
                over.iter().for_each(|service| self.remove(service));
                services.iter().for_each(|service| self.add(service));
                self.waiting.push_back(Waiting { services, until: now + wait, done });
                self.answer_waiting(now);
            }
        }
    }

    fn add(&mut self, service: &Arc<str>) {
        if let Some(known) = self.services.get_mut(service) {
            known.lease = Instant::now() + LEASE;
            return;
        }
        let query = match service.parse() {
            Ok(query) => query,
            Err(e) => {
                return tracing::error!(target: target::UPSTREAM, service = &**service, "not a service in DNS: {e}");
            }
        };
        let entry = Service::new(query);
        let questions: Vec<_> = entry.questions().map(|(question, _)| question.clone()).collect();
        self.services.insert(service.clone(), entry);
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
        self.update(service, Instant::now());
    }

    fn remove(&mut self, service: &Arc<str>) {
        let Some(entry) = self.services.remove(service) else { return };
        for (question, _) in entry.questions() {
            let Some(name) = self.names.get_mut(question) else { continue };
            name.users.retain(|user| user != service);
            if name.users.is_empty() {
                self.names.remove(question);
            }
        }
        self.table.remove(service);
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
    fn start_due(&mut self) -> Option<Instant> {
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
            let _ = found.send((question, result));
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
    fn finished(&mut self, question: &Arc<Question>, result: Result<Found, String>) {
        self.running -= 1;
        let (now, arrived) = (self.now(), Instant::now());
        let Some(name) = self.names.get_mut(question) else { return };
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
        self.schedule(question, wait);
        for service in &users {
            self.update(service, arrived);
        }
        self.answer_waiting(arrived);
    }

    /// Updates what is known of a service, and passes changes on.
    fn update(&mut self, service: &Arc<str>, arrived: Instant) {
        let Some(entry) = self.services.get(service) else { return };
        let names: Vec<&Name> = entry.questions().filter_map(|(question, _)| self.names.get(question)).collect();
        let wall = |at: Duration| SystemTime::now() - self.now().saturating_sub(at);
        let oldest = names.iter().map(|name| name.state.answered).min().flatten();
        let last = names.iter().filter_map(|name| name.state.error.clone()).max_by_key(|(at, _)| *at);
        let state = ServiceState {
            answered: oldest.map(wall),
            attempts: names.iter().map(|name| name.state.attempts).max().unwrap_or_default(),
            error: last.map(|(at, error)| (wall(at), error)),
        };
        self.table.set(service, state);
        let are_tried = names.iter().all(|name| name.is_tried);
        if !are_tried || !names.iter().any(|name| name.state.is_known()) {
            return;
        }
        let endpoints = entry.composed(&self.names);
        let Some(entry) = self.services.get_mut(service) else { return };
        if entry.endpoints.as_ref() == Some(&endpoints) {
            return;
        }
        let is_lost = endpoints.is_empty() && entry.endpoints.as_ref().is_some_and(|before| !before.is_empty());
        if is_lost {
            tracing::warn!(target: target::UPSTREAM, service = &**service, "no endpoints are left");
        }
        entry.endpoints = Some(endpoints.clone());
        if entry.is_wanted {
            let _ = self.out.send(Discovered { service: service.clone(), endpoints, arrived });
        }
    }

    /// Answers the requests for services that are all known, and those that have timed out.
    fn answer_waiting(&mut self, now: Instant) {
        let services = &self.services;
        let is_known = |service: &Arc<str>| services.get(service).is_none_or(|entry| entry.endpoints.is_some());
        let is_over = |waiting: &Waiting| waiting.until <= now || waiting.services.iter().all(is_known);
        let (over, left) = std::mem::take(&mut self.waiting).into_iter().partition::<VecDeque<_>, _>(is_over);
        self.waiting = left;
        for Waiting { services, done, .. } in over {
            let known = services.into_iter().filter_map(|service| {
                let entry = self.services.get(&service)?;
                let endpoints = entry.endpoints.clone().unwrap_or_else(|| entry.composed(&self.names));
                Some((service, endpoints))
            });
            let _ = done.send(known.collect());
        }
    }
}

/// Answers a question, within the limit.
async fn look_up(lookups: Result<Lookups, String>, question: &Question) -> Result<Found, String> {
    let late = |_| Err(format!("{}: no answer within {LOOKUP_TIME:?}", question.name()));
    timeout(LOOKUP_TIME, lookups?.answer(question)).await.unwrap_or_else(late)
}

/// Waits until this time; for ever without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
