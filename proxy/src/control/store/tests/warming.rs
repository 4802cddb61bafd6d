//! Warming: hard references, the initial fetch timeout, asking again.

use super::*;

fn with_endpoints(name: &str, content: u64) -> Resource<Payload> {
    resource(cluster(name), content).hard_to(endpoints(name))
}

/// A fixture in which the cluster `a` is accepted with its endpoints.
fn warmed() -> Fixture {
    let mut f = Fixture::new();
    f.set(f.mesh, [with_endpoints("a", 1)]);
    f.accept(f.mesh, [resource(endpoints("a"), 2)]);
    assert_eq!(f.version(&cluster("a")), Some("1"));
    f
}

#[test]
fn a_resource_warms_until_its_hard_reference_is_accepted() {
    let mut f = Fixture::new();
    f.set(f.mesh, [with_endpoints("a", 1)]);
    assert!(f.store.next_ready().is_none());
    assert_eq!(f.status(&cluster("a")), Status::Warming);
    f.set(f.mesh, [resource(endpoints("a"), 2)]);
    let transaction = f.ready();
    assert_eq!(transaction.sets[0].key, endpoints("a"));
    assert!(f.store.next_ready().is_none(), "not accepted yet");
    f.ok(&transaction);
    let transaction = f.ready();
    assert_eq!((&transaction.sets[0].key, &*transaction.missing), (&cluster("a"), &[][..]));
    assert_eq!(f.events(), ["a 1 warming", "a wanted: More", "a 2 accepted", "a changed"]);
}

#[test]
fn a_batch_with_both_is_built_in_order() {
    let mut f = Fixture::new();
    f.set(f.mesh, [resource(endpoints("a"), 2), with_endpoints("a", 1)]);
    f.build();
    assert_eq!((f.version(&cluster("a")), f.version(&endpoints("a"))), (Some("1"), Some("2")));
}

#[test]
fn an_all_or_nothing_batch_does_not_wait_for_itself() {
    let mut f = Fixture::new();
    f.load([with_endpoints("a", 1), resource(endpoints("a"), 2)]);
    let transaction = f.ready();
    assert_eq!((transaction.sets.len(), transaction.missing.len()), (2, 0));
}

#[test]
fn the_initial_fetch_timeout_ends_the_wait() {
    let mut f = Fixture::new();
    f.set(f.mesh, [with_endpoints("a", 1)]);
    f.events();
    assert_eq!(f.store.next_deadline(), Some(TIMEOUT));
    f.tick(TIMEOUT - secs(1));
    assert!(f.store.next_ready().is_none());
    f.tick(TIMEOUT);
    assert_eq!(f.events(), ["a does not exist"]);
    assert_eq!((f.status(&endpoints("a")), f.store.next_deadline()), (Status::TimedOut, None));
    let transaction = f.ready();
    assert_eq!(transaction.missing, [endpoints("a")]);
    f.ok(&transaction);
    assert_eq!(f.version(&cluster("a")), Some("1"));
    f.accept(f.mesh, [resource(endpoints("a"), 2)]);
    assert_eq!(f.version(&endpoints("a")), Some("2"), "late, but still wanted");
}

#[test]
fn a_timeout_of_zero_waits_for_ever() {
    let mut store = Store::new(secs(0));
    let mesh = store.add_source("mesh", SourceOptions { rank: 1, subscribes: true, refetch: false });
    let changes = vec![Change::Set(with_endpoints("a", 1))];
    store.offer(Batch { source: mesh, full: Kinds::NONE, policy: Policy::PerResource, changes }, secs(0)).unwrap();
    assert_eq!(store.next_deadline(), None);
    store.tick(secs(1_000_000));
    assert!(store.next_ready().is_none());
}

#[test]
fn an_answer_that_it_does_not_exist_ends_the_wait() {
    let mut f = Fixture::new();
    f.set(f.mesh, [with_endpoints("a", 1)]);
    f.events();
    f.remove(f.mesh, endpoints("a"));
    assert_eq!(f.events(), ["a does not exist"]);
    assert_eq!((f.ready().missing, f.status(&endpoints("a"))), (vec![endpoints("a")], Status::DoesNotExist));
}

#[test]
fn a_refused_answer_ends_the_wait() {
    let mut f = Fixture::new();
    f.set(f.mesh, [with_endpoints("a", 1)]);
    f.set(f.mesh, [resource(endpoints("a"), 2)]);
    let transaction = f.ready();
    f.refuse(&transaction, &endpoints("a"));
    assert_eq!(f.ready().missing, [endpoints("a")]);
}

