//! What a source offers.

use std::{sync::Arc, time::Duration};

use rustc_hash::FxHashSet;

use super::{Key, Kinds, Resource, SourceId};

/// The number of a batch: ascending, from 1. Verdicts name it, because versions need not be unique.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub(super) u64);

/// The settings of a source.
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// The precedence if several sources offer the same key: the lowest wins. Among equals, the resource that was
    /// accepted first wins. The main file has 0, all other sources have the same higher rank.
    pub rank: u8,
    /// Whether the source fetches [on-demand](super::Kind::on_demand) kinds by name, as xDS does. Then it is notified of
    /// names that are wanted, offers of other names are ignored, and what it supplied is dropped with the last
    /// reference. A source that supplies everything unasked (a file, a URL) keeps its resources until it removes them.
    pub subscribes: bool,
    /// Whether a changed resource requests its on-demand hard references again and warms until they are answered, even
    /// if they are unchanged. xDS clients do so: a changed cluster subscribes to its endpoints again. It applies to the
    /// resources of this source that have such references.
    pub refetch: bool,
}

/// Changes that a source offers together.
#[derive(Debug)]
pub struct Batch<R> {
    /// The source.
    pub source: SourceId,
    /// The kinds for which the batch is the source's full state: what the source supplied before and what is not in
    /// the batch is removed. A file: all kinds. A SotW response: its kind, if that is listeners or clusters (absence
    /// from other responses means nothing). A delta response: none.
    pub full: Kinds,
    /// Whether resources are refused one by one.
    pub policy: Policy,
    /// The changes. A key may occur only once.
    pub changes: Vec<Change<R>>,
}

/// Whether the resources of a batch are accepted one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// One transaction for the whole batch: sets and removals take effect together, or not at all. A batch that is
    /// refused because of a clash must be offered again once the other source has removed its resource.
    AllOrNothing,
    /// One transaction per resource. Removals take effect immediately.
    PerResource,
}

/// A change of one resource.
#[derive(Debug)]
pub enum Change<R> {
    /// The source supplies this resource. It replaces what the source offered before under this key.
    Set(Resource<R>),
    /// The source does not, or no longer, supply a resource with this key: a removal, or the answer to a subscription
    /// that the resource does not exist.
    Remove(Key),
    /// A heartbeat: if the source's resource still has this version, its TTL starts again. It gets no verdict.
    Renew {
        /// The resource.
        key: Key,
        /// Its version.
        version: Arc<str>,
        /// The new TTL; `None` ends the expiry.
        ttl: Option<Duration>,
    },
}

impl<R> Change<R> {
    /// The key of the resource.
    pub fn key(&self) -> &Key {
        match self {
            Change::Set(resource) => &resource.key,
            Change::Remove(key) | Change::Renew { key, .. } => key,
        }
    }
}

/// A batch that was refused as a whole: nothing of it was entered, and it gets no verdicts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Keys that occur more than once.
    #[error("the same name occurs more than once: {}", list(.0))]
    Duplicates(Vec<Key>),
    /// The source is not registered in this store.
    #[error("the source is not registered")]
    UnknownSource,
}

fn list(keys: &[Key]) -> String {
    keys.iter().map(Key::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns the keys of a batch, or those that occur more than once.
pub(super) fn unique_keys<R>(changes: &[Change<R>]) -> Result<FxHashSet<Key>, BatchError> {
    let mut keys = FxHashSet::default();
    let mut twice: Vec<Key> =
        changes.iter().map(Change::key).filter(|key| !keys.insert((*key).clone())).cloned().collect();
    if twice.is_empty() {
        return Ok(keys);
    }
    twice.sort();
    twice.dedup();
    Err(BatchError::Duplicates(twice))
}
