//! A filter's HTTP call ends at its timeout even if the response keeps arriving: a task that always has something to
//! read must check its deadline, too.

use crate::{
    guest,
    harness::{Config, Proxy, Upstream},
};

/// A filter that makes a call per request and responds with the status that tells why the call failed.
pub fn calling() -> Vec<u8> {
    let asked = guest::pairs(&[(":method", "GET"), (":path", "/asked"), (":authority", "calls")]);
    let nothing = "(i32.const 0) (i32.const 0)";
    guest::filter(&format!(
        r#"(global $context (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $context (local.get 0))
            (drop (call $call %"calls" %"{asked}" {nothing} {nothing} (i32.const 300) (i32.const 24)))
            (i32.const 1))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (drop (call $get_status (i32.const 24) (global.get $out) (global.get $out_len)))
            (i32.store8 (i32.const 40) (i32.add (i32.const 48) (i32.load (i32.const 24))))
            (drop (call $become (global.get $context)))
            (drop (call $reply (i32.const 200) {nothing} (i32.const 40) (i32.const 1) {nothing} (i32.const -1))))"#
    ))
}

#[test]
fn a_call_with_an_endless_body_times_out() {
    let calls = Upstream::scripted(|mut connection| {
        if connection.request().is_none() {
            return;
        }
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        // With this much chunk overhead the body stays far below the limit on its length.
        let parts = "1\r\nx\r\n".repeat(10_000);
        while connection.wire.send(&parts).is_ok() {}
    });
    let upstream = Upstream::saying("");
    let config = Config::to(&upstream).top("workers: 1").cluster("calls", &[&calls], "");
    let proxy = Proxy::start(config.module("calls", &calling(), ""));
    assert_eq!(proxy.get("/").text(), "4", "timed out");
}
