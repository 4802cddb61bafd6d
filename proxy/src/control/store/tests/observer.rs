//! Checks a store from outside, after every operation: what may have changed, which verdicts were due, whether the
//! events tell the whole story. It knows what was offered, and nothing of the store's inside.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What is accepted: source and content by key.
pub(super) type Accepted = BTreeMap<Key, (SourceId, Sha256)>;

/// The operation that was made.
pub(super) enum Operation<'t> {
    Offer,
    Commit(&'t Transaction<Payload>, bool),
    StaleCommit,
    Tick,
}

/// The latest offer of a source for a key.
struct Offered {
    sha256: Sha256,
    expires: Option<Duration>,
    /// Whether it was refused. Then what was accepted before may be accepted again after a clash.
    refused: bool,
}

/// What a batch contains.
pub(super) struct Summary {
    source: SourceId,
    policy: Policy,
    full: Kinds,
    sets: Vec<(Key, Sha256, Arc<str>, Option<Duration>)>,
    removes: Vec<Key>,
    /// Heartbeats for versions that the store has.
    renewed: Vec<(Key, Option<Duration>)>,
    named: BTreeSet<Key>,
}

impl Summary {
    pub(super) fn new(store: &Store<Payload>, batch: &Batch<Payload>) -> Self {
        let (mut sets, mut removes, mut renewed) = (Vec::new(), Vec::new(), Vec::new());
        let held: BTreeMap<&Key, &Arc<str>> = store.held(batch.source).collect();
        for change in &batch.changes {
            match change {
                Change::Set(r) => sets.push((r.key.clone(), r.sha256, r.version.clone(), r.ttl)),
                Change::Remove(key) => removes.push(key.clone()),
                Change::Renew { key, version, ttl } => {
                    if held.get(key) == Some(&version) {
                        renewed.push((key.clone(), *ttl));
                    }
                }
            }
        }
        let named = batch.changes.iter().map(|change| change.key().clone()).collect();
        Summary { source: batch.source, policy: batch.policy, full: batch.full, sets, removes, renewed, named }
    }
}

/// What an observer knows.
#[derive(Default)]
pub(super) struct Observer {
    latest: BTreeMap<(SourceId, Key), Offered>,
    /// What sources have withdrawn, or tried to, since it was accepted.
    withdrawn: BTreeSet<(SourceId, Key)>,
    /// The offers without a final outcome, with their versions.
    outstanding: BTreeMap<(BatchId, Key), Arc<str>>,
    warmed: BTreeSet<(BatchId, Key)>,
    /// What is accepted by the events.
    mirror: BTreeMap<Key, Sha256>,
    subscribed: BTreeSet<(Option<SourceId>, Key)>,
    before: Accepted,
    /// How often things happened, so that a test can tell whether it tests them.
    pub(super) seen: BTreeMap<&'static str, usize>,
}

impl Observer {
    /// Records an accepted batch.
    pub(super) fn offered(&mut self, summary: Summary, batch: BatchId, now: Duration) {
        let Summary { source, policy, full, sets, removes, renewed, named } = summary;
        let absent = |of: SourceId, key: &Key| of == source && full.contains(key.kind) && !named.contains(key);
        let gone = |of: SourceId, key: &Key| absent(of, key) || of == source && removes.contains(key);
        // A batch that is refused as a whole removes nothing.
        self.forget(policy == Policy::PerResource, |of, key, _| gone(of, key));
        for (key, ttl) in renewed {
            if let Some(offered) = self.latest.get_mut(&(source, key)) {
                offered.expires = ttl.map(|ttl| now + ttl);
            }
        }
        for (key, sha256, version, ttl) in sets {
            let expires = ttl.map(|ttl| now + ttl);
            self.latest.insert((source, key.clone()), Offered { sha256, expires, refused: false });
            self.outstanding.insert((batch, key), version);
        }
    }

    /// Records that sources have withdrawn resources. If it is not certain, they may still be accepted.
    fn forget(&mut self, certain: bool, withdrawn: impl Fn(SourceId, &Key, &Offered) -> bool) {
        self.latest.retain(|(source, key), offered| {
            let gone = withdrawn(*source, key, offered);
            if gone {
                self.withdrawn.insert((*source, key.clone()));
            }
            !gone || !certain
        });
    }

    /// Checks the store after an operation. Returns the names that sources have to subscribe to, or no longer.
    pub(super) fn check(
        &mut self,
        store: &mut Store<Payload>,
        operation: Operation<'_>,
        subscribes: impl Fn(SourceId) -> bool,
    ) -> Vec<(Option<SourceId>, Key, Want)> {
        store.check();
        let now: Accepted =
            store.views().filter_map(|v| v.accepted.map(|(s, r)| (v.key.clone(), (s, r.sha256)))).collect();
        if let Operation::Tick = operation {
            self.forget(true, |_, _, offered| offered.expires.is_some_and(|at| at <= store.now));
        }
        let wants = self.events(store, &now);
        let references = self.references(store);
        let wanted = |source, key: &Key| {
            references.contains(&(None, key.clone())) || references.contains(&(Some(source), key.clone()))
        };
        for (key, accepted) in &now {
            self.check_acceptance(key, accepted, &operation);
        }
        self.forget(true, |s, key, _| key.kind.on_demand() && subscribes(s) && !wanted(s, key));
        for (key, (source, _)) in &self.before {
            let withdrawn = self.withdrawn.contains(&(*source, key.clone()));
            assert!(now.contains_key(key) || withdrawn, "{key} was removed although its source supplies it");
        }
        let shas: BTreeMap<Key, Sha256> = now.iter().map(|(key, (_, sha256))| (key.clone(), *sha256)).collect();
        assert_eq!(self.mirror, shas, "the events differ from what is accepted");
        let asked: BTreeSet<_> = references.into_iter().filter(|(_, key)| key.kind.on_demand()).collect();
        assert_eq!(self.subscribed, asked, "the wanted names differ from the references");
        let pending: BTreeSet<(BatchId, Key)> = pending(store).into_iter().collect();
        for offer in self.outstanding.keys() {
            assert!(pending.contains(offer), "{offer:?} got no verdict");
        }
        self.before = now;
        wants
    }

