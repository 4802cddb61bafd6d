//! Outlier ejection: an endpoint that fails requests gets none for a while.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use serde_json::Value;

use crate::{
    grpc::{GRPC, head_only, whole},
    harness::{Config, Gate, Proxy, Upstream, answer, wait_until},
};

/// Ejections that do not end within a test.
const LONG: &str = "outlier_detection: {base_ejection_time: 1h}";
/// One failure ejects.
const ONE: &str = "outlier_detection: {consecutive_5xx: 1, base_ejection_time: 1h}";
/// Ejections that end soon.
const SHORT: &str = "outlier_detection: {interval: 20ms, base_ejection_time: 20ms}";

/// A cluster of these endpoints.
fn config(endpoints: &[std::net::SocketAddr], options: &str) -> Config {
    Config::new().listener("cluster: web").cluster("web", endpoints, options)
}

/// The cluster's endpoints in `GET /clusters`.
fn endpoints(proxy: &Proxy) -> Vec<Value> {
    let clusters: Value = serde_json::from_slice(&proxy.admin("GET", "/clusters", "").body).expect("JSON");
    clusters["clusters"][0]["endpoints"].as_array().expect("endpoints").clone()
}

/// How many retries the cluster still allows.
fn remaining_retries(proxy: &Proxy) -> u64 {
    let clusters: Value = serde_json::from_slice(&proxy.admin("GET", "/clusters", "").body).expect("JSON");
    clusters["clusters"][0]["remaining"]["retries"].as_u64().expect("a number")
}

fn ejected(proxy: &Proxy) -> Vec<bool> {
    endpoints(proxy).iter().map(|endpoint| endpoint["outlier"]["ejected"].as_bool().expect("a boolean")).collect()
}

/// Sends requests until the first endpoint is ejected. Returns how many it got.
fn until_ejected(proxy: &Proxy, mut request: impl FnMut()) -> u64 {
    wait_until("the ejection", || {
        // Of three endpoints in turn, each gets one.
        (0..3).for_each(|_| request());
        ejected(proxy)[0]
    });
    endpoints(proxy)[0]["requests"].as_u64().expect("a number")
}

#[test]
fn endpoint_that_answers_500_is_ejected_and_returns() {
    let is_well = Arc::new(AtomicBool::new(false));
    let says = is_well.clone();
    let bad = Upstream::replying(move |_| answer(if says.load(SeqCst) { 200 } else { 500 }, &[], "bad"));
    let (one, two) = (Upstream::saying("one"), Upstream::saying("two"));
    let addresses = [bad.address, one.address, two.address];
    let mut proxy = Proxy::start(config(&addresses, LONG));
    let mut client = proxy.client();
    let before = until_ejected(&proxy, || _ = client.get("/"));
    assert!(before >= 5, "five failures in a row: {before}");
    for _ in 0..30 {
        assert_ne!(client.get("/").text(), "bad");
    }
    let shown = &endpoints(&proxy)[0];
    assert_eq!(shown["requests"], before);
    let outlier = &shown["outlier"];
    let time = outlier["ejection_seconds"].as_f64().expect("a number");
    assert_eq!((&outlier["rule"], &outlier["ejections"], time), (&"consecutive_5xx".into(), &1.into(), 3600.0));
    assert!(outlier["ejected_at"].is_string() && endpoints(&proxy)[1]["outlier"]["rule"].is_null());
    proxy.wait_for_output("ejected: 5 server errors in a row; 2 of 3 are available");
    let metrics = proxy.metrics();
    let rule = [("cluster", "web"), ("rule", "consecutive_5xx")];
    assert_eq!(metrics.sum("tollgate_cluster_outlier_ejections_total", &rule), 1.0);
    assert_eq!(metrics.sum("tollgate_cluster_outlier_detections_total", &rule), 1.0);
    assert_eq!(metrics.sum("tollgate_cluster_outliers_ejected", &[("cluster", "web")]), 1.0);
    let healthy = [("cluster", "web"), ("state", "healthy")];
    assert_eq!(metrics.sum("tollgate_cluster_endpoints", &healthy), 2.0);

    // A reload keeps the ejection; without the section it ends.
    proxy.change_config(config(&addresses, LONG).top("drain_timeout: 1s"));
    assert_eq!(ejected(&proxy), [true, false, false]);
    proxy.change_config(config(&addresses, ""));
    proxy.wait_for_output("no longer ejected: the cluster has no outlier detection any more; 3 of 3 are available");
    assert_eq!(endpoints(&proxy)[0]["outlier"], Value::Null);

    is_well.store(true, SeqCst);
    proxy.change_config(config(&addresses, SHORT));
    is_well.store(false, SeqCst);
    until_ejected(&proxy, || _ = client.get("/"));
    is_well.store(true, SeqCst);
    proxy.wait_for_output("no longer ejected: its time is over; 3 of 3 are available");
    wait_until("the endpoint to be used", || client.get("/").text() == "bad");
}

