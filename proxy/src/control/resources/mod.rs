//! The thread of the resources: it keeps the [store](super::store), receives what sources supply, and brings what is
//! accepted to the workers. Nothing slow happens here, and requests to the admin listener do not hold it up, so that a
//! change of endpoints reaches the workers within milliseconds.
//!
//! The configuration's files are built and applied elsewhere ([`reload`](super::reload), [`rollout`](super::rollout)); the
//! thread is told afterwards. It removes the clusters that files no longer have, since another source may supply them.
//! Listeners and filters of sources are built there too; [`build`] collects them.

mod build;
mod cluster_tls;
mod documents;
mod intake;
mod lane;
mod memory;
mod running;
mod shown;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::Value;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{JoinHandle, JoinSet, LocalSet, spawn_blocking, spawn_local},
    time::sleep_until,
};

pub(crate) use self::build::Occasion;
use self::{
    build::BuildLane,
    cluster_tls::LoadedTls,
    documents::Payload,
    lane::ClusterLane,
    memory::Kept,
    running::{Outputs, Running},
};
use super::{
    discovery::{Discovered, Discovery, SuppliedBy},
    source::{directory::Listing, http::Fetched},
    store::{Event, FieldError, Key, Kind, Outcome, Resource, SourceId, SourceOptions, Store, Transaction, View, Want},
    supplied::{Part, RefusedPart},
};
use crate::{
    config::{ConfigSource, model},
    observe::{Registry, target},
    upstream::Clusters,
    worker::mailbox::Mailbox,
};

/// How long a cluster of a source waits for its endpoints before it is used without.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// The shortest time between two writes to disk. What changes meanwhile is written together.
const KEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The time from a change to the write, if the last write was long ago: what belongs together often arrives together.
const KEEP_DELAY: Duration = Duration::from_millis(100);

/// What the thread is asked to do.
pub(crate) enum Request {
    /// The configuration's files were applied.
    Files {
        /// The files.
        files: Arc<ConfigSource>,
        /// The version of the configuration.
        version: u64,
        /// The sources that they name.
        sources: Vec<model::Source>,
        /// How long requests can use a cluster after it was removed.
        grace: Duration,
        /// Where sources with `keep: true` have their files; `None`: nowhere.
        cache: Option<PathBuf>,
        /// Notified when that is done.
        done: oneshot::Sender<()>,
    },
    /// Collect the listeners and filters of sources for a build.
    Plan(Occasion, oneshot::Sender<Option<Vec<Part>>>),
    /// A build is about to take effect.
    Commit(Commit),
    /// Describe all resources.
    Show(oneshot::Sender<Value>),
    /// Write changed resources to disk now.
    Keep(oneshot::Sender<()>),
}

/// A build that is about to take effect.
pub(crate) struct Commit {
    /// What was built.
    parts: Vec<Part>,
    /// What was left out.
    refused: Vec<RefusedPart>,
    /// Whether the build must have the newest candidates.
    must_be_current: bool,
    /// Receives the candidates that are no longer the newest ones; then the build must not take effect.
    superseded: oneshot::Sender<FxHashSet<Key>>,
}

/// A handle of the thread.
#[derive(Clone)]
pub(crate) struct Resources {
    requests: mpsc::UnboundedSender<Request>,
    /// Wakes the builder of configurations.
    wake: Arc<Notify>,
}

