//! Endpoints of Kubernetes services, from EndpointSlices.
//!
//! There is one watch per namespace, which all clusters with a service in this namespace share. A watch per service would
//! cost the API server a connection and a filter each, and one for the whole Kubernetes cluster would need the right to read
//! all namespaces, and would send the changes of services that the proxy has nothing to do with. With one per namespace, a
//! `Role` is enough, and a cluster whose service was added to the configuration has its endpoints at once.
//!
//! `client` carries requests; `namespace` decides what to ask and keeps what is known; `slice` reads what the server sends,
//! and `lines` splits it; `endpoints` turns the slices of a service into endpoints. Here they are put together.

mod client;
mod endpoints;
mod lines;
mod namespace;
mod slice;

#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_local},
    time::{Instant, sleep, timeout_at},
};

use self::{
    client::{Access, ApiServer},
    endpoints::{Place, endpoints, states},
    lines::Lines,
    namespace::{Ask, Failure, FailureKind, Namespace},
    slice::{Event, List},
};
use super::{
    Settings, empty,
    watches::{Answer, Reporter},
};
use crate::{
    alloc,
    config::model::{Kubernetes, KubernetesDiscovery},
    outbound::Dial,
};

/// The range of times after which the server ends a watch, so that a server that has silently stopped sending is noticed, a
/// replaced token is used, and many proxies do not begin new watches at the same time.
const WATCH_TIME: [Duration; 2] = [Duration::from_secs(120), Duration::from_secs(180)];

/// The time after which a watch that the server should have ended has failed.
const WATCH_GRACE: Duration = Duration::from_secs(15);

/// All namespaces that are watched.
pub(super) struct Namespaces {
    settings: Kubernetes,
    /// The proxy's zone; empty: unknown.
    zone: String,
    /// The directory of relative paths.
    dir: PathBuf,
    all: RefCell<FxHashMap<String, Weak<Watched>>>,
}

/// A namespace that is watched until the last user drops it.
struct Watched {
    name: String,
    shared: Rc<Shared>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the watch of a namespace shares with its users.
#[derive(Default)]
struct Shared {
    namespace: RefCell<Namespace>,
    /// The users by service.
    users: RefCell<FxHashMap<Arc<str>, Vec<Weak<User>>>>,
}

/// A cluster's interest in a service.
#[derive(Default)]
struct User {
    /// Whether the server has confirmed what is known, or has changed it.
    is_confirmed: Cell<bool>,
    has_failed: Cell<bool>,
    woken: Notify,
}

impl Namespaces {
    /// Watches no namespace yet.
    pub(super) fn new(settings: &Settings) -> Rc<Namespaces> {
        let Settings { kubernetes, node, dir, .. } = settings.clone();
        let zone = node.map(|node| node.zone).unwrap_or_default();
        Rc::new(Namespaces { settings: kubernetes, zone, dir, all: RefCell::default() })
    }

    /// Whether these are its settings.
    pub(super) fn is_for(&self, settings: &Settings) -> bool {
        let Settings { kubernetes, node, dir, .. } = settings;
        let zone = node.as_ref().map_or("", |node| &node.zone);
        self.settings == *kubernetes && self.zone == zone && self.dir == *dir
    }

    /// Watches a namespace, unless it is watched already.
    fn watch(&self, namespace: Option<&str>) -> Result<Rc<Watched>, String> {
        let access = Access::of(&self.settings)?;
        let name = match namespace {
            Some(name) => name.to_owned(),
            None => access.namespace.clone()?,
        };
        let mut all = self.all.borrow_mut();
        if let Some(watched) = all.get(&name).and_then(Weak::upgrade) {
            return Ok(watched);
        }
        let watched = Watched::start(name, access.client(&self.dir));
        all.retain(|_, watched| watched.strong_count() > 0);
        all.insert(watched.name.clone(), Rc::downgrade(&watched));
        Ok(watched)
    }
}

/// Reports the endpoints of a service whenever they may have changed.
pub(super) async fn watch(wanted: KubernetesDiscovery, namespaces: Rc<Namespaces>, reporter: Reporter) {
    let watched = loop {
        match namespaces.watch(wanted.namespace.as_deref()) {
            Ok(watched) => break watched,
            Err(error) => reporter.failed(error),
        }
        // The files of a service account may appear later.
        sleep(empty::RETRY).await;
    };
    let mut subscription = Subscription::new(wanted, watched);
    loop {
        match subscription.next(&namespaces).await {
            Ok(answer) => reporter.answered(answer),
            Err(error) => reporter.failed(error),
        }
    }
}

/// A cluster's interest in a service.
struct Subscription {
    wanted: KubernetesDiscovery,
    watched: Rc<Watched>,
    user: Rc<User>,
    /// Whether the last answer was empty, so that it is repeated.
    is_empty: bool,
}

impl Subscription {
    fn new(wanted: KubernetesDiscovery, watched: Rc<Watched>) -> Subscription {
        let user = watched.shared.join(&wanted.service);
        Subscription { wanted, watched, user, is_empty: false }
    }

