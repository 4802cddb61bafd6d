//! The process: it starts the workers and the admin listener, hears signals, and stops.

use std::{
    path::PathBuf,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::sleep,
};

use crate::{
    admin, alloc,
    ca::{self, workload::Agent},
    config::{Diagnostics, Severity, model::SocketOptions, units::Address},
    control::{
        certificates,
        change::{ReloadOutcome, ReloadRequest},
        diff,
        load::{cache_dir, compiler, load},
        rebuild::rebuild,
        reload::Reloader,
        signals::{Request, Signals},
        snapshot::{BuildMode, SnapshotBuilder},
        status::Status,
        successor::Predecessor,
        threads::{self, Urgency},
        watch::Watcher,
    },
    listener::socket::{self, AddressClaim},
    net::descriptors,
    observe::{log, target},
    snapshot::Snapshot,
    upstream::HealthChecks,
    worker::{self, Command, RebuildRequest, WorkerHandle},
};

/// How the process is run, beside what the configuration says.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration.
    pub file: PathBuf,
    /// What the log shows, whatever the configuration says.
    pub log_level: Option<String>,
    /// The process that this one takes the place of.
    pub replace: Option<i32>,
}

/// Runs the proxy until it is told to stop.
///
/// # Errors
/// It cannot start.
pub fn run(options: Options) -> anyhow::Result<()> {
    // Where the system gives huge pages to everybody: see the feature of mimalloc's in Cargo.toml.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    log::stderr::start().context("the log cannot be written")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, async move {
        let mut signals = Signals::new()?;
        let server = tokio::select! {
            server = Server::start(options) => server?,
            signal = signals.stop() => {
                log::say_in_any_case(&format!("{signal}: stopped before anything was served"));
                return Ok(());
            }
        };
        server.run(signals).await;
        Ok(())
    });
    drop(local);
    // A load that was given up, or a worker that is stuck, must not keep the process.
    runtime.shutdown_background();
    ended
}

struct Server {
    foundry: Arc<SnapshotBuilder>,
    workers: Vec<WorkerHandle>,
    status: Rc<Status>,
    changes: mpsc::Sender<ReloadRequest>,
    reloader: AbortHandle,
    rebuilds: mpsc::UnboundedReceiver<RebuildRequest>,
}

