//! Counted references to kinds that are fetched on demand.

use super::*;

/// A cluster that refers to endpoints of the same name.
fn with_endpoints(name: &str, content: u64) -> Resource<Payload> {
    resource(cluster(name), content).hard_to(endpoints(name))
}

#[test]
fn the_first_reference_subscribes_and_the_last_one_unsubscribes() {
    let mut f = Fixture::new();
    f.set(
        f.mesh,
        [resource(cluster("a"), 1).soft_to(endpoints("e")), resource(cluster("b"), 2).soft_to(endpoints("e"))],
    );
    assert_eq!(f.events(), ["e wanted: More"]);
    f.build();
    f.accept(f.mesh, [resource(endpoints("e"), 3)]);
    f.remove(f.mesh, cluster("a"));
    assert_eq!(f.events(), ["a removed"]);
    f.remove(f.mesh, cluster("b"));
    assert_eq!(f.events(), ["b removed", "e wanted: NoMore", "e removed"]);
    assert_eq!(f.store.views().count(), 0);
}

#[test]
fn a_reference_that_moves_within_a_batch_keeps_its_resource() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1).soft_to(endpoints("e"))]);
    f.accept(f.mesh, [resource(endpoints("e"), 3)]);
    let set = Change::Set(resource(cluster("b"), 2).soft_to(endpoints("e")));
    f.offer(f.mesh, Policy::PerResource, Kinds::NONE, [Change::Remove(cluster("a")), set]);
    f.build();
    assert_eq!(f.events(), ["a removed", "b 2 accepted", "b changed"]);
    assert_eq!(f.version(&endpoints("e")), Some("3"));
}

#[test]
fn what_is_not_wanted_is_ignored() {
    let mut f = Fixture::new();
    f.set(f.mesh, [resource(endpoints("e"), 1)]);
    assert_eq!(f.events(), ["e 1 notwanted"]);
    assert_eq!(f.store.views().count(), 0);
    let named = Reference { key: endpoints("e"), strength: Strength::Soft, source: Some(f.mesh) };
    f.set(f.mesh, [resource(cluster("a"), 2).referring(named)]);
    let Some(Event::Wants { source, want: Want::More, .. }) = f.store.next_event() else { panic!("wanted") };
    assert_eq!(source, Some(f.mesh));
    f.set(f.other, [resource(endpoints("e"), 3)]);
    assert_eq!(f.events(), ["e 3 notwanted"], "it was asked for from another source");
}

#[test]
fn a_source_that_supplies_everything_keeps_what_is_not_wanted() {
    let mut f = Fixture::new();
    f.load([resource(endpoints("e"), 1)]);
    f.build();
    f.events();
    f.accept(f.mesh, [resource(cluster("a"), 2).hard_to(endpoints("e"))]);
    f.remove(f.mesh, cluster("a"));
    assert_eq!(f.version(&endpoints("e")), Some("1"));
}

#[test]
fn a_refused_candidate_refers_to_nothing() {
    let mut f = Fixture::new();
    f.set(f.mesh, [resource(cluster("a"), 1).soft_to(endpoints("e"))]);
    let transaction = f.ready();
    f.refuse(&transaction, &cluster("a"));
    assert_eq!(f.events(), ["e wanted: More", "a 1 refused", "e wanted: NoMore"]);
}

#[test]
fn accepted_and_candidate_refer_to_their_own_endpoints() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1).soft_to(endpoints("old"))]);
    f.accept(f.mesh, [resource(endpoints("old"), 2)]);
    f.set(f.mesh, [resource(cluster("a"), 3).hard_to(endpoints("new"))]);
    assert_eq!(f.events(), ["a 3 warming", "new wanted: More"]);
    f.set(f.mesh, [resource(endpoints("new"), 4)]);
    f.build();
    let events = f.events();
    assert_eq!(events[..2], ["new 4 accepted", "new changed"]);
    assert_eq!(events[2..], ["a 3 accepted", "a changed", "old wanted: NoMore", "old removed"]);
}

#[test]
fn references_end_transitively() {
    let mut f = Fixture::new();
    let (routes, secret) = (Key::new(Kind::Routes, "r"), Key::new(Kind::Secret, "s"));
    f.accept(f.mesh, [resource(listener("l"), 1).soft_to(routes.clone())]);
    f.accept(f.mesh, [resource(routes.clone(), 2).soft_to(secret.clone())]);
    f.accept(f.mesh, [resource(secret.clone(), 3)]);
    assert_eq!(f.version(&secret), Some("3"));
    f.remove(f.mesh, listener("l"));
    assert_eq!(f.events(), ["l removed", "r wanted: NoMore", "r removed", "s wanted: NoMore", "s removed"]);
}

#[test]
fn a_removal_does_not_affect_referrers() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [with_endpoints("a", 1)]);
    f.accept(f.mesh, [resource(endpoints("a"), 2)]);
    assert_eq!(f.version(&cluster("a")), Some("1"));
    f.remove(f.mesh, endpoints("a"));
    assert_eq!(f.events(), ["a removed"]);
    assert_eq!((f.version(&cluster("a")), f.status(&endpoints("a"))), (Some("1"), Status::DoesNotExist));
    f.accept(f.mesh, [resource(endpoints("a"), 3)]);
    assert_eq!(f.version(&endpoints("a")), Some("3"));
}

#[test]
fn a_subscription_after_an_unsubscription_needs_another_answer() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [with_endpoints("a", 1)]);
    f.accept(f.mesh, [resource(endpoints("a"), 2)]);
    f.remove(f.mesh, cluster("a"));
    f.events();
    f.set(f.mesh, [with_endpoints("a", 1)]);
    assert_eq!(f.events(), ["a 1 warming", "a wanted: More"]);
    assert_eq!((f.version(&endpoints("a")), f.status(&endpoints("a"))), (None, Status::Requested));
}

#[test]
fn a_wanted_candidate_goes_with_the_last_reference() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1).soft_to(endpoints("e"))]);
    f.set(f.mesh, [resource(endpoints("e"), 2)]);
    let transaction = f.ready();
    f.remove(f.mesh, cluster("a"));
    assert_eq!(f.events(), ["a removed", "e wanted: NoMore", "e 2 superseded"]);
    assert_eq!(f.ok(&transaction), Committed::default());
    assert_eq!(f.store.views().count(), 0);
}
