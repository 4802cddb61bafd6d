//! Fault injection. Delays are only measured from below: slow machines must not fail the tests.

use std::time::{Duration, Instant};

use crate::harness::{Config, Proxy, Upstream};

fn faulty(upstream: &Upstream, config: &str) -> Proxy {
    Proxy::start(Config::to(upstream).filter("faults", "builtin:fault", &format!("config: {config}")))
}

#[test]
fn a_request_is_delayed() {
    let upstream = Upstream::saying("ok");
    let proxy = faulty(&upstream, "{delay: {fixed: 300ms, percent: 100}}");
    // Here and below: a lower bound, which holds on a busy machine, too.
    let start = Instant::now();
    assert_eq!(proxy.get("/").text(), "ok");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(proxy.entry_for("/")["flags"], "DI");
    assert_eq!(proxy.metrics().sum("wasmcustom_fault_delays_total", &[]), 1.0);
}

#[test]
fn a_request_is_aborted() {
    let upstream = Upstream::saying("ok");
    let config = "{rules: [{match: {path: {prefix: /api}}, abort: {status: 503, percent: 100}}]}";
    let proxy = faulty(&upstream, config);
    let response = proxy.get("/api/x");
    assert_eq!((response.status(), response.text()), (503, "fault filter abort"));
    assert_eq!(proxy.get("/apix").status(), 200);
    assert_eq!(upstream.requests().len(), 1);
    proxy.entry_for("/api/x").flagged("FI,LR").because("fault_filter_abort");
}

#[test]
fn a_request_can_be_delayed_and_then_aborted() {
    let upstream = Upstream::saying("ok");
    let config = "{delay: {fixed: 200ms, percent: 100}, abort: {status: 500, percent: 100}}";
    let proxy = faulty(&upstream, config);
    let start = Instant::now();
    assert_eq!(proxy.get("/").status(), 500);
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(proxy.entry_for("/")["flags"], "FI,DI,LR");
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_request_can_ask_for_its_fault_if_allowed() {
    let upstream = Upstream::saying("ok");
    let proxy = faulty(&upstream, "{headers: true}");
    let abort = [("x-envoy-fault-abort-request", "418")];
    let ask = |fields: &[(&str, &str)]| proxy.request("GET", "/", fields, b"").status();
    assert_eq!(ask(&abort), 418);
    assert_eq!(ask(&[abort[0], ("x-envoy-fault-abort-request-percentage", "0")]), 200);
    assert_eq!(ask(&[("x-envoy-fault-abort-request", "nonsense")]), 200);
    let start = Instant::now();
    assert_eq!(ask(&[("x-envoy-fault-delay-request", "200")]), 200);
    assert!(start.elapsed() >= Duration::from_millis(200));
    // Not allowed by default.
    let proxy = faulty(&upstream, "{}");
    assert_eq!(proxy.request("GET", "/", &abort, b"").status(), 200);
}

#[test]
fn a_percentage_of_the_requests_is_affected() {
    let upstream = Upstream::saying("ok");
    let proxy = faulty(&upstream, "{abort: {status: 503, percent: 30}}");
    let mut client = proxy.client();
    let hit = (0..400).filter(|_| client.get("/").status() == 503).count();
    // 120, within six standard deviations.
    assert!((65..=175).contains(&hit), "{hit} of 400");
}

#[test]
fn the_number_of_concurrent_faults_is_limited() {
    let upstream = Upstream::saying("ok");
    let proxy = faulty(&upstream, "{max_active: 2, delay: {fixed: 1h, percent: 100}}");
    let mut held: Vec<_> = (0..2).map(|_| proxy.client()).collect();
    held.iter_mut().for_each(|client| client.send_request("GET", "/held", &[], b""));
    proxy.wait_for_metric("wasmcustom_fault_delays_total", &[], 2.0);
    assert_eq!(proxy.get("/passes").status(), 200);
    assert_eq!(proxy.metrics().sum("wasmcustom_fault_overflow_total", &[]), 1.0);
    assert!(proxy.entry_for("/passes")["flags"].is_null());
    // A client that disconnects releases its slot.
    held.clear();
    assert_eq!(proxy.entry_for("/held")["flags"], "DI,DC");
    let mut next = proxy.client();
    crate::harness::wait_until("a slot for a fault", || {
        next = proxy.client();
        next.send_request("GET", "/next", &[], b"");
        proxy.metrics().sum("wasmcustom_fault_delays_total", &[]) >= 3.0
    });
}
