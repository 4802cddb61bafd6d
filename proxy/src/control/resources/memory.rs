//! What sources with `keep: true` have supplied, on disk for the next start.

use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    documents::{Payload, name_in_document},
    running::Running,
};
use crate::{
    config::model,
    control::{source::kept::KeptFile, store::Store},
    observe::target,
};

/// The accepted resources of a source.
pub(super) struct Kept {
    url: String,
    version: Option<String>,
    resources: Vec<(Arc<str>, Arc<Payload>)>,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
pub(super) struct Content {
    /// Where the source was. The state of another server is not used.
    url: String,
    /// The version that the source gave its last document, if any.
    pub(super) version: Option<String>,
    /// The resources, as a document.
    pub(super) document: Value,
}

impl Kept {
    /// Collects what a source has supplied and the store has accepted. `version` is that of the whole state.
    pub(super) fn of(store: &Store<Payload>, running: &Running, version: Option<String>) -> Kept {
        let (source, name) = (running.id, &running.config.name);
        let (mut is_whole, mut resources) = (true, Vec::new());
        for view in store.held(source).filter_map(|(key, _)| store.view(key)) {
            is_whole &= !view.candidates.iter().any(|candidate| candidate.source == source);
            let own = view.accepted.filter(|(accepted_from, _)| *accepted_from == source);
            resources
                .extend(own.map(|(_, resource)| (name_in_document(name, view.key).into(), resource.payload.clone())));
        }
        Kept { url: url(&running.config).to_owned(), version: version.filter(|_| is_whole), resources }
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
        let content = Content { url: self.url, version: self.version, document };
        let content = serde_json::to_vec(&content).unwrap_or_default();
        if let Err(e) = KeptFile::new(cache, source).store(&content) {
            tracing::warn!(target: target::CONFIG, source, "cannot keep the source's resources: {e}");
        }
    }
}

/// Reads the file of a source; `None` if there is none, it is damaged, or it is of a source at another URL.
pub(super) fn load(cache: &Path, source: &model::Source) -> Option<Content> {
    let file = KeptFile::new(cache, &source.name).load()?;
    serde_json::from_slice(&file).ok().filter(|content: &Content| content.url == url(source))
}

/// Removes the file of a source that no longer has `keep: true`: with it later, it would be far out of date.
pub(super) fn forget(cache: &Path, source: &str) {
    if let Err(e) = KeptFile::new(cache, source).remove() {
        tracing::warn!(target: target::CONFIG, source, "cannot remove the resources that were kept of the source: {e}");
    }
}

fn url(source: &model::Source) -> &str {
    source.http.as_ref().map_or("", |http| &http.url)
}
