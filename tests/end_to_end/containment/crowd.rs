//! Which requests a failing filter affects: those inside the same instance, those that arrive while there is no
//! instance, and those in other filters.

use std::thread;

use super::{
    Outcome, ask, failing_in,
    poison::{MISSING, costly, without_instance},
    quarantine::slow,
    upstream,
};
use crate::{
    guest,
    harness::{Client, Config, Gate, Proxy, Signal, Upstream, wait_until},
};

/// A filter that holds requests with `x-hold`, traps for those with `x-boom`, and marks responses.
pub(super) fn holding() -> Vec<u8> {
    guest::filter(HOLDING)
}

/// Its code.
pub(super) const HOLDING: &str = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $has (i32.const 0) %"x-boom") (then unreachable))
            (call $has (i32.const 0) %"x-hold"))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $add_header (i32.const 2) %"x-marked" %"yes"))
            (i32.const 0))"#;

/// With one worker all requests are in the same instance.
pub(super) fn one_instance(upstream: &Upstream, policy: &str, module: &[u8]) -> Proxy {
    one_instance_with("", upstream, policy, module)
}

/// The same, with more top-level keys.
pub(super) fn one_instance_with(top: &str, upstream: &Upstream, policy: &str, module: &[u8]) -> Proxy {
    let config = Config::to(upstream).top("workers: 1").top(top).listener("trusted_hops: 1");
    let config = config.module("boom", module, &format!("on_failure: {policy}"));
    let config = config.beside("plain", "cluster: web\naccess_log: {to: access.log}");
    Proxy::start(config)
}

/// Waits until this many requests of a listener are in flight.
fn under_way(proxy: &Proxy, listener: &str, count: f64) {
    let labels = [("listener", listener)];
    wait_until("the requests to be in flight", || proxy.metrics().sum("tollgate_requests_active", &labels) == count);
}

#[test]
fn requests_held_by_a_failed_filter_follow_its_policy() {
    for (policy, status) in [("deny", 503), ("bypass", 200)] {
        let upstream = Upstream::saying("hello");
        let proxy = one_instance(&upstream, policy, &holding());
        let mut held: Vec<_> = (0..3).map(|_| proxy.client()).collect();
        held.iter_mut().for_each(|client| client.send_request("GET", "/held", &[("x-hold", "1")], b""));
        under_way(&proxy, "main", 3.0);
        let boom = proxy.request("GET", "/boom", &[("x-boom", "1")], b"");
        assert_eq!(boom.status(), status, "{policy}");
        for client in &mut held {
            let response = client.read();
            assert_eq!((response.status(), response.field("x-marked")), (status, None), "{policy}");
        }
        wait_until("another instance", || proxy.filter("boom")["instances"] == 1);
        assert_eq!(proxy.filter("boom")["traps"], 1, "{policy}");
        assert_eq!(proxy.get("/").field("x-marked"), Some("yes"));
        if policy == "deny" {
            assert_eq!(proxy.filter("boom")["failed_streams"], 4);
            proxy.entry_for("/held").expect(503, "FF").because("filter_failed");
        }
    }
}

/// The status of a request that was at the upstream when another request made the filter fail.
fn at_the_upstream(policy: &str, listener: &str) -> u16 {
    let gate = Gate::default();
    let upstream = slow(&gate);
    let proxy = one_instance(&upstream, policy, &holding());
    let mut slow = Client::connect(proxy.address(listener));
    slow.send_request("GET", "/slow", &[], b"");
    upstream.wait_for_requests(1);
    proxy.request("GET", "/boom", &[("x-boom", "1")], b"");
    assert_eq!(proxy.filter("boom")["traps"], 1);
    gate.open();
    slow.read().status()
}

