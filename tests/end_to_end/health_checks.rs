//! Health checks: unhealthy endpoints receive no requests, as long as enough others are healthy.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use serde_json::Value;

use crate::harness::{Config, Proxy, Upstream, answer, wait_until};

/// Health checks that finish quickly.
const CHECK: &str = "health_check: {check: {http: {path: /up, host: up.example}}, interval: 20ms, timeout: 20s,
                     unhealthy_threshold: 2, healthy_threshold: 2}";

/// An upstream that responds with its name, and whose health the test controls.
struct Moody {
    upstream: Upstream,
    well: Arc<AtomicBool>,
}

impl Moody {
    fn new(name: &'static str) -> Moody {
        let well = Arc::new(AtomicBool::new(true));
        let says = well.clone();
        let upstream = Upstream::replying(move |request| match request.target() {
            "/up" => answer(if says.load(SeqCst) { 200 } else { 503 }, &[], ""),
            _ => answer(200, &[], name),
        });
        Moody { upstream, well }
    }
}

fn config(upstreams: &[&Moody], panic: u32) -> Config {
    let endpoints: Vec<_> = upstreams.iter().map(|moody| moody.upstream.address).collect();
    let options = format!("{CHECK}\nbalancer: {{panic_threshold: {panic}}}");
    Config::new().listener("cluster: web").cluster("web", &endpoints, &options)
}

/// The cluster's endpoints in `GET /clusters`.
fn endpoints(proxy: &Proxy) -> Vec<Value> {
    let clusters: Value = serde_json::from_slice(&proxy.admin("GET", "/clusters", "").body).expect("JSON");
    clusters["clusters"][0]["endpoints"].as_array().expect("endpoints").clone()
}

fn wait_for_health(proxy: &Proxy, expected: &[bool]) {
    wait_until("the endpoints' health", || endpoints(proxy).iter().map(|e| &e["healthy"]).eq(expected));
}

