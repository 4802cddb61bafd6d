//! Adaptive concurrency over sockets: what is admitted and refused, over each version of HTTP, for gRPC and filters' calls, and
//! how the limit follows a real upstream.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    call_times::calling,
    harness::{
        Config, Gate, Proxy, Upstream, answer,
        exchange::{Everywhere, Request},
        wait_until,
    },
};

/// A cluster that admits two requests until it has had so many responses.
fn options(request_count: u32) -> String {
    format!("adaptive_concurrency: {{min_rtt_calc_params: {{min_concurrency: 2, request_count: {request_count}}}}}")
}

fn metric(proxy: &Proxy, name: &str) -> f64 {
    proxy.metrics().sum(&format!("tollgate_cluster_concurrency_{name}"), &[("cluster", "web")])
}

/// An upstream that holds requests to paths that begin with `/in`.
fn holding() -> (Gate, Upstream) {
    let gate = Gate::default();
    let upstream = Upstream::held(&gate, "/in", |_| answer(200, &[], "ok"));
    (gate, upstream)
}

#[test]
fn requests_over_the_limit_get_503() {
    let (gate, upstream) = holding();
    let proxy = Everywhere::start(Config::new().listener("cluster: web").cluster("web", &[&upstream], &options(1000)));
    let mut inside: Vec<_> = (0..2).map(|_| proxy.client()).collect();
    inside.iter_mut().for_each(|client| client.send_request("GET", "/in", &[], b""));
    upstream.wait_for_requests(2);
    let mut count = 0;
    proxy.each(&Request::get("/over"), |version, outcome| {
        assert_eq!(outcome.status(), 503, "{version:?}");
        count += 1;
    });
    proxy.entry_for("/over").expect(503, "UO").because("reached_concurrency_limit");
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let call = proxy.request("POST", "/a.B/C", &grpc, b"\0\0\0\0\0");
    assert_eq!((call.status(), call.field("grpc-status")), (200, Some("14")), "UNAVAILABLE");
    let shown: Value = serde_json::from_slice(&proxy.admin("GET", "/clusters", "").body).expect("JSON");
    let shown = &shown["clusters"][0]["adaptive_concurrency"];
    assert_eq!((&shown["limit"], &shown["active"], &shown["overflows"]), (&2.into(), &2.into(), &(count + 1).into()));
    assert_eq!((&shown["min_rtt_measuring"], &shown["min_rtt_seconds"]), (&true.into(), &Value::Null));
    assert_eq!((metric(&proxy, "limit"), metric(&proxy, "active")), (2.0, 2.0));
    assert_eq!(metric(&proxy, "overflows_total"), f64::from(count + 1));
    gate.open();
    inside.iter_mut().for_each(|client| assert_eq!(client.read().status(), 200));
    assert_eq!(metric(&proxy, "active"), 0.0);
    assert_eq!(proxy.get("/after").status(), 200);
    assert_eq!(upstream.requests().len(), 3);
}

/// What occupies a place only until the head of its response, and what occupies none.
#[test]
fn slow_clients_do_not_occupy_the_limit() {
    let (gate, upstream) = holding();
    let head = Upstream::scripted(|mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no");
        }
    });
    let config = Config::new()
        .routes("{match: {path: {exact: /stream}}, cluster: streams}, {cluster: web}")
        .cluster("streams", &[&head], &options(1000))
        .cluster("web", &[&upstream], &options(1000));
    let proxy = Proxy::start(config);
    let streams: Vec<_> = (0..5)
        .map(|_| {
            let mut client = proxy.client();
            client.send_request("GET", "/stream", &[], b"");
            client.wire.read_head().expect("a head");
            client
        })
        .collect();

    let mut inside: Vec<_> = (0..2).map(|_| proxy.client()).collect();
    inside.iter_mut().for_each(|client| client.send_request("GET", "/in", &[], b""));
    upstream.wait_for_requests(2);
    assert_eq!(proxy.get("/over").status(), 503);
    let mut upload = proxy.client();
    upload.send("POST /upload HTTP/1.1\r\nhost: web\r\ncontent-length: 200000\r\n\r\n");
    upload.send(vec![b'x'; 100_000]);
    wait_until("the upload to have a connection", || {
        proxy.metrics().sum("tollgate_cluster_connections", &[("cluster", "web")]) == 3.0
    });
    upload.send(vec![b'x'; 100_000]);
    assert_eq!(upload.read().status(), 200);
    assert_eq!(proxy.get("/over").status(), 503);
    gate.open();
    drop(streams);
}

