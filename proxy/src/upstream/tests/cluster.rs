use std::time::Duration;

use serde_json::json;

use super::*;

fn config() -> model::Cluster {
    let mut config = super::super::tests::config(&["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()]);
    config.limits.requests = 2;
    config.retry_budget.min_concurrent = 1;
    config
}

#[test]
fn requests_are_limited_and_counted() {
    let cluster = Cluster::new(&config(), None);
    let (one, two) = (cluster.try_request().unwrap(), cluster.try_request().unwrap());
    assert!(cluster.try_request().is_none());
    assert_eq!(one.cluster().stats().active.load(Relaxed), 2);
    drop(one);
    assert!(cluster.try_request().is_some());
    drop(two);
    let stats = cluster.stats();
    let counted = [&stats.requests, &stats.request_overflows, &stats.active].map(|c| c.load(Relaxed));
    assert_eq!(counted, [3, 1, 0]);
}

#[test]
fn retries_are_limited_and_counted() {
    let cluster = Cluster::new(&config(), None);
    let retry = cluster.try_retry();
    assert!(retry.is_some() && cluster.try_retry().is_none());
    drop(retry);
    assert!(cluster.try_retry().is_some());
    assert_eq!(cluster.stats().retries.load(Relaxed), 2);
    assert_eq!(cluster.stats().retry_overflows.load(Relaxed), 1);
}

#[test]
fn reload_keeps_counts_and_endpoints() {
    let old = Cluster::new(&config(), None);
    let request = old.try_request();
    let at = old.pick(None, &[]).unwrap().start();
    let mut changed = config();
    changed.endpoints.retain(|e| e.address == at.endpoint().address);
    changed.endpoints[0].weight = 7;
    changed.endpoints.push(model::Endpoint::new("127.0.0.1:3".parse::<crate::config::units::Address>().unwrap(), 0));
    let new = Cluster::new(&changed, Some(&old));
    assert!(Arc::ptr_eq(old.stats(), new.stats()));
    assert!(Arc::ptr_eq(at.endpoint(), &new.members()[0].endpoint));
    assert_eq!((new.members()[0].weight, new.members()[0].endpoint.active()), (7, 1));
    assert_eq!((new.members()[1].weight, new.members()[1].endpoint.active()), (0, 0));
    drop((request, at));
    assert_eq!((new.stats().active.load(Relaxed), new.members()[0].endpoint.active()), (0, 0));
    assert_eq!(new.members()[0].endpoint.requests(), 1);
}

#[test]
fn address_listed_twice_is_one_endpoint() {
    let mut config = config();
    config.endpoints[1].address = config.endpoints[0].address.clone();
    config.endpoints[1].weight = 4;
    let cluster = Cluster::new(&config, None);
    assert_eq!((cluster.members().len(), cluster.members()[0].weight), (1, 5));
}

#[test]
fn properties_of_endpoints_survive_other_settings() {
    let mut config = config();
    let properties = serde_json::json!({
        "address": "127.0.0.1:1", "priority": 2, "hostname": "a.test",
        "locality": {"region": "eu", "zone": "eu-1"}, "metadata": {"version": "v2", "shard": 7, "spare": true},
    });
    config.endpoints[0] = serde_json::from_value(properties).unwrap();
    let old = Cluster::new(&config, None);
    assert!(old.has_endpoints(&config.endpoints));
    // With discovery, the endpoints of the previous cluster are kept.
    let discovery = serde_json::json!({"source": "plane"});
    let other = model::Cluster { discovery: serde_json::from_value(discovery).ok(), ..config.clone() };
    let other = model::Cluster { protocol: model::ClusterProtocol::H2, ..other };
    let new = Cluster::new(&other, Some(&old));
    assert!(
        new.has_endpoints(&config.endpoints) && !Arc::ptr_eq(&old.members()[0].endpoint, &new.members()[0].endpoint)
    );
    for (field, value) in [
        ("priority", serde_json::json!(3)),
        ("hostname", serde_json::json!("b.test")),
        ("locality", serde_json::json!({"region": "us"})),
        ("metadata", serde_json::json!({"version": "v3"})),
    ] {
        let mut changed = serde_json::to_value(&config.endpoints).unwrap();
        changed[0][field] = value;
        let changed: Vec<model::Endpoint> = serde_json::from_value(changed).unwrap();
        assert!(!old.has_endpoints(&changed), "{field}");
        let new = old.with_endpoints(&changed);
        assert!(new.has_endpoints(&changed), "{field}");
        // Only the host name matters for connections.
        let same = Arc::ptr_eq(&old.members()[0].endpoint, &new.members()[0].endpoint);
        assert_eq!(same, field != "hostname", "{field}");
        assert!(Arc::ptr_eq(&old.members()[0].endpoint.state, &new.members()[0].endpoint.state));
    }
}

/// The system resends a lost first packet after one second: a limit of one second would turn each such loss into a
/// failure.
#[test]
fn one_lost_packet_does_not_fail_a_connection() {
    assert_eq!(Cluster::new(&config(), None).connect_timeout, Some(Duration::from_secs(5)));
}

#[test]
fn zero_means_no_timeout() {
    let mut config = config();
    config.connect_timeout = crate::config::units::Duration::secs(0);
    let cluster = Cluster::new(&config, None);
    assert_eq!(cluster.connect_timeout, None);
    assert_eq!(cluster.max_grpc_timeout, Some(Duration::from_secs(3600)));
}

#[test]
fn response_head_timeout_applies_unless_the_total_is_set() {
    let mut config = config();
    let mut times = |head: Option<u64>, whole: Option<u64>| {
        config.response_head_timeout = head.map(crate::config::units::Duration::secs);
        config.request_timeout = whole.map(crate::config::units::Duration::secs);
        let cluster = Cluster::new(&config, None);
        [cluster.response_head_timeout, cluster.request_timeout].map(|time| time.map(|time| time.as_secs()))
    };
    assert_eq!(times(None, None), [Some(15), None]);
    assert_eq!(times(Some(0), None), [None, None]);
    assert_eq!(times(None, Some(0)), [None, None]);
    assert_eq!(times(None, Some(60)), [None, Some(60)]);
    assert_eq!(times(Some(5), Some(60)), [Some(5), Some(60)]);
}

/// Four endpoints with health checks, the given ones of which are unhealthy.
fn checked(mut balancer: serde_json::Value, weights: [u32; 4], unhealthy: &[usize]) -> Arc<Cluster> {
    balancer["panic_threshold"] = json!(0);
    let endpoint = |(n, weight): (usize, u32)| json!({"address": format!("192.0.2.{n}:80"), "weight": weight});
    let endpoints: Vec<_> = weights.into_iter().enumerate().map(endpoint).collect();
    let check = json!({"check": [{"tcp": {}}]});
    let config = json!({"name": "test", "endpoints": endpoints, "balancer": balancer, "health_check": check});
    let cluster = Cluster::new(&serde_json::from_value(config).unwrap(), None);
    make_unhealthy(&cluster, unhealthy);
    cluster
}

fn make_unhealthy(cluster: &Cluster, which: &[usize]) {
    which.iter().for_each(|i| cluster.members()[*i].endpoint.state.healthy.store(false, Relaxed));
    cluster.apply_health();
}

/// Returns the index of the endpoint that a request with this key gets.
fn place(cluster: &Cluster, key: u64, tried: &[Arc<Endpoint>]) -> Option<usize> {
    let picked = cluster.pick(Some(key), tried)?;
    cluster.members().iter().position(|member| Arc::ptr_eq(&member.endpoint, &picked))
}

/// All policies; the tables are small enough to be built at once.
fn policies() -> [serde_json::Value; 7] {
    let policy = |name| json!({"policy": name});
    let maglev = json!({"policy": "maglev", "table_size": 1021});
    let names = ["round_robin", "least_request", "random", "peak_ewma", "hash", "ring_hash"].map(policy);
    let [a, b, c, d, e, f] = names;
    [a, b, c, d, e, f, maglev]
}

#[test]
fn unhealthy_endpoints_are_excluded_and_the_others_share_by_weight() {
    for policy in policies() {
        let cluster = checked(policy.clone(), [2, 1, 4, 1], &[1, 2]);
        let mut counts = [0.0; 4];
        (0..30_000).for_each(|key| counts[place(&cluster, key, &[]).unwrap()] += 1.0);
        assert_eq!((counts[1], counts[2]), (0.0, 0.0), "{policy}");
        let ratio: f64 = counts[0] / counts[3];
        match policy["policy"].as_str() {
            Some("round_robin") => assert_eq!(ratio, 2.0, "exactly"),
            // Without a load, the cheaper endpoint gets everything.
            Some("peak_ewma") => {}
            _ => assert!((1.7..2.3).contains(&ratio), "{policy}: {counts:?}"),
        }
        // A tried endpoint is better than an unhealthy one.
        let tried = [0, 3].map(|i: usize| Arc::clone(&cluster.members()[i].endpoint));
        assert!(matches!(place(&cluster, 1, &tried), Some(0 | 3)), "{policy}");
        make_unhealthy(&cluster, &[0, 3]);
        assert_eq!(place(&cluster, 1, &[]), None, "{policy}");
        cluster.members().iter().for_each(|member| member.endpoint.state.healthy.store(true, Relaxed));
        cluster.apply_health();
        assert!((0..1000).any(|key| place(&cluster, key, &[]) == Some(2)), "{policy}");
    }
}

#[test]
fn only_keys_of_unhealthy_endpoints_move() {
    for policy in [json!({"policy": "hash"}), json!({"policy": "ring_hash", "minimum_ring_size": 64})] {
        let cluster = checked(policy.clone(), [1; 4], &[]);
        let places = || (0..1000).map(|key| place(&cluster, key, &[]).unwrap()).collect::<Vec<_>>();
        let before = places();
        make_unhealthy(&cluster, &[2]);
        let after = places();
        assert!(!after.contains(&2));
        let moved = before.iter().zip(&after).filter(|(old, new)| old != new && **old != 2).count();
        assert_eq!(moved, 0, "{policy}");
    }
}

#[test]
fn latency_of_attempts_is_recorded_for_the_policy_that_uses_it() {
    for (policy, is_recorded) in [("round_robin", false), ("peak_ewma", true)] {
        let cluster = checked(json!({"policy": policy}), [1; 4], &[]);
        let endpoint = Arc::clone(&cluster.members()[0].endpoint);
        let peak = super::super::balancer::PeakEwma::new(&cluster.balancer);
        let estimate = || (endpoint.latency().estimate(&peak, clock::now()) / 1e6).round();
        let (now, ago) = (Instant::now(), |secs| Instant::now().checked_sub(Duration::from_secs(secs)).unwrap());
        let expect =
            |seconds: f32, what| assert_eq!(estimate(), if is_recorded { seconds } else { 0.0 }, "{policy}: {what}");
        cluster.time_attempt(&endpoint, ago(1)).answered(now);
        expect(1.0, "an answer");
        drop(cluster.time_attempt(&endpoint, ago(2)));
        expect(2.0, "a cancelled attempt");
        cluster.time_attempt(&endpoint, ago(60)).discard();
        cluster.time_attempt(&endpoint, ago(60)).without_latency().answered(now);
        drop(cluster.time_attempt(&endpoint, ago(60)).without_latency());
        let request_end = std::cell::Cell::new(None);
        cluster.time_attempt(&endpoint, ago(60)).after(&request_end).answered(now);
        drop(cluster.time_attempt(&endpoint, ago(60)).after(&request_end));
        expect(2.0, "what says nothing about the endpoint");
        request_end.set(Some(ago(3)));
        cluster.time_attempt(&endpoint, ago(60)).after(&request_end).answered(now);
        expect(3.0, "an answer to a long upload");
        request_end.set(Some(ago(60)));
        cluster.time_attempt(&endpoint, ago(4)).after(&request_end).answered(now);
        expect(4.0, "a second attempt");
        let response = |status: u16, fields: &[(&str, &str)]| {
            let response = http::Response::builder().status(status);
            fields.iter().fold(response, |response, (name, value)| response.header(*name, *value)).body(()).unwrap()
        };
        cluster.time_attempt(&endpoint, now).end(Ok(&response(429, &[])));
        expect(5.0, "a failure");
        cluster.time_attempt(&endpoint, ago(7)).failed(now);
        expect(7.0, "a late failure");
        let later = |secs: u64| endpoint.latency().estimate(&peak, clock::now() + secs * 1000) / 1e6;
        assert!(later(10) < 3.0, "it decays");
        // Of an endpoint that does not want requests for some time, but at most for 300 s, it does not.
        let limited = response(429, &[("retry-after", "60")]);
        cluster.time_attempt(&endpoint, now).end(Ok(&limited));
        let expect_until = |secs: u64| {
            if is_recorded {
                assert_eq!(later(secs - 30).round(), 7.0, "{secs} s");
                assert!(later(secs + 11) < 3.0, "{secs} s: {}", later(secs + 11));
            }
        };
        expect_until(60);
        cluster.time_attempt(&endpoint, now).end(Ok(&response(503, &[("grpc-retry-pushback-ms", "120000")])));
        expect_until(120);
        cluster.time_attempt(&endpoint, now).answered(now);
        cluster.time_attempt(&endpoint, now).end(Ok(&limited));
        cluster.time_attempt(&endpoint, now).end(Ok(&response(200, &[("retry-after", "200")])));
        expect_until(120);
        cluster.note_failed_call(&endpoint, response(200, &[("retry-after", "1000000000")]).headers());
        expect_until(300);
        // What is known of an endpoint survives a change of the others.
        let fewer = [model::Endpoint::new(endpoint.address.clone(), 1)];
        let changed = cluster.with_endpoints(&fewer);
        assert!(Arc::ptr_eq(&changed.members()[0].endpoint, &endpoint));
    }
}

/// A cluster of endpoints with these priorities and localities (`REGION/ZONE`), in a proxy in `eu/a`.
fn spread(balancer: serde_json::Value, endpoints: &[(u32, &str)]) -> Arc<Cluster> {
    let endpoint = |(n, (priority, place)): (usize, &(u32, &str))| {
        let (region, zone) = place.split_once('/').unwrap();
        let locality = json!({"region": region, "zone": zone});
        json!({"address": format!("192.0.2.{n}:80"), "priority": priority, "locality": locality})
    };
    let endpoints: Vec<_> = endpoints.iter().enumerate().map(endpoint).collect();
    let check = json!({"check": [{"tcp": {}}]});
    let config = json!({"name": "test", "endpoints": endpoints, "balancer": balancer, "health_check": check});
    let node = model::Locality { region: "eu".into(), zone: "a".into(), sub_zone: String::new() };
    Cluster::with_tls(&serde_json::from_value(config).unwrap(), None, None, 1, &Arc::new(node))
}

/// The percentages of requests that endpoints get.
fn percentages(cluster: &Cluster) -> Vec<f64> {
    let mut counts = vec![0; cluster.members().len()];
    (0..20_000).for_each(|key: u64| counts[place(cluster, key.wrapping_mul(0x9e37_79b9_7f4a_7c15), &[]).unwrap()] += 1);
    counts.into_iter().map(|count| f64::from(count) / 200.0).collect()
}

fn assert_percentages(cluster: &Cluster, expected: &[f64], what: &str) {
    let actual = percentages(cluster);
    let is_near = |(actual, expected): (&f64, &f64)| {
        if *expected == 0.0 { *actual == 0.0 } else { (actual - expected).abs() < 4.0 }
    };
    assert!(actual.iter().zip(expected).all(is_near), "{what}: {actual:?}, not {expected:?}");
}

#[test]
fn lower_priorities_get_what_higher_ones_cannot_bear() {
    for policy in policies() {
        // Without a load, the cheaper endpoint gets everything.
        if policy["policy"] == "peak_ewma" {
            continue;
        }
        // Gaps between priorities do not matter, nor does the order.
        let cluster = spread(policy.clone(), &[(7, "/"), (2, "/"), (2, "/"), (7, "/")]);
        let assert = |expected: [f64; 4]| assert_percentages(&cluster, &expected, &policy.to_string());
        assert([0.0, 50.0, 50.0, 0.0]);
        make_unhealthy(&cluster, &[1]);
        assert([15.0, 0.0, 70.0, 15.0]);
        // A retry avoids the endpoint that was tried, if need be in another priority.
        let tried = [Arc::clone(&cluster.members()[2].endpoint)];
        assert!((0..100).all(|key| matches!(place(&cluster, key, &tried), Some(0 | 3))), "{policy}");
        let all = [0, 2, 3].map(|i: usize| Arc::clone(&cluster.members()[i].endpoint));
        assert!((0..100).all(|key| matches!(place(&cluster, key, &all), Some(0 | 2 | 3))), "{policy}");
        assert!(cluster.pick_another(Some(1), &all).is_none(), "{policy}");
        make_unhealthy(&cluster, &[2]);
        assert([50.0, 0.0, 0.0, 50.0]);
        // A quarter is healthy: all are used, half in each priority.
        make_unhealthy(&cluster, &[0]);
        assert_percentages(&cluster, &[0.0, 0.0, 0.0, 100.0], "50 % of the second priority are healthy");
        make_unhealthy(&cluster, &[3]);
        assert([25.0; 4]);
        cluster.members().iter().for_each(|member| member.endpoint.state.healthy.store(true, Relaxed));
        cluster.apply_health();
        assert([0.0, 50.0, 50.0, 0.0]);
    }
}

#[test]
fn key_stays_with_its_endpoint_while_the_health_of_priorities_stays() {
    let cluster = spread(json!({"policy": "hash"}), &[(0, "/"), (0, "/"), (1, "/"), (1, "/")]);
    make_unhealthy(&cluster, &[0]);
    for key in 0..100 {
        let places: Vec<_> = (0..10).map(|_| place(&cluster, key, &[])).collect();
        assert!(places.windows(2).all(|pair| pair[0] == pair[1]), "{key}: {places:?}");
    }
}

#[test]
fn failover_uses_near_endpoints_first() {
    let balancer = json!({"policy": "random", "locality": {"policy": "failover"}});
    let cluster = spread(balancer, &[(0, "us/a"), (0, "eu/b"), (0, "eu/a"), (0, "eu/a"), (1, "eu/a")]);
    assert_percentages(&cluster, &[0.0, 0.0, 50.0, 50.0, 0.0], "in the zone");
    make_unhealthy(&cluster, &[3]);
    assert_percentages(&cluster, &[0.0, 30.0, 70.0, 0.0, 0.0], "in the region");
    make_unhealthy(&cluster, &[1, 2]);
    assert_percentages(&cluster, &[100.0, 0.0, 0.0, 0.0, 0.0], "elsewhere");
    make_unhealthy(&cluster, &[0]);
    assert_percentages(&cluster, &[0.0, 0.0, 0.0, 0.0, 100.0], "of a lower priority");
}

#[test]
fn weighted_localities_get_their_shares() {
    for policy in policies() {
        if policy["policy"] == "peak_ewma" {
            continue;
        }
        let weights = json!([{"region": "eu", "zone": "a", "weight": 1}, {"region": "eu", "weight": 2}]);
        let mut balancer = policy.clone();
        balancer["locality"] = json!({"policy": "weighted", "weights": weights});
        let places = [(0, "eu/a"), (0, "eu/a"), (0, "eu/a"), (0, "eu/a"), (0, "eu/b"), (0, "us/a")];
        let cluster = spread(balancer, &places);
        let tolerance_is_met = |expected: [f64; 2], what: &str| {
            let actual = percentages(&cluster);
            let actual = [actual[..4].iter().sum::<f64>(), actual[4]];
            let is_near = actual.iter().zip(expected).all(|(actual, expected)| (actual - expected).abs() < 5.0);
            assert!(is_near, "{policy}, {what}: {actual:?}, not {expected:?}");
        };
        tolerance_is_met([33.3, 66.7], "all healthy");
        // As Envoy documents it: 140 * 50 % = 70 % of the weight.
        make_unhealthy(&cluster, &[0, 1]);
        tolerance_is_met([26.0, 74.0], "half");
        make_unhealthy(&cluster, &[2]);
        tolerance_is_met([15.0, 85.0], "a quarter");
    }
}

#[test]
fn requests_stay_in_the_zone_of_the_proxy() {
    for policy in policies() {
        if policy["policy"] == "peak_ewma" {
            continue;
        }
        let mut balancer = policy.clone();
        balancer["locality"] = json!({"policy": "zone_aware", "minimum_cluster_size": 2});
        let cluster = spread(balancer, &[(0, "eu/a"), (0, "eu/b"), (0, "eu/b"), (0, "us/a")]);
        // A quarter of the endpoints for a third of the requests: three quarters stay, and the rest goes where there is room.
        assert_percentages(&cluster, &[75.0, 12.5, 12.5, 0.0], &format!("{policy}"));
        // Of three endpoints, a third is here.
        make_unhealthy(&cluster, &[1]);
        assert_percentages(&cluster, &[100.0, 0.0, 0.0, 0.0], "one less elsewhere");
    }
}