    /// Waits for the next answer, changed or not, or failure. An empty answer is repeated while the watch works: the rule of
    /// `on_empty` needs several.
    async fn next(&mut self, namespaces: &Namespaces) -> Result<Answer, String> {
        loop {
            if let Some(news) = self.news(namespaces) {
                self.is_empty = news.as_ref().is_ok_and(|answer| answer.endpoints.is_empty());
                return news;
            }
            tokio::select! {
                () = self.user.woken.notified() => {}
                () = sleep(empty::RETRY), if self.is_empty => {
                    if self.watched.shared.namespace.borrow().is_working() {
                        self.user.confirm();
                    }
                }
            }
        }
    }

    fn news(&self, namespaces: &Namespaces) -> Option<Result<Answer, String>> {
        let namespace = self.watched.shared.namespace.borrow();
        if self.user.is_confirmed.take() && namespace.is_known {
            let region = namespaces.settings.region.as_deref().unwrap_or_default();
            let place = Place { namespace: &self.watched.name, region, zone: &namespaces.zone };
            let slices = namespace.slices(&self.wanted.service);
            let states = states(slices.clone());
            return Some(Ok(match endpoints(&self.wanted, place, slices) {
                Ok(endpoints) => Answer { endpoints, note: None, states },
                Err(why) => Answer { endpoints: Vec::new(), note: Some(why.to_string()), states },
            }));
        }
        let error = namespace.error.as_ref().filter(|_| self.user.has_failed.take())?;
        Some(Err(error.to_string()))
    }
}

impl Watched {
    fn start<D: Dial + 'static>(name: String, server: ApiServer<D>) -> Rc<Watched> {
        let shared = Rc::<Shared>::default();
        let task = spawn_local(shared.clone().run(name.clone(), server)).abort_handle();
        Rc::new(Watched { name, shared, task })
    }
}

impl Shared {
    /// Adds a user of a service, which is woken when there is something to report.
    fn join(&self, service: &str) -> Rc<User> {
        let user = Rc::<User>::default();
        self.users.borrow_mut().entry(service.into()).or_default().push(Rc::downgrade(&user));
        user.confirm();
        if self.namespace.borrow().is_failing() {
            user.fail();
        }
        user
    }

    async fn run<D: Dial>(self: Rc<Self>, name: String, mut server: ApiServer<D>) {
        loop {
            let ask = self.namespace.borrow().next();
            let asked = match ask {
                Ask::List { .. } => self.list(&name, &mut server, &ask).await,
                Ask::Watch { .. } => self.follow(&name, &mut server, &ask).await,
            };
            if let Err(failure) = asked {
                server.close();
                let wait = self.namespace.borrow_mut().failed(&failure, fastrand::f64());
                if self.namespace.borrow().is_failing() {
                    self.each_user(User::fail);
                }
                sleep(wait).await;
            }
        }
    }

    /// Reads a page of a list.
    async fn list<D: Dial>(&self, name: &str, server: &mut ApiServer<D>, ask: &Ask) -> Result<(), Failure> {
        let page = server.list(name, ask).await?;
        let mut namespace = self.namespace.borrow_mut();
        namespace.listed(page)?;
        if matches!(namespace.next(), Ask::Watch { .. }) {
            drop(namespace);
            self.each_user(User::confirm);
            // The list may have been large.
            alloc::give_back();
        }
        Ok(())
    }