#[test]
fn attempts_without_a_response_lead_to_ejection() {
    let (resetting, silent) = (Upstream::resetting(), Upstream::silent());
    for (name, address, options) in [
        ("refused", Upstream::refusing(), ""),
        ("reset", resetting.address, ""),
        ("silent", silent.address, "retry: {on: [reset], per_try_timeout: 50ms}"),
    ] {
        let good = Upstream::saying("good");
        let addresses = [address, good.address];
        let proxy = Proxy::start(config(&addresses, &format!("{LONG}\n{options}")));
        let mut client = proxy.client();
        until_ejected(&proxy, || _ = client.get("/"));
        for _ in 0..20 {
            assert_eq!(client.get("/").text(), "good", "{name}");
        }
        assert_eq!(endpoints(&proxy)[0]["outlier"]["rule"], "consecutive_5xx", "{name}");

        // Counted apart, they are another rule's.
        let split = "outlier_detection: {base_ejection_time: 1h, split_external_local_origin_errors: true}";
        let proxy = Proxy::start(config(&addresses, &format!("{split}\n{options}")));
        let mut client = proxy.client();
        until_ejected(&proxy, || _ = client.get("/"));
        assert_eq!(endpoints(&proxy)[0]["outlier"]["rule"], "consecutive_local_origin_failure", "{name}");
    }
}

/// With retries, clients do not notice the failures that lead to the ejection.
#[test]
fn with_retries_no_request_fails() {
    let bad = Upstream::replying(|_| answer(503, &[], "bad"));
    let good = Upstream::saying("good");
    let options = format!("{LONG}\nretry: {{on: [5xx], backoff: 0s}}");
    let proxy = Proxy::start(config(&[bad.address, good.address], &options));
    let mut client = proxy.client();
    let until = until_ejected(&proxy, || assert_eq!(client.get("/").text(), "good"));
    (0..20).for_each(|_| assert_eq!(client.get("/").text(), "good"));
    assert_eq!(bad.requests().len() as u64, until);
}

/// An attempt that is cancelled because another one was faster says nothing about its endpoint, and returns its permit.
#[test]
fn cancelled_attempts_of_hedged_requests_do_not_count() {
    let (silent, good) = (Upstream::silent(), Upstream::saying("good"));
    let options = format!("{ONE}\nhedging: {{delay: 5ms}}\nlimits: {{retries: 1}}");
    let proxy = Proxy::start(config(&[silent.address, good.address], &options));
    let mut client = proxy.client();
    (0..20).for_each(|_| assert_eq!(client.get("/").text(), "good"));
    assert_eq!(ejected(&proxy), [false, false]);
    assert!(endpoints(&proxy)[0]["requests"].as_u64() >= Some(10), "a half of the requests began there");
    assert_eq!(remaining_retries(&proxy), 1);
}

/// With `limits.retries`, the client gets the failure rather than a further retry.
#[test]
fn retries_are_limited() {
    let gate = Gate::default();
    let (waits, bad) = (gate.clone(), Upstream::replying(|_| answer(503, &[], "bad")));
    let held = Upstream::replying(move |request| {
        if request.target() == "/held" {
            waits.wait();
        }
        answer(200, &[], "held")
    });
    // All requests begin at the bad one.
    let endpoints = format!("endpoints: [{{address: '{bad}'}}, {{address: '{held}', priority: 1}}]");
    let options = format!("{endpoints}\nretry: {{on: [5xx], backoff: 0s}}\nlimits: {{retries: 1}}");
    let proxy = Proxy::start(config(&[], &options));
    assert_eq!(remaining_retries(&proxy), 1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| proxy.get("/held").status());
        wait_until("the retry", || held.requests().len() == 1);
        assert_eq!(remaining_retries(&proxy), 0);
        assert_eq!(proxy.get("/free").status(), 503);
        gate.open();
        assert_eq!(waiting.join().expect("a response"), 200);
    });
    assert_eq!(proxy.get("/held").status(), 200);
    proxy.entry_for("/free").expect(503, "URX");
    assert_eq!(remaining_retries(&proxy), 1);
    assert_eq!(
        proxy.metrics().sum("tollgate_cluster_limit_remaining", &[("cluster", "web"), ("limit", "retries")]),
        1.0
    );
}

