//! Commits: refusals, stale transactions, all-or-nothing batches.

use super::*;

#[test]
fn a_refused_candidate_displaces_nothing() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.set(f.mesh, [resource(cluster("a"), 2), resource(cluster("b"), 3)]);
    let (a, b) = (f.ready(), f.ready());
    f.refuse(&a, &cluster("a"));
    f.ok(&b);
    assert_eq!(f.events(), ["a 2 refused", "b 3 accepted", "b changed"]);
    assert_eq!(f.version(&cluster("a")), Some("1"));
    let key = cluster("a");
    let Status::Refused(refusal) = f.status(&key) else { panic!("refused") };
    assert_eq!(refusal.to_string(), "name: wrong");
    let view = f.store.view(&key).unwrap();
    assert_eq!((view.accepted.unwrap().0, &*view.candidates[0].resource.version), (f.mesh, "2"));
}

#[test]
fn a_build_that_names_no_errors_is_refused() {
    let mut f = Fixture::new();
    f.set(f.mesh, [resource(cluster("a"), 1)]);
    let transaction = f.ready();
    f.store.commit(transaction.id, Err(vec![]), secs(0));
    assert_eq!(f.events(), ["a 1 refused"]);
}

#[test]
fn a_late_commit_of_a_replaced_candidate_has_no_effect() {
    let mut f = Fixture::new();
    f.set(f.mesh, [resource(cluster("a"), 1)]);
    let first = f.ready();
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    let second = f.ready();
    assert_eq!(f.events(), ["a 1 superseded"]);
    assert_eq!(f.ok(&first), Committed::default());
    assert_eq!((f.events(), f.version(&cluster("a"))), (vec![], None));
    assert_eq!(f.refuse(&first, &cluster("a")), Committed::default());
    f.ok(&second);
    assert_eq!(f.events(), ["a 2 accepted", "a changed"]);
    assert_eq!(f.ok(&second), Committed::default());
    assert_eq!((f.events(), f.version(&cluster("a"))), (vec![], Some("2")));
}

#[test]
fn a_replaced_candidate_is_not_handed_out() {
    let mut f = Fixture::new();
    f.set(f.mesh, [resource(cluster("a"), 1)]);
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    let transaction = f.ready();
    assert_eq!(&*transaction.sets[0].version, "2");
    assert!(f.store.next_ready().is_none());
}

#[test]
fn an_all_or_nothing_batch_is_one_transaction() {
    let mut f = Fixture::new();
    f.load([resource(cluster("a"), 1), resource(cluster("b"), 2), resource(listener("l"), 3)]);
    let transaction = f.ready();
    assert_eq!(transaction.sets.iter().map(|r| &*r.key.name).collect::<Vec<_>>(), ["l", "a", "b"]);
    assert_eq!(f.ok(&transaction).accepted, [listener("l"), cluster("a"), cluster("b")]);
    f.events();

    f.load([resource(cluster("a"), 4), resource(cluster("b"), 2), resource(cluster("c"), 5)]);
    let transaction = f.ready();
    assert_eq!(transaction.removes, [listener("l")]);
    assert_eq!((f.version(&listener("l")), f.version(&cluster("a"))), (Some("3"), Some("1")));
    f.refuse(&transaction, &cluster("c"));
    assert_eq!(f.events(), ["b 2 accepted", "a 4 refused with its batch", "c 5 refused"]);
    assert_eq!((f.version(&listener("l")), f.version(&cluster("a"))), (Some("3"), Some("1")));

    f.load([resource(cluster("a"), 4)]);
    let transaction = f.ready();
    let committed = f.ok(&transaction);
    assert_eq!((committed.accepted, committed.removed), (vec![cluster("a")], vec![listener("l"), cluster("b")]));
    assert_eq!(f.events(), ["a 4 accepted", "a changed", "l removed", "b removed"]);
}

#[test]
fn an_all_or_nothing_batch_can_consist_of_removals() {
    let mut f = Fixture::new();
    f.load([resource(cluster("a"), 1)]);
    f.build();
    f.load([]);
    let transaction = f.ready();
    assert_eq!((transaction.sets.len(), &*transaction.removes), (0, &[cluster("a")][..]));
    f.load([resource(cluster("a"), 1)]);
    f.ok(&transaction);
    assert_eq!(f.version(&cluster("a")), Some("1"), "the removal was replaced");
    f.load([resource(cluster("a"), 1)]);
    assert!(f.store.next_ready().is_none());
}

#[test]
fn a_newer_file_replaces_an_older_one_that_is_being_built() {
    let mut f = Fixture::new();
    f.load([resource(cluster("a"), 1), resource(cluster("b"), 2)]);
    let first = f.ready();
    f.load([resource(cluster("a"), 1), resource(cluster("c"), 3)]);
    let second = f.ready();
    assert_eq!(second.sets.len(), 2);
    assert_eq!(f.ok(&first), Committed::default());
    f.ok(&second);
    assert_eq!((f.version(&cluster("a")), f.version(&cluster("b"))), (Some("1"), None));
}

#[test]
fn a_newer_offer_takes_its_resource_out_of_a_transaction() {
    let mut f = Fixture::new();
    f.load([resource(cluster("a"), 1), resource(cluster("b"), 2)]);
    let first = f.ready();
    f.set(f.file, [resource(cluster("a"), 3)]);
    let second = f.ready();
    assert_eq!(f.ok(&first).accepted, [cluster("b")]);
    assert_eq!(f.version(&cluster("a")), None);
    f.ok(&second);
    assert_eq!(f.version(&cluster("a")), Some("3"));
}

#[test]
fn what_changed_last_has_a_time() {
    let mut f = Fixture::new();
    f.set(f.mesh, [resource(cluster("a"), 1)]);
    let transaction = f.ready();
    f.store.commit(transaction.id, Ok(()), secs(7));
    f.tick(secs(9));
    f.set(f.mesh, [resource(cluster("a"), 1)]);
    assert_eq!(f.store.view(&cluster("a")).unwrap().changed, secs(7));
}
