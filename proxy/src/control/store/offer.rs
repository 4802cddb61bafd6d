//! Offers: enters what a source sends as candidates.

use std::{sync::Arc, time::Duration};

use super::{
    Batch, BatchError, BatchId, Change, Key, Outcome, Policy, Refusal, Resource, SourceId, Store, TransactionId,
    batch::unique_keys,
    entry::{Absence, Candidate, CandidateState, Claim},
    timers::Timer,
    transaction::{Pending, Stage},
};

/// What happened to an offered resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// It needs no transaction.
    Done,
    /// It is a pending candidate.
    Entered,
    /// It is refused because of another source's resource.
    Clash,
}

impl<R> Store<R> {
    /// Enters a batch. Candidates whose hard references are there are then returned by [`Store::next_ready`]. Sets are
    /// entered before removals, whatever their order in the batch.
    pub fn offer(&mut self, batch: Batch<R>, now: Duration) -> Result<BatchId, BatchError> {
        let Batch { source, full, policy, changes } = batch;
        let known = self.sources.get(source.0 as usize).ok_or(BatchError::UnknownSource)?;
        let keys = unique_keys(&changes)?;
        let (mut sets, mut removes) = (Vec::new(), Vec::new());
        for kind in full.iter() {
            removes.extend(known.claims[kind as usize].iter().filter(|key| !keys.contains(key)).cloned());
        }
        removes.sort();
        self.now = now;
        self.last_batch.0 += 1;
        let id = self.last_batch;
        for change in changes {
            match change {
                Change::Set(resource) => sets.push(resource),
                Change::Remove(key) => removes.push(key),
                Change::Renew { key, version, ttl } => self.renew(&key, source, &version, ttl),
            }
        }
        sets.sort_by_key(|resource| resource.key.kind);
        match policy {
            Policy::PerResource => self.offer_each(source, id, sets, removes),
            Policy::AllOrNothing => self.offer_all(source, id, sets, removes),
        }
        self.settle();
        Ok(id)
    }

    fn offer_each(&mut self, source: SourceId, batch: BatchId, sets: Vec<Resource<R>>, removes: Vec<Key>) {
        for resource in sets {
            let (key, id) = (resource.key.clone(), self.next_transaction_id());
            if self.place(resource, source, batch, Policy::PerResource, id) == Placed::Entered {
                self.begin_one(id, key, source, batch, self.options(source).refetch);
            }
        }
        for key in removes {
            self.remove(&key, source, batch);
        }
    }

    fn offer_all(&mut self, source: SourceId, batch: BatchId, sets: Vec<Resource<R>>, removes: Vec<Key>) {
        let id = self.next_transaction_id();
        let (mut entered, mut clash) = (Vec::new(), false);
        for resource in sets {
            let key = resource.key.clone();
            match self.place(resource, source, batch, Policy::AllOrNothing, id) {
                Placed::Done => {}
                Placed::Entered => entered.push(key),
                Placed::Clash => clash = true,
            }
        }
        let mut pending = Pending {
            source,
            batch,
            policy: Policy::AllOrNothing,
            stage: Stage::Ready,
            live: entered.len(),
            sets: entered,
            removes: Vec::new(),
            waiting: Default::default(),
        };
        if clash {
            return self.fail(id, pending, Default::default());
        }
        for key in removes {
            if self.entries.get(&key).is_none_or(|entry| entry.accepted_from(source).is_none()) {
                self.remove(&key, source, batch);
                continue;
            }
            self.supersede(&key, source);
            if let Some(claim) = self.claim_mut(&key, source) {
                claim.removal = Some(id);
                claim.batch = batch;
                pending.live += 1;
                pending.removes.push(key);
            }
        }
        if pending.live > 0 {
            self.begin(id, pending, self.options(source).refetch);
        }
    }

    /// Starts a transaction of one resource.
    pub(super) fn begin_one(&mut self, id: TransactionId, key: Key, source: SourceId, batch: BatchId, refetch: bool) {
        let pending = Pending {
            source,
            batch,
            policy: Policy::PerResource,
            stage: Stage::Ready,
            sets: vec![key],
            removes: Vec::new(),
            live: 1,
            waiting: Default::default(),
        };
        self.begin(id, pending, refetch);
    }