#[test]
fn requests_at_the_upstream_follow_the_failed_filters_policy() {
    // Under the policy `deny`, the filter's effect on the response cannot be skipped.
    assert_eq!(at_the_upstream("deny", "main"), 503);
    assert_eq!(at_the_upstream("bypass", "main"), 200);
    assert_eq!(at_the_upstream("bypass", "plain"), 200);
    assert_eq!(at_the_upstream("deny", "plain"), 200, "this listener does not have the filter");
}

/// A filter that traps for requests with `x-boom`, and runs this code for each part of a response's body.
fn holding_bodies(code: &str) -> Vec<u8> {
    guest::filter(&format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $has (i32.const 0) %"x-boom") (then unreachable))
            (i32.const 0))
        (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32) {code})"#
    ))
}

#[test]
fn a_body_held_by_a_failed_filter_is_not_released() {
    // It holds the response's body until it is complete.
    let module = holding_bodies("(i32.eqz (local.get 2))");
    for framing in ["content-length: 12\r\n\r\nsecret", "transfer-encoding: chunked\r\n\r\n6\r\nsecret\r\n"] {
        let gate = Gate::default();
        let shut = gate.clone();
        let upstream = Upstream::scripted(move |mut connection| {
            connection.request();
            connection.send(format!("HTTP/1.1 200 OK\r\n{framing}"));
            shut.wait();
            connection.send(if framing.contains("chunked") { "6\r\nsecret\r\n0\r\n\r\n" } else { "secret" });
            connection.wait_for_end();
        });
        let proxy = one_instance(&upstream, "deny", &module);
        let mut client = proxy.client();
        client.send_request("GET", "/held", &[("connection", "close")], b"");
        upstream.wait_for_requests(1);
        wait_until("the filter to hold a part", || proxy.filter("boom")["calls"].as_u64() >= Some(2));
        proxy.request("GET", "/boom", &[("x-boom", "1")], b"");
        gate.open();
        let output = String::from_utf8_lossy(&client.wire.read_to_end()).into_owned();
        assert!(!output.contains("secret"), "{framing:?}: {output:?}");
        assert_eq!(proxy.entry_for("/held")["flags"], "FF", "{framing:?}");
    }
}

#[test]
fn a_partial_body_held_by_a_failed_filter_is_not_released() {
    // As above, but the head and an earlier part have been forwarded.
    let module = holding_bodies(
        "(drop (call $get_buffer (i32.const 1) (i32.const 0) (i32.const 1) (global.get $out) (global.get $out_len)))
        (if (i32.eqz (i32.load (global.get $out_len))) (then (return (i32.const 0))))
        ;; It holds what begins with an `s`.
        (i32.eq (i32.load8_u (i32.load (global.get $out))) (i32.const 115))",
    );
    let gates = [Gate::default(), Gate::default()];
    let shut = gates.clone();
    let upstream = Upstream::scripted(move |mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
        shut[0].wait();
        connection.send("6\r\nsecret\r\n");
        shut[1].wait();
        connection.send("0\r\n\r\n");
    });
    let proxy = one_instance(&upstream, "deny", &module);
    let mut client = proxy.client();
    client.send_request("GET", "/held", &[("connection", "close")], b"");
    assert_eq!(client.wire.read_head().expect("a head").status(), 200);
    assert_eq!(client.wire.read_exact(10).expect("a part"), b"5\r\nhello\r\n");
    let calls = || proxy.filter("boom")["calls"].as_u64();
    let before = calls();
    gates[0].open();
    wait_until("the filter to hold a part", || calls() > before);
    proxy.request("GET", "/boom", &[("x-boom", "1")], b"");
    gates[1].open();
    let output = String::from_utf8_lossy(&client.wire.read_to_end()).into_owned();
    assert!(!output.contains("secret") && !output.contains("0\r\n\r\n"), "{output:?}");
    assert_eq!(proxy.entry_for("/held")["flags"], "FF");
}

