//! The thread of the resources: it keeps the [store](super::store), receives what sources supply, and brings what is
//! accepted to the workers. Nothing slow happens here, and requests to the admin listener do not hold it up, so that a
//! change of endpoints reaches the workers within milliseconds.
//!
//! The configuration's files are built and applied elsewhere ([`reload`](super::reload), [`rollout`](super::rollout)); the
//! thread is told afterwards. It removes the clusters that files no longer have, since another source may supply them.

mod documents;
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

use rustc_hash::FxHashMap;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::sleep_until,
};

use self::{
    documents::Payload,
    lane::ClusterLane,
    memory::Kept,
    running::{Outputs, Running},
};
use super::{
    source::{
        directory::{FileState, Listing},
        http::{self, Fetched, Verdict},
    },
    store::{Event, FieldError, Key, Kind, Outcome, SourceId, SourceOptions, Store, Transaction},
};
use crate::{
    config::{ConfigSource, Format, Fragment, Loader, model},
    digest::{hex, sha256},
    observe::{Registry, target},
    tls::{self, ClientTls},
    upstream::Clusters,
    worker::mailbox::Mailbox,
};

/// How long a cluster of a source waits for its endpoints before it is used without.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// How long changes are collected before they are written to disk.
const KEEP_INTERVAL: Duration = Duration::from_secs(5);

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
    /// Describe all resources.
    Show(oneshot::Sender<Value>),
}

/// A handle of the thread.
#[derive(Clone)]
pub(crate) struct Resources(mpsc::UnboundedSender<Request>);

