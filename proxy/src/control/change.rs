//! A request to reload the configuration, and the outcome of the last attempt.

use std::time::SystemTime;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::observe::access_log::timestamp;

/// What to do with the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Apply the files, unless a version is pinned.
    Reload,
    /// Apply a version of the history again, and pin it.
    Rollback(u64),
    /// Apply the files, and pin nothing.
    Resume,
}

/// A request to change the configuration.
pub struct ReloadRequest {
    /// What to do.
    pub order: Order,
    /// The cause: a file, a signal, the admin API.
    pub cause: &'static str,
    /// Receives the outcome, if the requester waits for it.
    pub done: Option<oneshot::Sender<ReloadAttempt>>,
}

/// The last attempt to change the configuration.
#[derive(Debug, Clone)]
pub struct ReloadAttempt {
    /// The time of the attempt.
    pub at: SystemTime,
    /// The cause: a file, a signal, the admin API.
    pub cause: &'static str,
    /// The outcome.
    pub result: ReloadOutcome,
}

/// The outcome of an attempt to change the configuration.
#[derive(Debug, Clone)]
pub enum ReloadOutcome {
    /// The configuration is running, as this version.
    Applied(u64),
    /// The files match the running configuration.
    Unchanged,
    /// The files were not applied, because this version is pinned.
    Pinned(u64),
    /// The configuration was rejected, with the errors as text and as JSON. The running one is unchanged.
    Refused(String, Value),
}

/// Returns an attempt in the admin API's form.
pub fn attempt_json(attempt: &ReloadAttempt) -> Value {
    let (result, version, errors) = match &attempt.result {
        ReloadOutcome::Applied(version) => ("applied", Some(*version), Value::Null),
        ReloadOutcome::Unchanged => ("unchanged", None, Value::Null),
        ReloadOutcome::Pinned(version) => ("pinned", Some(*version), Value::Null),
        ReloadOutcome::Refused(_, errors) => ("refused", None, errors.clone()),
    };
    let mut shown = json!({ "at": timestamp::text(attempt.at), "cause": attempt.cause, "result": result, "version": version, "errors": errors });
    if let ReloadOutcome::Pinned(version) = attempt.result {
        shown["help"] = pinned(version).into();
    }
    shown
}

/// Explains why files are not applied.
pub fn pinned(version: u64) -> String {
    format!("pinned to version {version}; POST /config/resume applies the files")
}
