//! Filters that end streams whose response has begun, or that are tunnels, from a call's response rather than a
//! callback of the stream.

use crate::{
    guest,
    harness::{Config, Gate, Proxy, Upstream, answer, frames::code, wait_until},
};

/// How a filter ends a stream.
pub const ENDS: [&str; 2] =
    ["(call $close (i32.const 0))", r#"(call $reply (i32.const 403) %"too_late" %"no" %"" (i32.const -1))"#];

/// A filter that calls the cluster `calls` for each request, and ends the stream when the response arrives. It does not
/// subscribe to bodies.
pub fn ending(end: &str) -> Vec<u8> {
    let asked = guest::pairs(&[(":method", "GET"), (":path", "/asked"), (":authority", "calls")]);
    let nothing = "(i32.const 0) (i32.const 0)";
    guest::filter(&format!(
        r#"(global $context (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $context (local.get 0))
            (drop (call $call %"calls" %"{asked}" {nothing} {nothing} (i32.const 60000) (i32.const 24)))
            (i32.const 0))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (drop (call $become (global.get $context)))
            (drop {end}))"#
    ))
}

/// An upstream that starts a response to any request and never ends it.
pub fn endless() -> Upstream {
    Upstream::scripted(|mut connection| {
        let Some(request) = connection.request() else { return };
        match (request.target(), request.field("upgrade")) {
            (_, Some(token)) => {
                let token = token.to_owned();
                connection
                    .send(format!("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: {token}\r\n\r\nhello"));
            }
            ("/length", _) => connection.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"),
            _ => connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        }
        connection.wait_for_end();
    })
}

/// The configuration of a listener with the filter.
pub fn config(upstream: &Upstream, calls: &Upstream) -> Config {
    let config = Config::to(upstream).cluster("calls", &[calls], "").listener("connect: true");
    config.top("workers: 1").filter("ending", "ending.wasm", "")
}

/// Runs this for each way of ending a stream; the gate triggers it.
fn each(run: impl Fn(&Proxy, &Gate)) {
    for end in ENDS {
        let gate = Gate::default();
        let (upstream, calls) = (endless(), Upstream::held(&gate, "/", |_| answer(200, &[], "")));
        let proxy = Proxy::start_with(config(&upstream, &calls), &[("ending.wasm", &ending(end))]);
        run(&proxy, &gate);
        proxy.entry(|_| true).flagged("LR").because("closed_by_filter");
    }
}

#[test]
fn a_response_over_http1_is_aborted() {
    for (path, part) in [("/", "5\r\nhello\r\n"), ("/length", "hello")] {
        each(|proxy, gate| {
            let mut client = proxy.client();
            client.send_request("GET", path, &[], b"");
            assert_eq!(client.wire.read_head().expect("a head").status(), 200);
            assert_eq!(client.wire.read_exact(part.len()).expect("a part"), part.as_bytes());
            gate.open();
            assert_eq!(client.wire.read_to_end(), b"", "{path}");
        });
    }
}

#[test]
fn a_response_over_http2_is_reset() {
    each(|proxy, gate| {
        let mut client = proxy.h2();
        let stream = client.request("GET", "/", &[], true);
        client.wait(stream, "a part", |m| m.body == b"hello");
        gate.open();
        assert_eq!(client.response(stream).reset, Some(code::INTERNAL_ERROR));
        client.ping();
    });
}

#[test]
fn a_websocket_is_closed() {
    each(|proxy, gate| {
        let mut client = proxy.client();
        client.send("GET /chat HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
        assert_eq!(client.wire.read_head().expect("a head").status(), 101);
        assert_eq!(client.wire.read_exact(5).expect("a part"), b"hello");
        gate.open();
        assert_eq!(client.wire.read_to_end(), b"");
    });
}

#[test]
fn a_websocket_over_http2_is_reset() {
    each(|proxy, gate| {
        let mut client = proxy.h2();
        client.ping();
        let head = [(":method", "CONNECT"), (":authority", "test"), (":protocol", "websocket"), (":scheme", "http")];
        let stream = client.open(&[&head[..], &[(":path", "/chat")]].concat(), false);
        client.wait(stream, "a part", |m| m.body == b"hello");
        gate.open();
        assert_eq!(client.response(stream).reset, Some(code::CANCEL));
        client.ping();
    });
}

#[test]
fn a_tunnel_is_reset() {
    each(|proxy, gate| {
        let mut client = proxy.h2();
        let stream = client.open(&[(":method", "CONNECT"), (":authority", "test:443")], false);
        client.wait(stream, "a head", |m| !m.blocks.is_empty());
        wait_until("the tunnel", || proxy.metrics().sum("tollgate_tunnels_active", &[]) == 1.0);
        gate.open();
        assert_eq!(client.response(stream).reset, Some(code::CANCEL));
    });
}
