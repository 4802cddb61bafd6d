//! The process: starts workers and the admin listener, applies changes, stops.

use std::{
    path::PathBuf,
    rc::Rc,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};

use super::{
    certificates,
    crew::{self, Urgency},
    snapshot::{Extent, Foundry, Made, Snapshot, Sockets, files},
    status::{Attempt, AttemptResult, Status},
    watch::{LATEST, QUIET, Watcher},
};
use crate::{
    admin, alloc,
    ca::{self, workload::Agent},
    config::{Diagnostics, Loaded, Loader},
    listener::worker::{self, Command, Delivery, Rebuild, WorkerHandle},
    observe::{access_log::Format, log::LogHandle},
    upstream::Checks,
    wasm::vm::Wanted,
};

/// A change that somebody wants.
pub struct Change {
    /// Why.
    pub cause: &'static str,
    /// Who wants to know what came of it.
    pub done: Option<oneshot::Sender<Attempt>>,
}

/// Reads a configuration, with all checks that need no filter.
pub fn load(path: &std::path::Path) -> Result<Loaded, Diagnostics> {
    Loader::default().access_log(|format| Format::parse(format).map(|_| ()).map_err(|e| e.to_string())).load(path)
}

/// Runs the proxy until it is told to stop.
pub fn run(path: PathBuf, loaded: Loaded, log: LogHandle) -> anyhow::Result<()> {
    // Where the system gives huge pages to everybody: see the feature of mimalloc's in Cargo.toml.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let server = Server::start(path, loaded, log).await?;
        server.run().await
    })
}

/// Where compiled filters are kept.
pub fn cache_dir(loaded: &Loaded) -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = loaded.config.cache_dir.clone().map(|dir| loaded.source.resolve(dir));
    let dir = dir.or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("tollgate")));
    let dir = dir.or_else(|| var("HOME").map(|d| d.join(".cache/tollgate")))?;
    // The cache wants to know where it is whatever the working directory is.
    std::path::absolute(dir).ok()
}

struct Server {
    path: PathBuf,
    foundry: Arc<Foundry>,
    checks: Checks,
    workers: Vec<WorkerHandle>,
    status: Rc<Status>,
    log: LogHandle,
    watcher: Option<Watcher>,
    changes: mpsc::Receiver<Change>,
    rebuilds: mpsc::UnboundedReceiver<Rebuild>,
    notes: Option<mpsc::Receiver<()>>,
    first: Option<Made>,
    /// What is wrong with the files, if they were refused.
    refusal: Option<String>,
    drain_timeout: Duration,
}

/// How often one is told again of what expires soon.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The cause of changes that come from the file watch.
const BY_FILE: &str = "file";

impl Server {
    async fn start(path: PathBuf, loaded: Loaded, log: LogHandle) -> anyhow::Result<Server> {
        let config = &loaded.config;
        let count = config.workers.count();
        let foundry = Arc::new(Foundry::new(count, cache_dir(&loaded).as_deref())?);
        let status = Rc::new(Status::new(&foundry.registry)?);
        foundry.show_clusters(status.current.clone())?;
        certificates::show(&foundry.registry, status.current.clone())?;
        let (changes, inbox) = mpsc::channel(8);
        let admin = config.admin.clone();
        if admin.enabled {
            let socket = std::net::TcpListener::bind(admin.address)
                .with_context(|| format!("cannot listen on {} (admin)", admin.address))?;
            socket.set_nonblocking(true)?;
            let state = Rc::new(admin::State {
                status: status.clone(),
                registry: foundry.registry.clone(),
                log: log.clone(),
                changes: changes.clone(),
                ca: ca::service::Service::open(&loaded, &foundry.registry)?,
            });
            tokio::task::spawn_local(admin::serve(tokio::net::TcpListener::from_std(socket)?, state));
        }
        let drain_timeout = config.drain_timeout.0;
        // The configuration may name the certificate's files. The admin listener is there already: it may be the one to ask.
        if let Some(workload) = Agent::new(&loaded, cache_dir(&loaded), &foundry.registry)? {
            workload.start().await?;
        }
        let made = crew::at_work(Urgency::Start, || foundry.make(loaded, None, Extent::Full))??;
        let (rebuild, rebuilds) = mpsc::unbounded_channel();
        let workers: std::io::Result<Vec<_>> = (0..count).map(|i| worker::start(i, rebuild.clone())).collect();
        let (watcher, notes) = match Watcher::new() {
            Ok((watcher, notes)) => (Some(watcher), Some(notes)),
            Err(e) => {
                tracing::warn!("files are not watched: {e}; SIGHUP and the admin API still reload");
                (None, None)
            }
        };
        Ok(Server {
            path,
            checks: Checks::new(foundry.registry.clone()),
            foundry,
            workers: workers.context("a worker cannot start")?,
            status,
            log,
            watcher,
            changes: inbox,
            rebuilds,
            notes,
            first: Some(made),
            refusal: None,
            drain_timeout,
        })
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        if let Some(made) = self.first.take() {
            made.snapshot.warnings.iter().for_each(|w| tracing::warn!("{}", w.message));
            let snapshot = self.apply(made).await;
            self.status.note("start", AttemptResult::Applied(snapshot.version));
            for listener in &snapshot.listeners {
                for address in listener.config.all_addresses() {
                    let scheme = listener.config.scheme();
                    let too = if listener.config.http3 && address.inet().is_some() { ", and HTTP/3" } else { "" };
                    tracing::info!("listener `{}` on {scheme}://{address}{too}", listener.config.name);
                }
            }
            // What starting took on this thread.
            alloc::give_back();
            tracing::info!(workers = self.workers.len(), hash = snapshot.hash, "ready");
        }
        let mut daily = tokio::time::interval_at((Instant::now() + DAY).into(), DAY);
        loop {
            let noted = async {
                match self.notes.as_mut() {
                    Some(notes) => notes.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    self.foundry.log_writer.reopen().iter().for_each(|e| tracing::error!("{e}"));
                    self.change("SIGHUP").await;
                }
                Some(()) = noted => {
                    self.settle().await;
                    self.change(BY_FILE).await;
                }
                Some(change) = self.changes.recv() => {
                    let attempt = self.change(change.cause).await;
                    if let (Some(done), Some(attempt)) = (change.done, attempt) {
                        let _ = done.send(attempt);
                    }
                }
                _ = daily.tick() => {
                    let current = self.status.current.load_full();
                    let soon = current.iter().flat_map(|snapshot| certificates::expiring(snapshot, SystemTime::now()));
                    soon.for_each(|warning| tracing::warn!("{warning}"));
                }
                Some(rebuild) = self.rebuilds.recv() => self.rebuild(rebuild),
            }
        }
        self.stop().await;
        Ok(())
    }

