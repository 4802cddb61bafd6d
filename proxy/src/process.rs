//! The process: starts the workers and the admin listener, handles signals, and shuts down gracefully (drain).

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
        change::{Order, ReloadRequest},
        cluster_metrics, diff,
        discovery::Discovery,
        health,
        load::{cache_dir, compiler, load},
        rebuild::rebuild,
        reload::Reloader,
        resources::Resources,
        rollout::Rollout,
        signals::{Request, Signals},
        snapshot::{BuildMode, SnapshotBuilder},
        status::Status,
        successor::Predecessor,
        threads::{self, Urgency},
        watch::Watcher,
    },
    listener::socket::{self, AddressClaim},
    net::descriptors,
    observe::{Buckets, log, target},
    snapshot::Snapshot,
    worker::{self, Command, RebuildRequest, WorkerHandle},
};

/// Options of the process that are not part of the configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration.
    pub file: PathBuf,
    /// The log level, which overrides the configuration.
    pub log_level: Option<String>,
    /// The process to replace.
    pub replace: Option<i32>,
}

/// Runs the proxy until it is stopped.
///
/// # Errors The proxy cannot start.
pub fn run(options: Options) -> anyhow::Result<()> {
    // For systems with huge pages for all processes: see the feature of mimalloc in Cargo.toml.
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
                log::say_in_any_case(&format!("{signal}: stopped before serving any traffic"));
                return Ok(());
            }
        };
        server.run(signals).await;
        Ok(())
    });
    drop(local);
    // An abandoned load, or a stuck worker, must not keep the process alive.
    runtime.shutdown_background();
    ended
}

struct Server {
    builder: Arc<SnapshotBuilder>,
    workers: Vec<WorkerHandle>,
    status: Rc<Status>,
    changes: mpsc::Sender<ReloadRequest>,
    reloader: AbortHandle,
    rebuilds: mpsc::UnboundedReceiver<RebuildRequest>,
}

