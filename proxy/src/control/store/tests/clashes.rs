//! Clashes of names between sources.

use super::*;

#[test]
fn a_name_of_the_file_is_refused_with_both_origins() {
    let mut f = Fixture::new();
    f.load([resource(cluster("a"), 1)]);
    f.build();
    f.events();
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    assert!(f.store.next_ready().is_none());
    assert_eq!(f.events(), ["a 2 clash"]);
    let key = cluster("a");
    let view = f.store.view(&key).unwrap();
    let Status::Refused(refusal) = view.candidates[0].status else { panic!("refused") };
    assert_eq!((view.status, view.candidates[0].source), (Status::Accepted, f.mesh));
    assert_eq!(
        refusal.to_string(),
        "the name is taken by source `test`, cluster `a`, field `1`; refused: source `test`, cluster `a`, field `2`"
    );
    assert_eq!(f.version(&key), Some("1"));
}

#[test]
fn the_file_takes_a_name_over_and_gives_it_back() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.load([resource(cluster("a"), 2)]);
    assert_eq!(f.version(&cluster("a")), Some("1"));
    f.build();
    assert_eq!(f.events(), ["a 2 accepted", "a changed"]);
    assert_eq!(f.status(&cluster("a")), Status::Accepted);

    f.load([]);
    let removal = f.ready();
    f.ok(&removal);
    assert_eq!((f.events(), f.version(&cluster("a"))), (vec![], Some("2")), "until the other one is built");
    f.build();
    assert_eq!((f.events(), f.version(&cluster("a"))), (vec!["a changed".to_owned()], Some("1")));
}

#[test]
fn a_file_that_is_refused_takes_nothing_over() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.load([resource(cluster("a"), 2)]);
    let transaction = f.ready();
    f.refuse(&transaction, &cluster("a"));
    f.events();
    f.accept(f.mesh, [resource(cluster("a"), 3)]);
    assert_eq!(f.version(&cluster("a")), Some("3"));
}

#[test]
fn the_file_refuses_what_is_being_built_for_another_source() {
    let mut f = Fixture::new();
    f.load([resource(cluster("a"), 1)]);
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    let (file, mesh) = (f.ready(), f.ready());
    f.ok(&file);
    f.ok(&mesh);
    assert_eq!(f.events(), ["a 1 accepted", "a changed", "a 2 clash"]);
    assert_eq!(f.version(&cluster("a")), Some("1"));
}

#[test]
fn the_file_wins_also_if_it_is_built_later() {
    let mut f = Fixture::new();
    f.load([resource(cluster("a"), 1)]);
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    let (file, mesh) = (f.ready(), f.ready());
    f.ok(&mesh);
    f.ok(&file);
    assert_eq!(f.events(), ["a 2 accepted", "a changed", "a 1 accepted", "a changed"]);
    assert_eq!(f.version(&cluster("a")), Some("1"));
}

#[test]
fn among_equals_the_first_wins() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.set(f.other, [resource(cluster("a"), 2)]);
    assert_eq!(f.events(), ["a 2 clash"]);
    f.remove(f.mesh, cluster("a"));
    let revived = f.ready();
    f.refuse(&revived, &cluster("a"));
    assert_eq!(f.events(), ["a removed"], "a second verdict is not given");
    assert_eq!(f.version(&cluster("a")), None);
}

#[test]
fn a_withdrawn_resource_that_is_offered_again_unchanged_stays() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.set(f.other, [resource(cluster("a"), 2)]);
    f.remove(f.mesh, cluster("a"));
    let revived = f.ready();
    f.set(f.mesh, [resource(cluster("a"), 1)]);
    assert_eq!(f.ok(&revived), Committed::default());
    assert_eq!(f.events(), ["a 2 clash", "a 1 accepted"]);
    assert_eq!(f.version(&cluster("a")), Some("1"));
}

#[test]
fn a_refused_version_does_not_lose_the_accepted_one_in_a_clash() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    let transaction = f.ready();
    f.refuse(&transaction, &cluster("a"));
    f.load([resource(cluster("a"), 3)]);
    f.build();
    f.load([]);
    f.build();
    assert_eq!(f.version(&cluster("a")), Some("1"));
}

#[test]
fn a_clash_refuses_the_whole_of_an_all_or_nothing_batch() {
    let mut f = Fixture::new();
    let sets = |n| [resource(cluster("a"), n), resource(cluster("b"), n + 1)].map(Change::Set);
    f.load([resource(cluster("a"), 1)]);
    f.build();
    f.events();
    f.offer(f.mesh, Policy::AllOrNothing, Kinds::NONE, sets(2));
    assert_eq!(f.events(), ["a 2 clash", "b 3 refused with its batch"]);
    f.load([]);
    f.build();
    assert_eq!(f.events(), ["a removed"], "half of a batch is not accepted");

    f.offer(f.mesh, Policy::AllOrNothing, Kinds::NONE, sets(4));
    let building = f.ready();
    f.load([resource(cluster("b"), 6)]);
    f.build();
    assert_eq!(f.events(), ["b 6 accepted", "b changed", "a 4 refused with its batch", "b 5 clash"]);
    assert_eq!(f.ok(&building), Committed::default());
}

#[test]
fn equal_content_of_another_source_is_no_change() {
    let mut f = Fixture::new();
    f.accept(f.mesh, [resource(cluster("a"), 1)]);
    f.load([resource(cluster("a"), 1)]);
    f.build();
    assert_eq!(f.events(), ["a 1 accepted"]);
    assert_eq!(f.store.view(&cluster("a")).unwrap().accepted.unwrap().0, f.file);
}

#[test]
fn a_withdrawn_resource_stays_until_its_successor_is_built() {
    let mut f = Fixture::new();
    f.load([resource(cluster("a"), 1)]);
    f.build();
    f.set(f.mesh, [resource(cluster("a"), 2)]);
    f.load([]);
    let removal = f.ready();
    f.ok(&removal);
    f.set(f.mesh, [resource(cluster("a"), 3)]);
    assert_eq!(f.version(&cluster("a")), Some("1"));
    f.remove(f.mesh, cluster("a"));
    assert_eq!(f.version(&cluster("a")), None, "nothing replaces it");
}
