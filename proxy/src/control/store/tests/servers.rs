//! Scripted sources: a file, a URL, and a control plane with its connection.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;

/// The number of names per kind.
const NAMES: usize = 4;

/// Longer than the initial fetch timeout, so that waiting for that lets nothing expire that was just offered.
const TTL: u64 = 40;

/// A resource as a server has it.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) number: u64,
    /// Whether its build succeeds.
    pub(super) good: bool,
    references: Vec<Reference>,
    ttl: Option<Duration>,
}

impl Content {
    pub(super) fn sha256(&self, key: &Key) -> Sha256 {
        resource(key.clone(), self.number).sha256
    }
}

/// A change in a message.
#[derive(Debug, Clone)]
enum Item {
    Set(Content),
    Remove,
    Renew(Content),
}

/// A message from a server to its client.
#[derive(Debug, Clone)]
pub(super) struct Message {
    full: Kinds,
    items: Vec<(Key, Item)>,
}

impl Message {
    pub(super) fn batch(&self, source: SourceId, policy: Policy) -> Batch<Payload> {
        let change = |(key, item): &(Key, Item)| match item {
            Item::Remove => Change::Remove(key.clone()),
            Item::Renew(content) => {
                Change::Renew { key: key.clone(), version: content.number.to_string().into(), ttl: content.ttl }
            }
            Item::Set(content) => Change::Set(Resource {
                payload: Arc::new(content.good),
                references: content.references.clone().into(),
                ttl: content.ttl,
                ..resource(key.clone(), content.number)
            }),
        };
        Batch { source, full: self.full, policy, changes: self.items.iter().map(change).collect() }
    }

    /// Adds a key that is already in the message. Returns false if the message is empty.
    pub(super) fn duplicate(&mut self) -> bool {
        let first = self.items.first().map(|(key, _)| (key.clone(), Item::Remove));
        self.items.extend(first.clone());
        first.is_some()
    }
}

/// A server, with its connection to the client.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) id: SourceId,
    pub(super) policy: Policy,
    /// Whether it is asked for on-demand kinds by name.
    subscribes: bool,
    /// Whether it sends full states of listeners and clusters, as SotW xDS does, or differences.
    sotw: bool,
    pub(super) state: BTreeMap<Key, Content>,
    subscribed: BTreeSet<Key>,
    /// Messages in flight.
    pub(super) link: Vec<Message>,
}

impl Server {
    pub(super) fn new(id: SourceId, policy: Policy, subscribes: bool, sotw: bool) -> Self {
        let (state, subscribed, link) = Default::default();
        Server { id, policy, subscribes, sotw, state, subscribed, link }
    }

    /// Changes the state of some names.
    pub(super) fn mutate(&mut self, rng: &mut Rng, next: &mut u64, mesh: SourceId) {
        for _ in 0..rng.usize(1..4) {
            let key = any_key(rng);
            if rng.u8(..4) == 0 {
                self.state.remove(&key);
            } else {
                let good = rng.u8(..5) > 0;
                self.state.insert(key.clone(), content(rng, &key, next, good, mesh));
            }
        }
    }

    /// Replaces the contents that cannot be built.
    pub(super) fn mend(&mut self, next: &mut u64) {
        for content in self.state.values_mut().filter(|content| !content.good) {
            *next += 1;
            (content.number, content.good) = (*next, true);
        }
    }

    /// Replaces some contents by ones that cannot be built.
    pub(super) fn break_some(&mut self, rng: &mut Rng, next: &mut u64, mesh: SourceId) {
        for (key, old) in &mut self.state {
            if rng.bool() {
                *old = content(rng, key, next, false, mesh);
            }
        }
    }

    /// Sends its whole state: what is wanted of it, and the removal of what the client should not hold.
    pub(super) fn send_all(&mut self, held: impl Iterator<Item = Key>) {
        if !self.subscribes {
            return self.send(Kinds::ALL, |_| true);
        }
        let subscribed = self.subscribed.clone();
        if self.sotw {
            for kind in Kind::ALL {
                let full = if kind.on_demand() { Kinds::NONE } else { Kinds::NONE.with(kind) };
                self.send(full, |key| key.kind == kind && (!kind.on_demand() || subscribed.contains(key)));
            }
        } else {
            self.send(Kinds::NONE, |key| !key.kind.on_demand() || subscribed.contains(key));
            let gone = held.filter(|key| !self.state.contains_key(key)).map(|key| (key, Item::Remove)).collect();
            self.link.push(Message { full: Kinds::NONE, items: gone });
        }
        for key in subscribed {
            if !self.state.contains_key(&key) {
                self.answer(&key);
            }
        }
    }

