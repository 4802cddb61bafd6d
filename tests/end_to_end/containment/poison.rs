//! Requests that make a filter fail, sent again and again: other requests do not fail with them, the sender is
//! reported, and their cost is bounded.

use std::{
    fs,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, setpriority_process},
    thread::{CpuSet, sched_getcpu, sched_setaffinity},
};

use super::crowd::{HOLDING, one_instance, one_instance_with};
use crate::{
    guest,
    harness::{Client, Config, DEADLINE, Message, Proxy, Upstream, wait_until},
};

/// A filter that takes about 100 ms to configure, and otherwise works like [`HOLDING`].
pub(super) fn costly() -> Vec<u8> {
    guest::filter(&format!(
        r#"{HOLDING}
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (local $n i32)
            (local.set $n (i32.const 100000000))
            (loop $on (br_if $on (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
            (i32.const 1))"#
    ))
}

/// Sends a poison request of a new client; the listener has `trusted_hops: 1`.
pub(super) fn from_new_client(client: &mut Client) -> Message {
    client.request("GET", "/", &[("x-boom", "1"), ("x-forwarded-for", &new_client())], b"")
}

fn new_client() -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    Ipv4Addr::from_bits(0x0a00_0000 + LAST.fetch_add(1, Ordering::Relaxed)).to_string()
}

/// A proxy whose only worker has no instance of its filter for a while, because a call exceeded its `call_time`. Half
/// of the time counts as processor time, and is more than such calls may use after a rest (1 s). So a single call is
/// enough, however little processor time the worker gets.
pub(super) fn without_instance(upstream: &Upstream, policy: &str) -> Proxy {
    let options = format!("{policy}\nlimits: {{call_time: 2200ms}}");
    let proxy = one_instance(upstream, &options, &poisoned_by("(loop $on (br $on))"));
    assert_eq!(from_new_client(&mut proxy.client()).status(), if policy == "deny" { 503 } else { 200 });
    let exhausted = proxy.metrics().sum("tollgate_filter_rebuild_budget_exhausted_total", &[("filter", "boom")]);
    assert_eq!(exhausted, 1.0);
    proxy
}

/// A filter that runs this code for requests with `x-boom`, and marks the responses of the others.
pub(super) fn poisoned_by(what: &str) -> Vec<u8> {
    guest::filter(&format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $has (i32.const 0) %"x-boom") (then {what}))
            (i32.const 0))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $add_header (i32.const 2) %"x-marked" %"yes"))
            (i32.const 0))"#
    ))
}

/// Fills nearly all of the memory limit in one operation.
pub(super) const FILL: &str =
    "(drop (memory.grow (i32.const 944))) (memory.fill (i32.const 2097152) (i32.const 1) (i32.const 58720256))";

/// Sends pairs of requests, one that makes the filter fail directly followed by one that does not; a spare is available
/// each time. `reason` is the label in the metrics.
fn poison(what: &str, limits: &str, reason: &str) {
    const ROUNDS: u64 = 12;
    let upstream = Upstream::saying("hello");
    let module = poisoned_by(what);
    let options = format!("limits: {{{limits}}}");
    let config = Config::to(&upstream).top("workers: 1").listener("trusted_hops: 1");
    let config = config.module("boom", &module, &options);
    let proxy = Proxy::start(config);
    let mut client = proxy.client();
    for round in 0..ROUNDS {
        // Both in one write: there is no time to create an instance in between.
        let boom = format!("GET / HTTP/1.1\r\nhost: a\r\nx-boom: 1\r\nx-forwarded-for: {}\r\n\r\n", new_client());
        client.send(boom + "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(client.read().status(), 503, "{round}");
        let next = client.read();
        assert_eq!((next.status(), next.field("x-marked")), (200, Some("yes")), "{round}");
        wait_until("a spare", || proxy.filter("boom")["spares"].as_u64() >= Some(1));
    }
    let info = proxy.filter("boom");
    for field in ["traps", "rebuilds", "failed_streams"] {
        assert_eq!(info[field], ROUNDS, "{field}: {info}");
    }
    let labels = [("filter", "boom"), ("reason", reason)];
    assert_eq!(proxy.metrics().sum("tollgate_filter_traps_total", &labels), ROUNDS as f64);
    assert_eq!(proxy.admin("GET", "/ready", "").text(), "ready\n");
}

#[test]
fn a_poison_request_that_traps_harms_no_other() {
    poison("unreachable", "", "trap");
}

#[test]
fn a_poison_request_that_loops_harms_no_other() {
    poison("(loop $forever (br $forever))", "call_time: 10ms", "timeout");
}

#[test]
fn a_poison_request_that_exhausts_memory_harms_no_other() {
    let eat = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 8)) (i32.const -1)))) unreachable";
    poison(eat, "memory: 4MiB", "memory");
}

