//! Offers: versions, absence, duplicates, heartbeats.

use super::*;

#[test]
fn a_resource_is_accepted_once_it_is_built() {
    let mut f = Fixture::new();
    f.set(f.mesh, [resource(cluster("a"), 1)]);
    assert_eq!((f.version(&cluster("a")), f.status(&cluster("a"))), (None, Status::Building));
    let transaction = f.ready();
    assert_eq!(f.events(), Vec::<String>::new());
    assert_eq!(f.ok(&transaction).accepted, [cluster("a")]);
    assert_eq!(f.events(), ["a 1 accepted", "a changed"]);
    assert_eq!((f.version(&cluster("a")), f.status(&cluster("a"))), (Some("1"), Status::Accepted));
}

#[test]
fn a_name_twice_in_a_batch_refuses_the_batch() {
    let mut f = Fixture::new();
    let changes = vec![
        Change::Set(resource(cluster("a"), 1)),
        Change::Set(resource(cluster("b"), 2)),
        Change::Remove(cluster("a")),
        Change::Set(resource(endpoints("b"), 3)),
    ];
    let batch = Batch { source: f.mesh, full: Kinds::NONE, policy: Policy::PerResource, changes };
    let error = f.store.offer(batch, secs(0)).unwrap_err();
    assert_eq!(error, BatchError::Duplicates(vec![cluster("a")]));
    assert_eq!(error.to_string(), "the same name occurs more than once: cluster `a`");
    assert_eq!((f.events(), f.store.views().count()), (vec![], 0));
}

#[test]
fn an_unknown_source_is_an_error() {
    let mut f = Fixture::new();
    let batch = Batch { source: SourceId(9), full: Kinds::NONE, policy: Policy::PerResource, changes: vec![] };
    assert_eq!(f.store.offer(batch, secs(0)), Err(BatchError::UnknownSource));
}

#[test]
fn unchanged_content_takes_over_version_and_origin() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    let payload = f.store.accepted(&cluster("a")).unwrap().payload.clone();
    let mut again = resource(cluster("a"), 1);
    again.version = "next".into();
    let origin = Origin::File { file: std::path::Path::new("b.yaml").into(), span: Default::default() };
    again.origin = origin.clone();
    f.set(f.mesh, [again]);
    assert!(f.store.next_ready().is_none());
    assert_eq!(f.events(), ["a next accepted"]);
    let accepted = f.store.accepted(&cluster("a")).unwrap();
    assert_eq!((&*accepted.version, &accepted.origin), ("next", &origin));
    assert!(Arc::ptr_eq(&accepted.payload, &payload));
}

#[test]
fn accepted_content_offered_again_supersedes_a_candidate() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    let transaction = f.ready();
    f.set(f.mesh, [resource(cluster("a"), 1)]);
    assert_eq!(f.events(), ["a 2 superseded", "a 1 accepted"]);
    assert_eq!(f.ok(&transaction), Committed::default());
    assert_eq!((f.events(), f.version(&cluster("a"))), (vec![], Some("1")));
}

#[test]
fn the_same_content_offered_while_it_is_built_goes_on_with_the_build() {
    let mut f = Fixture::new();
    let first = f.set(f.mesh, [resource(cluster("a"), 1)]);
    let transaction = f.ready();
    let mut again = resource(cluster("a"), 1);
    again.version = "next".into();
    let second = f.set(f.mesh, [again]);
    assert!(f.store.next_ready().is_none());
    f.ok(&transaction);
    let verdicts: Vec<_> = std::iter::from_fn(|| f.store.next_event())
        .filter_map(|event| match event {
            Event::Verdict { batch, outcome, .. } => Some((batch, outcome)),
            _ => None,
        })
        .collect();
    assert_eq!(verdicts, [(first, Outcome::Superseded), (second, Outcome::Accepted)]);
    assert_eq!(f.version(&cluster("a")), Some("next"));
}

#[test]
fn absence_from_a_full_state_removes_the_kinds_that_the_batch_names() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1), resource(cluster("b"), 2), resource(listener("l"), 3)]);
    f.accept(f.other, [resource(cluster("c"), 4)]);
    let full = Kinds::NONE.with(Kind::Cluster);
    f.offer(f.mesh, Policy::PerResource, full, [Change::Set(resource(cluster("b"), 2))]);
    assert_eq!(f.events(), ["b 2 accepted", "a removed"]);
    assert_eq!(f.version(&listener("l")), Some("3"));
    f.offer(f.mesh, Policy::PerResource, full, []);
    assert_eq!(f.events(), ["b removed"]);
    assert_eq!(f.version(&cluster("c")), Some("4"));
}

#[test]
fn a_removal_withdraws_the_candidate_too() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    let transaction = f.ready();
    f.remove(f.mesh, cluster("a"));
    assert_eq!(f.events(), ["a 2 superseded", "a removed"]);
    assert_eq!(f.ok(&transaction), Committed::default());
    assert_eq!((f.events(), f.store.views().count()), (vec![], 0));
}

#[test]
fn another_sources_resource_is_not_removed() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.remove(f.other, cluster("a"));
    assert_eq!((f.events(), f.version(&cluster("a"))), (vec![], Some("1")));
}

#[test]
fn a_ttl_ends_unless_it_is_renewed() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1).for_secs(10), resource(cluster("b"), 1).for_secs(10)]);
    assert_eq!(f.store.next_deadline(), Some(secs(10)));
    f.tick(secs(9));
    let renew =
        |name, version: &str| Change::Renew { key: cluster(name), version: version.into(), ttl: Some(secs(10)) };
    f.offer(f.mesh, Policy::PerResource, Kinds::NONE, [renew("a", "1"), renew("b", "other"), renew("c", "1")]);
    f.tick(secs(10));
    assert_eq!(f.events(), ["b removed"]);
    assert_eq!(f.store.next_deadline(), Some(secs(19)));
    f.set(f.mesh, [resource(cluster("a"), 1)]);
    assert_eq!((f.store.next_deadline(), f.version(&cluster("a"))), (None, Some("1")));
}

#[test]
fn a_heartbeat_is_no_absence() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1).for_secs(10)]);
    let renew = Change::Renew { key: cluster("a"), version: "1".into(), ttl: None };
    f.offer(f.mesh, Policy::PerResource, Kinds::ALL, [renew]);
    assert_eq!((f.version(&cluster("a")), f.store.next_deadline()), (Some("1"), None));
}

#[test]
fn held_versions_are_those_that_were_not_refused() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1), resource(cluster("b"), 2)]);
    f.set(f.mesh, [resource(cluster("a"), 3), resource(cluster("b"), 4), resource(cluster("c"), 5)]);
    let (a, b, c) = (f.ready(), f.ready(), f.ready());
    f.refuse(&a, &cluster("a"));
    f.refuse(&c, &cluster("c"));
    let mut held: Vec<_> = f.store.held(f.mesh).map(|(key, version)| (&*key.name, &**version)).collect();
    held.sort();
    assert_eq!(held, [("a", "1"), ("b", "4")]);
    assert_eq!(f.store.held(f.other).count(), 0);
    f.ok(&b);
}