#[test]
fn a_body_during_which_the_filter_fails_is_truncated() {
    for (rest, outcome) in [
        // The head waits for the first part, so that its length is right.
        ("content-length: 7\r\n\r\nwelcome", Outcome::Status(503)),
        ("transfer-encoding: chunked\r\n\r\n7\r\nwelcome\r\n0\r\n\r\n", Outcome::Broken),
        ("connection: close\r\n\r\nwelcome", Outcome::Broken),
    ] {
        let upstream = Upstream::canned(format!("HTTP/1.1 200 OK\r\n{rest}"));
        let proxy = one_instance(&upstream, "deny", &failing_in("proxy_on_response_body", "unreachable"));
        assert_eq!(ask(&mut proxy.client(), "/", true), outcome, "{rest}");
    }
}

#[test]
fn the_request_after_the_first_failure_uses_a_spare_instance() {
    let upstream = Upstream::saying("hello");
    let proxy = one_instance(&upstream, "deny", &holding());
    // Both in one write: there is no time to create an instance in between.
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nhost: a\r\nx-boom: 1\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(client.read().status(), 503);
    let next = client.read();
    assert_eq!((next.status(), next.field("x-marked")), (200, Some("yes")));
    assert_eq!(proxy.filter("boom")["rebuilds"], 1);
}

#[test]
fn requests_without_an_instance_follow_the_policy() {
    for (policy, status) in [("deny", 503), ("bypass", 200)] {
        let upstream = Upstream::saying("hello");
        let proxy = one_instance(&upstream, policy, &costly());
        // There is one spare, and creating another one takes a while.
        let mut client = proxy.client();
        let boom = "GET / HTTP/1.1\r\nhost: a\r\nx-boom: 1\r\n\r\n";
        client.send(format!("{boom}{boom}GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
        for request in ["the first", "the second", "the one without an instance"] {
            let response = client.read();
            assert_eq!((response.status(), response.field("x-marked")), (status, None), "{policy}: {request}");
        }
        assert_eq!(Client::connect(proxy.address("plain")).get("/").status(), 200);
        let info = proxy.filter("boom");
        assert_eq!((&info["traps"], &info["failed_streams"]), (&2.into(), &3.into()), "{policy}");
        // One for all clients, and a quarantined one for the sender of these requests.
        wait_until("another instance", || proxy.get("/").field("x-marked") == Some("yes"));
        assert_eq!(proxy.filter("boom")["instances"], 1);
    }
}

/// Takes all the memory it can get at the first request, and continues without more.
fn greedy() -> Vec<u8> {
    guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (loop $more (br_if $more (i32.ne (memory.grow (i32.const 8)) (i32.const -1))))
            (i32.const 0))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $add_header (i32.const 2) %"x-marked" %"yes"))
            ;; The size of its memory, in pages: one sign.
            (i32.store8 (i32.const 40) (memory.size))
            (drop (call $add_header (i32.const 2) %"x-pages" (i32.const 40) (i32.const 1)))
            (i32.const 0))"#,
    )
}

#[test]
fn a_filter_that_is_denied_memory_can_continue() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream).module("greedy", &greedy(), "limits: {memory: 4MiB}"));
    for _ in 0..4 {
        let response = proxy.get("/");
        assert_eq!((response.status(), response.field("x-marked")), (200, Some("yes")));
        assert_eq!(response.field("x-pages"), Some("@"), "64 pages of 64 KiB");
    }
    assert_eq!(proxy.filter("greedy")["traps"], 0);
}

#[test]
fn the_memory_of_a_filter_is_reported() {
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).top("workers: 1").module("greedy", &greedy(), "limits: {memory: 4MiB}");
    let proxy = Proxy::start(config);
    assert_eq!(proxy.filter("greedy")["memory_bytes"], 1 << 20);
    // The gauge may lag a little.
    wait_until("the gauge", || {
        proxy.get("/");
        proxy.filter("greedy")["memory_bytes"] == 4 << 20
    });
    assert_eq!(proxy.metrics().sum("tollgate_filter_memory_bytes", &[("filter", "greedy")]), f64::from(4 << 20));
}

