//! The cost of operations: the number of entries that they access.

use super::*;

const CLUSTERS: u64 = 10_000;

#[test]
fn one_change_among_many_accesses_few_entries() {
    let mut f = Fixture::new();
    let all = (0..CLUSTERS).flat_map(|n| {
        let name = format!("c{n}");
        [resource(cluster(&name), n).hard_to(endpoints(&name)), resource(endpoints(&name), n)]
    });
    let batch = Batch {
        source: f.file,
        full: Kinds::ALL,
        policy: Policy::AllOrNothing,
        changes: all.map(Change::Set).collect(),
    };
    f.store.offer(batch, secs(0)).unwrap();
    let transaction = f.store.next_ready().unwrap();
    assert_eq!(transaction.sets.len() as u64, 2 * CLUSTERS);
    f.store.commit(transaction.id, Ok(()), secs(0));
    while f.store.next_event().is_some() {}

    let mut visits = |change| {
        f.store.entries.visits = 0;
        let changes = vec![change];
        let batch = Batch { source: f.file, full: Kinds::NONE, policy: Policy::PerResource, changes };
        f.store.offer(batch, secs(1)).unwrap();
        while let Some(transaction) = f.store.next_ready() {
            f.store.commit(transaction.id, Ok(()), secs(1));
        }
        while f.store.next_event().is_some() {}
        f.store.entries.visits
    };
    let changed = visits(Change::Set(resource(endpoints("c77"), 1 << 32)));
    assert!((1..=40).contains(&changed), "{changed} for changed endpoints");
    let unchanged = visits(Change::Set(resource(endpoints("c78"), 78)));
    assert!((1..=20).contains(&unchanged), "{unchanged} for unchanged endpoints");
    let cluster_changed = visits(Change::Set(resource(cluster("c79"), 1 << 33).hard_to(endpoints("c79"))));
    assert!((1..=60).contains(&cluster_changed), "{cluster_changed} for a cluster");
    let removed = visits(Change::Remove(cluster("c80")));
    assert!((1..=40).contains(&removed), "{removed} for a removal");
    assert_eq!(f.version(&endpoints("c77")), Some(&*(1u64 << 32).to_string()));
    assert_eq!(f.version(&cluster("c80")), None);
}
