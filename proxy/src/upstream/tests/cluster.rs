use std::time::Duration;

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
