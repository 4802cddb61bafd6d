//! A request to reload the configuration, and the outcome of the last attempt.

use std::time::SystemTime;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::observe::access_log::timestamp;

/// A request to reload.
pub struct ReloadRequest {
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
    /// The configuration was rejected, with the errors as text and as JSON. The running one is unchanged.
    Refused(String, Value),
}

/// Returns an attempt in the admin API's form.
pub fn attempt_json(attempt: &ReloadAttempt) -> Value {
    let (result, version, errors) = match &attempt.result {
        ReloadOutcome::Applied(version) => ("applied", Some(*version), Value::Null),
        ReloadOutcome::Unchanged => ("unchanged", None, Value::Null),
        ReloadOutcome::Refused(_, errors) => ("refused", None, errors.clone()),
    };
    json!({ "at": timestamp::text(attempt.at), "cause": attempt.cause, "result": result, "version": version, "errors": errors })
}
