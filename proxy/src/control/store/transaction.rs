//! Transactions: what is built together, and what a transaction waits for.

use std::{mem, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    BatchId, Event, Key, Outcome, Policy, Resource, SourceId, Store,
    entry::Absence,
    timers::{Timer, TimerId},
};

/// The number of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub(super) u64);

/// Resources to build and to remove together.
#[derive(Debug)]
pub struct Transaction<R> {
    /// The number, for [`Store::commit`].
    pub id: TransactionId,
    /// The source.
    pub source: SourceId,
    /// The batch. For a resource that was refused because of a clash that has ended, the batch of its offer.
    pub batch: BatchId,
    /// The resources to build.
    pub sets: Vec<Arc<Resource<R>>>,
    /// The resources to remove. Only all-or-nothing transactions remove anything.
    pub removes: Vec<Key>,
    /// The hard references of `sets` to resources that are neither accepted nor in `sets`: refused, absent, or not
    /// received within the initial fetch timeout.
    pub missing: Vec<Key>,
}

/// A transaction that is not committed.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) source: SourceId,
    pub(super) batch: BatchId,
    pub(super) policy: Policy,
    pub(super) stage: Stage,
    /// The resources to set. Those that a newer offer has replaced are still listed; the candidate decides.
    pub(super) sets: Vec<Key>,
    /// The resources to remove. Likewise, the claim decides.
    pub(super) removes: Vec<Key>,
    /// The number of sets and removals that no newer offer has replaced.
    pub(super) live: usize,
    /// What the transaction waits for.
    pub(super) waiting: FxHashMap<Key, Waiting>,
}

/// How far a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for references, until the timer ends.
    Warming(Option<TimerId>),
    /// It is queued for the builders.
    Ready,
    /// The builders have it.
    Building,
}

/// A reference that a transaction waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The first batch whose answer counts.
    pub(super) needed: BatchId,
    /// The number of references to it.
    pub(super) references: u32,
}

impl<R> Store<R> {
    pub(super) fn next_transaction_id(&mut self) -> TransactionId {
        self.last_transaction.0 += 1;
        self.last_transaction
    }

    /// Starts a transaction whose candidates have been entered. With `refetch`, its on-demand references need an answer
    /// to this batch.
    pub(super) fn begin(&mut self, id: TransactionId, mut pending: Pending, refetch: bool) {
        for key in &pending.sets {
            let Some(resource) = self.candidate(key, pending.source).map(|c| c.resource.clone()) else { continue };
            for reference in resource.hard() {
                debug_assert!(key.kind < reference.key.kind, "{key} has a hard reference to {}", reference.key);
                if self.candidate(&reference.key, pending.source).is_some_and(|c| c.is_pending_in(id)) {
                    continue;
                }
                let again = refetch && reference.key.kind.on_demand();
                let needed = if again { pending.batch } else { BatchId(1) };
                let entry = self.entries.make(&reference.key);
                if entry.answered >= needed {
                    continue;
                }
                if again {
                    entry.wanted_mut(reference.source).again = Some(needed);
                }
                let waiting = pending.waiting.entry(reference.key.clone()).or_insert_with(|| {
                    entry.waiters.push(id);
                    Waiting { needed, references: 0 }
                });
                waiting.references += 1;
            }
        }
        if pending.waiting.is_empty() {
            self.transactions.insert(id, pending);
            return self.make_ready(id);
        }
        let timeout = self.initial_fetch_timeout;
        let timer =
            (!timeout.is_zero()).then(|| self.timers.start(self.now.saturating_add(timeout), Timer::InitialFetch(id)));
        pending.stage = Stage::Warming(timer);
        for key in &pending.sets {
            if let Some(candidate) = self.candidate(key, pending.source).filter(|c| c.unjudged) {
                let (batch, resource) = (candidate.batch, candidate.resource.clone());
                self.verdict(pending.source, batch, &resource, Outcome::Warming);
            }
        }
        self.transactions.insert(id, pending);
    }

    /// Takes a resource out of a transaction, because a newer offer replaced it or it was withdrawn. The rest of the
    /// transaction stays.
    pub(super) fn leave(&mut self, id: TransactionId, resource: Option<&Resource<R>>) {
        let Some(pending) = self.transactions.get_mut(&id) else { return };
        pending.live -= 1;
        for reference in resource.into_iter().flat_map(Resource::hard) {
            let Some(waiting) = pending.waiting.get_mut(&reference.key) else { continue };
            waiting.references -= 1;
            if waiting.references == 0 {
                pending.waiting.remove(&reference.key);
                self.entries.make(&reference.key).waiters.retain(|waiter| *waiter != id);
            }
        }
        if pending.live == 0 {
            self.take(id);
        } else if pending.waiting.is_empty() && matches!(pending.stage, Stage::Warming(_)) {
            self.make_ready(id);
        }
    }