    /// Watches until the server ends the watch.
    async fn follow<D: Dial>(&self, name: &str, server: &mut ApiServer<D>, ask: &Ask) -> Result<(), Failure> {
        let [least, most] = WATCH_TIME;
        let time = Duration::from_secs(fastrand::u64(least.as_secs()..=most.as_secs()));
        let mut body = server.watch(name, ask, time).await?;
        let begun = Instant::now();
        let end = begun + time + WATCH_GRACE;
        self.namespace.borrow_mut().accepted();
        self.each_user(User::confirm);
        let (mut lines, mut had_events) = (Lines::default(), false);
        loop {
            let late = |_| Failure::new(FailureKind::NotNow, "the API server did not end a watch in time");
            let part = match timeout_at(end, body.next()).await.map_err(late)? {
                None => break,
                Some(part) => part.map_err(|error| server.not_now(error))?,
            };
            lines.push(&part);
            let (count, result) = self.events(&mut lines);
            had_events |= count > 0;
            result?;
        }
        self.namespace.borrow_mut().ended(begun.elapsed(), had_events)?;
        self.each_user(User::confirm);
        Ok(())
    }

    /// Takes all complete events, and then wakes the users of what has changed. Returns the number of events, and why the
    /// watch has failed after them.
    fn events(&self, lines: &mut Lines) -> (usize, Result<(), Failure>) {
        let (mut changed, mut count, mut had_bookmark) = (BTreeSet::new(), 0, false);
        let mut take = || -> Result<(), Failure> {
            while let Some(line) = lines.next()? {
                let event = Event::parse(&line)?;
                had_bookmark |= matches!(event, Event::Bookmark { .. });
                self.namespace.borrow_mut().event(event, &mut changed)?;
                count += 1;
            }
            Ok(())
        };
        let taken = take();
        if had_bookmark {
            self.each_user(User::confirm);
        } else {
            let users = self.users.borrow();
            let users = changed.iter().filter_map(|service| users.get(service)).flatten();
            users.filter_map(Weak::upgrade).for_each(|user| user.confirm());
        }
        (count, taken)
    }

    /// Calls a function for each user, and drops those that are gone.
    fn each_user(&self, mut call: impl FnMut(&User)) {
        self.users.borrow_mut().retain(|_, users| {
            users.retain(|user| match user.upgrade() {
                Some(user) => {
                    call(&user);
                    true
                }
                None => false,
            });
            !users.is_empty()
        });
    }
}

impl User {
    fn fail(&self) {
        self.has_failed.set(true);
        self.woken.notify_one();
    }

    fn confirm(&self) {
        self.is_confirmed.set(true);
        self.has_failed.set(false);
        self.woken.notify_one();
    }
}

/// What is known after a watch, for fuzz tests.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Replayed {
    /// The number of its events.
    pub events: usize,
    /// The last version.
    pub version: String,
    /// The addresses of each service.
    pub services: BTreeMap<String, Vec<String>>,
    /// The number of endpoints as it is counted.
    pub endpoints: usize,
    /// Why the watch has failed.
    pub error: Option<String>,
}

/// Applies a watch that arrives in these pieces to an empty namespace.
pub(crate) fn replay(pieces: &[&[u8]]) -> Replayed {
    let (shared, mut lines, mut error, mut events) = (Shared::default(), Lines::default(), None, 0);
    let list = List::parse(br#"{"kind":"EndpointSliceList","metadata":{"resourceVersion":"0"}}"#);
    let start = list.map_err(Failure::from).and_then(|list| shared.namespace.borrow_mut().listed(list));
    if let Err(failure) = start {
        error = Some(failure.text);
    }
    for piece in pieces {
        if error.is_none() {
            lines.push(piece);
            let (count, result) = shared.events(&mut lines);
            events += count;
            error = result.err().map(|failure| failure.text);
        }
    }
    let namespace = shared.namespace.borrow();
    let (services, endpoints) = namespace.all();
    let texts = |slices: &BTreeMap<Arc<str>, slice::Slice>| {
        slices.values().flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.ip.to_string()).collect()
    };
    let services = services.map(|(service, slices)| (service.to_string(), texts(slices))).collect();
    let version = namespace.version().unwrap_or_default().to_owned();
    Replayed { events, version, services, endpoints, error }
}