/// The interval between warnings about expiring files.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Server {
    /// Starts everything. Dropping the future abandons the start; nothing slow runs on this thread.
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
            tracing::warn!(target: target::PROCESS, "cannot raise the limit of open files: {e}");
        }
        if bound.now > bound.before {
            let (before, now, for_clients) = (bound.before, bound.now, bound.for_clients());
            tracing::info!(target: target::PROCESS, before, now, for_clients, "raised the limit of open files");
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
        let builder = Arc::new(SnapshotBuilder::new(count, compiler)?);
        let status = Rc::new(Status::new(&builder.registry)?);
        cluster_metrics::show(&builder.registry, &builder.clusters)?;
        certificates::show(&builder.registry, status.current.clone())?;
        log::stderr::show(&builder.registry)?;
        let (changes, inbox) = mpsc::channel(8);
        if running.admin.enabled {
            if let Some(wrong) = admin::Token::look(&loaded) {
                return Err(Diagnostics::new(loaded.source.clone(), vec![wrong]).into());
            }
            let state = Rc::new(admin::State {
                status: status.clone(),
                registry: builder.registry.clone(),
                log: log.clone(),
                changes: changes.clone(),
                hosts: running.admin.address.inet().map(|_| running.admin.hosts.clone()),
                token: admin::Token::of(&loaded),
                ca: ca::service::Service::open(&loaded, &builder.registry)?,
                socket: admin::Socket::default(),
            });
            match admin::listen(&running.admin, state.token.as_ref()).await {
                Ok(socket) => state.serve(socket)?,
                // The predecessor releases the address when it drains, which is when this process is ready.
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
                admin::Probes { status: status.clone(), registry: builder.registry.clone() }.serve(socket)?;
            }
        }
        // The configuration may refer to the certificate's files. The admin listener already runs: it may be the
        // authority.
        if let Some(workload) = Agent::new(&loaded, cache_dir(&loaded), &builder.registry)? {
            workload.start().await?;
        }
        let claim = if predecessor.is_some() { AddressClaim::Shared } else { AddressClaim::Sole };
        let making = builder.clone();
        let work = move || making.build(loaded, None, BuildMode::Full(claim));
        let built = tokio::task::spawn_blocking(move || threads::at_work(Urgency::Start, work)).await???;
        let (asked, rebuilds) = mpsc::unbounded_channel();
        let lag = builder.registry.histogram(
            "tollgate_cluster_update_seconds",
            "From the arrival of a change of a cluster until a worker uses it.",
            &[],
            Buckets::Latency,
        )?;
        let start = |index| worker::start(index, asked.clone(), lag.clone());
        let workers: std::io::Result<Vec<_>> = (0..count).map(start).collect();
        let workers = workers.context("a worker cannot start")?;
        built.snapshot.warnings.iter().for_each(|w| tracing::warn!(target: target::CONFIG, "{}", w.message));
        let health = health::start().context("the health checks cannot start")?;
        let mailboxes = workers.iter().map(|worker| worker.mailbox.clone()).chain([health.clone()]).collect();
        let (found, discovered) = mpsc::unbounded_channel();
        let discovery =
            Discovery::start(&builder.registry, found).context("the thread that finds endpoints cannot start")?;
        cluster_metrics::show_discovery(&builder.registry, &builder.clusters, &discovery.table)?;
        let found = (discovery.clone(), discovered);
        let resources = Resources::start(builder.clusters.clone(), count, mailboxes, &builder.registry, found)?;
        let _ = status.resources.set(resources.clone());
        let _ = status.discovered.set(discovery.table.clone());
        let rollout = Rollout {
            builder: builder.clone(),
            workers: workers.iter().map(|worker| worker.commands.downgrade()).collect(),
            health,
            resources,
            discovery,
            status: status.clone(),
            log,
        };
        let mut reloader = Reloader {
            path: options.file,
            running,
            builder: builder.clone(),
            claim,
            rollout,
            status: status.clone(),
            watcher: Watcher::new(status.unwatched.clone()),
            changes: inbox,
            refusal: None,
            patience: None,
            given_up: 0,
        };
        let snapshot = reloader.start(built).await;
        say_ready(&snapshot, workers.len());
        if let Some(predecessor) = predecessor {
            predecessor.end();
        }
        // Releases the memory that the start used on this thread.
        alloc::give_back();
        let reloader = tokio::task::spawn_local(reloader.run()).abort_handle();
        Ok(Server { builder, workers, status, changes, reloader, rebuilds })
    }

    /// Handles signals and workers' requests until the process has to stop, and then stops it.
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

    /// Handles a signal other than one to stop.
    fn hear(&self, request: Request) {
        match request {
            Request::Reload => {
                self.reopen_logs();
                // If the queue is full, a reload follows in any case.
                if let Err(mpsc::error::TrySendError::Closed(_)) =
                    self.changes.try_send(ReloadRequest { order: Order::Reload, cause: "SIGHUP", done: None })
                {
                    tracing::info!(
                        target: target::CONFIG,
                        "SIGHUP ignored: the process is stopping"
                    );
                }
            }
            Request::Reopen => self.reopen_logs(),
            Request::Nothing(signal) => tracing::info!(
                target: target::PROCESS,
                "{signal} ignored: to upgrade, start the successor with `--replace PID`"
            ),
            Request::Stop(_) => {}
        }
    }

    /// Reopens all access logs by name, on another thread, since a disk may be slow.
    fn reopen_logs(&self) {
        let builder = self.builder.clone();
        tokio::task::spawn_blocking(move || {
            let failed = builder.log_writer.reopen();
            failed.iter().for_each(|e| tracing::error!(target: target::ACCESS_LOG, "{e}"));
            if failed.is_empty() {
                tracing::info!(target: target::ACCESS_LOG, "access logs reopened");
            }
        });
    }

    fn rebuild(&self, asked: RebuildRequest) {
        if let Some(worker) = self.workers.get(asked.worker) {
            tokio::task::spawn_local(rebuild(asked, worker.commands.downgrade()));
        }
    }

    /// Drains: accepts no more connections, waits for the existing ones, and ends. Another signal ends the wait.
    async fn stop(mut self, signal: &str, mut signals: Signals) {
        self.status.draining.store(true, Ordering::Relaxed);
        self.reloader.abort();
        self.builder.engine.end_compiling();
        let timeout = self.status.current.load().as_ref().map_or(Duration::ZERO, |s| s.loaded.config.drain_timeout.0);
        tracing::info!(target: target::PROCESS, signal, ?timeout, "stopping: no new connections are accepted");
        let resources = self.status.resources.get().cloned();
        let kept = tokio::task::spawn_local(async move {
            if let Some(resources) = resources {
                resources.keep().await;
            }
        });
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
                        "drain timeout expired; closing the remaining connections"
                    );
                    break;
                }
                request = signals.next() => match request {
                    Request::Stop(signal) => {
                        tracing::warn!(
                            target: target::PROCESS,
                            "{signal} while draining; closing the remaining connections"
                        );
                        break;
                    }
                    other => self.hear(other),
                },
                // In-flight requests still need their filters.
                Some(rebuild) = self.rebuilds.recv() => self.rebuild(rebuild),
            }
        }
        let _ = tokio::time::timeout(Duration::from_secs(3), kept).await;
        let (workers, builder) = (self.workers, self.builder);
        let ended = tokio::task::spawn_blocking(move || {
            workers.into_iter().for_each(WorkerHandle::join);
            builder.log_writer.close(Duration::from_secs(2))
        });
        // A stuck worker must not keep the process alive.
        match tokio::time::timeout(Duration::from_secs(3), ended).await {
            Ok(Ok(lines @ 1..)) => tracing::warn!(
                target: target::ACCESS_LOG,
                lines, "access log lines lost: they were not read in time"
            ),
            Ok(_) => {}
            Err(_) => tracing::warn!(target: target::ACCESS_LOG, "a worker is stuck: access log lines may be lost"),
        }
        tracing::info!(target: target::PROCESS, "stopped");
    }
}

/// Logs the addresses of all listeners, and that the proxy is ready.
fn say_ready(snapshot: &Snapshot, workers: usize) {
    let config = &snapshot.loaded.config;
    for (name, _, place) in diff::places(config) {
        tracing::info!(target: target::LISTENER, "listener `{name}` on {place}");
    }
    tracing::info!(target: target::PROCESS, workers, admin = config.admin.url(), hash = snapshot.hash, "ready");
}
