//! Load shedding: what clients get while the proxy itself is overloaded, over each version of HTTP and over TCP, and that it
//! ends.

use std::{
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
};

use serde_json::Value;

use crate::{
    guest,
    harness::{
        Config, Proxy, Upstream,
        exchange::{Everywhere, Request},
        wait_until,
    },
};

/// Less memory than any process uses.
const NO_MEMORY: &str = "overload: {max_memory: 1MiB, exempt_paths: [/healthz, /grpc.health.v1.Health/Check]}";

fn shed(proxy: &Proxy, resource: &str) -> f64 {
    proxy.metrics().sum("tollgate_overload_shed_total", &[("listener", "main"), ("resource", resource)])
}

#[test]
fn requests_get_503_except_for_exempt_paths() {
    let upstream = Upstream::saying("ok");
    let config = Config::new().listener("cluster: web").listener(NO_MEMORY).cluster("web", &[&upstream], "");
    let proxy = Everywhere::start(config);
    // An old reading of the memory in use does not count; the first request asks for another one.
    wait_until("shedding", || proxy.get("/first").status() == 503);
    upstream.take_requests();
    proxy.each(&Request::get("/page"), |version, outcome| assert_eq!(outcome.status(), 503, "{version:?}"));
    let entry = proxy.entry_for("/page").expect(503, "OL").because("overload");
    assert_eq!((&entry["attempts"], &entry["cluster"]), (&0.into(), &Value::Null));
    proxy.each(&Request::get("/healthz?full=1"), |version, outcome| assert_eq!(outcome.status(), 200, "{version:?}"));
    proxy.each(&Request::get("/healthz/"), |version, outcome| assert_eq!(outcome.status(), 503, "{version:?}"));
    assert!(upstream.requests().iter().all(|request| request.target() == "/healthz?full=1"));

    // The connection stays.
    let mut client = proxy.client();
    assert_eq!(client.get("/page").status(), 503);
    assert_eq!(client.get("/healthz").status(), 200);
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let call = |path| proxy.request("POST", path, &grpc, b"\0\0\0\0\0");
    assert_eq!(call("/a.B/C").field("grpc-status"), Some("14"), "UNAVAILABLE");
    assert_eq!(call("/grpc.health.v1.Health/Check").field("grpc-status"), None, "the upstream answers");

    assert_eq!(proxy.admin("GET", "/live", "").status(), 200);
    assert!(proxy.is_ready());
    assert!(shed(&proxy, "memory") >= 4.0);
    assert_eq!(shed(&proxy, "lag"), 0.0);
    let warning = |line: &&str| line.contains("overloaded, requests are shed: memory") && line.contains("\"main\"");
    assert_eq!(proxy.output().lines().filter(warning).count(), 1, "only when it begins");
}

#[test]
fn tcp_connections_are_closed() {
    let upstream = Upstream::saying("ok");
    let overload = "overload: {max_memory: 1MiB}";
    for protocol in ["tcp", "auto"] {
        let config = Config::to(&upstream).listener(&format!("protocol: {protocol}")).listener(overload);
        let proxy = Proxy::start(config);
        wait_until("shedding", || {
            let mut client = proxy.client();
            let _ = client.wire.send("not HTTP\r\n\r\n");
            client.wire.read_to_end().is_empty()
        });
        proxy.entry(|entry| entry["flags"] == "OL").because("overload");
        proxy.refused_one("overload");
        if protocol == "auto" {
            assert_eq!(proxy.get("/page").status(), 503);
        }
    }
}

#[test]
fn enough_memory_sheds_nothing_and_a_change_ends_shedding() {
    let upstream = Upstream::saying("ok");
    let config = |overload: &str| Config::to(&upstream).listener(overload);
    let mut proxy = Proxy::start(config("overload: {max_memory: 1000GiB, max_memory_percent: 100, max_lag: 60s}"));
    let mut client = proxy.client();
    (0..100).for_each(|_| assert_eq!(client.get("/").status(), 200));
    proxy.change_config(config(NO_MEMORY));
    wait_until("shedding", || client.get("/").status() == 503);
    proxy.change_config(config(""));
    assert_eq!(client.get("/").status(), 200);
    proxy.wait_for_output("no longer overloaded: 1 requests and connections were shed in");
}

/// A filter that needs more of a worker's time than there is.
#[test]
fn a_late_worker_sheds_requests_until_it_has_caught_up() {
    const CLIENTS: u64 = 16;
    let module = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $n i32)
            (local.set $n (i32.const 2000000))
            (loop $more
                (local.set $n (i32.sub (local.get $n) (i32.const 1)))
                (br_if $more (local.get $n)))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("ok");
    let config = Config::to(&upstream).top("workers: 1").listener("overload: {max_lag: 5ms, exempt_paths: [/healthz]}");
    let proxy = Proxy::start(config.module("burn", &module, "limits: {call_time: 10s}"));
    let (served, refused, checks) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let is_enough = || refused.load(SeqCst) >= 100 && checks.load(SeqCst) >= 10;
    thread::scope(|scope| {
        for n in 0..CLIENTS {
            let (served, refused, checks, is_enough, proxy) = (&served, &refused, &checks, &is_enough, &proxy);
            scope.spawn(move || {
                let mut client = proxy.client();
                while !is_enough() {
                    match (n, client.get(if n == 0 { "/healthz" } else { "/page" }).status()) {
                        (0, status) => {
                            assert_eq!(status, 200);
                            checks.fetch_add(1, SeqCst);
                        }
                        (_, 200) => _ = served.fetch_add(1, SeqCst),
                        (_, 503) => _ = refused.fetch_add(1, SeqCst),
                        (_, other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    proxy.entry(|entry| entry["flags"] == "OL").expect(503, "OL").because("overload");
    assert!(served.load(SeqCst) > 0);
    assert_eq!(shed(&proxy, "lag") as u64, refused.load(SeqCst));
    proxy.wait_for_output("overloaded, requests are shed: the lag of a worker is at");
    wait_until("the worker to serve again", || proxy.get("/page").status() == 200);
    proxy.wait_for_output("no longer overloaded:");
    assert!(proxy.metrics().sum("tollgate_worker_lag_seconds_count", &[]) > 0.0);
}
