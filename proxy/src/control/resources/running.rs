//! A source of resources while it runs: its task, and what the thread knows of it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustc_hash::FxHashMap;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, spawn_local},
};

use super::documents::name_in_document;
use crate::{
    config::model,
    control::{
        discovery::Discovery,
        source::{
            directory::{DirectoryReader, Listing},
            http::{Fetched, HttpPoller},
            status::SourceStatus,
        },
        store::{Key, Kind, SourceId},
    },
    observe::{MetricError, Registry},
};

/// Where sources send what they supply.
pub(super) struct Outputs {
    pub(super) documents: mpsc::Sender<Fetched>,
    pub(super) listings: mpsc::Sender<Listing>,
    /// Looks up host names of endpoints.
    pub(super) discovery: Discovery,
}

/// A running source, which ends on drop.
pub(super) struct Running {
    pub(super) id: SourceId,
    pub(super) config: model::Source,
    pub(super) status: Arc<SourceStatus>,
    /// Its resources that are refused.
    pub(super) refused: BTreeSet<Key>,
    /// The files of its directory, each of which is a source for the store.
    pub(super) files: FxHashMap<PathBuf, SourceId>,
    /// The version of its last document, which is kept on disk.
    pub(super) version: Option<String>,
    /// Whether its resources have changed since they were written to disk.
    pub(super) is_changed: bool,
    task: Option<AbortHandle>,
}

impl Running {
    /// A source that does not run yet.
    pub(super) fn new(id: SourceId, config: model::Source, registry: &Registry) -> Result<Running, MetricError> {
        let status = SourceStatus::new(registry, &config.name)?;
        let (refused, files) = (BTreeSet::new(), FxHashMap::default());
        Ok(Running { id, config, status, refused, files, version: None, is_changed: false, task: None })
    }

    /// Whether the store knows it, or one of its files, by this id.
    pub(super) fn owns(&self, id: SourceId) -> bool {
        self.id == id || self.files.values().any(|file| *file == id)
    }

    /// Its refused resources as documents name them.
    pub(super) fn refused_in_documents(&self) -> Vec<String> {
        let named = |key: &Key| {
            let name = name_in_document(&self.config.name, key);
            match key.kind {
                Kind::Endpoints => format!("endpoints/{name}"),
                kind => format!("{kind}s/{name}"),
            }
        };
        self.refused.iter().map(named).collect()
    }

    /// Whether its resources are kept on disk.
    pub(super) fn keeps(&self) -> bool {
        self.config.http.as_ref().is_some_and(|http| http.keep)
    }

    /// Starts its task, in place of a running one. Relative paths are relative to `dir`.
    ///
    /// # Errors Its configuration cannot be used; that is noted in its status as well.
    pub(super) fn start(&mut self, dir: &Path, out: &Outputs) -> Result<(), String> {
        self.stop();
        if let Some(config) = &self.config.directory {
            let reader = DirectoryReader::new(dir.join(&config.path), self.status.clone(), out.listings.clone());
            self.task = Some(spawn_local(reader.run()).abort_handle());
        }
        let Some(config) = &self.config.http else { return Ok(()) };
        match HttpPoller::new(config, dir, self.status.clone(), out.documents.clone()) {
            Ok(mut poller) => {
                if let Some(version) = &self.version {
                    poller = poller.resuming(version);
                }
                self.task = Some(spawn_local(poller.run()).abort_handle());
                Ok(())
            }
            Err(e) => {
                self.status.failed(e.clone());
                Err(e)
            }
        }
    }

    fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
