//! What is known of services: shared with the admin listener and metrics.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use rustc_hash::FxHashMap;
use serde_json::{Value, json};

use crate::observe::access_log::timestamp;

/// The states of all services.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<FxHashMap<Arc<str>, ServiceState>>);

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
}

impl Table {
    /// The state of a service; `None` if nothing looks for its endpoints.
    pub(crate) fn get(&self, service: &str) -> Option<ServiceState> {
        self.lock().get(service).cloned()
    }

    pub(super) fn set(&self, service: &Arc<str>, state: ServiceState) {
        self.lock().insert(service.clone(), state);
    }

    pub(super) fn remove(&self, service: &str) {
        self.lock().remove(service);
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<Arc<str>, ServiceState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServiceState {
    /// The state for `GET /clusters`.
    pub(crate) fn to_json(&self, service: &str) -> Value {
        let age = |at: SystemTime| SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
        let error = self.error.as_ref().map(|(at, error)| json!({ "at": timestamp::text(*at), "error": &**error }));
        json!({
            "source": self.source,
            "service": service,
            "last_answer": self.answered.map(timestamp::text),
            "age_seconds": self.answered.map(age),
            "last_error": error,
            "attempts": self.attempts,
        })
    }
}
