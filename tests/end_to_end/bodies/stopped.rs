//! Filters that end a message in the middle of its body: by a local reply, or by closing the stream.

use super::{both, with};
use crate::{
    guest,
    harness::{Config, Proxy, Upstream, answer, turnstile},
};

/// Replies with 403 at a part that begins with `!`, then returns `action`.
fn refusing(action: u8) -> Vec<u8> {
    guest::filter(&both(&format!(
        r#"(drop (call $get_buffer BUFFER (i32.const 0) (i32.const 1) (global.get $out) (global.get $out_len)))
        (if (i32.eqz (i32.load (global.get $out_len))) (then (return (i32.const 0))))
        (if (i32.eq (i32.load8_u (i32.load (global.get $out))) (i32.const 33)) (then
            (drop (call $reply (i32.const 403) %"no shouting" %"be quiet" (i32.const 0) (i32.const 0) (i32.const -1)))
            (return (i32.const {action}))))
        (i32.const 0)"#
    )))
}

#[test]
fn a_request_is_rejected_for_its_body() {
    for action in [0, 1] {
        let upstream = Upstream::saying("hello");
        let proxy = with(&upstream, &refusing(action), "", "");
        let mut client = proxy.client();
        assert_eq!(client.request("POST", "/", &[], b"hello").status(), 200);
        let response = client.request("POST", "/loud", &[], b"!!!");
        assert_eq!((response.status(), response.text()), (403, "be quiet"), "{action}");
        assert_eq!(upstream.requests().len(), 1);
        proxy.entry_for("/loud").expect(403, "LR").because("no_shouting");
        assert_eq!(proxy.get("/").status(), 200);
    }
}

#[test]
fn a_request_is_rejected_for_a_later_part_of_its_body() {
    for action in [0, 1] {
        let upstream = Upstream::scripted(|mut connection| {
            if connection.head().is_some() {
                connection.wait_for_end();
            }
        });
        let proxy = with(&upstream, &refusing(action), "", "");
        let mut client = proxy.client();
        client.send("POST /loud HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
        upstream.wait_for_requests(1);
        client.send("3\r\n!!!\r\n");
        let response = client.read();
        assert_eq!((response.status(), response.text()), (403, "be quiet"), "{action}");
    }
}

#[test]
fn a_response_is_replaced_for_its_body() {
    // With a length the head has not been sent yet, so another response is possible.
    for action in [0, 1] {
        let upstream = Upstream::replying(|request| match request.target() {
            "/loud" => answer(200, &[], "!!!"),
            _ => answer(200, &[], "hello"),
        });
        let proxy = with(&upstream, &refusing(action), "", "");
        let mut client = proxy.client();
        assert_eq!(client.get("/").text(), "hello");
        let response = client.get("/loud");
        assert_eq!((response.status(), response.text()), (403, "be quiet"), "{action}");
        proxy.entry_for("/loud").expect(403, "LR");
        assert_eq!(proxy.get("/").text(), "hello");
    }
}

#[test]
fn a_response_is_aborted_at_a_later_part_of_its_body() {
    for action in [0, 1] {
        let (go, wait) = turnstile();
        let upstream = Upstream::scripted(move |mut connection| {
            connection.request();
            connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
            wait();
            connection.send("3\r\n!!!\r\n0\r\n\r\n");
        });
        let proxy = with(&upstream, &refusing(action), "", "");
        let mut client = proxy.client();
        client.send_request("GET", "/loud", &[], b"");
        assert_eq!(client.wire.read_head().expect("a head").status(), 200);
        assert_eq!(client.wire.read_exact(10).expect("the first part"), b"5\r\nhello\r\n");
        go.send(()).expect("the upstream is running");
        assert_eq!(client.wire.read_to_end(), b"", "{action}");
        proxy.entry_for("/loud").expect(200, "LR");
    }
}

#[test]
fn a_response_body_held_forever_times_out() {
    let upstream = Upstream::saying("hello");
    // If the timeout expires before there is a response, the filter holds the proxy's own until that times out.
    let config = Config::to_with(&upstream, "request_timeout: 300ms").listener("timeouts: {idle: 2s}").filter(
        "body",
        "body.wasm",
        "",
    );
    let module =
        guest::filter(r#"(func (export "proxy_on_response_body") (param i32 i32 i32) (result i32) (i32.const 1))"#);
    let proxy = Proxy::start_with(config, &[("body.wasm", &module)]);
    assert_eq!(proxy.get("/held").status(), 504);
    proxy.entry_for("/held").expect(504, "UT");
    assert!(proxy.filter("body")["calls"].as_u64() < Some(100), "it is not called in a loop");
}
