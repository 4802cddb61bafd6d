//! The thread of the resources: it keeps the [store](super::store), receives what sources supply, and brings what is
//! accepted to the workers. Nothing slow happens here, and requests to the admin listener do not hold it up, so that a
//! change of endpoints reaches the workers within milliseconds.
//!
//! The configuration's files are built and applied elsewhere ([`reload`](super::reload), [`rollout`](super::rollout)); the
//! thread is told afterwards. It removes the clusters that files no longer have, since another source may supply them.

mod documents;
mod lane;
mod shown;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::sleep_until,
};

use self::{documents::Payload, lane::ClusterLane};
use super::store::{Event, FieldError, Key, Kind, Outcome, SourceId, SourceOptions, Store, Transaction};
use crate::{
    config::{ConfigSource, Format, Loader, model},
    digest::{hex, sha256},
    observe::target,
    tls::{self, ClientTls},
    upstream::Clusters,
    worker::mailbox::Mailbox,
};

/// How long a cluster of a source waits for its endpoints before it is used without.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

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
        /// Notified when that is done.
        done: oneshot::Sender<()>,
    },
    /// A source has supplied a document.
    Document(Document),
    /// Describe all resources.
    Show(oneshot::Sender<Value>),
}

/// A document of a source.
pub(crate) struct Document {
    /// The name of the source.
    pub(crate) source: Arc<str>,
    /// The text.
    pub(crate) body: Bytes,
    /// Its format.
    pub(crate) format: Format,
    /// The version that the source gives it.
    pub(crate) version: Option<Arc<str>>,
    /// Whether it has only what has changed.
    pub(crate) is_delta: bool,
    /// When it arrived.
    pub(crate) arrived: Instant,
    /// Gets the names of refused resources, such as `clusters/web`, or why the document is unusable.
    pub(crate) reply: oneshot::Sender<Result<Vec<String>, String>>,
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
    ) -> io::Result<Resources> {
        let (requests, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let lane = ClusterLane::new(clusters, workers, mailboxes);
        thread::Builder::new().name("tollgate-resources".into()).spawn(move || {
            LocalSet::new().block_on(&runtime, Keeper::new(lane).run(inbox));
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
    ) {
        let (done, finished) = oneshot::channel();
        let _ = self.0.send(Request::Files { files, version, sources, grace, done });
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
    grace: Duration,
    /// When the change that is being handled has arrived.
    since: Instant,
}

/// A source.
struct Running {
    id: SourceId,
    config: model::Source,
}

impl Keeper {
    fn new(lane: ClusterLane) -> Keeper {
        let mut store = Store::new(INITIAL_FETCH_TIMEOUT);
        let files = store.add_source("file", SourceOptions { rank: 0, ..SourceOptions::default() });
        let start = Instant::now();
        let (sources, grace) = (FxHashMap::default(), Duration::ZERO);
        Keeper { store, start, files, sources, lane, grace, since: start }
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Request>) {
        loop {
            let deadline = self.store.next_deadline().map(|at| self.start + at);
            let over = async {
                match deadline {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = inbox.recv() => match request {
                    Some(request) => self.handle(request),
                    None => return,
                },
                () = over => {
                    self.since = Instant::now();
                    self.store.tick(self.now());
                    self.settle(None);
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
            Request::Files { files, version, sources, grace, done } => {
                self.since = Instant::now();
                self.grace = grace;
                self.reconcile(sources);
                self.apply_files(&files, version);
                let _ = done.send(());
            }
            Request::Document(document) => {
                self.since = document.arrived;
                let result = self.document(&document);
                let _ = document.reply.send(result);
            }
            Request::Show(answer) => _ = answer.send(shown::resources(&self.store, self.now())),
        }
    }

    /// Starts new sources, and forgets those that are gone with everything that they supplied.
    fn reconcile(&mut self, sources: Vec<model::Source>) {
        let kept = |name: &str| sources.iter().any(|source| source.name == name);
        let gone: Vec<_> = self.sources.keys().filter(|name| !kept(name)).cloned().collect();
        for name in gone {
            if let Some(Running { id, .. }) = self.sources.remove(&name) {
                let nothing = documents::nothing(id);
                let _ = self.store.offer(nothing, self.now());
                self.settle(None);
            }
        }
        for source in sources {
            let name: Arc<str> = source.name.as_str().into();
            match self.sources.get_mut(&name) {
                Some(running) => running.config = source,
                None => {
                    let id = self.store.add_source(name.clone(), SourceOptions { rank: 1, ..SourceOptions::default() });
                    self.sources.insert(name, Running { id, config: source });
                }
            }
        }
    }

    fn apply_files(&mut self, files: &ConfigSource, version: u64) {
        let version: Arc<str> = version.to_string().into();
        if let Err(e) = self.store.offer(documents::of_files(files, &version, self.files), self.now()) {
            // Names are unique within the files.
            tracing::error!(target: target::CONFIG, "the store does not accept the configuration's files: {e}");
        }
        self.settle(None);
    }

    /// Offers a document to the store. Returns the names of refused resources, or why the document is unusable.
    fn document(&mut self, document: &Document) -> Result<Vec<String>, String> {
        let Document { source: name, body, format, version, is_delta, .. } = document;
        let Some(running) = self.sources.get(name) else { return Err("the source was removed".to_owned()) };
        let text = String::from_utf8(body.to_vec()).map_err(|e| e.to_string())?;
        // Documents come from other machines: they cannot name this machine's environment variables.
        let loader = Loader::default().env(|_| None);
        let fragment = loader.fragment(name, text, *format).map_err(|wrong| wrong.to_string())?;
        if !is_delta && !fragment.removed.is_empty() {
            return Err("a full state has no `removed`: what it lacks is removed".to_owned());
        }
        let version = version.clone().unwrap_or_else(|| hex(&sha256(body))[..16].into());
        let origin = (running.id, name);
        let batch = documents::of_document(fragment, origin, &version, &running.config.supplies, *is_delta);
        let id = running.id;
        self.store.offer(batch, self.now()).map_err(|e| e.to_string())?;
        Ok(self.settle(Some(id)))
    }

    /// Builds what is ready, and carries out what the store decides. Returns the names of resources that were refused of
    /// the source `of`.
    fn settle(&mut self, of: Option<SourceId>) -> Vec<String> {
        while let Some(transaction) = self.store.next_ready() {
            let (id, result) = (transaction.id, self.build(&transaction));
            let now = self.now();
            self.store.commit(id, result, now);
        }
        let mut refused = Vec::new();
        while let Some(event) = self.store.next_event() {
            match event {
                Event::Verdict { source, key, outcome: Outcome::Refused(why), .. } => {
                    if source != self.files {
                        let name = self.store.source_name(source).cloned().unwrap_or_default();
                        tracing::warn!(target: target::CONFIG, source = &*name, "{key} refused: {why}");
                    }
                    if of == Some(source) {
                        refused.push(match key.kind {
                            Kind::Endpoints => format!("endpoints/{}", key.name),
                            _ => format!("{}s/{}", key.kind, key.name),
                        });
                    }
                }
                Event::Removed(Key { kind: Kind::Cluster, name }) => {
                    self.lane.remove_cluster(&name, self.grace, self.since);
                }
                Event::Removed(Key { kind: Kind::Endpoints, name }) => self.lane.set_endpoints(&name, &[], self.since),
                _ => {}
            }
        }
        self.lane.flush();
        refused
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
