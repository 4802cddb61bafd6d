//! The store's internal consistency.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{entry::CandidateState, transaction::Stage},
    *,
};

impl<R> Store<R> {
    /// Panics if the store is inconsistent between two operations.
    pub(super) fn check(&self) {
        assert!(self.touched.is_empty());
        let mut counts: BTreeMap<(&Key, Option<SourceId>), u32> = BTreeMap::new();
        let mut timers = 0;
        let mut members: BTreeMap<TransactionId, usize> = BTreeMap::new();
        for (key, entry) in self.entries.iter() {
            assert!(!entry.touched && !entry.is_empty(), "{key} is empty");
            let pending =
                entry.claims.iter().filter_map(|claim| claim.candidate.as_ref()).filter(|c| c.pending().is_some());
            let being_built = pending.clone().count() > 0;
            let counted = entry.accepted.iter().map(|a| &a.resource).chain(pending.map(|c| &c.resource));
            for reference in counted.flat_map(|resource| &resource.references) {
                *counts.entry((&reference.key, reference.source)).or_default() += 1;
            }
            if let Some(accepted) = &entry.accepted {
                assert!(entry.answered > BatchId(0), "{key} was never answered");
                assert!(accepted.orphan || entry.claim(accepted.source).is_some(), "{key} belongs to no source");
                assert!(!accepted.orphan || being_built, "{key} was withdrawn, and nothing replaces it");
            }
            let holder = entry.accepted.as_ref().is_some_and(|accepted| !accepted.orphan);
            for claim in &entry.claims {
                let Source { options, claims, .. } = &self.sources[claim.source.0 as usize];
                assert!(claims[key.kind as usize].contains(key), "{key} is not in the index");
                timers += usize::from(claim.expires.is_some());
                let on_demand = key.kind.on_demand() && options.subscribes;
                assert!(!on_demand || entry.wanted_from(claim.source), "{key} is not wanted");
                let Some(candidate) = &claim.candidate else {
                    assert!(entry.accepted_from(claim.source).is_some(), "{key}: a claim without a resource");
                    continue;
                };
                assert!(candidate.pending().is_some() || !candidate.unjudged, "{key} has no verdict");
                match candidate.state {
                    CandidateState::Pending(id) => {
                        assert!(self.transactions[&id].sets.contains(key));
                        *members.entry(id).or_default() += 1;
                    }
                    CandidateState::Shadowed(_) => assert!(holder || being_built, "{key} should be built"),
                    CandidateState::Refused(_) => {}
                }
            }
            for claim in &entry.claims {
                if let Some(id) = claim.removal {
                    assert!(self.transactions[&id].removes.contains(key));
                    *members.entry(id).or_default() += 1;
                }
            }
            for id in &entry.waiters {
                assert!(self.transactions[id].waiting.contains_key(key), "{key}: {id:?} does not wait");
            }
        }
        for (key, entry) in self.entries.iter() {
            for wanted in &entry.wants {
                let count = counts.remove(&(key, wanted.source)).unwrap_or_default();
                assert_eq!(wanted.count, count, "references to {key}");
                assert_eq!(wanted.told, key.kind.on_demand(), "{key}: notified");
            }
        }
        assert!(counts.is_empty(), "references that are not counted: {counts:?}");
        let indexed = self.sources.iter().flat_map(|source| &source.claims).map(|claims| claims.len()).sum::<usize>();
        assert_eq!(indexed, self.entries.iter().map(|(_, entry)| entry.claims.len()).sum::<usize>());
        let ready: BTreeSet<_> = self.ready.iter().collect();
        for (id, pending) in &self.transactions {
            assert_eq!(members.remove(id), Some(pending.live), "members of {id:?}");
            let warming = matches!(pending.stage, Stage::Warming(_));
            assert_eq!(warming, !pending.waiting.is_empty(), "{id:?} {:?}", pending.stage);
            assert_eq!(pending.stage == Stage::Ready, ready.contains(id));
            timers += usize::from(matches!(pending.stage, Stage::Warming(Some(_))));
            for (key, waiting) in &pending.waiting {
                let entry = self.entries.get(key).expect("an entry for what is waited for");
                assert_eq!(entry.waiters.iter().filter(|waiter| *waiter == id).count(), 1, "{id:?} waits for {key}");
                assert!(entry.answered < waiting.needed, "{id:?} waits for {key} without a reason");
            }
        }
        assert_eq!(timers, self.timers.len());
    }
}
