//! The slow lane, for listeners and filters: collects what is to be built, for the thread that builds configurations
//! ([`reload`](crate::control::reload)), and enters the results.
//!
//! A build takes effect only if its candidates are still the newest ones when it is done. What is accepted may have been
//! removed meanwhile; then another build follows.

use std::{collections::hash_map::Entry, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;

use super::documents::Payload;
use crate::config::FileResources;
use crate::control::{
    store::{CandidateView, FieldError, Key, Kind, Refusal, Resource, Sha256, SourceId, Status, Store, TransactionId},
    supplied::{Part, PartState, RefusedPart},
};

/// Why to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// Sources have changed something. The candidates of these keys are left out.
    Sources(FxHashSet<Key>),
    /// The files have changed. They are built together with what sources have changed, so that neither takes effect by
    /// half. They may give up names and addresses that sources want: what was refused is tried again.
    Files,
}

/// What is to be built, and what is in effect.
pub(super) struct BuildLane {
    /// The transactions that are ready to be built, with the content of their resources.
    ready: FxHashMap<(SourceId, Key), (TransactionId, Sha256)>,
    /// The resources in effect.
    in_effect: FxHashMap<Key, Sha256>,
    /// Accepted resources that cannot be in effect at present.
    broken: FxHashMap<Key, Arc<Refusal>>,
    /// Wakes the builder.
    wake: Arc<Notify>,
}

impl BuildLane {
    pub(super) fn new(wake: Arc<Notify>) -> BuildLane {
        let (ready, in_effect) = (FxHashMap::default(), FxHashMap::default());
        BuildLane { ready, in_effect, broken: FxHashMap::default(), wake }
    }

    /// Queues a transaction of one resource.
    pub(super) fn queue(&mut self, source: SourceId, resource: &Resource<Payload>, id: TransactionId) {
        self.ready.insert((source, resource.key.clone()), (id, resource.sha256));
        self.wake.notify_one();
    }

    /// Notes that a resource is no longer accepted.
    pub(super) fn removed(&mut self, key: &Key) {
        self.broken.remove(key);
        if self.in_effect.contains_key(key) {
            self.wake.notify_one();
        }
    }

    /// Whether a resource with this content is in effect already.
    pub(super) fn has(&self, resource: &Resource<Payload>) -> bool {
        self.in_effect.get(&resource.key) == Some(&resource.sha256)
    }

    /// Why an accepted resource is not in effect.
    pub(super) fn error(&self, key: &Key) -> Option<&Arc<Refusal>> {
        self.broken.get(key)
    }

    /// Returns the parts of the next configuration; `None` if nothing is to be built. `files`: the id of the
    /// configuration's files.
    pub(super) fn plan(&mut self, store: &Store<Payload>, files: SourceId, occasion: &Occasion) -> Option<Vec<Part>> {
        let is_building = |candidate: &CandidateView<'_, _>| matches!(candidate.status, Status::Building);
        self.ready.retain(|(source, key), _| {
            let candidates = store.view(key).map(|view| view.candidates).unwrap_or_default();
            candidates.iter().any(|candidate| candidate.source == *source && is_building(candidate))
        });
        let (mut parts, mut warming, mut has_candidates) = (Vec::new(), Vec::new(), false);
        let views = store.views().filter(|view| matches!(view.key.kind, Kind::Listener | Kind::Filter));
        for view in views {
            let of_files = view.accepted.is_some_and(|(source, _)| source == files);
            let accepted = view.accepted.filter(|_| !of_files);
            let accepted = accepted.and_then(|(source, resource)| part(source, resource, PartState::Accepted));
            let candidate = view.candidates.iter().find(|candidate| match (occasion, &candidate.status) {
                _ if candidate.source == files => false,
                (Occasion::Sources(left_out), _) if left_out.contains(view.key) => false,
                (_, Status::Building) => self.ready.contains_key(&(candidate.source, view.key.clone())),
                (_, Status::Warming) => true,
                (Occasion::Files, Status::Refused(Refusal::Clash { .. })) => of_files,
                (Occasion::Files, Status::Refused(_)) => true,
                _ => false,
            });
            let state = |accepted: Option<&Part>| PartState::Candidate(accepted.cloned().map(Box::new));
            let next = candidate.and_then(|candidate| {
                let next = part(candidate.source, candidate.resource, state(accepted.as_ref()))?;
                Some((next, candidate))
            });
            match next {
                Some((next, candidate)) if matches!(candidate.status, Status::Warming) => {
                    warming.push((next, accepted, candidate.resource));
                }
                Some((next, _)) => {
                    has_candidates = true;
                    parts.push(next);
                }
                None => parts.extend(accepted),
            }
        }
        // What waits only for resources of this build is built together with them. So a listener with a new filter can take
        // over another one's address without a gap.
        let planned: FxHashMap<Key, Arc<FileResources>> =
            parts.iter().map(|part| (part.key.clone(), part.file.clone())).collect();
        for (next, accepted, resource) in warming {
            let is_of_files =
                |key: &Key| store.view(key).and_then(|view| view.accepted).is_some_and(|(source, _)| source == files);
            let is_own = |filter: &Arc<FileResources>| filter.name() == next.file.name();
            let is_met = |key: &Key| planned.get(key).map_or_else(|| is_of_files(key), is_own);
            match resource.references.iter().all(|reference| is_met(&reference.key)) {
                true => parts.push(next),
                false => parts.extend(accepted),
            }
        }
        let wanted = || parts.iter().filter(|part| !part.is_candidate() && !self.broken.contains_key(&part.key));
        let is_in_effect = |part: &Part| self.in_effect.get(&part.key) == Some(&part.sha256);
        let is_same = || wanted().count() == self.in_effect.len() && wanted().all(is_in_effect);
        let is_needed = *occasion == Occasion::Files || has_candidates || !is_same();
        is_needed.then_some(parts)
    }

