//! Tests of the store: rules one by one, then random scripts of several sources (`random`), which an `observer` checks
//! after every step.

mod check;
mod clashes;
mod commits;
mod cost;
mod observer;
mod offers;
mod random;
mod references;
mod servers;
mod warming;

use std::time::Duration;

use super::*;

/// A payload: whether its build succeeds.
type Payload = bool;

/// The initial fetch timeout of most tests.
const TIMEOUT: Duration = Duration::from_secs(15);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn cluster(name: &str) -> Key {
    Key::new(Kind::Cluster, name)
}

fn endpoints(name: &str) -> Key {
    Key::new(Kind::Endpoints, name)
}

fn listener(name: &str) -> Key {
    Key::new(Kind::Listener, name)
}

/// A resource whose version and content are a number.
fn resource(key: Key, content: u64) -> Resource<Payload> {
    let mut sha256 = [0; 32];
    sha256[..8].copy_from_slice(&content.to_be_bytes());
    let origin = Origin::Source {
        source: "test".into(),
        type_name: key.kind.as_str().into(),
        name: key.name.clone(),
        field: format!("{content}").into(),
    };
    let version = content.to_string().into();
    Resource { key, version, sha256, origin, payload: Arc::new(true), references: Box::default(), ttl: None }
}

impl Resource<Payload> {
    fn hard_to(self, key: Key) -> Self {
        self.referring(Reference { key, strength: Strength::Hard, source: None })
    }

    fn soft_to(self, key: Key) -> Self {
        self.referring(Reference { key, strength: Strength::Soft, source: None })
    }

    fn referring(mut self, reference: Reference) -> Self {
        self.references = self.references.into_iter().chain([reference]).collect();
        self
    }

    fn for_secs(mut self, ttl: u64) -> Self {
        self.ttl = Some(secs(ttl));
        self
    }
}

/// A store with a file, and two sources that subscribe as xDS clients do.
struct Fixture {
    store: Store<Payload>,
    file: SourceId,
    mesh: SourceId,
    other: SourceId,
}

impl Fixture {
    fn new() -> Self {
        let mut store = Store::new(TIMEOUT);
        let file = store.add_source("file", SourceOptions::default());
        let xds = SourceOptions { rank: 1, subscribes: true, refetch: true };
        let mesh = store.add_source("mesh", xds.clone());
        let other = store.add_source("other", xds);
        Fixture { store, file, mesh, other }
    }

    fn offer(
        &mut self,
        source: SourceId,
        policy: Policy,
        full: Kinds,
        changes: impl IntoIterator<Item = Change<Payload>>,
    ) -> BatchId {
        let batch = Batch { source, full, policy, changes: changes.into_iter().collect() };
        let id = self.store.offer(batch, self.store.now).unwrap();
        self.store.check();
        id
    }

    /// Offers sets one by one, as delta xDS does.
    fn set(&mut self, source: SourceId, sets: impl IntoIterator<Item = Resource<Payload>>) -> BatchId {
        self.offer(source, Policy::PerResource, Kinds::NONE, sets.into_iter().map(Change::Set))
    }

    fn remove(&mut self, source: SourceId, key: Key) -> BatchId {
        self.offer(source, Policy::PerResource, Kinds::NONE, [Change::Remove(key)])
    }

    /// Offers a file's whole state.
    fn load(&mut self, sets: impl IntoIterator<Item = Resource<Payload>>) -> BatchId {
        self.offer(self.file, Policy::AllOrNothing, Kinds::ALL, sets.into_iter().map(Change::Set))
    }

    fn ready(&mut self) -> Transaction<Payload> {
        self.store.next_ready().expect("a transaction is ready")
    }

    fn ok(&mut self, transaction: &Transaction<Payload>) -> Committed {
        let committed = self.store.commit(transaction.id, Ok(()), self.store.now);
        self.store.check();
        committed
    }

    fn refuse(&mut self, transaction: &Transaction<Payload>, key: &Key) -> Committed {
        let errors = vec![FieldError { field: "name".into(), message: "wrong".into() }];
        let committed = self.store.commit(transaction.id, Err(vec![(key.clone(), errors)]), self.store.now);
        self.store.check();
        committed
    }

    /// Builds everything that is ready, successfully.
    fn build(&mut self) {
        while let Some(transaction) = self.store.next_ready() {
            self.ok(&transaction);
        }
    }

    /// Offers sets, builds them, and drops the events.
    fn accept(&mut self, source: SourceId, sets: impl IntoIterator<Item = Resource<Payload>>) {
        self.set(source, sets);
        self.build();
        self.events();
    }

    fn tick(&mut self, now: Duration) {
        self.store.tick(now);
        self.store.check();
    }

    /// The version of what is accepted.
    fn version(&self, key: &Key) -> Option<&str> {
        Some(&*self.store.accepted(key)?.version)
    }

    fn status<'s>(&'s self, key: &'s Key) -> Status<'s> {
        self.store.view(key).expect("the key is known").status
    }

    /// The events since the last call, in words.
    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.store.next_event())
            .map(|event| match event {
                Event::Verdict { key, version, outcome, .. } => {
                    let outcome = match outcome {
                        Outcome::Refused(refusal) => match *refusal {
                            Refusal::Invalid(_) => "refused".to_owned(),
                            Refusal::Batch => "refused with its batch".to_owned(),
                            Refusal::Clash { .. } => "clash".to_owned(),
                        },
                        other => format!("{other:?}").to_lowercase(),
                    };
                    format!("{} {version} {outcome}", key.name)
                }
                Event::Wants { key, want, .. } => format!("{} wanted: {want:?}", key.name),
                Event::DoesNotExist { key, .. } => format!("{} does not exist", key.name),
                Event::Changed(key) => format!("{} changed", key.name),
                Event::Removed(key) => format!("{} removed", key.name),
            })
            .collect()
    }
}