impl Resources {
    /// Starts the thread. `mailboxes` are those of the workers and of the health checks.
    ///
    /// # Errors The thread cannot be started.
    pub(crate) fn start(
        clusters: Arc<Clusters>,
        workers: usize,
        mailboxes: Vec<Arc<Mailbox>>,
        registry: &Registry,
        (discovery, mut discovered): (Discovery, mpsc::UnboundedReceiver<Discovered>),
    ) -> io::Result<Resources> {
        let (requests, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let lane = ClusterLane::new(clusters, workers, mailboxes);
        let (registry, wake) = (registry.clone(), Arc::<Notify>::default());
        let build = BuildLane::new(wake.clone());
        thread::Builder::new().name("tollgate-config".into()).spawn(move || {
            let ((documents, fetched), (listings, listed)) = (mpsc::channel(1), mpsc::channel(1));
            let keeper = Keeper::new(lane, build, registry, Outputs { documents, listings, discovery });
            LocalSet::new().block_on(&runtime, keeper.run(inbox, (fetched, listed, &mut discovered)));
        })?;
        Ok(Resources { requests, wake })
    }

    /// Tells that the configuration's files were applied, and waits until their clusters are in place.
    pub(crate) async fn applied(
        &self,
        files: Arc<ConfigSource>,
        version: u64,
        sources: Vec<model::Source>,
        grace: Duration,
        cache: Option<PathBuf>,
    ) {
        let (done, finished) = oneshot::channel();
        let _ = self.requests.send(Request::Files { files, version, sources, grace, cache, done });
        let _ = finished.await;
    }

    /// Describes all resources.
    pub(crate) async fn shown(&self) -> Value {
        let (answer, shown) = oneshot::channel();
        let _ = self.requests.send(Request::Show(answer));
        shown.await.unwrap_or_default()
    }

    /// Writes changed resources of sources with `keep: true` to disk.
    pub(crate) async fn keep(&self) {
        let (done, finished) = oneshot::channel();
        let _ = self.requests.send(Request::Keep(done));
        let _ = finished.await;
    }

    /// Ready when listeners or filters of sources may have to be built.
    pub(crate) async fn need_a_build(&self) {
        self.wake.notified().await;
    }

    /// Returns the listeners and filters of sources for the next build; `None` if nothing is to be built.
    pub(crate) async fn plan(&self, occasion: Occasion) -> Option<Vec<Part>> {
        let (answer, plan) = oneshot::channel();
        let _ = self.requests.send(Request::Plan(occasion, answer));
        plan.await.ok().flatten()
    }

    /// Enters a build that is about to take effect. Returns the candidates in it that are no longer the newest ones: then, if
    /// the build `must_be_current`, nothing is entered.
    pub(crate) async fn commit(
        &self,
        parts: Vec<Part>,
        refused: Vec<RefusedPart>,
        must_be_current: bool,
    ) -> FxHashSet<Key> {
        let (superseded, answer) = oneshot::channel();
        let _ = self.requests.send(Request::Commit(Commit { parts, refused, must_be_current, superseded }));
        answer.await.unwrap_or_default()
    }
}

/// The state of the thread.
struct Keeper {
    store: Store<Payload>,
    /// The moment from which the store's time counts.
    start: Instant,
    files: SourceId,
    /// The files that were applied last.
    applied: Option<Arc<ConfigSource>>,
    /// What finds endpoints, as a source of them.
    discovery: SourceId,
    /// The running sources by name.
    sources: FxHashMap<Arc<str>, Running>,
    lane: ClusterLane,
    build: BuildLane,
    /// Reads the certificates of clusters.
    certificates: JoinSet<LoadedTls>,
    registry: Registry,
    out: Outputs,
    grace: Duration,
    /// The main file's directory.
    dir: PathBuf,
    cache: Option<PathBuf>,
    /// When changed resources are to be written to disk.
    keep_at: Option<Instant>,
    /// When the last write began.
    kept_at: Option<Instant>,
    /// The last write.
    keeping: Option<JoinHandle<()>>,
    /// When the change that is being handled has arrived.
    since: Instant,
}

impl Keeper {
    fn new(lane: ClusterLane, build: BuildLane, registry: Registry, out: Outputs) -> Keeper {
        let mut store = Store::new(INITIAL_FETCH_TIMEOUT);
        let files = store.add_source("file", SourceOptions { rank: 0, ..SourceOptions::default() });
        let discovery = store.add_source("discovery", SourceOptions { rank: 1, subscribes: true, refetch: false });
        let start = Instant::now();
        let (sources, grace) = (FxHashMap::default(), Duration::ZERO);
        let (certificates, dir, cache) = (JoinSet::new(), PathBuf::new(), None);
        Keeper {
            store,
            start,
            files,
            applied: None,
            discovery,
            sources,
            lane,
            build,
            certificates,
            registry,
            out,
            grace,
            dir,
            cache,
            keep_at: None,
            kept_at: None,
            keeping: None,
            since: start,
        }
    }

    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Request>,
        (mut fetched, mut listed, discovered): (
            mpsc::Receiver<Fetched>,
            mpsc::Receiver<Listing>,
            &mut mpsc::UnboundedReceiver<Discovered>,
        ),
    ) {
        loop {
            let (deadline, keep_at) = (self.store.next_deadline().map(|at| self.start + at), self.keep_at);
            tokio::select! {
                request = inbox.recv() => match request {
                    Some(request) => self.handle(request),
                    None => return,
                },
                Some(document) = fetched.recv() => self.fetched(document),
                Some(listing) = listed.recv() => self.listed(listing),
                Some(Ok(loaded)) = self.certificates.join_next() => self.loaded(loaded),
                Some(discovered) = discovered.recv() => self.discovered(discovered),
                () = at(keep_at) => self.keep(),
                () = at(deadline) => {
                    self.since = Instant::now();
                    self.store.tick(self.now());
                    self.settle();
                }
            }
        }
    }