    /// Enters a build that is about to take effect: its parts, and those that it leaves out. Returns the results for the
    /// store.
    pub(super) fn enter(&mut self, parts: &[Part], refused: Vec<RefusedPart>) -> Vec<(TransactionId, Entered)> {
        let mut entered = Vec::new();
        // A source may have offered something newer meanwhile, which this build says nothing about.
        let mut id = |part: &Part| match self.ready.entry((part.source, part.key.clone())) {
            Entry::Occupied(ready) if ready.get().1 == part.sha256 => Some(ready.remove().0),
            _ => None,
        };
        for part in parts.iter().filter(|part| part.is_candidate()) {
            entered.extend(id(part).map(|id| (id, Ok(()))));
        }
        self.in_effect = parts.iter().map(|part| (part.key.clone(), part.sha256)).collect();
        self.broken.clear();
        for (part, errors) in refused {
            if part.is_candidate() {
                entered.extend(id(&part).map(|id| (id, Err(vec![(part.key, errors)]))));
            } else {
                self.broken.insert(part.key, Arc::new(Refusal::Invalid(errors)));
            }
        }
        entered
    }
}

/// Returns refused listeners and filters that are in effect nevertheless, because the files' last build has included them.
pub(super) fn mended(store: &Store<Payload>, build: &BuildLane) -> Vec<(SourceId, Arc<Resource<Payload>>)> {
    let is_refused = |status: Status<'_>| matches!(status, Status::Refused(Refusal::Invalid(_)));
    let candidates = store.views().flat_map(|view| view.candidates);
    let refused = candidates.filter(|candidate| is_refused(candidate.status) && build.has(candidate.resource));
    refused.map(|candidate| (candidate.source, candidate.resource.clone())).collect()
}

/// The result of a build for a transaction.
pub(super) type Entered = Result<(), Vec<(Key, Vec<FieldError>)>>;

/// Returns the candidates of a build that are no longer the newest ones of their sources.
pub(super) fn superseded(store: &Store<Payload>, parts: &[Part]) -> FxHashSet<Key> {
    let is_current = |part: &Part| {
        let candidates = store.view(&part.key).map(|view| view.candidates).unwrap_or_default();
        candidates.iter().any(|candidate| candidate.source == part.source && candidate.resource.sha256 == part.sha256)
    };
    parts.iter().filter(|part| part.is_candidate() && !is_current(part)).map(|part| part.key.clone()).collect()
}

fn part(source: SourceId, resource: &Resource<Payload>, state: PartState) -> Option<Part> {
    let Payload::Part(file) = &*resource.payload else { return None };
    Some(Part { key: resource.key.clone(), source, sha256: resource.sha256, file: file.clone(), state })
}