impl Resources {
    /// Starts the thread. `mailboxes` are those of the workers and of the health checks.
    ///
    /// # Errors The thread cannot be started.
    pub(crate) fn start(
        clusters: Arc<Clusters>,
        workers: usize,
        mailboxes: Vec<Arc<Mailbox>>,
        registry: &Registry,
    ) -> io::Result<Resources> {
        let (requests, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let lane = ClusterLane::new(clusters, workers, mailboxes);
        let registry = registry.clone();
        thread::Builder::new().name("tollgate-resources".into()).spawn(move || {
            let ((documents, fetched), (listings, listed)) = (mpsc::channel(1), mpsc::channel(1));
            let keeper = Keeper::new(lane, registry, Outputs { documents, listings });
            LocalSet::new().block_on(&runtime, keeper.run(inbox, fetched, listed));
        })?;
        Ok(Resources(requests))
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
        let _ = self.0.send(Request::Files { files, version, sources, grace, cache, done });
        let _ = finished.await;
    }

    /// Describes all resources.
    pub(crate) async fn shown(&self) -> Value {
        let (answer, shown) = oneshot::channel();
        let _ = self.0.send(Request::Show(answer));
        shown.await.unwrap_or_default()
    }
}

/// The state of the thread.
struct Keeper {
    store: Store<Payload>,
    /// The moment from which the store's time counts.
    start: Instant,
    files: SourceId,
    /// The running sources by name.
    sources: FxHashMap<Arc<str>, Running>,
    lane: ClusterLane,
    registry: Registry,
    out: Outputs,
    grace: Duration,
    cache: Option<PathBuf>,
    /// When changed resources are to be written to disk.
    keep_at: Option<Instant>,
    /// When the change that is being handled has arrived.
    since: Instant,
}

impl Keeper {
    fn new(lane: ClusterLane, registry: Registry, out: Outputs) -> Keeper {
        let mut store = Store::new(INITIAL_FETCH_TIMEOUT);
        let files = store.add_source("file", SourceOptions { rank: 0, ..SourceOptions::default() });
        let start = Instant::now();
        let (sources, grace) = (FxHashMap::default(), Duration::ZERO);
        let (cache, keep_at) = (None, None);
        Keeper { store, start, files, sources, lane, registry, out, grace, cache, keep_at, since: start }
    }

    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Request>,
        mut fetched: mpsc::Receiver<Fetched>,
        mut listed: mpsc::Receiver<Listing>,
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
                self.reconcile(sources, &files);
                self.apply_files(&files, version);
                let _ = done.send(());
            }
            Request::Show(answer) => _ = answer.send(shown::all(&self.store, &self.sources, self.now())),
        }
    }

    /// Starts new sources and those that have changed, and forgets those that are gone with everything that they supplied.
    fn reconcile(&mut self, sources: Vec<model::Source>, files: &ConfigSource) {
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
        let dir = files.resolve("");
        for source in sources {
            let name: Arc<str> = source.name.as_str().into();
            let started = match self.sources.get_mut(&name) {
                Some(running) if running.config == source => continue,
                Some(running) => {
                    running.config = source;
                    running.start(&dir, &self.out)
                }
                None => {
                    let id = self.store.add_source(name.clone(), SourceOptions { rank: 1, ..SourceOptions::default() });
                    let Ok(mut running) = Running::new(id, source, &self.registry) else { continue };
                    let kept =
                        self.cache.as_deref().filter(|_| running.keeps()).and_then(|dir| memory::load(dir, &name));
                    running.version = kept.as_ref().and_then(|kept| kept.version.clone());
                    let started = running.start(&dir, &self.out);
                    self.sources.insert(name.clone(), running);
                    if let Some(kept) = kept {
                        self.recall(&name, kept);
                    }
                    started
                }
            };
            if let Err(e) = started {
                tracing::error!(target: target::CONFIG, source = &*name, "the source cannot be used: {e}");
            }
        }
    }

    /// Offers what an earlier process has kept of a source.
    fn recall(&mut self, name: &Arc<str>, kept: memory::Content) {
        let document = kept.document.to_string();
        match self.offer(name, document, Format::Json, kept.version.as_deref().unwrap_or("kept").into(), false) {
            Ok(_) => tracing::info!(target: target::CONFIG, source = &**name, "resources of an earlier run are used"),
            Err(e) => tracing::warn!(target: target::CONFIG, source = &**name, "resources of an earlier run: {e}"),
        }
    }

    /// Writes the resources of changed sources with `keep: true` to disk.
    fn keep(&mut self) {
        self.keep_at = None;
        let Some(cache) = &self.cache else { return };
        for running in self.sources.values_mut().filter(|running| running.is_changed) {
            running.is_changed = false;
            let kept = Kept::of(&self.store, running.id, running.version.clone());
            let (cache, name) = (cache.clone(), running.status.name().clone());
            tokio::task::spawn_blocking(move || kept.store(&cache, &name));
        }
    }

    fn apply_files(&mut self, files: &ConfigSource, version: u64) {
        let version: Arc<str> = version.to_string().into();
        if let Err(e) = self.store.offer(documents::of_files(files, &version, self.files), self.now()) {
            // Names are unique within the files.
            tracing::error!(target: target::CONFIG, "the store does not accept the configuration's files: {e}");
        }
        self.settle();
    }

    /// Handles a document of a source.
    fn fetched(&mut self, document: Fetched) {
        self.since = document.arrived.into_std();
        let Fetched { source, body, format, etag, is_delta, verdict, .. } = document;
        let version: Arc<str> = match &etag {
            Some(etag) => etag.as_str().into(),
            None => hex(&sha256(&body))[..16].into(),
        };
        let format = match format {
            http::Format::Json => Format::Json,
            http::Format::Yaml => Format::Yaml,
        };
        let text = String::from_utf8(body.into()).map_err(|e| e.to_string());
        let offered = text.and_then(|text| self.offer(&source, text, format, version, is_delta));
        if let Some(running) = self.sources.get_mut(&source).filter(|running| running.keeps() && offered.is_ok()) {
            (running.version, running.is_changed) = (etag, true);
            self.keep_at.get_or_insert_with(|| Instant::now() + KEEP_INTERVAL);
        }
        // The source may have ended.
        let _ = verdict.send(match offered {
            Ok(refused) => Verdict::Applied { refused },
            Err(why) => Verdict::Unusable(why),
        });
    }

    /// Offers a document to the store. Returns the names of the source's refused resources, or why the document is
    /// unusable.
    fn offer(
        &mut self,
        name: &Arc<str>,
        text: String,
        format: Format,
        version: Arc<str>,
        is_delta: bool,
    ) -> Result<Vec<String>, String> {
        let Some(running) = self.sources.get(name) else { return Err("the source was removed".to_owned()) };
        let id = running.id;
        // Documents come from other machines: they cannot name this machine's environment variables.
        let loader = Loader::default().env(|_| None);
        let fragment = loader.fragment(name, text, format).map_err(|wrong| wrong.to_string())?;
        if !is_delta && !fragment.removed.is_empty() {
            return Err("a full state has no `removed`: what it lacks is removed".to_owned());
        }
        self.enter(name, id, fragment, &version, is_delta)?;
        let refused = self.sources.get(name).map(|running| running.refused.iter().map(in_document).collect());
        Ok(refused.unwrap_or_default())
    }

    /// Handles changed files of a source's directory.
    fn listed(&mut self, listing: Listing) {
        let Listing { source, files, arrived } = listing;
        self.since = arrived.into_std();
        for (path, state) in files {
            let Some(running) = self.sources.get_mut(&source) else { return };
            let name = path.display().to_string();
            let id = *running.files.entry(path).or_insert_with(|| {
                self.store.add_source(name.as_str(), SourceOptions { rank: 1, ..SourceOptions::default() })
            });
            let entered = match state {
                FileState::Gone => self.enter(&source, id, Fragment::default(), &"".into(), false),
                FileState::Text(text, format) => {
                    let version: Arc<str> = hex(&sha256(text.as_bytes()))[..16].into();
                    let fragment = Loader::default().fragment(&name, text, format).map_err(|wrong| wrong.to_string());
                    fragment.and_then(|fragment| self.enter(&source, id, fragment, &version, false))
                }
            };
            if let Err(why) = entered {
                tracing::warn!(target: target::CONFIG, source = &*source, "{name} cannot be used: {why}");
                self.sources.get(&source).iter().for_each(|running| running.status.failed(why.clone()));
            }
        }
    }

    /// Offers resources to the store. `id`: the source, or one of its files.
    fn enter(
        &mut self,
        name: &Arc<str>,
        id: SourceId,
        fragment: Fragment,
        version: &Arc<str>,
        is_delta: bool,
    ) -> Result<(), String> {
        let Some(running) = self.sources.get(name) else { return Err("the source was removed".to_owned()) };
        let batch = documents::of_document(fragment, (id, name), version, &running.config.supplies, is_delta);
        self.store.offer(batch, self.now()).map_err(|e| e.to_string())?;
        self.settle();
        Ok(())
    }

    /// Builds what is ready, and carries out what the store decides.
    fn settle(&mut self) {
        while let Some(transaction) = self.store.next_ready() {
            let (id, result) = (transaction.id, self.build(&transaction));
            let now = self.now();
            self.store.commit(id, result, now);
        }
        while let Some(event) = self.store.next_event() {
            match event {
                Event::Verdict { source, key, outcome, .. } => self.note(source, key, outcome),
                Event::Removed(Key { kind: Kind::Cluster, name }) => {
                    self.lane.remove_cluster(&name, self.grace, self.since);
                }
                Event::Removed(Key { kind: Kind::Endpoints, name }) => self.lane.set_endpoints(&name, &[], self.since),
                _ => {}
            }
        }
        // What was refused may be gone.
        let store = &self.store;
        for running in self.sources.values_mut() {
            let Running { id, files, refused, .. } = running;
            let is_own = |source: SourceId| *id == source || files.values().any(|file| *file == source);
            let is_refused =
                |key: &Key| store.view(key).is_some_and(|view| view.candidates.iter().any(|c| is_own(c.source)));
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
                tracing::warn!(target: target::CONFIG, source = &**name, "{key} refused: {why}");
                running.refused.insert(key);
            }
            Outcome::Warming => {}
            _ => _ = running.refused.remove(&key),
        }
    }

    /// Makes what a transaction sets.
    fn build(&mut self, transaction: &Transaction<Payload>) -> Result<(), Vec<(Key, Vec<FieldError>)>> {
        let is_built = transaction.source == self.files;
        let mut errors = Vec::new();
        for resource in &transaction.sets {
            match &*resource.payload {
                Payload::Cluster(config) => {
                    let endpoints = config.service().and_then(|service| self.store.accepted(&endpoints_of(service)));
                    let endpoints = endpoints.and_then(|resource| match &*resource.payload {
                        Payload::Endpoints(list) => Some(&list[..]),
                        _ => None,
                    });
                    if is_built {
                        self.lane.adopt(config, endpoints, self.since);
                        continue;
                    }
                    match client_tls(config) {
                        Ok(tls) => self.lane.set_cluster(config, tls, endpoints, self.since),
                        Err(wrong) => errors.push((resource.key.clone(), wrong)),
                    }
                }
                Payload::Endpoints(list) => self.lane.set_endpoints(&resource.key.name, list, self.since),
                Payload::Built => {}
                Payload::Wrong(wrong) => errors.push((resource.key.clone(), wrong.clone())),
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// Waits until this time; for ever without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// The name of a resource as documents have it.
fn in_document(key: &Key) -> String {
    match key.kind {
        Kind::Endpoints => format!("endpoints/{}", key.name),
        kind => format!("{kind}s/{}", key.name),
    }
}

fn endpoints_of(service: &str) -> Key {
    Key::new(Kind::Endpoints, service)
}

/// Loads the TLS settings of a source's cluster.
fn client_tls(config: &model::Cluster) -> Result<Option<Arc<ClientTls>>, Vec<FieldError>> {
    let Some(section) = &config.tls else { return Ok(None) };
    let resolve = |path: &std::path::Path| path.to_owned();
    let mut loader = tls::Loader::new(&resolve);
    let protocols = super::certificates::wanted(config.protocol);
    let loaded = ClientTls::load(section, &config.name, protocols, &mut loader, None);
    let errors = |problems: Vec<tls::FieldError>| {
        problems
            .into_iter()
            .map(|problem| FieldError { field: format!("tls.{}", problem.field), message: problem.error.to_string() })
    };
    loaded.map(Some).map_err(|problems| errors(problems).collect())
}
