//! The configurations that were applied, for `GET /config/history`, and for `POST /config/rollback/VERSION`, which applies
//! one of them again.
//!
//! A version keeps its loaded configuration and its compiled modules, since their files may change. Versions share
//! resources and modules that are the same, so each costs little more than its differences. Keys and certificates are not
//! kept: they are read again.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use serde_json::{Value, json};

use super::changes::Changes;
use crate::{config::Loaded, observe::access_log::timestamp, snapshot::Snapshot, wasm::CompiledModule};

/// A configuration that was applied.
pub struct AppliedVersion {
    /// The number.
    pub version: u64,
    /// The configuration.
    pub loaded: Loaded,
    /// The modules of its filters, in their order.
    pub modules: Vec<Arc<CompiledModule>>,
    hash: String,
    at: SystemTime,
    /// The cause: a file, a signal, the admin API.
    cause: &'static str,
    /// The version whose configuration this is, if it was applied again.
    rollback_to: Option<u64>,
    /// The differences to the version before; `None` for the first one.
    changes: Option<String>,
    new_instances: Vec<String>,
}

impl AppliedVersion {
    /// Describes a snapshot that was applied. `rollback_to`: the version whose configuration it is, if it was applied again.
    pub fn new(
        snapshot: &Snapshot,
        cause: &'static str,
        changes: Option<&Changes>,
        rollback_to: Option<u64>,
    ) -> AppliedVersion {
        AppliedVersion {
            version: snapshot.version,
            loaded: snapshot.loaded.clone(),
            modules: {
                // Those of sources follow.
                let of_files = snapshot.plugins.iter().take(snapshot.loaded.config.filters.len());
                of_files.map(|plugin| plugin.code.clone()).collect()
            },
            hash: snapshot.hash.clone(),
            at: SystemTime::now(),
            cause,
            rollback_to,
            changes: changes.map(Changes::line),
            new_instances: changes.map(|changes| changes.new_instances.clone()).unwrap_or_default(),
        }
    }

    /// Whether a snapshot has this configuration, with the same modules, keys and certificates.
    pub fn is_running_as(&self, snapshot: &Snapshot) -> bool {
        let modules = snapshot.plugins.iter().map(|plugin| &plugin.code);
        Arc::ptr_eq(&self.loaded.source, &snapshot.loaded.source)
            && self.modules.iter().zip(modules).all(|(one, other)| Arc::ptr_eq(one, other))
            && snapshot.tls.are_current()
    }
}

/// The last configurations that were applied, oldest first.
#[derive(Default)]
pub struct History(VecDeque<Arc<AppliedVersion>>);

impl History {
    /// Adds a version, and drops the oldest ones beyond `most`.
    pub fn add(&mut self, version: AppliedVersion, most: usize) {
        self.0.push_back(Arc::new(version));
        self.0.drain(..self.0.len().saturating_sub(most));
    }

    /// Finds a version.
    pub fn find(&self, version: u64) -> Option<&Arc<AppliedVersion>> {
        self.0.iter().find(|applied| applied.version == version)
    }

    /// Returns all versions in the admin API's form, newest first. `pinned`: the pinned version.
    pub fn to_json(&self, pinned: Option<u64>) -> Value {
        let one = |applied: &Arc<AppliedVersion>| {
            let AppliedVersion { version, hash, at, cause, rollback_to, changes, new_instances, .. } = &**applied;
            json!({
                "version": version,
                "hash": hash,
                "at": timestamp::text(*at),
                "cause": cause,
                "rollback_to": rollback_to,
                "changes": changes,
                "new_instances": new_instances,
                "pinned": pinned == Some(*version),
            })
        };
        self.0.iter().rev().map(one).collect()
    }
}