#[test]
fn a_call_that_overruns_in_host_functions_fails() {
    // Each iteration copies 1 MiB, and there is neither a loop nor a call of the guest's own functions where it could
    // be interrupted.
    let copy = r#"(drop (call $set_shared %"k" (i32.const 0) (i32.const 1048576) (i32.const 0)))"#;
    poison(&copy.repeat(1500), "call_time: 5ms", "timeout");
}

#[test]
fn a_call_that_overruns_in_one_operation_fails() {
    poison(&FILL.repeat(8), "call_time: 5ms", "timeout");
}

/// Next to a thread that is always runnable, the worker gets about a seventieth of the processor.
#[test]
fn a_call_without_processor_time_does_not_fail() {
    // Longer than its `call_time` in wall-clock time.
    let module = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $end i64)
            (local.set $end (i64.add (call $now) (i64.const 900000000)))
            (loop $on (br_if $on (i64.lt_s (call $now) (local.get $end))))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).top("workers: 1").module("slow", &module, "limits: {call_time: 300ms}");
    let proxy = Proxy::start(config);
    let threads = fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("its threads").flatten();
    let worker = threads.map(|thread| thread.path());
    let mut worker =
        worker.filter(|path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "tollgate-0\n"));
    let worker = worker.next().and_then(|path| path.file_name()?.to_str()?.parse().ok()).and_then(Pid::from_raw);
    let mut processor = CpuSet::new();
    processor.set(sched_getcpu());
    sched_setaffinity(worker, &processor).expect("it can be bound to a processor");
    setpriority_process(worker, 19).expect("its priority can be lowered");
    let (over, end) = (AtomicBool::new(false), Instant::now() + DEADLINE);
    let status = thread::scope(|scope| {
        scope.spawn(|| {
            sched_setaffinity(None, &processor).expect("this one, too");
            while !over.load(Ordering::Relaxed) && Instant::now() < end {
                std::hint::spin_loop();
            }
        });
        let status = proxy.get("/").status();
        over.store(true, Ordering::Relaxed);
        status
    });
    assert_eq!((status, proxy.filter("slow")["traps"].as_u64()), (200, Some(0)));
}

/// What `/ready` reports when the filter has no instance.
pub(super) const MISSING: &str =
    "filter `boom` has had no instance on any worker for over a second, or only intermittently\n";

#[test]
fn a_filter_that_is_slow_to_create_stays_within_the_rebuild_budget() {
    out_of_budget("", 200, &format!("ready\ndegraded: {MISSING}"));
    let strict = "admin: {address: '@admin@', unready_without_filters: true}";
    out_of_budget(strict, 503, &format!("not ready: {MISSING}"));
}

/// `top`: further configuration. `status`, `said`: what `/ready` responds while there is no instance.
fn out_of_budget(top: &str, status: u16, said: &str) {
    let upstream = Upstream::saying("hello");
    let proxy = one_instance_with(top, &upstream, "deny", &costly());
    let mut client = proxy.client();
    wait_until("the budget to be used up", || {
        from_new_client(&mut client);
        proxy.metrics().sum("tollgate_filter_rebuild_budget_exhausted_total", &[("filter", "boom")]) >= 1.0
    });
    proxy.wait_for_output("would spend more than a tenth of its time on creating instances");
    // A listener without the filter is not affected; readiness names the filter.
    assert_eq!(Client::connect(proxy.address("plain")).get("/").status(), 200);
    wait_until("readiness to report it", || {
        from_new_client(&mut client);
        let ready = proxy.admin("GET", "/ready", "");
        (ready.status(), ready.text()) == (status, said)
    });
    // Without poison requests the filter recovers, with its spares.
    wait_until("all spares", || proxy.filter("boom")["spares"] == 3);
    wait_until("readiness", || proxy.admin("GET", "/ready", "").text() == "ready\n");
    assert_eq!(proxy.get("/").field("x-marked"), Some("yes"));
}

/// A client that can trigger an endless loop gets a part of a worker, not the whole.
#[test]
fn calls_that_overrun_leave_room_for_listeners_without_the_filter() {
    let upstream = Upstream::saying("hello");
    let proxy = without_instance(&upstream, "deny");
    assert_eq!(Client::connect(proxy.address("plain")).get("/").status(), 200);
    proxy.wait_for_output("its calls exceed `limits.call_time` so often");
    // It recovers by itself.
    wait_until("another instance", || proxy.get("/").field("x-marked") == Some("yes"));
}

#[test]
fn a_worker_without_an_instance_is_reported() {
    for (policy, workers) in [("deny", 2), ("bypass", 1)] {
        let upstream = Upstream::saying("hello");
        let config = Config::to(&upstream).top(&format!("workers: {workers}")).listener("trusted_hops: 1");
        let config = config.module("boom", &costly(), &format!("on_failure: {policy}"));
        let proxy = Proxy::start(config);
        // All on one connection, and thus on one worker.
        let mut client = proxy.client();
        let told = if workers == 1 { MISSING } else { "filter `boom` has no instance on 1 of 2 workers\n" };
        let told = format!("ready\ndegraded: {told}");
        wait_until("readiness to report it", || {
            from_new_client(&mut client);
            let ready = proxy.admin("GET", "/ready", "");
            assert_eq!(ready.status(), 200);
            ready.text() == told
        });
    }
}