#[test]
fn kinds_that_are_not_fetched_have_to_arrive() {
    let mut f = Fixture::new();
    f.set(f.mesh, [resource(listener("l"), 1).hard_to(cluster("a"))]);
    f.remove(f.mesh, cluster("a"));
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    let transaction = f.ready();
    f.refuse(&transaction, &cluster("a"));
    assert!(f.store.next_ready().is_none());
    f.set(f.mesh, [resource(cluster("a"), 3)]);
    f.build();
    assert_eq!(f.version(&listener("l")), Some("1"));
    f.remove(f.mesh, cluster("a"));
    f.set(f.mesh, [resource(listener("m"), 4).hard_to(cluster("a"))]);
    assert_eq!(f.status(&listener("m")), Status::Warming, "a removed cluster has to arrive again");
}

#[test]
fn the_accepted_version_stays_while_the_next_one_warms() {
    let mut f = warmed();
    f.set(f.mesh, [with_endpoints("a", 3)]);
    assert_eq!(f.events(), ["a 3 warming", "a wanted: Again"]);
    assert_eq!((f.version(&cluster("a")), f.status(&cluster("a"))), (Some("1"), Status::Warming));
    f.set(f.mesh, [resource(endpoints("a"), 2)]);
    assert_eq!(f.events(), ["a 2 accepted"], "unchanged, but an answer");
    f.build();
    assert_eq!(f.version(&cluster("a")), Some("3"));
}

#[test]
fn an_answer_to_an_older_question_does_not_end_the_wait() {
    let mut f = warmed();
    f.set(f.mesh, [resource(endpoints("a"), 4)]);
    let older = f.ready();
    f.set(f.mesh, [with_endpoints("a", 3)]);
    f.ok(&older);
    assert!(f.store.next_ready().is_none());
    f.set(f.mesh, [resource(endpoints("a"), 4)]);
    assert_eq!(f.ready().sets[0].key, cluster("a"));
}

#[test]
fn an_answer_in_the_same_batch_is_not_asked_for_again() {
    let mut f = warmed();
    f.set(f.mesh, [with_endpoints("a", 3), resource(endpoints("a"), 2)]);
    assert_eq!(f.events(), ["a 3 warming", "a 2 accepted"]);
    f.build();
    assert_eq!(f.version(&cluster("a")), Some("3"));
}

#[test]
fn a_source_may_reuse_what_is_there() {
    let mut f = Fixture::new();
    f.store.sources[f.mesh.0 as usize].options.refetch = false;
    f.set(f.mesh, [with_endpoints("a", 1), resource(endpoints("a"), 2)]);
    f.build();
    f.events();
    f.set(f.mesh, [with_endpoints("a", 3)]);
    f.build();
    assert_eq!(f.events(), ["a 3 accepted", "a changed"]);
}

#[test]
fn a_removal_while_warming_unsubscribes() {
    let mut f = Fixture::new();
    f.set(f.mesh, [with_endpoints("a", 1)]);
    f.events();
    f.remove(f.mesh, cluster("a"));
    assert_eq!(f.events(), ["a 1 superseded", "a wanted: NoMore"]);
    assert_eq!((f.store.next_deadline(), f.store.views().count()), (None, 0));
}

#[test]
fn a_newer_candidate_replaces_a_warming_one() {
    let mut f = Fixture::new();
    f.set(f.mesh, [with_endpoints("a", 1)]);
    f.tick(secs(10));
    f.set(f.mesh, [resource(cluster("a"), 2).hard_to(endpoints("b"))]);
    assert_eq!(f.store.next_deadline(), Some(secs(10) + TIMEOUT));
    f.set(f.mesh, [resource(endpoints("b"), 3)]);
    f.build();
    assert_eq!(f.version(&cluster("a")), Some("2"));
    let expected =
        ["a 1 warming", "a wanted: More", "a 1 superseded", "a 2 warming", "a wanted: NoMore", "b wanted: More"];
    assert_eq!(f.events()[..6], expected);
}

#[test]
fn a_transaction_does_not_wait_for_what_has_left_it() {
    let mut f = Fixture::new();
    f.load([with_endpoints("a", 1), resource(cluster("b"), 2)]);
    assert!(f.store.next_ready().is_none());
    f.set(f.file, [resource(cluster("a"), 3)]);
    let names: Vec<_> = [f.ready(), f.ready()].iter().map(|t| t.sets[0].key.clone()).collect();
    assert_eq!(names, [cluster("b"), cluster("a")]);
    assert_eq!(f.store.next_deadline(), None);
}
