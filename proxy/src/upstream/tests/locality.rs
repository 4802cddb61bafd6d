use super::*;
use crate::{
    config::model,
    upstream::{Cluster, tests::config},
};

fn locality(path: &str) -> Locality {
    let mut parts = path.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), sub_zone: next() }
}

#[test]
fn distance_is_by_the_first_part_that_differs() {
    for (endpoint, node, expected) in [
        ("eu/a/1", "eu/a/1", 0),
        ("eu/a", "eu/a", 0),
        ("eu/a/2", "eu/a/1", 1),
        ("eu/a", "eu/a/1", 1),
        ("eu/b/1", "eu/a/1", 2),
        ("us/a/1", "eu/a/1", 3),
        ("", "eu/a/1", 3),
        ("", "", 3),
    ] {
        assert_eq!(distance(Some(&locality(endpoint)), &locality(node)), expected, "{endpoint} {node}");
    }
}

/// Members in zones: `(zone, number, weight)`.
fn in_zones(zones: &[(&str, usize, u32)]) -> Vec<Member> {
    let places: Vec<_> = zones.iter().flat_map(|(zone, number, weight)| vec![(*zone, *weight); *number]).collect();
    let mut cluster = config(&[]);
    cluster.endpoints = (1..)
        .zip(&places)
        .map(|(host, (zone, weight))| {
            let address = std::net::SocketAddr::from(([10, 0, 0, host], 80));
            let locality = Some(Box::new(locality(&format!("eu/{zone}"))));
            model::Endpoint { locality, ..model::Endpoint::new(address, *weight) }
        })
        .collect();
    Cluster::new(&cluster, None).members().to_vec()
}

fn zone_aware(options: serde_json::Value) -> LocalityBalancing {
    let mut balancing = serde_json::json!({"policy": "zone_aware"});
    balancing.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    serde_json::from_value(balancing).unwrap()
}

/// The shares of the zones, in percent, for a proxy in `node`.
fn shares<const N: usize>(members: &[Member], balancing: &LocalityBalancing, node: &str, zones: [&str; N]) -> [f64; N] {
    let mut used = members.to_vec();
    weigh(&mut used, &members.iter().collect::<Vec<_>>(), balancing, &locality(node), 140);
    let total: f64 = used.iter().map(|member| f64::from(member.weight)).sum();
    zones.map(|zone| {
        let of_zone = used.iter().filter(|member| member.locality.as_ref().is_some_and(|place| place.zone == zone));
        let weight: f64 = of_zone.map(|member| f64::from(member.weight)).sum();
        (weight / total * 1000.0).round() / 10.0
    })
}

#[test]
fn requests_stay_in_their_zone_as_far_as_it_bears_them() {
    for (zones, node, expected) in [
        (&[("a", 5, 1), ("b", 5, 1)][..], "eu/a", [100.0, 0.0, 0.0]),
        (&[("a", 6, 1), ("b", 4, 1)], "eu/a", [100.0, 0.0, 0.0]),
        (&[("a", 6, 1), ("b", 4, 1)], "eu/b", [20.0, 80.0, 0.0]),
        (&[("a", 6, 0), ("b", 6, 1)], "eu/a", [0.0, 100.0, 0.0]),
        // By weight, not by number.
        (&[("a", 3, 4), ("b", 8, 1)], "eu/b", [20.0, 80.0, 0.0]),
        // What does not stay goes where there is room.
        (&[("a", 2, 1), ("b", 4, 1), ("c", 6, 1)], "eu/a", [50.0, 0.0, 50.0]),
        (&[("a", 1, 1), ("b", 5, 1), ("c", 6, 1)], "eu/a", [25.0, 25.0, 50.0]),
        // A zone without endpoints.
        (&[("b", 3, 1), ("c", 3, 1)], "eu/a", [0.0, 50.0, 50.0]),
        // Too few, and a proxy that does not know its zone: by weight.
        (&[("a", 3, 1), ("b", 2, 1)], "eu/a", [60.0, 40.0, 0.0]),
        (&[("a", 3, 1), ("b", 3, 1)], "eu", [50.0, 50.0, 0.0]),
        // The zone of another region.
        (&[("a", 3, 1), ("b", 3, 1)], "us/a", [50.0, 50.0, 0.0]),
    ] {
        let shares = shares(&in_zones(zones), &zone_aware(serde_json::json!({})), node, ["a", "b", "c"]);
        assert_eq!(shares, expected, "{zones:?} {node}");
    }
}

#[test]
fn callers_are_counted_as_the_configuration_says() {
    let members = in_zones(&[("a", 5, 1), ("b", 5, 1)]);
    let callers = |a: u32, b: u32| {
        zone_aware(
            serde_json::json!({"callers": [{"zone": "a", "weight": a}, {"region": "eu", "zone": "b", "weight": b}]}),
        )
    };
    assert_eq!(shares(&members, &callers(3, 1), "eu/a", ["a", "b"]), [66.7, 33.3]);
    assert_eq!(shares(&members, &callers(3, 1), "eu/b", ["a", "b"]), [0.0, 100.0]);
    assert_eq!(shares(&members, &callers(0, 1), "eu/a", ["a", "b"]), [100.0, 0.0], "nobody else was said to send");
    assert_eq!(shares(&members, &callers(0, 0), "eu/a", ["a", "b"]), [100.0, 0.0]);
    let few = zone_aware(serde_json::json!({"minimum_cluster_size": 11}));
    assert_eq!(shares(&members, &few, "eu/a", ["a", "b"]), [50.0, 50.0]);
}

#[test]
fn zones_are_evenly_loaded_if_all_proxies_do_the_same() {
    const ZONES: [&str; 4] = ["a", "b", "c", "d"];
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let numbers = ZONES.map(|zone| (zone, random.usize(0..8), random.u32(1..5)));
        let callers = ZONES.map(|zone| serde_json::json!({"zone": zone, "weight": random.u32(0..10)}));
        let members = in_zones(&numbers);
        // Requests of zones that no endpoint is in are not counted, as nobody could know of them.
        let sent: Vec<f64> = callers.iter().map(|caller| caller["weight"].as_f64().unwrap()).collect();
        let has_endpoints = numbers.iter().all(|(_, number, _)| *number > 0);
        if !has_endpoints || members.len() < 6 || sent.iter().sum::<f64>() == 0.0 {
            continue;
        }
        let balancing = zone_aware(serde_json::json!({ "callers": callers }));
        let mut load = [0.0; 4];
        for (zone, sent_of_zone) in ZONES.iter().zip(&sent) {
            let shares = shares(&members, &balancing, &format!("eu/{zone}"), ZONES);
            load.iter_mut()
                .zip(shares)
                .for_each(|(load, share)| *load += share * sent_of_zone / sent.iter().sum::<f64>());
        }
        let weight = |(_, number, weight): &(&str, usize, u32)| (*number as u32 * weight) as f64;
        let all: f64 = numbers.iter().map(weight).sum();
        for (load, zone) in load.iter().zip(&numbers) {
            assert!((load - weight(zone) / all * 100.0).abs() < 0.3, "{load} of {zone:?}, {numbers:?} {callers:?}");
        }
    }
}

#[test]
fn panic_ignores_zones() {
    let members = in_zones(&[("a", 5, 1), ("b", 5, 1)]);
    members[9].endpoint.state.healthy.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(shares(&members, &zone_aware(serde_json::json!({})), "eu/a", ["a", "b"]), [50.0, 50.0]);
}
