//! Endpoints that come and go by themselves: finds them on a dedicated thread, and passes changes on to the
//! [resources](super::resources).
//!
//! A [service](Query) is what a cluster asks for, so equal clusters share it. `services` keeps what is known of each,
//! `dns` looks names up periodically, `watches` runs the watches of all other kinds (`consul`, `kubernetes`, `file`), and `table` is what
//! operators see. A failure never takes endpoints away, and an empty answer only by the rule of `empty`.

#[cfg(feature = "consul")]
mod consul;
mod dns;
mod empty;
mod families;
mod file;
#[cfg(feature = "kubernetes")]
pub(crate) mod kubernetes;
mod pace;
mod services;
mod table;
mod watches;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::sleep_until,
};

use self::{
    dns::{Finder, Lookup},
    services::Services,
    watches::{Report, Watches},
};
use super::watch::Watcher;
use crate::{
    config::model::{Config, Consul, Dns, Kubernetes, Locality, Query},
    observe::{Registry, target},
};

pub(crate) use self::{
    services::{Discovered, Known},
    table::{ServiceState, SuppliedBy, Table},
};

/// The most threads for reading files and resolving the names of servers.
const MAX_BLOCKING: usize = 4;

/// How endpoints are found: the settings that are not a cluster's.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settings {
    dns: Dns,
    consul: Consul,
    kubernetes: Kubernetes,
    /// Where the proxy is.
    node: Option<Locality>,
    /// The directory of relative paths.
    dir: PathBuf,
}

impl Settings {
    /// The settings of a configuration in this directory.
    pub(crate) fn of(config: &Config, dir: &Path) -> Settings {
        Settings {
            dns: config.dns.clone(),
            consul: config.consul.clone(),
            kubernetes: config.kubernetes.clone(),
            node: config.node.clone(),
            dir: dir.to_owned(),
        }
    }

    /// Whether watches of this kind have to start over.
    fn differ_for(&self, other: &Settings, query: &Query) -> bool {
        match query {
            Query::Dns(_) | Query::File(_) => false,
            Query::Kubernetes(_) => {
                self.kubernetes != other.kubernetes || self.node != other.node || self.dir != other.dir
            }
            Query::Consul(_) => self.consul != other.consul || self.dir != other.dir,
        }
    }
}

/// What the thread is asked to do.
enum Request {
    Configure(Box<Settings>),
    Want(Arc<str>),
    Unwant(Arc<str>),
    Endpoints { services: Vec<Arc<str>>, wait: Duration, done: oneshot::Sender<Known> },
}

/// A handle of the thread.
#[derive(Clone)]
pub(crate) struct Discovery {
    requests: mpsc::UnboundedSender<Request>,
    /// What is known of services.
    pub(crate) table: Arc<Table>,
}

impl Discovery {
    /// Starts the thread. It sends changes to `out`.
    ///
    /// # Errors The thread cannot be started.
    pub(crate) fn start(registry: &Registry, out: mpsc::UnboundedSender<Discovered>) -> anyhow::Result<Discovery> {
        let (discovery, inbox) = Discovery::channel();
        let (lookups, answers) = (dns::Counters::new(registry)?, watches::Counters::new(registry)?);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(MAX_BLOCKING).build()?;
        let table = discovery.table.clone();
        thread::Builder::new().name("tollgate-lookup".into()).spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                let ((found, lookup_results), (reports, watch_reports)) =
                    (mpsc::unbounded_channel(), mpsc::unbounded_channel());
                let finders = Finders {
                    services: Services::new(table, out),
                    dns: Finder::new(lookups, found),
                    watches: Watches::new(answers, reports),
                    settings: Settings::default(),
                };
                finders.run(inbox, lookup_results, watch_reports).await;
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

    /// Sets how endpoints are found.
    pub(crate) fn configure(&self, settings: Settings) {
        self.send(Request::Configure(Box::new(settings)));
    }

    /// Looks for the endpoints of a service from now on. Sends them if they are known, and then each change.
    pub(crate) fn want(&self, service: &Arc<str>) {
        self.send(Request::Want(service.clone()));
    }

    /// Stops looking for the endpoints of a service.
    pub(crate) fn unwant(&self, service: &Arc<str>) {
        self.send(Request::Unwant(service.clone()));
    }

    /// Returns the endpoints of services when all are known, at the latest after `wait`. A service that is unknown by then
    /// has only the endpoints that need no answer.
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

/// The state of the thread.
struct Finders {
    services: Services,
    dns: Finder,
    watches: Watches,
    settings: Settings,
}

impl Finders {
    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Request>,
        mut lookups: mpsc::UnboundedReceiver<Lookup>,
        mut reports: mpsc::UnboundedReceiver<Report>,
    ) {
        let mut watcher = Watcher::new(Arc::default());
        self.dns.watch(&mut watcher);
        loop {
            let next = [self.dns.start_due(), self.services.next_deadline()].into_iter().flatten().min();
            tokio::select! {
                request = inbox.recv() => match request {
                    Some(request) => self.handle(request, &mut watcher),
                    None => return,
                },
                Some(lookup) = lookups.recv() => self.dns.finished(lookup, &mut self.services),
                Some(report) = reports.recv() => self.watches.report(report, &mut self.services),
                () = watcher.changed() => self.dns.read_again(&mut watcher),
                () = at(next) => {}
            }
            self.services.answer_waiting(Instant::now());
        }
    }

    fn handle(&mut self, request: Request, watcher: &mut Watcher) {
        match request {
            Request::Configure(settings) => {
                self.watches.configure(&self.settings, &settings);
                self.settings = *settings;
                self.dns.configure(&self.settings.dns, watcher);
            }
            Request::Want(service) => {
                self.add(&service);
                self.services.want(&service);
            }
            Request::Unwant(service) => self.remove(&service),
            Request::Endpoints { services, wait, done } => {
                let now = Instant::now();
                self.services.unused(now).iter().for_each(|service| self.remove(service));
                services.iter().for_each(|service| self.add(service));
                self.services.wait(services, now + wait, done);
            }
        }
    }

    fn add(&mut self, service: &Arc<str>) {
        let query: Query = match service.parse() {
            Ok(query) => query,
            Err(e) => {
                return tracing::error!(target: target::UPSTREAM, service = &**service, "not a service: {e}");
            }
        };
        if !self.services.add(service) {
            return;
        }
        match query {
            Query::Dns(query) => self.dns.add(service, query, &mut self.services),
            query => self.watches.add(service, query, &self.settings, &mut self.services),
        }
    }

    fn remove(&mut self, service: &Arc<str>) {
        self.services.remove(service);
        self.dns.remove(service);
        self.watches.remove(service);
    }
}

/// Waits until this time; for ever without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
