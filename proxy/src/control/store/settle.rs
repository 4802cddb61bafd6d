//! Counted references, and what follows from a change: at the end of each operation, every entry that it has touched is
//! brought into order. Until then, references may drop to zero and rise again without any effect.

use super::{
    BatchId, Event, Key, Resource, SourceId, Store, Want,
    entry::{Absence, CandidateState, Wanted},
};

impl<R> Store<R> {
    /// Counts the references of a resource that is accepted or pending.
    pub(super) fn retain(&mut self, resource: &Resource<R>) {
        for reference in &resource.references {
            self.entries.make(&reference.key).wanted_mut(reference.source).count += 1;
            self.touch(&reference.key);
        }
    }

    /// Reverts [`Store::retain`].
    pub(super) fn release(&mut self, resource: &Resource<R>) {
        for reference in &resource.references {
            self.entries.make(&reference.key).wanted_mut(reference.source).count -= 1;
            self.touch(&reference.key);
        }
    }

    /// Lists an entry for [`Store::settle`].
    pub(super) fn touch(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| !entry.touched) {
            entry.touched = true;
            self.touched.push_back(key.clone());
        }
    }

    /// Brings the touched entries into order, and those that this touches.
    pub(super) fn settle(&mut self) {
        let mut settled = Vec::new();
        while !self.touched.is_empty() {
            // First whatever adds references, so that no name is dropped and then wanted again.
            while let Some(key) = self.touched.pop_front() {
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.touched = false;
                }
                self.settle_accepted(&key);
                settled.push(key);
            }
            for key in settled.drain(..) {
                if key.kind.on_demand() {
                    self.settle_wants(&key);
                    self.drop_unwanted(&key);
                }
                let Some(entry) = self.entries.get_mut(&key) else { continue };
                entry.wants.retain(|wanted| wanted.count > 0);
                if entry.is_empty() && !entry.touched {
                    self.entries.remove(&key);
                }
            }
        }
    }

    /// Notifies sources of names that are wanted, wanted again, and no longer wanted.
    fn settle_wants(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let latest = entry.claims.iter().map(|claim| claim.batch).max().unwrap_or_default();
        for Wanted { source, count, told, again } in &mut entry.wants {
            let again = again.take().is_some_and(|needed| latest < needed);
            let want = match (*count > 0, *told) {
                (true, false) => Want::More,
                (true, true) if again => Want::Again,
                (false, true) => Want::NoMore,
                (true, true) | (false, false) => continue,
            };
            *told = *count > 0;
            self.events.push_back(Event::Wants { source: *source, key: key.clone(), want });
        }
    }

    /// Drops what subscribing sources supply and nothing refers to.
    fn drop_unwanted(&mut self, key: &Key) {
        let Some(entry) = self.entries.get(key) else { return };
        let unwanted: Vec<SourceId> = (entry.claims.iter().map(|claim| claim.source))
            .filter(|source| self.options(*source).subscribes && !entry.wanted_from(*source))
            .collect();
        for source in unwanted {
            self.withdraw(key, source);
        }
    }

    /// Removes an accepted resource that its source has withdrawn, once no other source's resource is being built to
    /// replace it.
    fn settle_accepted(&mut self, key: &Key) {
        let Some(entry) = self.entries.get(key) else { return };
        if entry.accepted.as_ref().is_some_and(|accepted| !accepted.orphan) {
            return;
        }
        let candidates = || entry.claims.iter().filter_map(|claim| Some((claim.source, claim.candidate.as_ref()?)));
        if candidates().any(|(_, candidate)| candidate.pending().is_some()) {
            return;
        }
        let shadowed = candidates().filter(|(_, candidate)| candidate.is_shadowed());
        if let Some((source, _)) = shadowed.min_by_key(|(source, _)| self.options(*source).rank) {
            return self.revive(key, source);
        }
        let Some(entry) = self.entries.get_mut(key) else { return };
        let accepted = entry.accepted.take();
        if accepted.is_some() {
            entry.changed = self.now;
        }
        // A resource that is not asked for has not answered by its absence.
        if !key.kind.on_demand() || entry.references() == 0 {
            entry.answered = BatchId(0);
            entry.absence = Absence::Unknown;
        }
        if let Some(accepted) = accepted {
            self.events.push_back(Event::Removed(key.clone()));
            self.release(&accepted.resource);
        }
    }

    /// Builds a candidate after the clash with another source's resource has ended.
    fn revive(&mut self, key: &Key, source: SourceId) {
        let id = self.next_transaction_id();
        let Some(candidate) = self.claim_mut(key, source).and_then(|claim| claim.candidate.as_mut()) else { return };
        candidate.state = CandidateState::Pending(id);
        let (resource, batch) = (candidate.resource.clone(), candidate.batch);
        self.retain(&resource);
        self.begin_one(id, key.clone(), source, batch, false);
    }
}
