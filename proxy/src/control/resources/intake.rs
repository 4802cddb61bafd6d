//! What sources send: documents, changed files of directories, and endpoints that were found. They are read and offered to the store.

use std::sync::Arc;

use super::{Keeper, documents, memory, running::Running};
use crate::{
    config::{Format, Fragment},
    control::{
        discovery::Discovered,
        load::loader,
        source::{
            directory::{FileState, Listing},
            http::{Fetched, Verdict},
        },
        store::{SourceId, SourceOptions},
    },
    digest::{hex, sha256},
    observe::target,
};

impl Keeper {
    /// Offers what an earlier process has kept of a source.
    pub(super) fn recall(&mut self, name: &Arc<str>, kept: memory::Content) {
        let document = kept.document.to_string();
        match self.offer(name, document, Format::Json, kept.version.as_deref().unwrap_or("kept").into(), false) {
            Ok(_) => tracing::info!(target: target::CONFIG, source = &**name, "resources of an earlier run are used"),
            Err(e) => tracing::warn!(target: target::CONFIG, source = &**name, "resources of an earlier run: {e}"),
        }
    }

    /// Handles a document of a source.
    pub(super) fn fetched(&mut self, document: Fetched) {
        self.since = document.arrived.into_std();
        let Fetched { source, body, format, etag, is_delta, verdict, .. } = document;
        let version: Arc<str> = match &etag {
            Some(etag) => etag.as_str().into(),
            None => hex(&sha256(&body))[..16].into(),
        };
        let text = String::from_utf8(body.into()).map_err(|e| e.to_string());
        let offered = text.and_then(|text| self.offer(&source, text, format, version, is_delta));
        if let Some(running) = self.sources.get_mut(&source).filter(|running| running.keeps() && offered.is_ok()) {
            (running.version, running.is_changed) = (etag, true);
            self.keep_soon();
        }
        // The verdict is newer than what was decided before.
        self.sources.get(&source).iter().for_each(|running| _ = running.status.take_refused());
        // The source may have ended.
        let _ = verdict.send(match offered {
            Ok(refused) => Verdict::Applied { refused },
            Err(why) => Verdict::Unusable(why),
        });
    }

    /// Offers a document to the store. Returns the names of the source's refused resources, or why the document is
    /// unusable.
    fn offer(
        &mut self,
        name: &Arc<str>,
        text: String,
        format: Format,
        version: Arc<str>,
        is_delta: bool,
    ) -> Result<Vec<String>, String> {
        let Some(running) = self.sources.get(name) else { return Err("the source was removed".to_owned()) };
        let id = running.id;
        // Documents come from other machines: they cannot name this machine's environment variables.
        let loader = loader().env(|_| None);
        let fragment = loader.fragment(name, &self.dir, text, format).map_err(|wrong| wrong.to_string())?;
        self.enter(name, id, fragment, &version, is_delta)?;
        Ok(self.sources.get(name).map(Running::refused_in_documents).unwrap_or_default())
    }

    /// Handles changed files of a source's directory.
    pub(super) fn listed(&mut self, listing: Listing) {
        let Listing { source, files, arrived } = listing;
        self.since = arrived.into_std();
        for (path, state) in files {
            let Some(running) = self.sources.get_mut(&source) else { return };
            let name = path.display().to_string();
            let id = *running.files.entry(path).or_insert_with(|| {
                self.store.add_source(name.as_str(), SourceOptions { rank: 1, ..SourceOptions::default() })
            });
            let entered = match state {
                FileState::Gone => self.enter(&source, id, Fragment::default(), &"".into(), false),
                FileState::Text(text, format) => {
                    let version: Arc<str> = hex(&sha256(text.as_bytes()))[..16].into();
                    let fragment = loader().fragment(&name, &self.dir, text, format).map_err(|wrong| wrong.to_string());
                    fragment.and_then(|fragment| self.enter(&source, id, fragment, &version, false))
                }
            };
            if let Err(why) = entered {
                tracing::warn!(target: target::CONFIG, source = &*source, "{name} cannot be used: {why}");
                self.sources.get(&source).iter().for_each(|running| running.status.failed(why.clone()));
            }
        }
    }

    /// Handles endpoints that were found.
    pub(super) fn discovered(&mut self, Discovered { service, endpoints, arrived }: Discovered) {
        self.since = arrived;
        let batch = documents::of_discovery(&service, endpoints, self.discovery);
        if let Err(e) = self.store.offer(batch, self.now()) {
            tracing::error!(target: target::CONFIG, "the store does not accept endpoints of `{service}`: {e}");
        }
        self.settle();
    }

    /// Offers resources to the store. `id`: the source, or one of its files.
    fn enter(
        &mut self,
        name: &Arc<str>,
        id: SourceId,
        fragment: Fragment,
        version: &Arc<str>,
        is_delta: bool,
    ) -> Result<(), String> {
        let Some(running) = self.sources.get(name) else { return Err("the source was removed".to_owned()) };
        if !is_delta && !fragment.removed.is_empty() {
            return Err("a full state has no `removed`: what it lacks is removed".to_owned());
        }
        self.warn_of_missing_sources(name, &fragment);
        let batch =
            documents::of_document(fragment, (id, name), self.discovery, version, &running.config.supplies, is_delta);
        self.store.offer(batch, self.now()).map_err(|e| e.to_string())?;
        self.settle();
        Ok(())
    }

    /// Not an error: the configuration's files may add the source later.
    fn warn_of_missing_sources(&self, source: &str, fragment: &Fragment) {
        for cluster in &fragment.clusters {
            let named = cluster.value.discovery.as_ref().and_then(|discovery| discovery.source.as_deref());
            if let Some(missing) = named.filter(|named| !self.sources.contains_key(*named)) {
                let cluster = &*cluster.value.name;
                let message = "the cluster takes its endpoints from a source that does not exist";
                tracing::warn!(target: target::CONFIG, source, cluster, missing, "{message}");
            }
        }
    }
}
