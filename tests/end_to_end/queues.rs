//! Shared queues: messages between filters, across reloads of both.

use crate::{
    guest,
    harness::{Config, Proxy, Upstream, wait_until},
};

/// A filter that subscribes to the queue `q` of the VM `mail`, and logs each message, which is short.
pub fn reader() -> Vec<u8> {
    guest::filter(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $register_queue %"q" (i32.const 24))))
        (func (export "proxy_on_queue_ready") (param $root i32) (param $queue i32)
            (if (call $dequeue (local.get $queue) (global.get $out) (global.get $out_len)) (then (return)))
            (if (i32.lt_u (i32.load (global.get $out_len)) (i32.const 100)) (then
                (drop (call $log (i32.const 2) (i32.load (global.get $out)) (i32.load (global.get $out_len)))))))"#,
    )
}

/// A filter that enqueues the path of each request, and replies with 503 if it cannot.
pub fn writer() -> Vec<u8> {
    guest::filter(
        r#"(func $deliver (result i32)
            (if (call $resolve_queue %"mail" %"q" (i32.const 24)) (then (return (i32.const 1))))
            (drop (call $get_header (i32.const 0) %":path" (global.get $out) (global.get $out_len)))
            (call $enqueue (i32.load (i32.const 24)) (i32.load (global.get $out)) (i32.load (global.get $out_len))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $deliver) (then
                (drop (call $reply (i32.const 503) %"no_queue" %"" %"" (i32.const -1)))))
            (i32.const 0))"#,
    )
}

#[test]
fn every_message_is_delivered_once() {
    let upstream = Upstream::saying("hello");
    let config =
        Config::to(&upstream).filter("mailbox", "reader.wasm", "vm_id: mail").filter("sender", "writer.wasm", "");
    let proxy = Proxy::start_with(config, &[("reader.wasm", &reader()), ("writer.wasm", &writer())]);
    for path in ["/first", "/second"] {
        assert_eq!(proxy.get(path).status(), 200);
        proxy.wait_for_output(path);
    }
    // Both filters are new, the queue is the old one; the old readers get no more messages.
    let version = proxy.version();
    let other = [reader(), b"\x00\x05\x04note".to_vec()].concat();
    proxy.put("reader.wasm", &other);
    wait_until("the new reader", || proxy.version() > version);
    assert_eq!(proxy.get("/third").status(), 200);
    proxy.wait_for_output("/third");
    let told = |path: &str| proxy.output().lines().filter(|line| line.contains(path)).count();
    assert_eq!([told("/first"), told("/second"), told("/third")], [1, 1, 1]);
}

#[test]
fn an_unregistered_queue_is_not_found() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream).module("sender", &writer(), ""));
    assert_eq!(proxy.get("/").status(), 503);
    assert!(upstream.requests().is_empty());
}