#[test]
fn a_failed_filter_can_be_replaced() {
    let upstream = Upstream::saying("hello");
    let proxy = without_instance(&upstream, "deny");
    // An instance of the failed module would have to wait; the new module does not.
    proxy.put("boom.wasm", guest::version("v2"));
    assert_eq!(proxy.reload().0, 200);
    let response = proxy.request("GET", "/", &[("x-boom", "1")], b"");
    assert_eq!((response.status(), response.field("x-version")), (200, Some("v2")));
    assert_eq!(proxy.filter("boom")["last_error"], serde_json::Value::Null);
}

#[test]
fn a_filter_that_cannot_be_recreated_stays_failed() {
    // Its first instance records its failure in the shared data, and every later one rejects its configuration.
    let module = guest::filter(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (call $get_shared %"failed" (global.get $out) (global.get $out_len) (i32.const 24)))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $set_shared %"failed" %"yes" (i32.const 0)))
            unreachable)"#,
    );
    let upstream = Upstream::saying("hello");
    let proxy = one_instance(&upstream, "deny", &module);
    // The first instance and the spare, both created before the failure.
    assert_eq!((proxy.get("/").status(), proxy.get("/").status()), (503, 503));
    wait_until("the filter to refuse", || {
        let filter = proxy.filter("boom");
        let refuses = |e: &str| e.starts_with("it could not be set up again");
        filter["instances"] == 0 && filter["last_error"].as_str().is_some_and(refuses)
    });
    let info = proxy.filter("boom");
    assert_eq!((&info["state"], &info["instances"]), (&"failed".into(), &0.into()), "{info}");
    assert_eq!(proxy.get("/").status(), 503);
    assert_eq!(Client::connect(proxy.address("plain")).get("/").status(), 200);
    // A load balancer must not remove all proxies because of one filter.
    let told = format!("ready\ndegraded: {MISSING}");
    wait_until("readiness to report it", || {
        let ready = proxy.admin("GET", "/ready", "");
        (ready.status(), ready.text()) == (200, &*told)
    });
    // A reload with a working module replaces it.
    proxy.put("boom.wasm", guest::version("v2"));
    assert_eq!(proxy.reload().0, 200);
    assert_eq!(proxy.get("/").field("x-version"), Some("v2"));
}

#[test]
fn a_proxy_without_a_filter_instance_shuts_down_cleanly() {
    let upstream = Upstream::saying("hello");
    let mut proxy = without_instance(&upstream, "bypass");
    proxy.request("GET", "/last", &[], b"");
    proxy.signal(Signal::TERM);
    assert!(proxy.wait_exit().success());
    assert!(proxy.output().contains("stopped"), "{}", proxy.output());
    assert_eq!(proxy.entries().last().expect("a line")["path"], "/last", "no access log line is lost");
}

#[test]
fn a_slow_filter_delays_others_by_its_call_time_at_most() {
    // Several clients trigger endless loops while others are served, all on one worker.
    let upstream = upstream();
    let proxy = one_instance(&upstream, "bypass", &failing_in("proxy_on_request_headers", "(loop $l (br $l))"));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = proxy.client();
                (0..5).for_each(|_| assert_eq!(ask(&mut client, "/", true), Outcome::Status(200)));
            });
            scope.spawn(|| {
                let mut client = Client::connect(proxy.address("plain"));
                (0..50).for_each(|_| assert_eq!(ask(&mut client, "/", false), Outcome::Status(200)));
            });
        }
    });
    let metrics = proxy.metrics();
    // The first instance and the spare. Requests without an instance bypass the filter.
    assert!(metrics.sum("tollgate_filter_traps_total", &[("reason", "timeout")]) >= 2.0);
    assert_eq!(metrics.sum("tollgate_requests_total", &[("class", "2xx")]), 165.0);
}
