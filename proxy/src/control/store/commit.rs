//! Commits: the results of builds.

use std::{sync::Arc, time::Duration};

use rustc_hash::FxHashMap;

use super::{
    Event, FieldError, Key, Outcome, Policy, Refusal, SourceId, Store, TransactionId,
    entry::{Absence, Accepted, Candidate, CandidateState},
    transaction::{Pending, Stage},
};

/// What a commit has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The resources of the transaction that are now accepted. Those that a newer offer had replaced are missing.
    pub accepted: Vec<Key>,
    /// The resources that the transaction removed.
    pub removed: Vec<Key>,
}

impl<R> Store<R> {
    /// Enters the result of a build: a transaction from [`Store::next_ready`] was built, or its resources have these
    /// errors. Resources without errors in a transaction with errors are refused too.
    ///
    /// Resources that were offered again or withdrawn meanwhile are not affected. If that applies to all of them, the
    /// commit has no effect, and neither has a second commit.
    pub fn commit(
        &mut self,
        id: TransactionId,
        result: Result<(), Vec<(Key, Vec<FieldError>)>>,
        now: Duration,
    ) -> Committed {
        let mut committed = Committed::default();
        if self.transactions.get(&id).is_none_or(|pending| pending.stage != Stage::Building) {
            return committed;
        }
        let Some(pending) = self.take(id) else { return committed };
        self.now = now;
        match result {
            Ok(()) => {
                for key in pending.sets {
                    if self.accept(&key, pending.source, id) {
                        committed.accepted.push(key);
                    }
                }
                for key in pending.removes {
                    if self.claim(&key, pending.source).is_some_and(|claim| claim.removal == Some(id)) {
                        self.remove(&key, pending.source, pending.batch);
                        committed.removed.push(key);
                    }
                }
            }
            Err(errors) => {
                let errors = errors.into_iter().map(|(key, errors)| (key, Arc::new(Refusal::Invalid(errors))));
                let mut errors: FxHashMap<_, _> = errors.collect();
                if pending.policy == Policy::PerResource {
                    // Its only resource is refused also if the builder named none.
                    pending.sets.iter().for_each(|key| {
                        errors.entry(key.clone()).or_insert_with(|| Arc::new(Refusal::Invalid(Vec::new())));
                    });
                }
                self.fail(id, pending, errors);
            }
        }
        self.settle();
        committed
    }

    /// Accepts a candidate of a transaction. Returns false if it is no longer the source's candidate.
    fn accept(&mut self, key: &Key, source: SourceId, id: TransactionId) -> bool {
        let Some(claim) = self.claim_mut(key, source) else { return false };
        let Some(mut candidate) = claim.candidate.take_if(|candidate| candidate.is_pending_in(id)) else {
            return false;
        };
        let unjudged = candidate.judge();
        let Candidate { resource, batch, .. } = candidate;
        let entry = self.entries.make(key);
        let accepted = Accepted { resource: resource.clone(), source, orphan: false };
        let old = entry.accepted.replace(accepted);
        entry.absence = Absence::Unknown;
        let changed = old.as_ref().is_none_or(|old| old.resource.sha256 != resource.sha256);
        if changed {
            entry.changed = self.now;
        }
        // The other source still supplies what was accepted from it, also if it offered a refused one since.
        if let Some(old) = old.as_ref().filter(|old| !old.orphan && old.source != source)
            && let Some(claim) = entry.claim_mut(old.source)
            && claim.candidate.as_ref().is_none_or(|candidate| candidate.pending().is_none())
        {
            let state = CandidateState::Shadowed(Arc::new(Refusal::clash(&resource, &old.resource)));
            let (resource, batch) = (old.resource.clone(), claim.batch);
            claim.candidate = Some(Candidate { resource, batch, state, unjudged: false });
        }
        if let Some(old) = old {
            self.release(&old.resource);
        }
        if unjudged {
            self.verdict(source, batch, &resource, Outcome::Accepted);
        }
        if changed {
            self.events.push_back(Event::Changed(key.clone()));
        }
        self.displace_others(key, source);
        self.answer(key, batch);
        true
    }

    /// Refuses pending candidates of sources that do not take precedence over `source`, whose resource is accepted.
    pub(super) fn displace_others(&mut self, key: &Key, source: SourceId) {
        let Some(entry) = self.entries.get(key) else { return };
        let others: Vec<_> = (entry.claims.iter())
            .filter(|claim| claim.source != source && self.options(claim.source).rank >= self.options(source).rank)
            .filter_map(|claim| Some((claim.source, claim.candidate.as_ref()?.pending()?)))
            .collect();
        for (other, id) in others {
            self.shadow(key, other, id);
        }
    }

    /// Refuses a pending candidate because of what is accepted.
    fn shadow(&mut self, key: &Key, source: SourceId, id: TransactionId) {
        let Some(candidate) = self.candidate(key, source) else { return };
        let (resource, batch) = (candidate.resource.clone(), candidate.batch);
        let Some(accepted) = self.accepted(key) else { return };
        let refusal = Arc::new(Refusal::clash(accepted, &resource));
        if self.transactions.get(&id).is_some_and(|pending| pending.policy == Policy::AllOrNothing) {
            if let Some(pending) = self.take(id) {
                self.fail(id, pending, FxHashMap::from_iter([(key.clone(), refusal)]));
            }
            return;
        }
        self.leave(id, Some(&resource));
        self.release(&resource);
        let Some(candidate) = self.claim_mut(key, source).and_then(|claim| claim.candidate.as_mut()) else { return };
        candidate.state = CandidateState::Shadowed(refusal.clone());
        if candidate.judge() {
            self.verdict(source, batch, &resource, Outcome::Refused(refusal));
        }
    }

    /// Refuses what is left of a transaction: each resource for its own reason, or because of the batch.
    pub(super) fn fail(&mut self, id: TransactionId, pending: Pending, mut reasons: FxHashMap<Key, Arc<Refusal>>) {
        let of_batch = Arc::new(Refusal::Batch);
        for key in &pending.sets {
            let Some(claim) = self.claim_mut(key, pending.source) else { continue };
            let Some(candidate) = claim.candidate.as_mut().filter(|candidate| candidate.is_pending_in(id)) else {
                continue;
            };
            let refusal = reasons.remove(key).unwrap_or_else(|| of_batch.clone());
            candidate.state = CandidateState::Refused(refusal.clone());
            let (unjudged, batch, resource) = (candidate.judge(), candidate.batch, candidate.resource.clone());
            self.release(&resource);
            if unjudged {
                self.verdict(pending.source, batch, &resource, Outcome::Refused(refusal));
            }
            // The source has answered, and referrers go on without the resource.
            if key.kind.on_demand() {
                self.answer(key, batch);
            }
            self.touch(key);
        }
        for key in &pending.removes {
            if let Some(claim) = self.claim_mut(key, pending.source) {
                claim.removal.take_if(|removal| *removal == id);
            }
        }
    }
}