    /// Checks that an operation was allowed to accept a resource, if it did.
    fn check_acceptance(&self, key: &Key, accepted: &(SourceId, Sha256), operation: &Operation<'_>) {
        if self.before.get(key) == Some(accepted) {
            return;
        }
        let (source, sha256) = accepted;
        let Operation::Commit(transaction, true) = operation else { panic!("{key} changed without a commit") };
        let built = transaction.sets.iter().any(|r| r.key == *key && r.sha256 == *sha256 && *r.payload);
        assert!(built && transaction.source == *source, "{key} was accepted without a build");
        let latest = self.latest.get(&(*source, key.clone()));
        let current = latest.is_some_and(|offered| offered.refused || offered.sha256 == *sha256);
        assert!(current, "{key} was accepted although it was replaced");
    }

    /// Reads the events of an operation.
    fn events(&mut self, store: &mut Store<Payload>, now: &Accepted) -> Vec<(Option<SourceId>, Key, Want)> {
        let mut wants = Vec::new();
        while let Some(event) = store.next_event() {
            match event {
                Event::Verdict { source, batch, key, version, outcome } => {
                    let name = match &outcome {
                        Outcome::Warming => "warming",
                        Outcome::Accepted => "accepted",
                        Outcome::Superseded => "superseded",
                        Outcome::NotWanted => "not wanted",
                        Outcome::Refused(refusal) => match **refusal {
                            Refusal::Invalid(_) => "invalid",
                            Refusal::Batch => "refused with its batch",
                            Refusal::Clash { .. } => "clash",
                        },
                    };
                    *self.seen.entry(name).or_default() += 1;
                    let offer = (batch, key.clone());
                    if outcome == Outcome::Warming {
                        assert!(
                            self.outstanding.contains_key(&offer) && self.warmed.insert(offer),
                            "{key} warms twice"
                        );
                        continue;
                    }
                    assert_eq!(self.outstanding.remove(&offer), Some(version.clone()), "{key}: a second verdict");
                    match outcome {
                        Outcome::Accepted => {
                            self.withdrawn.remove(&(source, key.clone()));
                            // It is gone if its acceptance refused what referred to it.
                            if let Some(accepted) = store.accepted(&key) {
                                assert_eq!((now[&key].0, &accepted.version), (source, &version), "{key}");
                            }
                        }
                        Outcome::NotWanted => {
                            self.latest.remove(&(source, key.clone()));
                            self.withdrawn.insert((source, key));
                        }
                        Outcome::Refused(_) => {
                            self.latest.entry((source, key)).and_modify(|offered| offered.refused = true);
                        }
                        _ => {}
                    }
                }
                Event::Wants { source, key, want } => {
                    let name = (source, key.clone());
                    let subscribed = self.subscribed.contains(&name);
                    assert_eq!(subscribed, want != Want::More, "{key} wanted: {want:?}");
                    match want {
                        Want::More => self.subscribed.insert(name),
                        Want::NoMore => self.subscribed.remove(&name),
                        Want::Again => true,
                    };
                    let name = if want == Want::Again { "wanted again" } else { "wanted" };
                    *self.seen.entry(name).or_default() += 1;
                    wants.push((source, key, want));
                }
                Event::DoesNotExist { key, .. } => {
                    *self.seen.entry("does not exist").or_default() += 1;
                    assert!(!now.contains_key(&key), "{key} exists");
                }
                Event::Changed(key) => {
                    let sha256 = now.get(&key).map_or([0xff; 32], |(_, sha256)| *sha256);
                    assert_ne!(self.mirror.insert(key.clone(), sha256), Some(sha256), "{key} is unchanged");
                }
                Event::Removed(key) => {
                    assert!(self.mirror.remove(&key).is_some(), "{key} is not accepted");
                    *self.seen.entry("removed").or_default() += 1;
                }
            }
        }
        wants
    }

    /// Whether a name is wanted from a source.
    pub(super) fn is_subscribed(&self, source: Option<SourceId>, key: &Key) -> bool {
        self.subscribed.contains(&(source, key.clone()))
    }

    /// The references from what is accepted and from what warms or is being built.
    fn references(&self, store: &Store<Payload>) -> BTreeSet<(Option<SourceId>, Key)> {
        let mut references = BTreeSet::new();
        for view in store.views() {
            let accepted = view.accepted.map(|(_, resource)| resource);
            let pending = view.candidates.iter().filter(|c| matches!(c.status, Status::Warming | Status::Building));
            for resource in accepted.into_iter().chain(pending.map(|c| c.resource)) {
                references.extend(resource.references.iter().map(|r| (r.source, r.key.clone())));
            }
        }
        references
    }
}

/// The candidates that warm or are being built.
pub(super) fn pending(store: &Store<Payload>) -> Vec<(BatchId, Key)> {
    let pending = |view: View<'_, Payload>| {
        let candidates = view.candidates.iter().filter(|c| matches!(c.status, Status::Warming | Status::Building));
        candidates.map(|c| (c.batch, view.key.clone())).collect::<Vec<_>>()
    };
    store.views().flat_map(pending).collect()
}