    /// The store's time.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Files { files, version, sources, grace, cache, done } => {
                self.since = Instant::now();
                (self.grace, self.cache) = (grace, cache);
                // Kept documents are read again, perhaps with another working directory.
                self.dir = std::path::absolute(files.dir()).unwrap_or_else(|_| files.dir().to_owned());
                self.reconcile(sources);
                self.apply_files(&files, version);
                let _ = done.send(());
            }
            Request::Plan(occasion, answer) => {
                let _ = answer.send(self.build.plan(&self.store, self.files, &occasion));
            }
            Request::Commit(commit) => self.commit(commit),
            Request::Show(answer) => {
                let lookups = &self.out.discovery.table;
                let _ = answer.send(shown::all(&self.store, &self.sources, &self.build, lookups, self.now()));
            }
            Request::Keep(done) => {
                self.keep();
                let keeping = self.keeping.take();
                spawn_local(async move {
                    if let Some(keeping) = keeping {
                        let _ = keeping.await;
                    }
                    let _ = done.send(());
                });
            }
        }
    }

    /// Enters a build that is about to take effect.
    fn commit(&mut self, commit: Commit) {
        let Commit { parts, refused, must_be_current, superseded } = commit;
        let older = build::superseded(&self.store, &parts);
        if older.is_empty() || !must_be_current {
            self.since = Instant::now();
            for (part, errors) in refused.iter().filter(|(part, _)| !part.is_candidate()) {
                let why = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                tracing::error!(target: target::CONFIG, "{} of a source is no longer in effect: {why}", part.key);
                let owner = self.sources.values_mut().find(|running| running.owns(part.source));
                owner.into_iter().for_each(|running| _ = running.refused.insert(part.key.clone()));
            }
            for (id, result) in self.build.enter(&parts, refused) {
                let now = self.now();
                self.store.commit(id, result, now);
            }
            self.settle();
            self.decided_later();
        }
        let _ = superseded.send(older);
    }

    /// Starts new sources and those that have changed, and forgets those that are gone with everything that they supplied.
    fn reconcile(&mut self, sources: Vec<model::Source>) {
        let kept = |name: &str| sources.iter().any(|source| source.name == name);
        let gone: Vec<_> = self.sources.keys().filter(|name| !kept(name)).cloned().collect();
        for name in gone {
            if let Some(running) = self.sources.remove(&name) {
                for id in running.files.values().chain([&running.id]) {
                    let _ = self.store.offer(documents::nothing(*id), self.now());
                    self.settle();
                }
            }
        }
        let dir = self.dir.clone();
        for source in sources {
            let name: Arc<str> = source.name.as_str().into();
            let started = match self.sources.get_mut(&name) {
                Some(running) if running.config == source => continue,
                Some(running) => {
                    running.config = source;
                    // Another server may have another state with the same ETag, and what the source may not supply so far
                    // is not kept.
                    running.version = None;
                    let started = running.start(&dir, &self.out);
                    let of_source: Vec<_> = running.files.values().chain([&running.id]).copied().collect();
                    let supplies = running.config.supplies.clone();
                    for id in of_source {
                        let _ = self.store.offer(documents::nothing_but(id, &supplies), self.now());
                    }
                    self.settle();
                    started
                }
                None => {
                    let id = self.store.add_source(name.clone(), SourceOptions { rank: 1, ..SourceOptions::default() });
                    let Ok(mut running) = Running::new(id, source, &self.registry) else { continue };
                    let kept = self
                        .cache
                        .as_deref()
                        .filter(|_| running.keeps())
                        .and_then(|dir| memory::load(dir, &running.config));
                    running.version = kept.as_ref().and_then(|kept| kept.version.clone());
                    self.sources.insert(name.clone(), running);
                    if let Some(kept) = kept {
                        self.recall(&name, kept);
                    }
                    let Some(running) = self.sources.get_mut(&name) else { continue };
                    if !running.refused.is_empty() {
                        running.version = None;
                    }
                    running.start(&dir, &self.out)
                }
            };
            let has_file = self.sources.get(&name).is_some_and(Running::keeps);
            if let Some(cache) = self.cache.as_deref().filter(|_| !has_file) {
                memory::forget(cache, &name);
            }
            if let Err(e) = started {
                tracing::error!(target: target::CONFIG, source = &*name, "the source cannot be used: {e}");
            }
        }
        let running = self.sources.values();
        self.out.discovery.table.set_sources(running.map(|running| {
            let kind = if running.config.directory.is_some() { "directory" } else { "http" };
            let status = running.status.clone();
            (status.name().clone(), SuppliedBy { kind, status })
        }));
    }

    /// Plans to write the resources of changed sources to disk.
    fn keep_soon(&mut self) {
        let soon = Instant::now() + KEEP_DELAY;
        let at = self.kept_at.map_or(soon, |kept_at| soon.max(kept_at + KEEP_INTERVAL));
        self.keep_at.get_or_insert(at);
    }

    /// Writes the resources of changed sources with `keep: true` to disk.
    fn keep(&mut self) {
        self.keep_at = None;
        let Some(cache) = &self.cache else { return };
        let mut changed = Vec::new();
        for running in self.sources.values_mut().filter(|running| running.is_changed) {
            running.is_changed = false;
            // Without a version, the next process asks for the whole state: what is refused now is not kept, and may be
            // acceptable then.
            let version = running.version.clone().filter(|_| running.refused.is_empty());
            let kept = Kept::of(&self.store, running, version);
            changed.push((kept, running.status.name().clone()));
        }
        if changed.is_empty() {
            return;
        }
        self.kept_at = Some(Instant::now());
        let (cache, before) = (cache.clone(), self.keeping.take());
        self.keeping = Some(spawn_local(async move {
            // Writes do not overtake each other.
            if let Some(before) = before {
                let _ = before.await;
            }
            let write = move || changed.into_iter().for_each(|(kept, name)| kept.store(&cache, &name));
            let _ = spawn_blocking(write).await;
        }));
    }

    fn apply_files(&mut self, files: &Arc<ConfigSource>, version: u64) {
        let (version, before): (Arc<str>, _) = (version.to_string().into(), self.applied.take());
        let batch = documents::of_files(files, before.as_deref(), &version, (self.files, self.discovery));
        match self.store.offer(batch, self.now()) {
            Ok(_) => self.applied = Some(files.clone()),
            // Names are unique within the files.
            Err(e) => {
                tracing::error!(target: target::CONFIG, "the store does not accept the configuration's files: {e}");
            }
        }
        self.settle();
        for (source, resource) in build::mended(&self.store, &self.build) {
            let _ = self.store.offer(documents::again(source, &resource), self.now());
        }
        self.settle();
    }

    /// Builds what is ready, and carries out what the store decides.
    fn settle(&mut self) {
        while let Some(transaction) = self.store.next_ready() {
            let Some(result) = self.build(&transaction) else { continue };
            let now = self.now();
            self.store.commit(transaction.id, result, now);
        }
        while let Some(event) = self.store.next_event() {
            match event {
                Event::Verdict { source, key, outcome, .. } => self.note(source, key, outcome),
                Event::Removed(Key { kind: Kind::Cluster, name }) => {
                    self.lane.remove_cluster(&name, self.grace, self.since);
                }
                Event::Wants { source: Some(source), key, want } if source == self.discovery => match want {
                    Want::More | Want::Again => self.out.discovery.want(&key.name),
                    Want::NoMore => self.out.discovery.unwant(&key.name),
                },
                Event::Removed(Key { kind: Kind::Endpoints, name }) => self.lane.set_endpoints(&name, &[], self.since),
                Event::Removed(key) => self.build.removed(&key),
                _ => {}
            }
        }
        // What was refused may be gone.
        let (store, build) = (&self.store, &self.build);
        for running in self.sources.values_mut() {
            let Running { id, files, refused, .. } = running;
            let is_own = |source: SourceId| *id == source || files.values().any(|file| *file == source);
            let is_refused = |key: &Key| {
                let has_own = |view: View<'_, _>| view.candidates.iter().any(|c| is_own(c.source));
                build.error(key).is_some() || store.view(key).is_some_and(has_own)
            };
            refused.retain(is_refused);
        }
        self.lane.flush();
    }

    /// Notes a verdict about a resource of a source.
    fn note(&mut self, source: SourceId, key: Key, outcome: Outcome) {
        let Some(running) = self.sources.values_mut().find(|running| running.owns(source)) else { return };
        match outcome {
            Outcome::Refused(why) => {
                let name = running.status.name();
                let file =
                    running.files.iter().find(|(_, id)| **id == source).map(|(path, _)| path.display().to_string());
                tracing::warn!(target: target::CONFIG, source = &**name, file, "{key} refused: {why}");
                running.refused.insert(key);
            }
            Outcome::Warming => {}
            _ => _ = running.refused.remove(&key),
        }
    }

    /// Makes what a transaction sets. Returns `None` if that is done elsewhere.
    fn build(&mut self, transaction: &Transaction<Payload>) -> Option<build::Entered> {
        let is_built = transaction.source == self.files;
        let mut errors = Vec::new();
        for resource in &transaction.sets {
            match &*resource.payload {
                Payload::Cluster(config) => {
                    let endpoints = endpoints(&self.store, config);
                    if is_built {
                        self.lane.adopt(config, endpoints, self.since);
                        continue;
                    }
                    // Files are not read here.
                    if config.tls.is_some() {
                        self.load_tls(transaction.id, resource.clone());
                        return None;
                    }
                    self.lane.set_cluster(config, None, endpoints, self.since);
                }
                Payload::Endpoints(list) => self.lane.set_endpoints(&resource.key.name, list, self.since),
                // It is the only resource of its transaction.
                Payload::Part(_) => {
                    let wrong = self.missing_filters(transaction, resource);
                    if wrong.is_empty() && !self.build.has(resource) {
                        self.build.queue(transaction.source, resource, transaction.id);
                        return None;
                    }
                    errors.extend((!wrong.is_empty()).then(|| (resource.key.clone(), wrong)));
                }
                Payload::Built => {}
                Payload::Wrong(wrong) => errors.push((resource.key.clone(), wrong.clone())),
            }
        }
        Some(if errors.is_empty() { Ok(()) } else { Err(errors) })
    }

    /// Tells sources what was decided about resources after the verdict on their document.
    fn decided_later(&mut self) {
        for running in self.sources.values_mut() {
            running.status.set_refused(running.refused_in_documents());
            running.is_changed |= running.keeps();
        }
        if self.sources.values().any(|running| running.is_changed) {
            self.keep_soon();
        }
    }

    /// Returns an error for each filter of a source's listener that does not exist, or that another source supplies.
    fn missing_filters(&self, transaction: &Transaction<Payload>, listener: &Resource<Payload>) -> Vec<FieldError> {
        let running = self.sources.values().find(|running| running.owns(transaction.source));
        let error = |mut message| {
            if let Payload::Part(part) = &*listener.payload {
                part.conceal(&mut message);
            }
            FieldError { field: "chain".to_owned(), message }
        };
        let references = listener.references.iter().map(|reference| &reference.key);
        references
            .filter_map(|key| {
                let name = &key.name;
                let Some((supplier, _)) = self.store.view(key).and_then(|view| view.accepted) else {
                    return Some(error(format!("there is no filter named `{name}`")));
                };
                let may_use = supplier == self.files || running.is_some_and(|running| running.owns(supplier));
                let other = self.store.source_name(supplier)?;
                (!may_use).then(|| error(format!("filter `{name}` belongs to another source, `{other}`")))
            })
            .collect()
    }
}

/// Waits until this time; for ever without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// The endpoints that a source supplies for a cluster.
fn endpoints<'s>(store: &'s Store<Payload>, cluster: &model::Cluster) -> Option<&'s [model::Endpoint]> {
    match &*store.accepted(&Key::new(Kind::Endpoints, cluster.service()?))?.payload {
        Payload::Endpoints(list) => Some(list),
        _ => None,
    }
}
