//! What the store knows about one key.

use std::{mem, sync::Arc, time::Duration};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{BatchId, Key, Refusal, Resource, SourceId, TransactionId, timers::TimerId};

/// What the store knows about one key. It exists while something is accepted, offered or referred to.
#[derive(Debug)]
pub(super) struct Entry<R> {
    /// What is in effect.
    pub(super) accepted: Option<Accepted<R>>,
    /// The sources that supply this key. The accepted resource belongs to one of them, unless it is an orphan.
    pub(super) claims: SmallVec<[Claim<R>; 1]>,
    /// The references from accepted resources and pending candidates, by the source that they name.
    pub(super) wants: SmallVec<[Wanted; 1]>,
    /// The transactions that wait for this key.
    pub(super) waiters: Vec<TransactionId>,
    /// The latest batch whose answer for this key is known: accepted, or, for on-demand kinds, refused or absent. 0 if
    /// there is none.
    pub(super) answered: BatchId,
    /// Why nothing is accepted.
    pub(super) absence: Absence,
    /// When `accepted` changed last.
    pub(super) changed: Duration,
    /// Whether the entry is listed in `Store::touched`.
    pub(super) touched: bool,
}

/// What is in effect under a key.
#[derive(Debug)]
pub(super) struct Accepted<R> {
    pub(super) resource: Arc<Resource<R>>,
    pub(super) source: SourceId,
    /// Whether its source has withdrawn it. It stays until another source's resource was built, which replaces it.
    pub(super) orphan: bool,
}

/// That a source supplies a key: with a candidate, or with what is accepted.
#[derive(Debug)]
pub(super) struct Claim<R> {
    pub(super) source: SourceId,
    /// The batch of the latest offer.
    pub(super) batch: BatchId,
    pub(super) candidate: Option<Candidate<R>>,
    /// The transaction that will remove the resource.
    pub(super) removal: Option<TransactionId>,
    pub(super) expires: Option<TimerId>,
}

/// A resource that is not accepted, or not yet.
#[derive(Debug)]
pub(super) struct Candidate<R> {
    pub(super) resource: Arc<Resource<R>>,
    pub(super) batch: BatchId,
    pub(super) state: CandidateState,
    /// Whether the final outcome is still to be reported.
    pub(super) unjudged: bool,
}

/// The state of a candidate.
#[derive(Debug)]
pub(super) enum CandidateState {
    /// It belongs to a transaction, and its references are counted.
    Pending(TransactionId),
    /// Another source's resource is accepted. Once that goes, the candidate is built.
    Shadowed(Arc<Refusal>),
    /// It is refused, until its source offers another one.
    Refused(Arc<Refusal>),
}

/// References that name the same source.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) source: Option<SourceId>,
    pub(super) count: u32,
    /// Whether the source was notified.
    pub(super) told: bool,
    /// Ask again, unless the resource was offered in this batch or later.
    pub(super) again: Option<BatchId>,
}

/// Whether a resource is known not to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absence {
    Unknown,
    Answered,
    TimedOut,
}

impl<R> Default for Entry<R> {
    fn default() -> Self {
        Entry {
            accepted: None,
            claims: SmallVec::new(),
            wants: SmallVec::new(),
            waiters: Vec::new(),
            answered: BatchId(0),
            absence: Absence::Unknown,
            changed: Duration::ZERO,
            touched: false,
        }
    }
}

impl<R> Entry<R> {
    pub(super) fn claim(&self, source: SourceId) -> Option<&Claim<R>> {
        self.claims.iter().find(|claim| claim.source == source)
    }

    pub(super) fn claim_mut(&mut self, source: SourceId) -> Option<&mut Claim<R>> {
        self.claims.iter_mut().find(|claim| claim.source == source)
    }

    /// The resource in effect, if this source supplies it.
    pub(super) fn accepted_from(&self, source: SourceId) -> Option<&Accepted<R>> {
        self.accepted.as_ref().filter(|accepted| accepted.source == source && !accepted.orphan)
    }

    /// The number of references to this key.
    pub(super) fn references(&self) -> u32 {
        self.wants.iter().map(|wanted| wanted.count).sum()
    }

    /// Whether a reference accepts this source's resource.
    pub(super) fn wanted_from(&self, source: SourceId) -> bool {
        self.wants.iter().any(|wanted| wanted.count > 0 && wanted.source.is_none_or(|named| named == source))
    }

    pub(super) fn wanted_mut(&mut self, source: Option<SourceId>) -> &mut Wanted {
        let at = self.wants.iter().position(|wanted| wanted.source == source).unwrap_or_else(|| {
            self.wants.push(Wanted { source, count: 0, told: false, again: None });
            self.wants.len() - 1
        });
        &mut self.wants[at]
    }

    /// Whether the entry holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.accepted.is_none() && self.claims.is_empty() && self.wants.is_empty() && self.waiters.is_empty()
    }
}

impl<R> Candidate<R> {
    pub(super) fn is_pending_in(&self, id: TransactionId) -> bool {
        matches!(self.state, CandidateState::Pending(pending) if pending == id)
    }

    pub(super) fn pending(&self) -> Option<TransactionId> {
        match self.state {
            CandidateState::Pending(id) => Some(id),
            _ => None,
        }
    }

    pub(super) fn is_shadowed(&self) -> bool {
        matches!(self.state, CandidateState::Shadowed(_))
    }

    /// Whether the final outcome is still to be reported. Returns true once.
    pub(super) fn judge(&mut self) -> bool {
        mem::take(&mut self.unjudged)
    }
}

/// All entries by key.
#[derive(Debug)]
pub(super) struct Entries<R> {
    by_key: FxHashMap<Key, Entry<R>>,
    /// The number of entries that operations accessed, for tests of their cost.
    #[cfg(test)]
    pub(super) visits: usize,
}

impl<R> Default for Entries<R> {
    fn default() -> Self {
        Entries {
            by_key: FxHashMap::default(),
            #[cfg(test)]
            visits: 0,
        }
    }
}

impl<R> Entries<R> {
    pub(super) fn get(&self, key: &Key) -> Option<&Entry<R>> {
        self.by_key.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Entry<R>> {
        self.visit();
        self.by_key.get_mut(key)
    }

    /// Returns the entry of a key; creates it if it does not exist.
    pub(super) fn make(&mut self, key: &Key) -> &mut Entry<R> {
        self.visit();
        // Most entries exist, and then the key needs no clone.
        if !self.by_key.contains_key(key) {
            self.by_key.insert(key.clone(), Entry::default());
        }
        self.by_key.get_mut(key).expect("inserted above")
    }

    pub(super) fn remove(&mut self, key: &Key) {
        self.by_key.remove(key);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Entry<R>)> {
        self.by_key.iter()
    }

    fn visit(&mut self) {
        #[cfg(test)]
        {
            self.visits += 1;
        }
    }
}
