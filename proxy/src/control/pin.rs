//! A pinned configuration: it keeps running although the files change, until `POST /config/resume`.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::changes::Changes;
use crate::observe::access_log::timestamp;

/// The pinned version, and what the files would change.
#[derive(Debug)]
pub struct Pin {
    /// The version, as it was asked for.
    pub version: u64,
    /// What the files would change; `None` if that is nothing.
    pub pending: Option<Pending>,
}

/// What the files would change.
#[derive(Debug)]
pub struct Pending {
    at: SystemTime,
    result: Result<Change, Value>,
}

#[derive(Debug)]
struct Change {
    hash: String,
    changes: String,
    new_instances: Vec<String>,
}

impl Pending {
    /// The files have a configuration with this hash, which would change this.
    pub fn change(hash: String, changes: &Changes) -> Pending {
        let change = Change { hash, changes: changes.line(), new_instances: changes.new_instances.clone() };
        Pending { at: SystemTime::now(), result: Ok(change) }
    }

    /// The files have errors.
    pub fn errors(errors: Value) -> Pending {
        Pending { at: SystemTime::now(), result: Err(errors) }
    }

    /// The hash of the configuration in the files, if they have no errors.
    pub fn hash(&self) -> Option<&str> {
        self.result.as_ref().ok().map(|change| change.hash.as_str())
    }

    /// Returns the form of the admin API.
    pub fn to_json(&self) -> Value {
        let change = self.result.as_ref().ok();
        json!({
            "at": timestamp::text(self.at),
            "hash": change.map(|change| &change.hash),
            "changes": change.map(|change| &change.changes),
            "new_instances": change.map(|change| &change.new_instances),
            "errors": self.result.as_ref().err(),
        })
    }
}
