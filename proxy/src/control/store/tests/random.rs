//! Random scripts: a file, a URL and an xDS server change, lose, repeat and reorder messages, send what cannot be built,
//! and disconnect, while builds finish late and in any order. An [`Observer`] checks every step. From time to time
//! everything is delivered and built; then the store must hold exactly what the sources' states say.
//!
//! `TOLLGATE_STORE_SEED=N cargo test -p tollgate --lib store::tests::random` repeats one script.

use std::collections::BTreeSet;

use fastrand::Rng;

use super::{
    observer::{Accepted, Observer, Operation, Summary, pending},
    servers::{Message, Server},
    *,
};

/// A script in progress.
struct Script {
    rng: Rng,
    store: Store<Payload>,
    observer: Observer,
    file: Server,
    http: Server,
    mesh: Server,
    building: Vec<Transaction<Payload>>,
    committed: Vec<TransactionId>,
    /// The number of the last content.
    contents: u64,
    now: Duration,
}

impl Script {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut store = Store::new(TIMEOUT);
        // In any order, since the order must not matter.
        let mut ids = [None; 3];
        for n in [rng.usize(..3), 0, 1, 2] {
            ids[n].get_or_insert_with(|| {
                let (subscribes, refetch) = (n == 2, n == 2 && rng.bool());
                let options = SourceOptions { rank: u8::from(n > 0), subscribes, refetch };
                store.add_source(["file", "http", "mesh"][n], options)
            });
        }
        let [file, http, mesh] = ids.map(|id| id.expect("all are registered"));
        let atomic = rng.u8(..4) == 0;
        Script {
            store,
            observer: Observer::default(),
            file: Server::new(file, Policy::AllOrNothing, false, false),
            http: Server::new(http, if atomic { Policy::AllOrNothing } else { Policy::PerResource }, false, false),
            mesh: Server::new(mesh, Policy::PerResource, true, rng.bool()),
            building: Vec::new(),
            committed: Vec::new(),
            contents: 0,
            now: secs(0),
            rng,
        }
    }

    /// Checks the store, and passes subscriptions on. `reliable`: the server answers all of them.
    fn observe(&mut self, operation: Operation<'_>, reliable: bool) {
        let mesh = self.mesh.id;
        let wants = self.observer.check(&mut self.store, operation, |source| source == mesh);
        for (source, key, want) in wants {
            if source.is_none_or(|source| source == mesh) {
                // A name may be wanted both from this server and from any.
                let other = if source.is_none() { Some(mesh) } else { None };
                let view = self.store.view(&key);
                let still = view.is_some() && self.observer_wants(other, &key);
                if want != Want::NoMore || !still {
                    self.mesh.wanted(&key, want, reliable || self.rng.u8(..5) > 0);
                }
            }
        }
    }

    fn observer_wants(&self, source: Option<SourceId>, key: &Key) -> bool {
        self.observer.is_subscribed(source, key)
    }

    fn deliver(&mut self, source: SourceId, policy: Policy, message: &Message, reliable: bool) {
        let batch = message.batch(source, policy);
        let summary = Summary::new(&self.store, &batch);
        let id = self.store.offer(batch, self.now).expect("no name occurs twice");
        self.observer.offered(summary, id, self.now);
        self.observe(Operation::Offer, reliable);
    }

    /// Delivers all messages in flight, in order.
    fn deliver_all(&mut self, reliable: bool) -> bool {
        let mut any = false;
        loop {
            let servers = [&mut self.file, &mut self.http, &mut self.mesh];
            let Some(server) = servers.into_iter().find(|server| !server.link.is_empty()) else { return any };
            let (source, policy, message) = (server.id, server.policy, server.link.remove(0));
            self.deliver(source, policy, &message, reliable);
            any = true;
        }
    }

    fn commit(&mut self, transaction: Transaction<Payload>, reliable: bool) {
        let bad = transaction.sets.iter().filter(|resource| !*resource.payload);
        let errors: Vec<_> = bad.map(|r| (r.key.clone(), vec![])).collect();
        let good = errors.is_empty();
        let result = if good { Ok(()) } else { Err(errors) };
        self.store.commit(transaction.id, result, self.now);
        self.committed.push(transaction.id);
        self.observe(Operation::Commit(&transaction, good), reliable);
    }

    fn step(&mut self) {
        let mesh = self.mesh.id;
        match self.rng.u8(..100) {
            0..22 => {
                let server = match self.rng.u8(..4) {
                    0 => &mut self.file,
                    1 => &mut self.http,
                    _ => &mut self.mesh,
                };
                server.mutate(&mut self.rng, &mut self.contents, mesh);
            }
            22..40 => self.mesh.push(&mut self.rng),
            40..60 if !self.mesh.link.is_empty() => {
                let at = self.rng.usize(..self.mesh.link.len());
                let mut message = self.mesh.link[at].clone();
                let fate = self.rng.u8(..10);
                if fate > 0 {
                    self.mesh.link.remove(at);
                }
                match fate {
                    1 => {}
                    2 if message.duplicate() => {
                        let batch = message.batch(self.mesh.id, self.mesh.policy);
                        assert!(matches!(self.store.offer(batch, self.now), Err(BatchError::Duplicates(_))));
                        self.observe(Operation::StaleCommit, false);
                    }
                    _ => self.deliver(self.mesh.id, self.mesh.policy, &message, false),
                }
            }
            60..66 => self.http.push(&mut self.rng),
            66..70 => self.file.push(&mut self.rng),
            70..73 => {
                self.mesh.link.clear();
                self.reconnect();
            }
            73..85 => self.building.extend(self.store.next_ready()),
            85..95 if !self.building.is_empty() => {
                let transaction = self.building.swap_remove(self.rng.usize(..self.building.len()));
                self.commit(transaction, false);
            }
            95..97 if !self.committed.is_empty() => {
                let id = self.committed[self.rng.usize(..self.committed.len())];
                let result = if self.rng.bool() { Ok(()) } else { Err(vec![]) };
                assert_eq!(self.store.commit(id, result, self.now), Committed::default());
                self.observe(Operation::StaleCommit, false);
            }
            97.. => {
                let now = self.now + secs(self.rng.u64(1..10));
                self.tick(now, false);
            }
            _ => {}
        }
        // Files and URLs are read in order.
        for server in [0, 1] {
            let server = if server == 0 { &mut self.file } else { &mut self.http };
            let (source, policy) = (server.id, server.policy);
            for message in std::mem::take(&mut server.link) {
                self.deliver(source, policy, &message, false);
            }
        }
    }

    fn tick(&mut self, now: Duration, reliable: bool) {
        self.now = now;
        self.store.tick(now);
        self.observe(Operation::Tick, reliable);
    }

    /// The server sends its state again, as after a reconnection.
    fn reconnect(&mut self) {
        let held: Vec<Key> = self.store.held(self.mesh.id).map(|(key, _)| key.clone()).collect();
        self.mesh.send_all(held.into_iter());
    }

    /// Delivers all states, and builds everything, until nothing is pending.
    fn settle(&mut self) {
        while let Some(transaction) = self.building.pop() {
            self.commit(transaction, true);
        }
        let mut last = None;
        for _ in 0..20 {
            self.mesh.link.clear();
            self.file.send_all(std::iter::empty());
            self.http.send_all(std::iter::empty());
            self.reconnect();
            self.build_all();
            while !pending(&self.store).is_empty() {
                // Something waits for a resource that no source has.
                let deadline = self.store.next_deadline().expect("an initial fetch timeout");
                self.tick(deadline, true);
                self.build_all();
            }
            // Meanwhile something may have expired, which its source then offers again.
            let accepted = self.accepted();
            if last.replace(accepted) == Some(self.accepted()) {
                return;
            }
        }
        panic!("does not settle: {:?}", self.accepted());
    }

    /// Delivers and builds until nothing happens.
    fn build_all(&mut self) {
        loop {
            let delivered = self.deliver_all(true);
            match self.store.next_ready() {
                Some(transaction) => self.commit(transaction, true),
                None if !delivered => return,
                None => {}
            }
        }
    }

    fn accepted(&self) -> Accepted {
        self.store.views().filter_map(|v| v.accepted.map(|(s, r)| (v.key.clone(), (s, r.sha256)))).collect()
    }

    /// Checks that the store holds what the sources' states say, all of which can be built.
    fn check_states(&self) {
        let accepted = self.accepted();
        let keys = [&self.file, &self.http, &self.mesh].into_iter().flat_map(|server| server.state.keys());
        let keys: BTreeSet<&Key> = keys.chain(accepted.keys()).collect();
        let mut referenced = BTreeSet::new();
        // In the order of kinds, so that all references to a key are known.
        for key in keys {
            let wanted = !key.kind.on_demand() || referenced.contains(key);
            let has = |server: &&Server| server.state.contains_key(key);
            let candidates: Vec<&Server> = match Some(&self.file).filter(has) {
                Some(file) => vec![file],
                None => {
                    let mesh = Some(&self.mesh).filter(|server| wanted && has(server));
                    Some(&self.http).filter(has).into_iter().chain(mesh).collect()
                }
            };
            let Some((source, sha256)) = accepted.get(key) else {
                assert!(candidates.is_empty(), "{key} should be accepted");
                continue;
            };
            let Some(server) = candidates.iter().find(|server| server.id == *source) else {
                panic!("{key} should not be accepted from {source:?}");
            };
            assert_eq!(server.state[key].sha256(key), *sha256, "{key} is not the latest");
            let resource = self.store.accepted(key).expect("it is accepted");
            referenced.extend(resource.references.iter().map(|reference| reference.key.clone()));
        }
    }

    fn run(&mut self) {
        for _ in 0..4 {
            for _ in 0..150 {
                self.step();
            }
            let mesh = self.mesh.id;
            [&mut self.file, &mut self.http, &mut self.mesh].into_iter().for_each(|s| s.mend(&mut self.contents));
            self.settle();
            // A clash refuses the whole of an all-or-nothing batch; which one depends on history.
            if self.http.policy == Policy::PerResource {
                self.check_states();
            }
            let before = self.accepted();
            for server in [&mut self.file, &mut self.http, &mut self.mesh] {
                server.break_some(&mut self.rng, &mut self.contents, mesh);
            }
            self.settle();
            if self.http.policy == Policy::PerResource {
                assert_eq!(self.accepted(), before, "refused resources displace nothing");
            }
        }
    }
}

/// Prints the seed if a script fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("TOLLGATE_STORE_SEED={}", self.0);
        }
    }
}

#[test]
fn random_scripts_keep_the_rules() {
    let given = std::env::var("TOLLGATE_STORE_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seeds: Vec<u64> = match given {
        Some(seed) => vec![seed],
        None => (0..20).chain(std::iter::repeat_with(|| fastrand::u64(..)).take(20)).collect(),
    };
    let mut seen = std::collections::BTreeMap::<_, usize>::new();
    for seed in seeds {
        let _seed = Seed(seed);
        let mut script = Script::new(seed);
        script.run();
        script.observer.seen.into_iter().for_each(|(what, count)| *seen.entry(what).or_default() += count);
    }
    println!("{seen:?}");
    if given.is_none() {
        let outcomes =
            ["warming", "accepted", "superseded", "not wanted", "invalid", "refused with its batch", "clash"];
        for what in outcomes.into_iter().chain(["wanted", "wanted again", "does not exist", "removed"]) {
            assert!(seen.get(what).is_some_and(|count| *count > 50), "hardly ever: {what}");
        }
    }
}