/// A filter's call over the limit fails at once.
#[test]
fn calls_of_filters_count() {
    let gate = Gate::default();
    let calls = Upstream::held(&gate, "/asked", |_| answer(200, &[], "ok"));
    let upstream = Upstream::saying("");
    let limit = "adaptive_concurrency: {min_rtt_calc_params: {min_concurrency: 1}}";
    let proxy = Proxy::start(Config::to(&upstream).cluster("calls", &[&calls], limit).module("calls", &calling(), ""));
    let mut first = proxy.client();
    first.send_request("GET", "/first", &[], b"");
    calls.wait_for_requests(1);
    // The status is a character from `0` on: 14, UNAVAILABLE.
    assert_eq!(proxy.get("/second").text(), ">");
    proxy.wait_for_output("too many requests wait for a response (`adaptive_concurrency`)");
    assert_eq!(calls.requests().len(), 1);
    gate.open();
}

/// The limit grows while the upstream is fast, falls to the minimum when it becomes slow, and grows again once that has turned
/// out to be its usual latency.
#[test]
fn limit_follows_the_latency() {
    let delay = Arc::new(AtomicU64::new(20));
    let takes = delay.clone();
    let upstream = Upstream::replying(move |_| {
        thread::sleep(Duration::from_millis(takes.load(SeqCst)));
        answer(200, &[], "ok")
    });
    let proxy = Proxy::start(Config::to_with(&upstream, &options(5)));
    let mut client = proxy.client();
    let mut until = |what: &str, condition: &dyn Fn() -> bool| {
        wait_until(what, || {
            assert_eq!(client.get("/").status(), 200);
            condition()
        });
    };
    until("the limit to grow", &|| metric(&proxy, "limit") >= 8.0);
    assert!((0.019..0.2).contains(&metric(&proxy, "min_rtt_seconds")));
    delay.store(200, SeqCst);
    until("the limit to fall", &|| metric(&proxy, "limit") == 2.0);
    assert!(metric(&proxy, "sample_rtt_seconds") > 0.1 && metric(&proxy, "gradient") <= 1.25);
    until("the latency to be measured again", &|| metric(&proxy, "min_rtt_seconds") > 0.19);
    until("the limit to grow again", &|| metric(&proxy, "limit") >= 8.0);
    assert_eq!(metric(&proxy, "overflows_total"), 0.0);
}

/// Many more clients than the upstream serves at a time: it never has more than a few of their requests, and those that are not
/// refused get their responses.
#[test]
fn an_overloaded_upstream_is_not_flooded() {
    let waiting = Arc::new(AtomicU64::new(0));
    let (seen, most) = (waiting.clone(), Arc::new(AtomicU64::new(0)));
    let (peak, place) = (most.clone(), std::sync::Mutex::new(()));
    let upstream = Upstream::replying(move |_| {
        peak.fetch_max(seen.fetch_add(1, SeqCst) + 1, SeqCst);
        // One at a time.
        let served = place.lock().unwrap();
        thread::sleep(Duration::from_millis(5));
        drop(served);
        seen.fetch_sub(1, SeqCst);
        answer(200, &[], "ok")
    });
    let proxy = Proxy::start(Config::to_with(&upstream, &options(20)));
    let (good, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let mut client = proxy.client();
                while good.load(SeqCst) < 400 {
                    match client.get("/").status() {
                        200 => _ = good.fetch_add(1, SeqCst),
                        503 => {
                            refused.fetch_add(1, SeqCst);
                            thread::sleep(Duration::from_millis(5));
                        }
                        other => panic!("{other}"),
                    }
                }
            });
        }
    });
    let (good, refused) = (good.load(SeqCst), refused.load(SeqCst));
    assert_eq!(upstream.requests().len() as u64, good);
    assert!(refused > 0);
    assert_eq!(metric(&proxy, "overflows_total") as u64, refused);
    assert!(most.load(SeqCst) < 30, "{most:?} of 40 clients' requests were at the upstream at once");
}
