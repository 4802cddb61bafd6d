//! Services that are watched rather than looked up again and again: each has a watch of its own, a task that reports through
//! a [`Reporter`] what it learns.
//!
//! A new kind of source is a variant of [`Query`], an arm of [`Watches::begin`], and a function that never returns:
//!
//! * It calls [`Reporter::answered`] with *all* endpoints for each usable answer, changed or not ([`Answer`]). What has not
//!   changed goes no further. The rule of [`OnEmpty`] is applied here; the watch only has to ask again within [`empty::RETRY`] after an
//!   empty answer, and [`Query::on_empty`] says which rule its kind has.
//! * It calls [`Reporter::failed`] for everything else, and tries again with a growing pause. Failures take nothing away.
//! * It is dropped at any await when nothing uses the service any more, or the settings of its kind have changed.

#[cfg(feature = "kubernetes")]
use std::rc::Rc;
use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use rustc_hash::FxHashMap;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, spawn_local},
};

#[cfg(feature = "kubernetes")]
use super::kubernetes::Namespaces;
use super::{Settings, empty::EmptyAnswers, file::Files, services::Services, table::ServiceState};
use crate::{
    config::model::{Endpoint, Query},
    observe::{Counter, MetricError, Registry, shard, target},
};

/// A usable answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// All endpoints.
    pub(super) endpoints: Vec<Endpoint>,
    /// What is wrong nevertheless, such as what was left out, or why there are none.
    pub(super) note: Option<String>,
    /// The numbers of endpoints by the states that the source knows, those that are left out included.
    pub(super) states: Vec<(&'static str, usize)>,
}

impl From<Vec<Endpoint>> for Answer {
    fn from(endpoints: Vec<Endpoint>) -> Answer {
        Answer { endpoints, ..Answer::default() }
    }
}

/// What a watch has learnt.
pub(super) struct Report {
    service: Arc<str>,
    /// The number of the watch; reports of an earlier one are obsolete.
    number: u64,
    arrived: Instant,
    result: Result<Answer, String>,
}

/// Takes what a watch learns about its service.
pub(super) struct Reporter {
    service: Arc<str>,
    number: u64,
    reports: mpsc::UnboundedSender<Report>,
}

impl Reporter {
    /// The endpoints of the service are these, whether they have changed or not.
    pub(super) fn answered(&self, answer: impl Into<Answer>) {
        self.report(Ok(answer.into()));
    }

    /// It is unknown which endpoints the service has now, for this reason.
    pub(super) fn failed(&self, error: String) {
        self.report(Err(error));
    }

    fn report(&self, result: Result<Answer, String>) {
        let (service, number) = (self.service.clone(), self.number);
        // The thread ends with the process.
        let _ = self.reports.send(Report { service, number, arrived: Instant::now(), result });
    }
}

/// All watches.
pub(super) struct Watches {
    all: FxHashMap<Arc<str>, Watch>,
    start: Instant,
    number: u64,
    files: Files,
    #[cfg(feature = "kubernetes")]
    kubernetes: Rc<Namespaces>,
    counters: Counters,
    reports: mpsc::UnboundedSender<Report>,
}