#[test]
fn statuses_of_grpc_calls_count_in_the_head_and_in_trailers() {
    // UNAVAILABLE, INTERNAL, UNIMPLEMENTED; and statuses that say nothing bad about the server.
    for (reply, is_failure) in
        [(head_only(14), true), (whole(13), true), (whole(12), true), (head_only(5), false), (whole(8), false)]
    {
        let shown = String::from_utf8_lossy(&reply).into_owned();
        let bad = Upstream::replying(move |_| reply.clone());
        let good = Upstream::replying(|_| whole(0));
        let proxy = Proxy::start(config(&[bad.address, good.address], LONG));
        let mut client = proxy.client();
        let mut call = || client.request("POST", "/a.B/C", &GRPC, b"\0\0\0\0\0");
        if is_failure {
            until_ejected(&proxy, || _ = call());
            let before = bad.requests().len();
            (0..20).for_each(|_| _ = call());
            assert_eq!(bad.requests().len(), before, "{shown}");
        } else {
            (0..30).for_each(|_| _ = call());
            assert_eq!((ejected(&proxy), bad.requests().len()), (vec![false, false], 15), "{shown}");
        }
    }
}

#[test]
fn calls_that_end_without_a_status_are_failures() {
    // The announced chunk never comes.
    let bad = Upstream::canned(
        "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n6\r\n\0\0\0",
    );
    let good = Upstream::replying(|_| whole(0));
    let proxy = Proxy::start(config(&[bad.address, good.address], LONG));
    until_ejected(&proxy, || {
        let mut client = proxy.client();
        let fields = [GRPC[0], GRPC[1], ("connection", "close")];
        client.send_request("POST", "/a.B/C", &fields, b"\0\0\0\0\0");
        let _ = client.wire.read_to_end();
    });
}

#[test]
fn tcp_endpoint_that_refuses_connections_is_ejected() {
    let good = Upstream::scripted(|mut connection| {
        connection.send("hello");
        connection.wait_for_end();
    });
    let proxy = Proxy::start(config(&[Upstream::refusing(), good.address], LONG).listener("protocol: tcp"));
    let connect = || assert_eq!(proxy.client().wire.read_exact(5).expect("a greeting"), b"hello");
    until_ejected(&proxy, connect);
    let before = endpoints(&proxy)[0]["requests"].clone();
    (0..10).for_each(|_| connect());
    assert_eq!(endpoints(&proxy)[0]["requests"], before);
}

/// Mirrored copies are attempts like others.
#[test]
fn outcomes_of_mirrored_copies_count() {
    let (bad, good) = (Upstream::replying(|_| answer(500, &[], "")), Upstream::saying("copy"));
    let main = Upstream::saying("main");
    let config = Config::new()
        .routes("{cluster: main, mirror: {cluster: web, percent: 100}}")
        .cluster("web", &[bad.address, good.address], LONG)
        .cluster("main", &[main.address], "");
    let proxy = Proxy::start(config);
    let mut client = proxy.client();
    until_ejected(&proxy, || _ = client.get("/"));
}

#[test]
fn successful_health_check_ends_an_ejection() {
    let bad = Upstream::replying(|request| answer(if request.target() == "/up" { 200 } else { 500 }, &[], ""));
    let good = Upstream::saying("good");
    let check = "health_check: {check: {http: {path: /up}}, interval: 20ms, timeout: 20s}";
    let proxy = Proxy::start(config(&[bad.address, good.address], &format!("{LONG}\n{check}")));
    let (mut client, is_over) = (proxy.client(), AtomicBool::new(false));
    let have_ended = std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            while !is_over.load(SeqCst) {
                client.get("/");
            }
        });
        proxy.wait_for_output("ejected: 5 server errors in a row; 1 of 2 are available");
        proxy.wait_for_output("no longer ejected: it passed a health check; 2 of 2 are available");
        is_over.store(true, SeqCst);
        requests.join().is_ok()
    });
    assert!(have_ended);
}