    /// Waits until the files have been quiet for a moment.
    async fn settle(&mut self) {
        let Some(notes) = self.notes.as_mut() else { return };
        let latest = Instant::now() + LATEST;
        while Instant::now() < latest && matches!(tokio::time::timeout(QUIET, notes.recv()).await, Ok(Some(()))) {}
    }

    /// Tries to put what the files say now in force. None: nobody need be told of it.
    async fn change(&mut self, cause: &'static str) -> Option<Attempt> {
        let (foundry, path, previous) = (self.foundry.clone(), self.path.clone(), self.status.current.load_full());
        let work = move || {
            let loaded = match load(&path) {
                Ok(loaded) => loaded,
                Err(wrong) => return (files(wrong.source()), Err(wrong)),
            };
            let wanted = files(&loaded.source);
            if previous.as_ref().is_some_and(|p| p.is_made_of(&loaded)) {
                return (wanted, Ok(None));
            }
            (wanted, foundry.make(loaded, previous.as_deref(), Extent::Full).map(Some))
        };
        let made = tokio::task::spawn_blocking(move || crew::at_work(Urgency::Reload, work));
        let (mut wanted, made) = match made.await {
            Ok(Ok((wanted, made))) => (wanted, Ok(made)),
            Ok(Err(e)) => (Vec::new(), Err(e.to_string())),
            Err(e) => (Vec::new(), Err(e.to_string())),
        };
        // Whatever comes of it: the ways to the files may be others now, and what is refused may be right as soon as one of
        // its modules is there.
        if let (Some(watcher), Some(current)) = (self.watcher.as_mut(), self.status.current.load_full()) {
            wanted.extend_from_slice(&current.files);
            watcher.watch(&wanted);
        }
        let result = match made {
            Ok(Ok(Some(made))) => {
                let Snapshot { loaded, warnings, .. } = &*made.snapshot;
                loaded.warnings.iter().chain(warnings).for_each(|w| tracing::warn!("{}", w.message));
                self.note_restarts(&made.snapshot);
                let snapshot = self.apply(made).await;
                tracing::info!(cause, version = snapshot.version, hash = snapshot.hash, "configuration in force");
                AttemptResult::Applied(snapshot.version)
            }
            Ok(Ok(None)) if cause == BY_FILE && self.refusal.is_none() => return None,
            Ok(Ok(None)) => AttemptResult::Unchanged,
            Ok(Err(wrong)) => {
                let text = wrong.render(false);
                // Files are looked at for many reasons; what is wrong with them is said once.
                if cause == BY_FILE && self.refusal.as_ref() == Some(&text) {
                    return None;
                }
                tracing::error!("the change by {cause} was refused, and nothing has changed:\n{}", text.trim_end());
                self.refusal = Some(text);
                AttemptResult::Refused(wrong.to_string(), wrong.to_json())
            }
            Err(e) => {
                tracing::error!(cause, "loading the configuration failed: {e}");
                AttemptResult::Refused(e.clone(), serde_json::Value::String(e))
            }
        };
        match (&result, self.status.current.load_full()) {
            // Trying has left figures of what was not to be.
            (AttemptResult::Refused(..), Some(current)) => self.foundry.forget_unused(&current),
            _ => self.refusal = None,
        }
        Some(self.status.note(cause, result))
    }