    /// Sends what it has of some keys.
    fn send(&mut self, full: Kinds, select: impl Fn(&Key) -> bool) {
        let all = self.state.iter().filter(|(key, _)| select(key));
        let items = all.map(|(key, content)| (key.clone(), Item::Set(content.clone()))).collect();
        self.link.push(Message { full, items });
    }

    /// Sends something.
    pub(super) fn push(&mut self, rng: &mut Rng) {
        if !self.subscribes && (self.policy == Policy::AllOrNothing || rng.bool()) {
            return self.send(Kinds::ALL, |_| true);
        }
        if self.sotw && rng.bool() {
            let kind = if rng.bool() { Kind::Listener } else { Kind::Cluster };
            return self.send(Kinds::NONE.with(kind), |key| key.kind == kind);
        }
        let keys: BTreeSet<Key> = (0..rng.usize(1..5)).map(|_| any_key(rng)).collect();
        let unasked = rng.u8(..10) == 0;
        let keys = keys
            .into_iter()
            .filter(|key| unasked || !self.subscribes || !key.kind.on_demand() || self.subscribed.contains(key));
        let item = |content: Option<&Content>| match content {
            Some(content) if content.ttl.is_some() && rng.bool() => Item::Renew(content.clone()),
            Some(content) => Item::Set(content.clone()),
            None => Item::Remove,
        };
        let contents: Vec<_> = keys.map(|key| (self.state.get(&key).cloned(), key)).collect();
        let mut item = item;
        let items = contents.into_iter().map(|(content, key)| (key, item(content.as_ref()))).collect();
        self.link.push(Message { full: Kinds::NONE, items });
    }

    /// Handles a subscription. With `answer`, the server answers it.
    pub(super) fn wanted(&mut self, key: &Key, want: Want, answer: bool) {
        if want == Want::NoMore {
            self.subscribed.remove(key);
            return;
        }
        self.subscribed.insert(key.clone());
        if answer {
            self.answer(key);
        }
    }

    fn answer(&mut self, key: &Key) {
        let item = self.state.get(key).map_or(Item::Remove, |content| Item::Set(content.clone()));
        self.link.push(Message { full: Kinds::NONE, items: vec![(key.clone(), item)] });
    }
}

fn any_key(rng: &mut Rng) -> Key {
    let kind = Kind::ALL[rng.usize(..Kind::ALL.len())];
    Key::new(kind, format!("{kind}{}", rng.usize(..NAMES)))
}

/// Returns a resource with random references to later kinds.
fn content(rng: &mut Rng, key: &Key, next: &mut u64, good: bool, mesh: SourceId) -> Content {
    // Hard or soft, and one of the first names, so that names are shared.
    let kinds: &[(Kind, Strength)] = match key.kind {
        Kind::Listener => &[
            (Kind::Routes, Strength::Hard),
            (Kind::Secret, Strength::Hard),
            (Kind::Filter, Strength::Hard),
            (Kind::Cluster, Strength::Soft),
        ],
        Kind::Routes => &[(Kind::Cluster, Strength::Soft), (Kind::Cluster, Strength::Soft)],
        Kind::Filter => &[(Kind::Module, Strength::Hard), (Kind::Cluster, Strength::Soft)],
        Kind::Cluster => &[(Kind::Endpoints, Strength::Hard), (Kind::Secret, Strength::Hard)],
        Kind::Module | Kind::Endpoints | Kind::Secret => &[],
    };
    let mut references = Vec::new();
    for (kind, strength) in kinds {
        if rng.u8(..3) > 0 {
            let key = Key::new(*kind, format!("{kind}{}", rng.usize(..NAMES)));
            references.push(Reference { key, strength: *strength, source: rng.bool().then_some(mesh) });
        }
    }
    *next += 1;
    let ttl = (rng.u8(..4) == 0).then(|| secs(TTL));
    Content { number: *next, good, references, ttl }
}
