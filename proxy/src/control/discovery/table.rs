//! What is known of services, whether their endpoints are looked for here or supplied by a source: shared with the admin
//! listener and metrics.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use rustc_hash::FxHashMap;
use serde_json::{Value, json};

use crate::{control::source::status::SourceStatus, observe::access_log::timestamp};

/// The states of all services.
#[derive(Default)]
pub(crate) struct Table {
    services: Mutex<FxHashMap<Arc<str>, ServiceState>>,
    sources: Mutex<FxHashMap<Arc<str>, SuppliedBy>>,
}

/// A source that supplies endpoints.
pub(crate) struct SuppliedBy {
    /// The kind of source.
    pub(crate) kind: &'static str,
    pub(crate) status: Arc<SourceStatus>,
}

/// The state of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServiceState {
    /// The kind of source.
    pub(crate) source: &'static str,
    /// When the last usable answer arrived; of several names, the oldest such time. `None`: one has none yet.
    pub(crate) answered: Option<SystemTime>,
    /// Attempts in a row without a usable answer.
    pub(crate) attempts: u32,
    /// The last error, even if there was an answer since.
    pub(crate) error: Option<(SystemTime, Arc<str>)>,
    /// The numbers of endpoints by the states that the source knows, in the last answer.
    pub(crate) states: Vec<(&'static str, usize)>,
}

impl Table {
    /// The state of a service; `None` if nothing looks for its endpoints, and no source supplies them.
    pub(crate) fn get(&self, service: &str) -> Option<ServiceState> {
        let known = locked(&self.services).get(service).cloned();
        known.or_else(|| {
            // A service of a source begins with its name, which may contain slashes, too.
            let sources = locked(&self.sources);
            let names = service.match_indices('/').map(|(at, _)| &service[..at]);
            names.into_iter().find_map(|name| sources.get(name)).map(SuppliedBy::state)
        })
    }

    /// Sets the sources that supply endpoints, by name.
    pub(crate) fn set_sources(&self, sources: impl Iterator<Item = (Arc<str>, SuppliedBy)>) {
        *locked(&self.sources) = sources.collect();
    }

    pub(super) fn set(&self, service: &Arc<str>, state: ServiceState) {
        locked(&self.services).insert(service.clone(), state);
    }

    pub(super) fn remove(&self, service: &str) {
        locked(&self.services).remove(service);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SuppliedBy {
    /// The state of all services of the source.
    fn state(&self) -> ServiceState {
        let state = self.status.state();
        ServiceState {
            source: self.kind,
            answered: state.last_answer,
            attempts: state.attempts,
            error: state.last_error.map(|error| (error.at, error.text.into())),
            states: Vec::new(),
        }
    }
}

impl ServiceState {
    /// The state for `GET /clusters`.
    pub(crate) fn to_json(&self, service: &str) -> Value {
        let age = |at: SystemTime| SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
        let error = self.error.as_ref().map(|(at, error)| json!({ "at": timestamp::text(*at), "error": &**error }));
        let states: serde_json::Map<_, _> =
            self.states.iter().map(|(state, count)| ((*state).to_owned(), (*count).into())).collect();
        json!({
            "source": self.source,
            "service": service,
            "last_answer": self.answered.map(timestamp::text),
            "age_seconds": self.answered.map(age),
            "last_error": error,
            "attempts": self.attempts,
            "states": states,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Registry;

    #[test]
    fn services_of_a_source_have_its_state() {
        let (table, registry) = (Table::default(), Registry::new(1));
        let named = |name: &str, kind| {
            let status = SourceStatus::new(&registry, name).unwrap();
            (Arc::from(name), SuppliedBy { kind, status })
        };
        let central = named("central", "http");
        central.1.status.failed("no route".to_owned());
        table.set_sources([central, named("a/b", "directory")].into_iter());
        let state = table.get("central/web/v1").unwrap();
        assert_eq!((state.source, state.attempts, &*state.error.unwrap().1), ("http", 1, "no route"));
        assert_eq!(table.get("a/b/web").unwrap().source, "directory");
        for other in ["central", "other/web", "a/web", "dns:central/web"] {
            assert_eq!(table.get(other), None, "{other}");
        }
        table.set_sources(std::iter::empty());
        assert_eq!(table.get("central/web"), None);
        let own = ServiceState { source: "dns", states: vec![("passing", 2)], ..ServiceState::default() };
        table.set(&"dns:web:80".into(), own.clone());
        assert_eq!(table.get("dns:web:80"), Some(own.clone()));
        assert_eq!(own.to_json("dns:web:80")["states"], json!({"passing": 2}));
    }
}
