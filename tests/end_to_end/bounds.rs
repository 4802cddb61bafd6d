//! Guests that ask for ever more of each resource: every resource has a limit, the guest gets an error, and everything
//! keeps working.

use crate::{
    guest,
    harness::{Config, Proxy, Upstream, wait_until},
};

/// A proxy whose filter runs this code for each request.
fn doing(upstream: &Upstream, code: &str) -> Proxy {
    let config =
        Config::to(upstream).top("workers: 1").module("greedy", &guest::saying(code), "limits: {call_time: 30s}");
    Proxy::start(config.cluster("calls", &[Upstream::refusing()], "protocol: h2"))
}

/// How often a filter can do this until the result is no longer 0, and that result: see [`guest::until_not`].
fn until_full(what: &str) -> (u32, u32) {
    let upstream = Upstream::saying("hello");
    let proxy = doing(&upstream, &guest::until_not(0, 1_000_000, what));
    // Once full, it stays full and reports that again; the proxy keeps serving.
    (0..2).for_each(|_| assert_eq!(proxy.get("/").status(), 200));
    assert_eq!(proxy.filter("greedy")["traps"], 0);
    let requests = upstream.wait_for_requests(2);
    let said = requests[0].field("x-said").expect("the results");
    let (count, status) = said.split_once(' ').expect("two numbers");
    (count.parse().expect("a number"), status.parse().expect("a number"))
}

#[test]
fn arguments_of_host_functions_are_bounded() {
    let memory = "(i32.const 0)";
    let code = format!(
        r#"(drop (memory.grow (i32.const 300)))
        (call $answer (call $set_shared %"k" {memory} (i32.const 16777216) (i32.const 0)))
        (call $answer (call $set_shared %"k" {memory} (i32.const 16777217) (i32.const 0)))
        (call $answer (call $get_shared {memory} (i32.const 65536) (i32.const 16) (i32.const 20) (i32.const 24)))
        (call $answer (call $get_shared {memory} (i32.const 65537) (i32.const 16) (i32.const 20) (i32.const 24)))"#
    );
    let upstream = Upstream::saying("hello");
    let proxy = doing(&upstream, &code);
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(upstream.only_request().field("x-said"), Some("0 2 1 2"), "BadArgument; NotFound");
}

#[test]
fn metrics_are_bounded() {
    assert_eq!(until_full("(call $define_metric (i32.const 0) (name) (i32.const 24))"), (5000, 10));
}

#[test]
fn queues_are_bounded() {
    assert_eq!(until_full("(call $register_queue (name) (i32.const 24))"), (1024, 10));
}

#[test]
fn queued_messages_are_bounded() {
    let text = r#"(call $register_queue %"q" (i32.const 24))
        (call $enqueue (i32.load (i32.const 24)) (i32.const 65536) (i32.const 524288)) (i32.or)"#;
    assert_eq!(until_full(text), (31, 1));
}

#[test]
fn shared_data_is_bounded() {
    let set = "(call $set_shared (name) (i32.const 65536) (i32.const 524288) (i32.const 0))";
    assert_eq!(until_full(set), (127, 10));
    let set = "(call $shared_set (name) (i32.const 65536) (i32.const 524288) (i64.const -1) (i64.const 60000))";
    assert_eq!(until_full(set), (127, 10));
}

#[test]
fn properties_of_a_stream_are_bounded() {
    assert_eq!(until_full(r#"(call $state_set (name) %"value")"#), (64, 10));
    assert_eq!(until_full("(call $state_set (name) (i32.const 65536) (i32.const 65536))"), (15, 10));
    assert_eq!(until_full("(call $state_set (name) (i32.const 65536) (i32.const 65537))"), (0, 2));
    assert_eq!(until_full(r#"(call $metadata_set %"space" (name) (i32.const 1) %"value")"#), (64, 10));
    assert_eq!(until_full(r#"(call $log_field (name) %"value")"#), (16, 10));
    assert_eq!(until_full("(call $timer (i64.const 60000000) (i64.const 0))"), (16, 10));
}

#[test]
fn calls_are_bounded() {
    let headers = guest::pairs(&[(":method", "GET"), (":path", "/"), (":authority", "web")]);
    let call = |body: &str| format!(r#"(call $call %"calls" %"{headers}" {body} %"" (i32.const 10) (i32.const 24))"#);
    assert_eq!(until_full(&call(r#"%"""#)), (4096, 10));
    assert_eq!(until_full(&call("(i32.const 65536) (i32.const 524288)")), (126, 10));
    let call = r#"(call $grpc_call %"calls" %"service" %"method" %"" (i32.const 65536) (i32.const 524288)
        (i32.const 10) (i32.const 24))"#;
    assert_eq!(until_full(call), (126, 10));
    let stream = r#"(call $once_stream)
        (call $grpc_send (global.get $stream) (i32.const 65536) (i32.const 524288) (i32.const 0)) (i32.or)"#;
    assert_eq!(until_full(stream), (127, 2));
}

#[test]
fn log_lines_are_bounded() {
    let code = r#"(global.set $n (i32.const 0))
        (loop $more
            (drop (call $log (i32.const 2) %"flood"))
            (global.set $n (i32.add (global.get $n) (i32.const 1)))
            (br_if $more (i32.lt_u (global.get $n) (i32.const 20000))))"#;
    let upstream = Upstream::saying("hello");
    let proxy = doing(&upstream, code);
    assert_eq!(proxy.get("/").status(), 200);
    // The number of dropped lines is logged in the next second in which the filter logs.
    wait_until("the number of lines that were dropped", || {
        assert_eq!(proxy.get("/").status(), 200);
        proxy.output().contains("lines were dropped: more than 1000 in a second")
    });
    let lines = proxy.output().lines().filter(|line| line.contains("flood")).count();
    let requests = upstream.requests().len();
    assert!(lines >= 1000 && lines < requests * 20_000 / 2, "{lines} lines of {requests} requests");
}
