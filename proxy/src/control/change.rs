//! A requested change of the configuration, and the outcome of the last attempt.

use std::time::SystemTime;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::observe::access_log::timestamp;

/// A change that somebody wants.
pub struct ReloadRequest {
    /// Why.
    pub cause: &'static str,
    /// Who wants to know what came of it.
    pub done: Option<oneshot::Sender<ReloadAttempt>>,
}

/// The last change that was tried.
#[derive(Debug, Clone)]
pub struct ReloadAttempt {
    /// When.
    pub at: SystemTime,
    /// Why it was tried: a file, a signal, the admin API.
    pub cause: &'static str,
    /// What came of it.
    pub result: ReloadOutcome,
}

/// What came of a change.
#[derive(Debug, Clone)]
pub enum ReloadOutcome {
    /// It is in force, as this version.
    Applied(u64),
    /// Nothing had changed.
    Unchanged,
    /// Nothing was changed; this was wrong, for people and as JSON.
    Refused(String, Value),
}

/// An attempt, as the admin API tells it.
pub fn attempt_json(attempt: &ReloadAttempt) -> Value {
    let (result, version, errors) = match &attempt.result {
        ReloadOutcome::Applied(version) => ("applied", Some(*version), Value::Null),
        ReloadOutcome::Unchanged => ("unchanged", None, Value::Null),
        ReloadOutcome::Refused(_, errors) => ("refused", None, errors.clone()),
    };
    json!({ "at": timestamp::text(attempt.at), "cause": attempt.cause, "result": result, "version": version, "errors": errors })
}