#[test]
fn clients_that_make_a_filter_fail_are_reported() {
    let upstream = Upstream::saying("hello");
    let proxy = one_instance(&upstream, "deny", &poisoned_by("unreachable"));
    for nth in 0..40 {
        let path = format!("/once/{nth}?q=1");
        proxy.request("PUT", &path, &[("x-boom", "1")], b"");
        proxy.request("GET", &format!("/often?n={nth}"), &[("x-boom", "1")], b"");
    }
    let info = proxy.filter("boom");
    let (clients, paths) = (&info["poisoned_by"]["clients"], &info["poisoned_by"]["paths"]);
    let client = serde_json::json!([{ "client": "127.0.0.1", "failures": 80, "at_most_too_many": 0 }]);
    assert_eq!(*clients, client);
    assert_eq!(paths.as_array().map(Vec::len), Some(8), "{paths}");
    assert_eq!((&paths[0]["path"], &paths[0]["failures"]), (&"GET /often".into(), &40.into()));
    let output = proxy.output();
    let line = output.lines().find(|line| line.contains("the filter failed: trap")).expect("a line");
    for part in ["filter=\"boom\"", "kind=\"trap\"", "client=\"127.0.0.1:", "method=\"PUT\"", "path=\"/once/0?q=1\""] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let lines = output.lines().filter(|line| line.contains("the filter failed: trap")).count();
    assert!((10..40).contains(&lines), "{lines} lines of 80 failures");
}

#[test]
fn an_instance_that_fails_by_itself_backs_off() {
    let module = guest::filter(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $tick (i32.const 1)))
            (i32.const 1))
        (func (export "proxy_on_tick") (param i32) unreachable)"#,
    );
    let upstream = Upstream::saying("hello");
    let start = Instant::now();
    let proxy = one_instance(&upstream, "bypass", &module);
    wait_until("some failures", || proxy.filter("boom")["traps"].as_u64() >= Some(5));
    // A lower bound: on a busy machine the waits only get longer.
    assert!(start.elapsed() >= Duration::from_millis(100 + 200 + 400), "{:?}", start.elapsed());
}

#[test]
fn ticks_continue_across_failures() {
    let module = guest::filter(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $tick (i32.const 1000)))
            (i32.const 1))
        (func (export "proxy_on_tick") (param i32) (drop (call $log (i32.const 2) %"it ticks")))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable)"#,
    );
    let upstream = Upstream::saying("hello");
    let proxy = one_instance(&upstream, "deny", &module);
    // No instance lives as long as a tick's period.
    wait_until("a tick", || {
        proxy.get("/");
        proxy.output().contains("it ticks")
    });
}

#[test]
fn queued_messages_reach_the_next_instance() {
    let module = guest::filter(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $register_queue %"q" (i32.const 24))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $enqueue (i32.load (i32.const 24)) %"the first message"))
            (drop (call $enqueue (i32.load (i32.const 24)) %"the second message"))
            unreachable)
        (func (export "proxy_on_queue_ready") (param $root i32) (param $queue i32)
            (if (i32.eqz (call $dequeue (local.get $queue) (global.get $out) (global.get $out_len)))
                (then (drop (call $log
                    (i32.const 2) (i32.load (global.get $out)) (i32.load (global.get $out_len)))))))"#,
    );
    let upstream = Upstream::saying("hello");
    let proxy = one_instance(&upstream, "deny", &module);
    for told in 1..=3 {
        assert_eq!(proxy.get("/").status(), 503);
        for message in ["the first message", "the second message"] {
            wait_until(message, || proxy.output().matches(message).count() == told);
        }
    }
}

#[test]
fn a_message_too_large_for_the_guest_stays_queued() {
    let module = guest::filter(
        r#"(global $full (mut i32) (i32.const 0))
        (func (export "malloc") (param i32) (result i32)
            (select (i32.const 0) (i32.const 65536) (global.get $full)))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $register_queue %"q" (i32.const 24))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $enqueue (i32.load (i32.const 24)) %"a message"))
            (global.set $full (i32.const 1))
            (if (i32.eqz (call $dequeue (i32.load (i32.const 24)) (global.get $out) (global.get $out_len)))
                (then unreachable))
            (global.set $full (i32.const 0))
            (if (call $dequeue (i32.load (i32.const 24)) (global.get $out) (global.get $out_len)) (then unreachable))
            (drop (call $log (i32.const 2) (i32.load (global.get $out)) (i32.load (global.get $out_len))))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("hello");
    let proxy = one_instance(&upstream, "deny", &module);
    assert_eq!(proxy.get("/").status(), 200);
    proxy.wait_for_output("a message");
    assert_eq!(proxy.filter("boom")["traps"], 0);
}