    /// Enters an offered resource, as a candidate of transaction `id` if it has to be built.
    fn place(
        &mut self,
        mut resource: Resource<R>,
        source: SourceId,
        batch: BatchId,
        policy: Policy,
        id: TransactionId,
    ) -> Placed {
        let key = resource.key.clone();
        let wanted = || self.entries.get(&key).is_some_and(|entry| entry.wanted_from(source));
        if key.kind.on_demand() && self.options(source).subscribes && !wanted() {
            self.verdict(source, batch, &resource, Outcome::NotWanted);
            return Placed::Done;
        }
        self.renew_claim(&key, source, batch, resource.ttl);
        let entry = self.entries.make(&key);

        // Unchanged: nothing has to be built.
        if let Some(accepted) = entry.accepted.as_mut().filter(|a| a.source == source)
            && accepted.resource.sha256 == resource.sha256
        {
            resource.payload = accepted.resource.payload.clone();
            let resource = Arc::new(resource);
            let old = std::mem::replace(&mut accepted.resource, resource.clone());
            accepted.orphan = false;
            self.supersede(&key, source);
            self.retain(&resource);
            self.release(&old);
            self.verdict(source, batch, &resource, Outcome::Accepted);
            self.displace_others(&key, source);
            self.answer(&key, batch);
            return Placed::Done;
        }

        // The same content is already warming or being built: go on with that.
        if policy == Policy::PerResource
            && let Some(candidate) = entry.claim_mut(source).and_then(|claim| claim.candidate.as_mut())
            && candidate.resource.sha256 == resource.sha256
            && let Some(pending) = candidate.pending().and_then(|id| self.transactions.get(&id))
            && pending.policy == Policy::PerResource
        {
            let warming = matches!(pending.stage, Stage::Warming(_));
            resource.payload = candidate.resource.payload.clone();
            let resource = Arc::new(resource);
            let old = std::mem::replace(&mut candidate.resource, resource.clone());
            let old_batch = std::mem::replace(&mut candidate.batch, batch);
            let unjudged = std::mem::replace(&mut candidate.unjudged, true);
            if unjudged {
                self.verdict(source, old_batch, &old, Outcome::Superseded);
            }
            if warming {
                self.verdict(source, batch, &resource, Outcome::Warming);
            }
            self.retain(&resource);
            self.release(&old);
            return Placed::Done;
        }

        self.supersede(&key, source);
        let resource = Arc::new(resource);
        let clash = self.clash(&key, source, &resource);
        let entered = clash.is_none();
        let state = match &clash {
            None => CandidateState::Pending(id),
            Some(refusal) if policy == Policy::PerResource => CandidateState::Shadowed(refusal.clone()),
            Some(refusal) => CandidateState::Refused(refusal.clone()),
        };
        let candidate = Candidate { resource: resource.clone(), batch, state, unjudged: entered };
        if let Some(claim) = self.claim_mut(&key, source) {
            claim.candidate = Some(candidate);
        }
        match clash {
            None => self.retain(&resource),
            Some(refusal) => {
                self.verdict(source, batch, &resource, Outcome::Refused(refusal));
                self.answer(&key, batch);
            }
        }
        if entered { Placed::Entered } else { Placed::Clash }
    }

    /// Returns why a source's resource cannot be accepted, if another source's resource takes precedence.
    fn clash(&self, key: &Key, source: SourceId, resource: &Resource<R>) -> Option<Arc<Refusal>> {
        let accepted = self.entries.get(key)?.accepted.as_ref()?;
        let clash = !accepted.orphan
            && accepted.source != source
            && self.options(accepted.source).rank <= self.options(source).rank;
        clash.then(|| Arc::new(Refusal::clash(&accepted.resource, resource)))
    }

    /// Records that a source supplies a key, and starts its TTL again.
    fn renew_claim(&mut self, key: &Key, source: SourceId, batch: BatchId, ttl: Option<Duration>) {
        let entry = self.entries.make(key);
        match entry.claim_mut(source) {
            Some(claim) => claim.batch = batch,
            None => {
                entry.claims.push(Claim { source, batch, candidate: None, removal: None, expires: None });
                self.sources[source.0 as usize].claims[key.kind as usize].insert(key.clone());
            }
        }
        self.touch(key);
        self.restart_ttl(key, source, ttl);
    }

    fn restart_ttl(&mut self, key: &Key, source: SourceId, ttl: Option<Duration>) {
        let Some(claim) = self.entries.get_mut(key).and_then(|entry| entry.claim_mut(source)) else { return };
        self.timers.stop(claim.expires.take());
        claim.expires = ttl.map(|ttl| self.timers.start(self.now.saturating_add(ttl), Timer::Ttl(key.clone(), source)));
    }

    /// Starts a TTL again, if the source's latest resource has this version.
    fn renew(&mut self, key: &Key, source: SourceId, version: &str, ttl: Option<Duration>) {
        if self.held_version(key, source).is_some_and(|held| &**held == version) {
            self.restart_ttl(key, source, ttl);
        }
    }

    /// Removes a source's resource, or records the answer that it does not exist.
    pub(super) fn remove(&mut self, key: &Key, source: SourceId, batch: BatchId) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let (claimed, on_demand) = (entry.claim(source).is_some(), key.kind.on_demand());
        let asked = on_demand && entry.wanted_from(source);
        if !claimed && !asked {
            return;
        }
        if on_demand {
            entry.absence = Absence::Answered;
            if !claimed && entry.accepted.is_none() {
                self.does_not_exist(key);
            }
        }
        self.withdraw(key, source);
        if on_demand {
            self.answer(key, batch);
        }
    }

    /// Drops a source's claim. What was accepted from it is removed by [`Store::settle`], unless another source's
    /// resource replaces it.
    pub(super) fn withdraw(&mut self, key: &Key, source: SourceId) {
        self.supersede(key, source);
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let Some(at) = entry.claims.iter().position(|claim| claim.source == source) {
            let claim = entry.claims.remove(at);
            self.timers.stop(claim.expires);
            self.sources[source.0 as usize].claims[key.kind as usize].remove(key);
        }
        if let Some(accepted) = entry.accepted.as_mut().filter(|accepted| accepted.source == source) {
            accepted.orphan = true;
        }
        self.touch(key);
    }

    /// Drops a source's candidate and pending removal.
    fn supersede(&mut self, key: &Key, source: SourceId) {
        let Some(claim) = self.claim_mut(key, source) else { return };
        let (candidate, removal) = (claim.candidate.take(), claim.removal.take());
        if let Some(mut candidate) = candidate {
            if candidate.judge() {
                self.verdict(source, candidate.batch, &candidate.resource, Outcome::Superseded);
            }
            if let Some(id) = candidate.pending() {
                self.leave(id, Some(&candidate.resource));
                self.release(&candidate.resource);
            }
        }
        if let Some(id) = removal {
            self.leave(id, None);
        }
        self.touch(key);
    }
}
