//! Which endpoints a request may go to, by metadata.

use std::{net::SocketAddr, sync::Arc};

use serde_json::{Value, json};

use super::*;
use crate::upstream::{Cluster, PickKey};

/// The properties of a route.
fn wants(metadata: Value) -> MetadataMatch {
    MetadataMatch::new(&serde_json::from_value::<model::Metadata>(metadata).unwrap())
}

fn config(subsets: Value, endpoints: &[Value]) -> model::Cluster {
    let endpoints: Vec<_> = endpoints
        .iter()
        .enumerate()
        .map(|(n, metadata)| {
            let address = SocketAddr::from(([192, 0, 2, n as u8], 80));
            json!({"address": address, "metadata": metadata})
        })
        .collect();
    serde_json::from_value(json!({"name": "test", "endpoints": endpoints, "subsets": subsets})).unwrap()
}

/// The endpoints that requests with these properties get.
fn used(cluster: &Cluster, wanted: Option<&MetadataMatch>) -> Vec<usize> {
    let picked: Vec<_> = (0..200).filter_map(|_| cluster.pick(PickKey { hash: None, subset: wanted }, &[])).collect();
    let is_used = |i: &usize| picked.iter().any(|endpoint| Arc::ptr_eq(endpoint, &cluster.members()[*i].endpoint));
    (0..cluster.members().len()).filter(is_used).collect()
}

/// Five endpoints: the last one has no metadata.
fn endpoints() -> [Value; 5] {
    [
        json!({"version": "v1", "stage": "prod"}),
        json!({"version": "v1", "stage": "test"}),
        json!({"version": "v2", "stage": "prod", "shard": 1}),
        json!({"version": "v2", "shard": 1.0, "canary": true}),
        json!({}),
    ]
}

#[test]
fn subset_has_the_endpoints_with_exactly_the_properties_of_a_selector() {
    let selectors =
        json!([{"keys": ["version"]}, {"keys": ["version", "stage"]}, {"keys": ["shard"]}, {"keys": ["canary"]}]);
    let cluster = Cluster::new(&config(json!({ "selectors": selectors }), &endpoints()), None);
    for (metadata, expected) in [
        (json!({"version": "v1"}), vec![0, 1]),
        (json!({"version": "v2"}), vec![2, 3]),
        (json!({"stage": "prod", "version": "v1"}), vec![0]),
        (json!({"shard": 1}), vec![2, 3]),
        (json!({"shard": "1"}), vec![]),
        (json!({"canary": true}), vec![3]),
        (json!({"canary": false}), vec![]),
        // No selector has this property alone.
        (json!({"stage": "prod"}), vec![]),
        (json!({"version": "v3"}), vec![]),
        (json!({"version": "v1", "stage": "prod", "shard": 1}), vec![]),
        (json!({}), vec![]),
    ] {
        assert_eq!(used(&cluster, Some(&wants(metadata.clone()))), expected, "{metadata}");
    }
    assert_eq!(used(&cluster, None), [0; 0], "without a fallback, requests of other routes get none either");
}

#[test]
fn fallback_of_the_selector_comes_before_that_of_the_cluster() {
    let selectors = json!([{"keys": ["version"]}, {"keys": ["stage"], "fallback_policy": "any_endpoint"}, {"keys": ["shard"], "fallback_policy": "no_fallback"}]);
    for (fallback, default, other) in [
        ("no_fallback", json!(null), vec![]),
        ("any_endpoint", json!(null), vec![0, 1, 2, 3, 4]),
        ("default_subset", json!({"version": "v1", "stage": "test"}), vec![1]),
        ("default_subset", json!({"version": "v9"}), vec![]),
        ("default_subset", json!({}), vec![0, 1, 2, 3, 4]),
    ] {
        let subsets = json!({"selectors": selectors, "fallback_policy": fallback, "default_subset": default});
        let cluster = Cluster::new(&config(subsets, &endpoints()), None);
        assert_eq!(used(&cluster, Some(&wants(json!({"version": "v3"})))), other, "{fallback} {default}");
        assert_eq!(used(&cluster, Some(&wants(json!({"unknown": "x"})))), other);
        assert_eq!(used(&cluster, None), other);
        assert_eq!(used(&cluster, Some(&wants(json!({"stage": "none"})))), [0, 1, 2, 3, 4]);
        assert_eq!(used(&cluster, Some(&wants(json!({"shard": 2})))), [0; 0]);
        assert_eq!(used(&cluster, Some(&wants(json!({"version": "v2"})))), [2, 3]);
    }
}

#[test]
fn cluster_without_subsets_ignores_what_routes_want() {
    let mut config = config(json!({"selectors": [{"keys": ["version"]}]}), &endpoints());
    config.subsets = None;
    assert_eq!(used(&Cluster::new(&config, None), Some(&wants(json!({"version": "v2"})))), [0, 1, 2, 3, 4]);
}

#[test]
fn health_and_panic_apply_within_a_subset() {
    let mut config = config(json!({"selectors": [{"keys": ["version"]}]}), &endpoints());
    config.outlier_detection = Some(Box::default());
    let cluster = Cluster::new(&config, None);
    let (one, two) = (wants(json!({"version": "v1"})), wants(json!({"version": "v2"})));
    let set = |index: usize, is_healthy| {
        let healthy = &cluster.members()[index].endpoint.state.healthy;
        healthy.store(is_healthy, std::sync::atomic::Ordering::Relaxed);
        cluster.apply_health();
    };
    set(0, false);
    assert_eq!((used(&cluster, Some(&one)), used(&cluster, Some(&two))), (vec![1], vec![2, 3]));
    set(1, false);
    assert_eq!(used(&cluster, Some(&one)), [0, 1], "none of two is below the panic threshold");
    set(0, true);
    set(1, true);
    assert_eq!(used(&cluster, Some(&one)), [0, 1]);
}