/// The names of the upstreams that answer a series of requests.
fn answering(proxy: &Proxy) -> Vec<String> {
    let mut client = proxy.client();
    let mut names: Vec<_> = (0..20).map(|_| client.get("/").text().to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn an_unhealthy_endpoint_gets_no_requests_until_it_recovers() {
    let (a, b) = (Moody::new("a"), Moody::new("b"));
    let mut proxy = Proxy::start(config(&[&a, &b], 50));
    assert_eq!(answering(&proxy), ["a", "b"], "endpoints start healthy");
    a.well.store(false, SeqCst);
    wait_for_health(&proxy, &[false, true]);
    assert_eq!(answering(&proxy), ["b"]);
    assert_eq!(endpoints(&proxy)[0]["check_error"], "the status is 503 Service Unavailable");
    proxy.wait_for_output("unhealthy: the status is 503 Service Unavailable; 1 of 2 are healthy");
    let healthy = |proxy: &Proxy| proxy.metrics().sum("tollgate_cluster_endpoints_healthy", &[("cluster", "web")]);
    assert_eq!(healthy(&proxy), 1.0);
    proxy.wait_for_metric("tollgate_cluster_health_checks_total", &[("cluster", "web"), ("result", "failure")], 2.0);

    // A reload keeps the endpoints' health.
    proxy.change_config(config(&[&a, &b], 50).top("drain_timeout: 1s"));
    assert_eq!(answering(&proxy), ["b"]);

    a.well.store(true, SeqCst);
    wait_for_health(&proxy, &[true, true]);
    assert_eq!((answering(&proxy), healthy(&proxy)), (vec!["a".to_owned(), "b".to_owned()], 2.0));
    proxy.wait_for_output("healthy again; 2 of 2 are");
    let checks: Vec<_> = a.upstream.requests().into_iter().filter(|request| request.target() == "/up").collect();
    assert_eq!((checks[0].method(), checks[0].field("host")), ("GET", Some("up.example")));
}

#[test]
fn panic_mode_uses_all_endpoints_when_too_many_are_unhealthy() {
    let (a, b, c) = (Moody::new("a"), Moody::new("b"), Moody::new("c"));
    let proxy = Proxy::start(config(&[&a, &b, &c], 50));
    a.well.store(false, SeqCst);
    wait_for_health(&proxy, &[false, true, true]);
    assert_eq!(answering(&proxy), ["b", "c"], "two of three are more than half");
    b.well.store(false, SeqCst);
    wait_for_health(&proxy, &[false, false, true]);
    assert_eq!(answering(&proxy), ["a", "b", "c"], "one of three is less");
    proxy.wait_for_output("less than 50 % of the endpoints are healthy: sending requests to all endpoints");
}

#[test]
fn without_healthy_endpoints_requests_fail() {
    let a = Moody::new("a");
    let mut proxy = Proxy::start(config(&[&a], 0));
    a.well.store(false, SeqCst);
    wait_for_health(&proxy, &[false]);
    assert_eq!(proxy.get("/").status(), 503);
    assert_eq!(proxy.entry_for("/")["flags"], "UH");
    // Without health checks the endpoint is used again.
    proxy.change_config(Config::to(&a.upstream));
    assert_eq!(proxy.get("/").text(), "a");
    assert_eq!(endpoints(&proxy)[0]["healthy"], Value::Null);
    assert_eq!(proxy.metrics().sum("tollgate_cluster_endpoints_healthy", &[]), 0.0);
}

#[test]
fn a_closed_port_is_unhealthy() {
    let a = Moody::new("a");
    let options = "health_check: {check: {tcp: {}}, interval: 20ms, unhealthy_threshold: 1}";
    let cluster =
        |addresses: &[std::net::SocketAddr]| Config::new().listener("cluster: web").cluster("web", addresses, options);
    let proxy = Proxy::start(cluster(&[Upstream::refusing(), a.upstream.address]));
    wait_for_health(&proxy, &[false, true]);
    assert_eq!(answering(&proxy), ["a"]);
    let error = endpoints(&proxy)[0]["check_error"].as_str().expect("a reason").to_owned();
    assert!(error.starts_with("no connection: "), "{error}");
}

/// The clusters in the admin listener, also without health checks.
#[test]
fn clusters_are_shown() {
    let upstream = Upstream::saying("ok");
    let config = Config::to_with(upstream.address, "");
    let proxy = Proxy::start(config.cluster("another", &[Upstream::refusing()], ""));
    proxy.get("/");
    let shown: Value = serde_json::from_slice(&proxy.admin("GET", "/clusters", "").body).expect("JSON");
    assert_eq!(shown["version"], 1);
    let names: Vec<_> = shown["clusters"].as_array().expect("clusters").iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["web", "another"], "in the order of the configuration");
    let endpoint = &shown["clusters"][0]["endpoints"][0];
    assert_eq!(endpoint["address"], upstream.address.to_string());
    assert_eq!((&endpoint["requests"], &endpoint["weight"]), (&1.into(), &1.into()));
}

#[test]
fn endpoints_further_away_and_of_lower_priority_serve_while_others_are_unhealthy() {
    let (far, near, spare) = (Moody::new("far"), Moody::new("near"), Moody::new("spare"));
    let endpoint = |moody: &Moody, priority: u32, zone: &str| {
        let address = moody.upstream.address;
        format!("{{address: '{address}', priority: {priority}, locality: {{region: eu, zone: {zone}}}}}")
    };
    let endpoints = [endpoint(&spare, 1, "a"), endpoint(&far, 0, "b"), endpoint(&near, 0, "a")].join(", ");
    let options = format!("endpoints: [{endpoints}]\nbalancer: {{locality: failover}}\n{CHECK}");
    let config = Config::new().top("node: {region: eu, zone: a}").listener("cluster: web");
    let proxy = Proxy::start(config.cluster("web", &[] as &[&str], &options));
    assert_eq!(answering(&proxy), ["near"]);
    near.well.store(false, SeqCst);
    wait_for_health(&proxy, &[true, true, false]);
    assert_eq!(answering(&proxy), ["far"]);
    far.well.store(false, SeqCst);
    wait_for_health(&proxy, &[true, false, false]);
    assert_eq!(answering(&proxy), ["spare"]);
    near.well.store(true, SeqCst);
    wait_for_health(&proxy, &[true, false, true]);
    assert_eq!(answering(&proxy), ["near"]);
}

/// Each kind has its own reasons to fail; all must succeed.
#[test]
fn several_checks_and_other_statuses_are_possible() {
    let wanted = Arc::new(AtomicBool::new(true));
    let says = wanted.clone();
    let upstream = Upstream::replying(move |request| match request.target() {
        "/teapot" => answer(418, &[], ""),
        "/moved" => answer(if says.load(SeqCst) { 301 } else { 200 }, &[], ""),
        _ => answer(200, &[], "ok"),
    });
    let kinds = "[{http: {path: /teapot, expected_statuses: [200-299, 418]}}, {tcp: {}}, {http: {path: /moved, expected_statuses: [300-399]}}]";
    let options = format!(
        "health_check: {{check: {kinds}, interval: 20ms, timeout: 20s, unhealthy_threshold: 1, healthy_threshold: 1, initially: unhealthy}}"
    );
    let proxy = Proxy::start(Config::to_with(&upstream, &options));
    wait_for_health(&proxy, &[true]);
    assert_eq!(proxy.get("/").text(), "ok");
    wanted.store(false, SeqCst);
    wait_for_health(&proxy, &[false]);
    assert_eq!(endpoints(&proxy)[0]["check_error"], "the status is 200 OK");
}