/// How often one is told again of what expires soon.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Server {
    /// Starts everything. Dropping this future gives it up; nothing that takes long is done on this thread.
    async fn start(options: Options) -> anyhow::Result<Server> {
        let predecessor = options.replace.map(Predecessor::find).transpose()?;
        let path = options.file.clone();
        let loaded = tokio::task::spawn_blocking(move || threads::at_work(Urgency::Start, || load(&path))).await???;
        if !loaded.warnings.is_empty() {
            log::stderr::say(&loaded.warnings.render(log::colours()));
        }
        let log = log::init(&loaded.config.log, options.log_level.as_deref())?;
        let (bound, raised) = descriptors::raise();
        if let Err(e) = raised {
            tracing::warn!(target: target::PROCESS, "the limit of open files stays as it is: {e}");
        }
        if bound.now > bound.before {
            let (before, now, for_clients) = (bound.before, bound.now, bound.for_clients());
            tracing::info!(target: target::PROCESS, before, now, for_clients, "the limit of open files was raised");
        }
        let running = loaded.config.clone();
        let count = running.workers.count();
        let (compiler, wrong) = compiler(&loaded)?;
        match wrong {
            Some(wrong) if wrong.severity == Severity::Error => {
                return Err(Diagnostics::new(loaded.source.clone(), vec![wrong]).into());
            }
            wrong => wrong.iter().for_each(|w| tracing::warn!(target: target::CONFIG, "{}", w.message)),
        }
        let foundry = Arc::new(SnapshotBuilder::new(count, compiler)?);
        let status = Rc::new(Status::new(&foundry.registry)?);
        foundry.show_clusters(status.current.clone())?;
        certificates::show(&foundry.registry, status.current.clone())?;
        log::stderr::show(&foundry.registry)?;
        let (changes, inbox) = mpsc::channel(8);
        if running.admin.enabled {
            if let Some(wrong) = admin::Token::look(&loaded) {
                return Err(Diagnostics::new(loaded.source.clone(), vec![wrong]).into());
            }
            let state = Rc::new(admin::State {
                status: status.clone(),
                registry: foundry.registry.clone(),
                log: log.clone(),
                changes: changes.clone(),
                hosts: running.admin.address.inet().map(|_| running.admin.hosts.clone()),
                token: admin::Token::of(&loaded),
                ca: ca::service::Service::open(&loaded, &foundry.registry)?,
                socket: admin::Socket::default(),
            });
            match admin::listen(&running.admin, state.token.as_ref()).await {
                Ok(socket) => state.serve(socket)?,
                // It gives it up when it drains, and that is when this process is ready.
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && predecessor.is_some() => {
                    tokio::task::spawn_local(admin::listen_later(running.admin.clone(), state));
                }
                Err(e) => return Err(admin::cannot_listen(&loaded, &e).into()),
            }
        }
        if let Some(probes) = &running.admin.probes {
            let claim = if predecessor.is_some() { AddressClaim::Shared } else { AddressClaim::Sole };
            let address = Address::Inet(probes.address);
            let sockets = socket::listen(&address, &SocketOptions::default(), 1, claim);
            let sockets = sockets.with_context(|| format!("cannot listen on {} (probes)", probes.address))?;
            for socket in sockets {
                admin::Probes { status: status.clone(), registry: foundry.registry.clone() }.serve(socket)?;
            }
        }
        // The configuration may name the certificate's files. The admin listener is there already: it may be the one to ask.
        if let Some(workload) = Agent::new(&loaded, cache_dir(&loaded), &foundry.registry)? {
            workload.start().await?;
        }
        let claim = if predecessor.is_some() { AddressClaim::Shared } else { AddressClaim::Sole };
        let making = foundry.clone();
        let work = move || making.build(loaded, None, BuildMode::Full(claim));
        let made = tokio::task::spawn_blocking(move || threads::at_work(Urgency::Start, work)).await???;
        let (asked, rebuilds) = mpsc::unbounded_channel();
        let workers: std::io::Result<Vec<_>> = (0..count).map(|i| worker::start(i, asked.clone())).collect();
        let workers = workers.context("a worker cannot start")?;
        made.snapshot.warnings.iter().for_each(|w| tracing::warn!(target: target::CONFIG, "{}", w.message));
        let mut reloader = Reloader {
            path: options.file,
            running,
            foundry: foundry.clone(),
            workers: workers.iter().map(|worker| worker.commands.downgrade()).collect(),
            checks: HealthChecks::new(foundry.registry.clone()),
            status: status.clone(),
            log,
            watcher: Watcher::new(status.unwatched.clone()),
            changes: inbox,
            refusal: None,
            patience: None,
            given_up: 0,
        };
        let snapshot = reloader.apply(made).await;
        status.note("start", ReloadOutcome::Applied(snapshot.version));
        say_ready(&snapshot, workers.len());
        if let Some(predecessor) = predecessor {
            predecessor.end();
        }
        // What starting took on this thread.
        alloc::give_back();
        let reloader = tokio::task::spawn_local(reloader.run()).abort_handle();
        Ok(Server { foundry, workers, status, changes, reloader, rebuilds })
    }

    /// Does what signals and workers ask for until the process is to end, and then ends it.
    async fn run(mut self, mut signals: Signals) {
        let mut daily = tokio::time::interval_at((Instant::now() + DAY).into(), DAY);
        let signal = loop {
            tokio::select! {
                request = signals.next() => match request {
                    Request::Stop(signal) => break signal,
                    other => self.hear(other),
                },
                _ = daily.tick() => {
                    let current = self.status.current.load_full();
                    let soon = current.iter().flat_map(|snapshot| certificates::expiring(snapshot, SystemTime::now()));
                    soon.for_each(|warning| tracing::warn!(target: target::CONFIG, "{warning}"));
                }
                Some(rebuild) = self.rebuilds.recv() => self.rebuild(rebuild),
            }
        };
        self.stop(signal, signals).await;
    }

    /// Does what a signal asks for, beside stopping.
    fn hear(&self, request: Request) {
        match request {
            Request::Reload => {
                self.reopen_logs();
                // If so many wait already, a load follows in any case.
                if let Err(mpsc::error::TrySendError::Closed(_)) =
                    self.changes.try_send(ReloadRequest { cause: "SIGHUP", done: None })
                {
                    tracing::info!(
                        target: target::CONFIG,
                        "SIGHUP: the process is stopping, so the configuration is not read again"
                    );
                }
            }
            Request::Reopen => self.reopen_logs(),
            Request::Nothing(signal) => tracing::info!(
                target: target::PROCESS,
                "{signal} does nothing here; a successor takes over by itself"
            ),
            Request::Stop(_) => {}
        }
    }

    /// Opens all access logs again under their names, on another thread: a disk may be slow.
    fn reopen_logs(&self) {
        let foundry = self.foundry.clone();
        tokio::task::spawn_blocking(move || {
            let failed = foundry.log_writer.reopen();
            failed.iter().for_each(|e| tracing::error!(target: target::ACCESS_LOG, "{e}"));
            if failed.is_empty() {
                tracing::info!(target: target::ACCESS_LOG, "access logs were opened again");
            }
        });
    }

    fn rebuild(&self, asked: RebuildRequest) {
        if let Some(worker) = self.workers.get(asked.worker) {
            tokio::task::spawn_local(rebuild(asked, worker.commands.downgrade()));
        }
    }

    /// Takes no more connections, waits for those there are, and ends. Another signal ends the waiting.
    async fn stop(mut self, signal: &str, mut signals: Signals) {
        self.status.draining.store(true, Ordering::Relaxed);
        self.reloader.abort();
        self.foundry.engine.end_compiling();
        let timeout = self.status.current.load().as_ref().map_or(Duration::ZERO, |s| s.loaded.config.drain_timeout.0);
        tracing::info!(target: target::PROCESS, signal, ?timeout, "stopping: no more connections are taken");
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
        tokio::pin!(all);
        let end = sleep(timeout);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut all => break,
                () = &mut end => {
                    tracing::warn!(
                        target: target::PROCESS,
                        "the drain timeout is over; connections that are left are cut"
                    );
                    break;
                }
                request = signals.next() => match request {
                    Request::Stop(signal) => {
                        tracing::warn!(
                            target: target::PROCESS,
                            "{signal} while draining; connections that are left are cut"
                        );
                        break;
                    }
                    other => self.hear(other),
                },
                // What is under way goes on to need its filters.
                Some(rebuild) = self.rebuilds.recv() => self.rebuild(rebuild),
            }
        }
        let (workers, foundry) = (self.workers, self.foundry);
        let ended = tokio::task::spawn_blocking(move || {
            workers.into_iter().for_each(WorkerHandle::join);
            foundry.log_writer.close(Duration::from_secs(2))
        });
        // A worker that is stuck must not keep the process alive.
        match tokio::time::timeout(Duration::from_secs(3), ended).await {
            Ok(Ok(lines @ 1..)) => tracing::warn!(
                target: target::ACCESS_LOG,
                lines, "lines of access logs were lost: nobody read them in time"
            ),
            Ok(_) => {}
            Err(_) => tracing::warn!(target: target::ACCESS_LOG, "a worker is stuck: lines of access logs may be lost"),
        }
        tracing::info!(target: target::PROCESS, "stopped");
    }
}

/// Where everybody can be reached.
fn say_ready(snapshot: &Snapshot, workers: usize) {
    let config = &snapshot.loaded.config;
    for (name, _, place) in diff::places(config) {
        tracing::info!(target: target::LISTENER, "listener `{name}` on {place}");
    }
    tracing::info!(target: target::PROCESS, workers, admin = config.admin.url(), hash = snapshot.hash, "ready");
}