    /// Ends a transaction, and its waiting.
    pub(super) fn take(&mut self, id: TransactionId) -> Option<Pending> {
        let mut pending = self.transactions.remove(&id)?;
        if let Stage::Warming(timer) = pending.stage {
            self.timers.stop(timer);
        }
        for key in mem::take(&mut pending.waiting).into_keys() {
            self.entries.make(&key).waiters.retain(|waiter| *waiter != id);
            self.touch(&key);
        }
        Some(pending)
    }

    /// Records that a resource was answered as of a batch, and ends the waiting of transactions for it.
    pub(super) fn answer(&mut self, key: &Key, batch: BatchId) {
        let entry = self.entries.make(key);
        entry.answered = entry.answered.max(batch);
        let (answered, waiters) = (entry.answered, mem::take(&mut entry.waiters));
        let mut still = Vec::new();
        for id in waiters {
            let Some(pending) = self.transactions.get_mut(&id) else { continue };
            if pending.waiting.get(key).is_some_and(|waiting| waiting.needed > answered) {
                still.push(id);
                continue;
            }
            pending.waiting.remove(key);
            if pending.waiting.is_empty() {
                self.make_ready(id);
            }
        }
        self.entries.make(key).waiters = still;
        self.touch(key);
    }

    fn make_ready(&mut self, id: TransactionId) {
        let Some(pending) = self.transactions.get_mut(&id) else { return };
        if let Stage::Warming(timer) = mem::replace(&mut pending.stage, Stage::Ready) {
            self.timers.stop(timer);
        }
        self.ready.push_back(id);
    }

    /// Ends a transaction's waiting without answers.
    pub(super) fn initial_fetch_timed_out(&mut self, id: TransactionId) {
        let Some(pending) = self.transactions.get_mut(&id) else { return };
        let mut keys: Vec<Key> = mem::take(&mut pending.waiting).into_keys().collect();
        keys.sort();
        for key in keys {
            let entry = self.entries.make(&key);
            entry.waiters.retain(|waiter| *waiter != id);
            if key.kind.on_demand() && entry.accepted.is_none() && entry.absence == Absence::Unknown {
                entry.absence = Absence::TimedOut;
                self.does_not_exist(&key);
            }
            self.touch(&key);
        }
        self.make_ready(id);
    }

    /// Reports to the sources that were asked for a resource that it does not exist.
    pub(super) fn does_not_exist(&mut self, key: &Key) {
        let wants = self.entries.get(key).into_iter().flat_map(|entry| &entry.wants);
        let asked = wants.filter(|wanted| wanted.count > 0).map(|wanted| wanted.source);
        self.events.extend(asked.map(|source| Event::DoesNotExist { source, key: key.clone() }));
    }

    /// Returns the next transaction to build, in the order in which they became ready. Several may be in progress.
    pub fn next_ready(&mut self) -> Option<Transaction<R>> {
        loop {
            let id = self.ready.pop_front()?;
            // It may have ended meanwhile.
            let Some(pending) = self.transactions.get_mut(&id) else { continue };
            pending.stage = Stage::Building;
            let (source, batch) = (pending.source, pending.batch);
            let pending = &self.transactions[&id];
            let sets: Vec<_> = (pending.sets.iter())
                .filter_map(|key| self.candidate(key, source).filter(|c| c.is_pending_in(id)))
                .map(|candidate| candidate.resource.clone())
                .collect();
            let leaves = |key: &&Key| self.claim(key, source).is_some_and(|claim| claim.removal == Some(id));
            let removes = pending.removes.iter().filter(leaves).cloned().collect();
            let own: FxHashSet<&Key> = sets.iter().map(|resource| &resource.key).collect();
            let absent = |key: &Key| self.accepted(key).is_none() && !own.contains(key);
            let hard = sets.iter().flat_map(|resource| resource.hard());
            let mut missing: Vec<Key> = hard.map(|r| &r.key).filter(|key| absent(key)).cloned().collect();
            missing.sort();
            missing.dedup();
            return Some(Transaction { id, source, batch, sets, removes, missing });
        }
    }
}