#[test]
fn subsets_follow_changes_of_the_endpoints_and_of_the_section() {
    let mut config = config(json!({"selectors": [{"keys": ["version"]}]}), &endpoints());
    let first = Cluster::new(&config, None);
    config.endpoints[4].metadata = config.endpoints[0].metadata.clone();
    config.endpoints.remove(1);
    let second = first.with_endpoints(&config.endpoints);
    let one = wants(json!({"version": "v1"}));
    assert_eq!((used(&first, Some(&one)), used(&second, Some(&one))), (vec![0, 1], vec![0, 3]));
    // Endpoints that come from elsewhere stay, and are divided in another way.
    config.discovery = serde_json::from_value(json!({"source": "x"})).unwrap();
    config.subsets.as_mut().unwrap().selectors[0].keys = vec!["stage".to_owned()];
    let third = Cluster::new(&config, Some(&second));
    assert_eq!(used(&third, Some(&one)), [0; 0]);
    assert_eq!(used(&third, Some(&wants(json!({"stage": "prod"})))), [0, 1, 3]);
}

/// Requests for two subsets that take turns: each still reaches all of its endpoints.
#[test]
fn subsets_do_not_disturb_each_others_turns() {
    let selectors = json!({"selectors": [{"keys": ["version"]}], "fallback_policy": "any_endpoint"});
    let cluster = Cluster::new(&config(selectors, &endpoints()), None);
    let wanted = [Some(wants(json!({"version": "v1"}))), Some(wants(json!({"version": "v2"}))), None, None];
    let mut counts = [[0; 5]; 4];
    for _ in 0..10 {
        for (wanted, counts) in wanted.iter().zip(&mut counts) {
            let key = PickKey { hash: None, subset: wanted.as_ref() };
            let picked = cluster.pick(key, &[]).unwrap();
            counts[cluster.members().iter().position(|member| Arc::ptr_eq(&member.endpoint, &picked)).unwrap()] += 1;
        }
    }
    assert_eq!((counts[0], counts[1]), ([5, 5, 0, 0, 0], [0, 0, 5, 5, 0]));
    assert_eq!([0, 1, 2, 3, 4].map(|n| counts[2][n] + counts[3][n]), [4; 5]);
    assert_eq!(cluster.subset_picks(), Some([("subset", 20), ("fallback", 20), ("nothing", 0)]));
}

#[test]
fn endpoints_without_a_weight_are_in_no_subset() {
    let subsets = json!({"selectors": [{"keys": ["version"]}], "fallback_policy": "default_subset", "default_subset": {"version": "v1"}});
    let mut config = config(subsets, &endpoints());
    (config.endpoints[2].weight, config.endpoints[3].weight) = (0, 0);
    let first = Cluster::new(&config, None);
    let (one, two) = (wants(json!({"version": "v1"})), wants(json!({"version": "v2"})));
    assert_eq!(used(&first, Some(&two)), [0, 1], "the fallback");
    (config.endpoints[0].weight, config.endpoints[1].weight, config.endpoints[2].weight) = (0, 0, 1);
    let second = first.with_endpoints(&config.endpoints);
    assert_eq!((used(&second, Some(&two)), used(&second, Some(&one))), (vec![2], vec![]));
    // Nor is a subset counted that has none.
    let statuses = second.subsets().unwrap();
    let shown: Vec<_> =
        statuses.iter().map(|s| (s.properties.clone(), s.is_default, s.available, s.endpoints)).collect();
    assert_eq!(shown, [(json!({"version": "v2"}), false, 1, 1), (json!({"version": "v1"}), true, 0, 0)]);
    assert_eq!(second.subset_picks(), Some([("subset", 200), ("fallback", 200), ("nothing", 200)]));
    // What was counted remains when the section changes.
    config.subsets.as_mut().unwrap().fallback_policy = model::SubsetFallbackPolicy::AnyEndpoint;
    let third = Cluster::new(&config, Some(&second));
    assert_eq!(used(&third, Some(&one)), [2, 4]);
    assert_eq!(third.subset_picks(), Some([("subset", 200), ("fallback", 400), ("nothing", 200)]));
    config.subsets = None;
    assert_eq!(Cluster::new(&config, Some(&third)).subset_picks(), None);
}

/// A key stays with its endpoint within its subset.
#[test]
fn keys_are_placed_among_the_endpoints_of_the_subset() {
    let mut config = config(json!({"selectors": [{"keys": ["version"]}]}), &endpoints());
    for policy in ["hash", "ring_hash", "maglev"] {
        config.balancer = serde_json::from_value(json!({"policy": policy})).unwrap();
        let (cluster, two) = (Cluster::new(&config, None), wants(json!({"version": "v2"})));
        let place = |hash| {
            let key = PickKey { hash: Some(hash), subset: Some(&two) };
            let picked = cluster.pick(key, &[]).unwrap();
            cluster.members().iter().position(|member| Arc::ptr_eq(&member.endpoint, &picked)).unwrap()
        };
        let hashes = || (0..50).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let places: Vec<_> = hashes().map(place).collect();
        assert!(places.iter().all(|place| [2, 3].contains(place)) && places.contains(&2) && places.contains(&3));
        assert_eq!(hashes().map(place).collect::<Vec<_>>(), places, "{policy}");
    }
}
