//! The audit trail filter.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Config, Proxy, Upstream, answer, wait_for, wasm};

fn start(upstream: &Upstream, collector: &Upstream) -> Proxy {
    let config = Config::to(upstream)
        .module("audit", &wasm::example("third-party-audit"), "config: {collector: collector, period_ms: 20}")
        .cluster("collector", &[collector], "");
    Proxy::start(config)
}

#[test]
fn each_request_of_each_worker_is_reported_once() {
    let upstream = Upstream::replying(|request| answer(if request.target() == "/2" { 404 } else { 200 }, &[], ""));
    let asked = AtomicUsize::new(0);
    // The first batch is rejected.
    let collector = Upstream::replying(move |_| {
        let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
        answer(if first { 503 } else { 202 }, &[], "")
    });
    let proxy = start(&upstream, &collector);
    for nth in 0..20 {
        proxy.get(&format!("/{nth}"));
    }
    let lines = wait_for("all lines", || {
        let taken: String = collector.requests().iter().skip(1).map(|batch| batch.text().to_owned()).collect();
        (taken.lines().count() >= 20).then_some(taken)
    });
    let batches = collector.requests();
    assert_eq!((batches[0].method(), batches[0].target()), ("POST", "/lines"));
    assert!(batches[1].body.starts_with(&batches[0].body), "the rejected batch is sent again, first");
    let mut numbers: Vec<u64> = lines.lines().map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>(), "{lines}");
    let mut rest: Vec<&str> = lines.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    rest.sort_unstable();
    let mut expected: Vec<String> =
        (0..20).map(|nth| format!("GET /{nth} {}", if nth == 2 { 404 } else { 200 })).collect();
    expected.sort_unstable();
    assert_eq!(rest, expected);
    proxy.wait_for_output("the collector rejected a batch: 503");
    assert_eq!(proxy.filter("audit")["traps"], 0);
}
