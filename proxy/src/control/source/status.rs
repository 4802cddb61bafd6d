//! The state of a source, for operators: metrics, `GET /resources`, and the log.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use serde_json::{Value, json};
use tracing::{info, warn};

use crate::observe::{Counter, LogLimiter, MetricError, PlainGauge, Registry, access_log::timestamp, shard, target};

/// The state of a source. Shared by the source, which updates it, and the admin listener.
pub struct SourceStatus {
    name: Arc<str>,
    state: Mutex<SourceState>,
    changed: Counter,
    unchanged: Counter,
    failed: Counter,
    last_success: PlainGauge,
    warnings: LogLimiter,
    /// The refused resources, as `KIND/NAME`, if they have changed since the source has asked.
    refused: Mutex<Option<Vec<String>>>,
    /// Whether the log reports the current outage.
    reported: AtomicBool,
}

/// A copy of a source's state.
#[derive(Debug, Clone, Default)]
pub struct SourceState {
    /// The time of the last usable answer, even if it reported that nothing had changed.
    pub last_answer: Option<SystemTime>,
    /// The last error, even if the source has answered since.
    pub last_error: Option<SourceError>,
    /// The number of failed attempts since the last usable answer; 0 if the source is available.
    pub attempts: u32,
}

/// An error of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceError {
    /// What failed.
    pub text: String,
    /// When it failed.
    pub at: SystemTime,
}

impl SourceStatus {
    /// Creates the state and the metrics of a source.
    pub fn new(registry: &Registry, name: &str) -> Result<Arc<SourceStatus>, MetricError> {
        let requests = |result| {
            registry.counter(
                "tollgate_source_requests_total",
                "Requests to sources, by result.",
                &[("source", name), ("result", result)],
            )
        };
        Ok(Arc::new(SourceStatus {
            name: name.into(),
            state: Mutex::default(),
            changed: requests("changed")?,
            unchanged: requests("unchanged")?,
            failed: requests("failed")?,
            last_success: registry.plain_gauge(
                "tollgate_source_last_success_timestamp_seconds",
                "The time of a source's last usable answer.",
                &[("source", name)],
            )?,
            warnings: LogLimiter::default(),
            refused: Mutex::default(),
            reported: AtomicBool::new(false),
        }))
    }

    /// Sets the refused resources, if they change after the document's verdict.
    pub fn set_refused(&self, refused: Vec<String>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
    }

    /// Returns the refused resources, if they have changed since the last call.
    pub fn take_refused(&self) -> Option<Vec<String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns the source's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns a copy of the state.
    pub fn state(&self) -> SourceState {
        self.lock().clone()
    }

    /// Returns the state for `GET /resources`.
    pub fn to_json(&self) -> Value {
        let state = self.state();
        let age = |at: SystemTime| SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
        let error = state.last_error.map(|e| json!({ "at": timestamp::text(e.at), "error": e.text }));
        json!({
            "name": &*self.name,
            "last_answer": state.last_answer.map(timestamp::text),
            "age_seconds": state.last_answer.map(age),
            "last_error": error,
            "attempts": state.attempts,
        })
    }

    /// Records a usable answer. `changed`: it had changes, and they were applied.
    pub fn succeeded(&self, changed: bool) {
        match changed {
            true => self.changed.inc(shard()),
            false => self.unchanged.inc(shard()),
        }
        let now = SystemTime::now();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.last_success.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        let mut state = self.lock();
        state.last_answer = Some(now);
        state.attempts = 0;
        drop(state);
        if self.reported.load(Relaxed) {
            self.reported.store(false, Relaxed);
            info!(target: target::CONFIG, source = %self.name, "source available again");
        }
    }

    /// Records a failure.
    pub fn failed(&self, text: String) {
        self.failed.inc(shard());
        let mut state = self.lock();
        state.attempts = state.attempts.saturating_add(1);
        let attempts = state.attempts;
        state.last_error = Some(SourceError { text: text.clone(), at: SystemTime::now() });
        drop(state);
        if let Some(left_out) = self.warnings.may_warn() {
            self.reported.store(true, Relaxed);
            warn!(
                target: target::CONFIG,
                source = %self.name,
                error = text,
                attempts,
                left_out,
                "source unavailable; its last accepted resources are kept"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, SourceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_shows_last_answer_last_error_and_attempts() {
        let registry = Registry::new(1);
        let status = SourceStatus::new(&registry, "central").unwrap();
        let never =
            json!({ "name": "central", "last_answer": null, "age_seconds": null, "last_error": null, "attempts": 0 });
        assert_eq!(status.to_json(), never);
        status.failed("no answer".to_owned());
        status.failed("no route".to_owned());
        let json = status.to_json();
        assert_eq!((&json["attempts"], &json["last_error"]["error"]), (&json!(2), &json!("no route")));
        status.succeeded(true);
        status.succeeded(false);
        let json = status.to_json();
        assert_eq!((&json["attempts"], &json["last_error"]["error"]), (&json!(0), &json!("no route")));
        assert!(json["age_seconds"].as_u64().is_some_and(|age| age < 600), "{json}");
        let count = |result| {
            registry.value("tollgate_source_requests_total", &[("source", "central"), ("result", result)]).unwrap()
        };
        assert_eq!([count("changed"), count("unchanged"), count("failed")], [1.0, 1.0, 2.0]);
        let at = registry.value("tollgate_source_last_success_timestamp_seconds", &[("source", "central")]);
        assert!(at.unwrap() > 1e9);
    }
}