    /// What cannot be changed while the process runs is said, not ignored.
    fn note_restarts(&self, new: &Snapshot) {
        let Some(old) = self.status.current.load_full() else { return };
        let (old, new) = (&old.loaded.config, &new.loaded.config);
        if new.workers != old.workers {
            tracing::warn!("`workers` has changed; it takes effect at the next start");
        }
        if new.admin != old.admin {
            tracing::warn!("`admin` has changed; it takes effect at the next start");
        }
        if new.workload != old.workload {
            tracing::warn!("`workload` has changed; it takes effect at the next start");
        }
    }

    /// Hands a snapshot to the workers, and waits until all of them go by it.
    async fn apply(&mut self, made: Made) -> Arc<Snapshot> {
        let Made { snapshot, instances, mut sockets } = made;
        for listener in &snapshot.listeners {
            listener.shared.set_limit(listener.config.limits.connections);
        }
        let mut waiting = Vec::new();
        sockets.resize_with(self.workers.len(), Sockets::default);
        for ((worker, instances), sockets) in self.workers.iter().zip(instances).zip(sockets) {
            let (done, applied) = oneshot::channel();
            let delivery = Box::new(Delivery { snapshot: snapshot.clone(), instances, sockets });
            let _ = worker.commands.send(Command::Apply(delivery, done));
            waiting.push(applied);
        }
        for applied in waiting {
            let _ = applied.await;
        }
        if let Err(e) = self.log.reload(&snapshot.loaded.config.log) {
            tracing::warn!("the log's level stays as it is: {e}");
        }
        self.checks.apply(snapshot.configured_clusters());
        self.drain_timeout = snapshot.loaded.config.drain_timeout.0;
        self.status.current.store(Some(snapshot.clone()));
        self.foundry.forget_unused(&snapshot);
        if let Some(watcher) = &mut self.watcher {
            watcher.watch(&snapshot.files);
        }
        snapshot
    }

    /// Makes another instance of a machine, not before its time.
    fn rebuild(&self, rebuild: Rebuild) {
        let Rebuild { worker, machine, wanted } = rebuild;
        let Some(commands) = self.workers.get(worker).map(|w| w.commands.downgrade()) else { return };
        let machine = Arc::downgrade(&machine);
        tokio::task::spawn_local(async move {
            let mut wait = if let Wanted::Instance(wait) = wanted { wait } else { Duration::ZERO };
            loop {
                tokio::time::sleep(wait).await;
                // Another configuration may have come meanwhile.
                let Some(machine) = machine.upgrade() else { return };
                let making = machine.clone();
                match tokio::task::spawn_blocking(move || making.instantiate()).await {
                    Ok(Ok(instance)) if wanted == Wanted::Spare => {
                        *machine.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(instance);
                        return;
                    }
                    Ok(Ok(instance)) => {
                        // The worker may have ended: this must not keep it.
                        if let Some(commands) = commands.upgrade() {
                            let _ = commands.send(Command::Adopt(machine, Box::new(instance)));
                        }
                        return;
                    }
                    Ok(Err(e)) => {
                        let message = format!("it could not be set up again: {e}");
                        let plugin = &machine.plugins()[e.filter];
                        tracing::error!(target: "tollgate::filter", filter = plugin.identity.name, "{message}");
                        plugin.last_error.store(Some(Arc::new(message)));
                    }
                    Err(e) => tracing::error!("setting up a filter failed: {e}"),
                }
                wait = (wait * 2).clamp(Duration::from_millis(100), Duration::from_secs(60));
            }
        });
    }

    /// Takes no more connections, waits for those there are, and ends.
    async fn stop(self) {
        self.status.draining.store(true, Ordering::Relaxed);
        tracing::info!(timeout = ?self.drain_timeout, "stopping: no more connections are taken");
        let mut waiting = Vec::new();
        for worker in &self.workers {
            let (done, drained) = oneshot::channel();
            let _ = worker.commands.send(Command::Drain(done));
            waiting.push(drained);
        }
        let all = async {
            for drained in waiting {
                let _ = drained.await;
            }
        };
        let left = tokio::time::timeout(self.drain_timeout, all).await.is_err();
        if left {
            tracing::warn!("the drain timeout is over; connections that are left are cut");
        }
        let (workers, foundry) = (self.workers, self.foundry);
        let ended = tokio::task::spawn_blocking(move || {
            workers.into_iter().for_each(WorkerHandle::join);
            foundry.log_writer.close(Duration::from_secs(2))
        });
        // A worker that is stuck must not keep the process alive.
        let _ = tokio::time::timeout(Duration::from_secs(3), ended).await;
        tracing::info!("stopped");
    }
}
