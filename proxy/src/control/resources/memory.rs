//! What sources with `keep: true` have supplied, on disk for the next start.

use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::documents::Payload;
use crate::{
    control::{
        source::kept::KeptFile,
        store::{SourceId, Store},
    },
    observe::target,
};

/// The accepted resources of a source.
pub(super) struct Kept {
    version: Option<String>,
    resources: Vec<(Arc<str>, Arc<Payload>)>,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
pub(super) struct Content {
    /// The version that the source gave its last document, if any.
    pub(super) version: Option<String>,
    /// The resources, as a document.
    pub(super) document: Value,
}

impl Kept {
    /// Collects what a source has supplied and the store has accepted.
    pub(super) fn of(store: &Store<Payload>, source: SourceId, version: Option<String>) -> Kept {
        let accepted = store.held(source).filter_map(|(key, _)| Some((key.clone(), store.accepted(key)?)));
        let resources = accepted.map(|(key, resource)| (key.name, resource.payload.clone())).collect();
        Kept { version, resources }
    }

    /// Writes the file. It takes a while.
    pub(super) fn store(self, cache: &Path, source: &str) {
        let (mut listeners, mut filters, mut clusters, mut endpoints) = (vec![], vec![], vec![], vec![]);
        for (name, payload) in &self.resources {
            match &**payload {
                Payload::Cluster(config) => clusters.extend(serde_json::to_value(config.as_ref())),
                Payload::Endpoints(list) => endpoints.push(json!({ "name": &**name, "endpoints": list })),
                Payload::Part(part) => {
                    let section = if part.listeners.is_empty() { &mut filters } else { &mut listeners };
                    section.extend(part.supplied().map(|(_, written)| written.clone()));
                }
                Payload::Built | Payload::Wrong(_) => {}
            }
        }
        let document =
            json!({ "listeners": listeners, "filters": filters, "clusters": clusters, "endpoints": endpoints });
        let content = serde_json::to_vec(&Content { version: self.version, document }).unwrap_or_default();
        if let Err(e) = KeptFile::new(cache, source).store(&content) {
            tracing::warn!(target: target::CONFIG, source, "cannot keep the source's resources: {e}");
        }
    }
}

/// Reads the file of a source; `None` if there is none, or it is damaged.
pub(super) fn load(cache: &Path, source: &str) -> Option<Content> {
    serde_json::from_slice(&KeptFile::new(cache, source).load()?).ok()
}