/// The watch of a service.
struct Watch {
    query: Query,
    number: u64,
    task: AbortHandle,
    /// The last answer with endpoints.
    endpoints: Vec<Endpoint>,
    empty: EmptyAnswers,
    state: ServiceState,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watches {
    /// No watches yet. Must be called on a `LocalSet`.
    pub(super) fn new(counters: Counters, reports: mpsc::UnboundedSender<Report>) -> Watches {
        let (all, start) = (FxHashMap::default(), Instant::now());
        Watches {
            all,
            start,
            number: 0,
            files: Files::start(),
            #[cfg(feature = "kubernetes")]
            kubernetes: Namespaces::new(&Settings::default()),
            counters,
            reports,
        }
    }

    /// Watches a service from now on.
    pub(super) fn add(&mut self, service: &Arc<str>, query: Query, settings: &Settings, services: &mut Services) {
        let (number, task) = self.begin(service, &query, settings);
        let state = ServiceState { source: query.kind(), ..ServiceState::default() };
        services.set(service, state.clone(), (Vec::new(), false), Instant::now());
        let (endpoints, empty) = (Vec::new(), EmptyAnswers::default());
        self.all.insert(service.clone(), Watch { query, number, task, endpoints, empty, state });
    }

    /// Stops watching a service.
    pub(super) fn remove(&mut self, service: &str) {
        self.all.remove(service);
    }

    /// Starts those over for which other settings matter. What they have found stays until they find something else.
    pub(super) fn configure(&mut self, before: &Settings, settings: &Settings) {
        #[cfg(feature = "kubernetes")]
        if !self.kubernetes.is_for(settings) {
            self.kubernetes = Namespaces::new(settings);
        }
        let differ = |watch: &Watch| before.differ_for(settings, &watch.query);
        let all = self.all.iter().filter(|(_, watch)| differ(watch));
        let all: Vec<_> = all.map(|(service, watch)| (service.clone(), watch.query.clone())).collect();
        for (service, query) in all {
            let (number, task) = self.begin(&service, &query, settings);
            if let Some(watch) = self.all.get_mut(&service) {
                watch.task.abort();
                (watch.number, watch.task) = (number, task);
            }
        }
    }

    #[cfg_attr(not(feature = "consul"), expect(unused_variables, reason = "files need no settings"))]
    fn begin(&mut self, service: &Arc<str>, query: &Query, settings: &Settings) -> (u64, AbortHandle) {
        self.number += 1;
        let reporter = Reporter { service: service.clone(), number: self.number, reports: self.reports.clone() };
        let task = match query {
            Query::File(path) => spawn_local(self.files.watch(path.clone(), reporter)),
            #[cfg(feature = "consul")]
            Query::Consul(service) => {
                let Settings { consul, dir, .. } = settings.clone();
                spawn_local(super::consul::watch((**service).clone(), consul, dir, reporter))
            }
            #[cfg(feature = "kubernetes")]
            Query::Kubernetes(service) => {
                spawn_local(super::kubernetes::watch((**service).clone(), self.kubernetes.clone(), reporter))
            }
            // Names are looked up elsewhere, and the configuration's checks refuse what is not a part of this build.
            _ => spawn_local(std::future::ready(())),
        };
        (self.number, task.abort_handle())
    }

    /// Handles a report.
    pub(super) fn report(&mut self, report: Report, services: &mut Services) {
        let Report { service, number, arrived, result } = report;
        let Some(watch) = self.all.get_mut(&service).filter(|watch| watch.number == number) else { return };
        let (kind, state) = (watch.query.kind(), &mut watch.state);
        let (error, is_failure) = match result {
            Ok(Answer { endpoints, note, states }) if !endpoints.is_empty() => {
                let outcome = if watch.endpoints == endpoints { Outcome::Unchanged } else { Outcome::Changed };
                (watch.endpoints, watch.empty) = (endpoints, EmptyAnswers::default());
                if std::mem::take(&mut state.attempts) > 0 {
                    tracing::info!(target: target::UPSTREAM, service = &*service, "endpoints found again");
                }
                (state.answered, state.states) = (Some(SystemTime::now()), states);
                self.counters.count(kind, outcome);
                (note, false)
            }
            Ok(Answer { note, states, .. }) => {
                watch.empty.record(self.start.elapsed(), !watch.endpoints.is_empty());
                state.states = states;
                self.counters.count(kind, Outcome::Empty);
                (Some(note.unwrap_or_else(|| "there are no endpoints".to_owned())), true)
            }
            Err(error) => {
                self.counters.count(kind, Outcome::Failed);
                (Some(error), true)
            }
        };
        if let Some(error) = error {
            if is_failure {
                if state.attempts == 0 {
                    tracing::warn!(target: target::UPSTREAM, service = &*service, "endpoints not found: {error}");
                }
                state.attempts = state.attempts.saturating_add(1);
            }
            state.error = Some((SystemTime::now(), error.into()));
        }
        if watch.empty.remove(watch.query.on_empty()) {
            watch.endpoints.clear();
        }
        let is_known = watch.state.answered.is_some() || watch.empty.is_last();
        services.set(&service, watch.state.clone(), (watch.endpoints.clone(), is_known), arrived);
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! For tests of a single watch.

    use super::*;

    /// A reporter, and its reports.
    pub(in super::super) fn reporter() -> (Reporter, mpsc::UnboundedReceiver<Report>) {
        let (reports, all) = mpsc::unbounded_channel();
        (Reporter { service: "test".into(), number: 1, reports }, all)
    }

    /// What a report says.
    pub(in super::super) fn result(report: Report) -> Result<Answer, String> {
        report.result
    }
}

/// What became of an answer.
#[derive(Clone, Copy)]
enum Outcome {
    Changed,
    Unchanged,
    Empty,
    Failed,
}

/// Answers by kind of source and outcome.
pub(super) struct Counters(FxHashMap<&'static str, [Counter; 4]>);

impl Counters {
    pub(super) fn new(registry: &Registry) -> Result<Counters, MetricError> {
        let of = |source, result| {
            let labels = [("source", source), ("result", result)];
            registry.counter("tollgate_discovery_answers_total", "Answers about endpoints, by result.", &labels)
        };
        let all =
            |kind| Ok((kind, [of(kind, "changed")?, of(kind, "unchanged")?, of(kind, "empty")?, of(kind, "failed")?]));
        Ok(Counters(Query::WATCHED.into_iter().map(all).collect::<Result<_, MetricError>>()?))
    }

    fn count(&self, kind: &str, outcome: Outcome) {
        if let Some(counters) = self.0.get(kind) {
            counters[outcome as usize].inc(shard());
        }
    }
}
