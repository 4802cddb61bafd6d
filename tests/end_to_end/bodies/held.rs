//! Filters that hold heads and bodies: in both readings of the standard (`headers_pause`), up to the buffer limit, and
//! with trailers.

use super::{at_the_end, for_both, with};
use crate::{
    guest,
    harness::{Config, Proxy, Upstream, answer, wait_until},
    hot_swap::Gate,
};

/// Holds the head until the whole body arrived, then writes the body's length into the head; for requests and responses.
fn holding_heads() -> Vec<u8> {
    guest::filter(&for_both(
        r#"(func (export "proxy_on_MESSAGE_headers") (param i32 i32) (param $end i32) (result i32)
            (i32.eqz (local.get $end)))
        (func (export "proxy_on_MESSAGE_body") (param i32) (param $size i32) (param $end i32) (result i32)
            (if (i32.eqz (local.get $end)) (then (return %pause)))
            ;; One digit: how often there are ten bytes.
            (i32.store8 (i32.const 40) (i32.add (i32.const 48) (i32.div_u (local.get $size) (i32.const 10))))
            (drop (call $add_header %MESSAGE_headers %"x-tens" (i32.const 40) (i32.const 1)))
            (drop (call $set_buffer %MESSAGE_body (local.get $size) (i32.const 0) %"!"))
            %continue)"#,
    ))
}

#[test]
fn heads_are_held_until_the_body_is_known() {
    let upstream = Upstream::replying(|_| answer(200, &[], "0123456789".repeat(3)));
    let proxy = with(&upstream, &holding_heads(), "headers_pause: hold_headers", "");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 20\r\n\r\n0123456789");
    client.send("0123456789");
    let response = client.read();
    assert_eq!((response.status(), response.field("x-tens")), (200, Some("3")));
    assert_eq!(response.field("content-length"), Some("31"));
    assert_eq!(response.text(), "0123456789".repeat(3) + "!");
    let request = upstream.only_request();
    assert_eq!((request.field("x-tens"), request.field("content-length")), (Some("2"), Some("21")));
    assert_eq!(request.text(), "01234567890123456789!");
    // Without a body there is nothing to wait for.
    assert_eq!(client.get("/").status(), 200);
}

#[test]
fn heads_are_held_for_chunked_bodies() {
    let upstream = Upstream::replying(|_| {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n".to_vec()
    });
    let proxy = with(&upstream, &holding_heads(), "headers_pause: hold_headers", "");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n");
    client.send("0\r\n\r\n");
    let response = client.read();
    assert_eq!((response.status(), response.field("x-tens")), (200, Some("2")));
    assert_eq!(response.text(), "01234567890123456789!");
    let request = upstream.only_request();
    assert_eq!((request.field("x-tens"), request.text()), (Some("1"), "0123456789!"));
    assert_eq!(client.get("/").status(), 200);
}

#[test]
fn the_body_end_reaches_filters_without_a_trailers_callback() {
    let upstream = Upstream::replying(|_| {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\na\r\n0123456789\r\n0\r\nx-end: 1\r\n\r\n"
            .to_vec()
    });
    let request = "POST / HTTP/1.1\r\nhost: test\r\nte: trailers\r\ntrailer: x-end\r\ntransfer-encoding: chunked\r\n\r\n\
                   a\r\n0123456789\r\n0\r\nx-end: 2\r\n\r\n";
    // One filter holds the heads, the other the bodies.
    let exclaiming = at_the_end(r#"(drop (call $set_buffer BUFFER (local.get $size) (i32.const 0) %"!"))"#);
    for (module, options, tens) in [(holding_heads(), "headers_pause: hold_headers", Some("1")), (exclaiming, "", None)]
    {
        let proxy = with(&upstream, &module, options, "");
        let mut client = proxy.client();
        client.send(request);
        let response = client.read();
        assert_eq!((response.status(), response.field("x-tens")), (200, tens));
        assert_eq!((response.text(), response.trailers.len()), ("0123456789!", 1));
        let request = upstream.requests().pop().expect("a request");
        assert_eq!((request.field("x-tens"), request.text()), (tens, "0123456789!"));
        assert_eq!(request.trailers.len(), 1);
    }
}

#[test]
fn stop_all_delivers_nothing_until_the_filter_resumes() {
    // The same filter under the other reading of the standard: it waits until the stream's idle timeout.
    let module = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))
        (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
            (drop (call $log (i32.const 3) %"a body"))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("hello");
    let proxy = with(&upstream, &module, "headers_pause: stop_all", "timeouts: {idle: 300ms}");
    let response = proxy.request("POST", "/stalled", &[], b"0123456789");
    assert_eq!(response.status(), 504);
    assert!(upstream.requests().is_empty());
    proxy.entry_for("/stalled").expect(504, "SI").because("filter_stalled");
    assert!(!proxy.output().contains("a body"));
    // The log names the missing option, once.
    assert_eq!(proxy.request("POST", "/stalled-too", &[], b"0123456789").status(), 504);
    proxy.entry_for("/stalled-too");
    assert_eq!(proxy.output().matches("set `headers_pause: hold_headers`").count(), 1);
}

#[test]
fn a_held_local_reply_times_out() {
    // The upstream is unreachable, and the filter holds the proxy's own 503.
    let module =
        guest::filter(r#"(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (i32.const 1))"#);
    let config = Config::to(Upstream::refusing()).listener("timeouts: {idle: 300ms}").filter("body", "body.wasm", "");
    let proxy = Proxy::start_with(config, &[("body.wasm", &module)]);
    let mut client = proxy.client();
    client.send_request("GET", "/held", &[], b"");
    assert!(client.wire.is_closed());
    proxy.entry_for("/held").expect(503, "UF,SI");
}

/// A filter that sees heads after a filter that holds them.
#[test]
fn later_filters_see_the_head_when_it_is_released() {
    let upstream = Upstream::saying("hello");
    let mark = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $has (i32.const 0) %"x-tens")
                (then (drop (call $add_header (i32.const 0) %"x-saw" %"tens"))))
            (i32.const 0))
        (func (export "proxy_on_request_body") (param i32) (param $size i32) (param $end i32) (result i32)
            (if (local.get $end) (then (drop (call $set_buffer (i32.const 0) (local.get $size) (i32.const 0) %"?"))))
            (i32.const 0))"#,
    );
    let config = Config::to(&upstream).filter("holder", "holder.wasm", "headers_pause: hold_headers").filter(
        "mark",
        "mark.wasm",
        "",
    );
    let proxy = Proxy::start_with(config, &[("holder.wasm", &holding_heads()), ("mark.wasm", &mark)]);
    assert_eq!(proxy.request("POST", "/", &[], b"0123456789").status(), 200);
    let request = upstream.only_request();
    assert_eq!((request.field("x-saw"), request.text()), (Some("tens"), "0123456789!?"));
    assert_eq!(request.field("content-length"), Some("12"));
}

/// Holds heads and bodies until a tick releases them.
#[test]
fn held_messages_are_released_by_a_tick() {
    let module = guest::filter(
        r#"(global $context (mut i32) (i32.const 0))
        (global $ticks (mut i32) (i32.const 0))
        (func $held (export "proxy_on_request_body") (export "proxy_on_response_body")
            (param i32 i32) (param $end i32) (result i32)
            (global.set $context (local.get 0))
            (if (local.get $end) (then (drop (call $tick (i32.const 5)))))
            %pause)
        (func (export "proxy_on_tick") (param i32)
            (drop (call $become (global.get $context)))
            (drop (call $resume (i32.const 0)))
            (drop (call $resume (i32.const 1)))
            (drop (call $tick (i32.const 0))))"#,
    );
    let upstream = Upstream::replying(|_| {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec()
    });
    let proxy = with(&upstream, &module, "", "");
    let mut client = proxy.client();
    for _ in 0..3 {
        let response = client.request("POST", "/", &[], b"body");
        assert_eq!((response.status(), response.text()), (200, "hello"));
    }
    let bodies: Vec<_> = upstream.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [b"body"; 3]);
}

#[test]
fn trailers_follow_the_held_body() {
    // Holds the body until the trailers, and reports there how much it holds.
    let module = guest::filter(&for_both(
        r#"(func (export "proxy_on_MESSAGE_body") (param i32 i32 i32) (result i32)
            (i32.eqz (local.get 2)))
        (func (export "proxy_on_MESSAGE_trailers") (param i32 i32) (result i32)
            (drop (call $get_buffer %MESSAGE_body (i32.const 0) (i32.const 100)
                (global.get $out) (global.get $out_len)))
            (drop (call $add_header %MESSAGE_trailers %"x-body"
                (i32.load (global.get $out)) (i32.load (global.get $out_len))))
            (drop (call $remove_header %MESSAGE_trailers %"x-gone"))
            %continue)"#,
    ));
    let declared = "trailer: x-end, x-body, x-gone\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = "5\r\nhello\r\n5\r\nworld\r\n0\r\nx-end: yes\r\nx-gone: no\r\n\r\n";
    let upstream = Upstream::replying(move |_| format!("HTTP/1.1 200 OK\r\n{declared}{body}").into());
    let proxy = with(&upstream, &module, "", "");
    let mut client = proxy.client();
    client.send(format!("POST / HTTP/1.1\r\nhost: test\r\nte: trailers\r\n{declared}{body}"));
    let response = client.read();
    let expected =
        [("x-end", "yes"), ("x-body", "helloworld")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!((response.text(), &response.trailers[..]), ("helloworld", &expected[..]));
    let request = upstream.only_request();
    assert_eq!((request.text(), &request.trailers[..]), ("helloworld", &expected[..]));
}

#[test]
fn trailers_are_held() {
    let module = guest::filter(
        r#"(global $context (mut i32) (i32.const 0))
        (func (export "proxy_on_request_trailers") (param i32 i32) (result i32)
            (global.set $context (local.get 0))
            (drop (call $tick (i32.const 5)))
            (i32.const 1))
        (func (export "proxy_on_tick") (param i32)
            (drop (call $tick (i32.const 0)))
            (drop (call $become (global.get $context)))
            (drop (call $resume (i32.const 0))))"#,
    );
    let upstream = Upstream::saying("hello");
    let proxy = with(&upstream, &module, "", "");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nhost: test\r\ntrailer: x-end\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send("5\r\nhello\r\n0\r\nx-end: yes\r\n\r\n");
    assert_eq!(client.read().status(), 200);
    let request = upstream.only_request();
    assert_eq!((request.text(), &*request.trailers), ("hello", &[("x-end".to_owned(), "yes".to_owned())][..]));
}

const KIB: &str = "limits: {buffered_body: 1KiB}";

#[test]
fn a_held_request_body_over_the_limit_gets_413() {
    for options in ["", "headers_pause: hold_headers"] {
        let module = if options.is_empty() { at_the_end("") } else { holding_heads() };
        let upstream = Upstream::saying("hello");
        let proxy = with(&upstream, &module, options, KIB);
        let body = [b'x'; 1000];
        assert_eq!(proxy.request("POST", "/", &[], &body).status(), 200);
        let mut client = proxy.client();
        client.send("POST /large HTTP/1.1\r\nhost: test\r\ncontent-length: 5000\r\n\r\n");
        let calls = || proxy.filter("body")["calls"].as_u64();
        let before = calls();
        client.send(body);
        // A body that arrives in one piece is not held.
        wait_until("the filter to hold a part", || calls() > before);
        client.send([b'x'; 4000]);
        assert_eq!(client.read().status(), 413, "{options}");
        proxy.entry_for("/large").expect(413, "OM").because("request_body_too_large");
        assert_eq!(upstream.requests().len(), 1, "nothing of it reaches the upstream");
        assert_eq!(proxy.get("/").status(), 200);
    }
}

/// Whatever the limit of a single body.
#[test]
fn held_bytes_of_all_bodies_are_bounded() {
    let upstream = Upstream::saying("ok");
    let proxy = with(&upstream, &at_the_end(""), "", "limits: {buffered_body: 1GiB}");
    let mut client = proxy.client();
    client.send(format!("POST /large HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", 300 << 20));
    let part = vec![b'x'; 1 << 20];
    // The proxy need not read all of this.
    let _ = (0..300).all(|_| client.wire.send(&part).is_ok());
    assert_eq!(client.read().status(), 503);
    proxy.entry_for("/large").expect(503, "OM").because("held_bodies_overflow");
    assert_eq!(proxy.request("POST", "/", &[], &part).status(), 200, "the held bytes are released");
}

#[test]
fn a_held_response_body_over_the_limit_is_replaced() {
    for options in ["", "headers_pause: hold_headers"] {
        let module = if options.is_empty() { at_the_end("") } else { holding_heads() };
        let gate = Gate::default();
        let shut = gate.clone();
        let upstream = Upstream::scripted(move |mut connection| {
            while let Some(request) = connection.request() {
                if request.target() == "/small" {
                    connection.send(answer(200, &[], [b'x'; 1000]));
                } else {
                    // What follows the part that exceeds the limit must not be taken for the whole body.
                    connection.send("HTTP/1.1 200 OK\r\ncontent-length: 2100\r\n\r\n");
                    connection.send([b'x'; 2000]);
                    shut.wait();
                    connection.send([b'y'; 100]);
                }
            }
        });
        let proxy = with(&upstream, &module, options, KIB);
        assert_eq!(proxy.get("/small").status(), 200);
        let calls = || proxy.filter("body")["calls"].as_u64();
        let before = calls();
        let mut client = proxy.client();
        client.send_request("GET", "/large", &[], b"");
        wait_until("the filter to hold a part", || calls() > before);
        gate.open();
        let response = client.read();
        assert_eq!(response.status(), 500, "{options}: {response:?}");
        proxy.entry_for("/large").expect(500, "OM").because("response_body_too_large");
        proxy.wait_for_zero("tollgate_cluster_requests_active", &[]);
        assert_eq!(proxy.get("/small").status(), 200);
    }
}

#[test]
fn a_chunked_response_over_the_limit_is_truncated() {
    // Its head has been sent, so the proxy can only abort the response.
    let gate = Gate::default();
    let shut = gate.clone();
    let upstream = Upstream::scripted(move |mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n");
            connection.send([b'x'; 2000]);
            shut.wait();
            connection.send("\r\n1\r\ny\r\n0\r\n\r\n");
        }
    });
    let proxy = with(&upstream, &at_the_end(""), "", KIB);
    let mut client = proxy.client();
    client.send_request("GET", "/large", &[], b"");
    wait_until("the filter to hold a part", || proxy.filter("body")["calls"].as_u64() >= Some(1));
    gate.open();
    let said = client.wire.read_to_end();
    assert!(said.starts_with(b"HTTP/1.1 200 ") && !said.ends_with(b"0\r\n\r\n"), "{}", said.escape_ascii());
    proxy.entry_for("/large").expect(200, "OM");
}

#[test]
fn a_filter_cannot_grow_bodies_without_limit() {
    // It adds a megabyte two hundred times. The limit for held bytes also applies to bytes that a filter adds.
    let module = guest::filter(
        r#"(func (export "proxy_on_request_body") (param i32) (param $size i32) (param $end i32) (result i32)
            (local $n i32)
            (loop $more
                (drop (call $set_buffer (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0x100000)))
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $more (i32.lt_u (local.get $n) (i32.const 200))))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("hello");
    let proxy = with(&upstream, &module, "limits: {call_time: 30s}", "limits: {buffered_body: 4MiB}");
    let before = proxy.peak_kib();
    assert_eq!(proxy.request("POST", "/", &[], b"body").status(), 413);
    assert_eq!(upstream.requests().len(), 0);
    let more = proxy.peak_kib() - before;
    assert!(more < 20 << 10, "{more} KiB more");
}

/// A filter that calls continue while it holds nothing (in the request's head and, if a body follows, in a call's
/// response), and then holds each body until it is complete. It holds the head of a response with `x-refused`, and then
/// replies itself.
fn hasty() -> Vec<u8> {
    let asked = guest::pairs(&[(":method", "GET"), (":path", "/asked"), (":authority", "calls")]);
    let nothing = "(i32.const 0) (i32.const 0)";
    let bodies = for_both(
        r#"(func (export "proxy_on_MESSAGE_body") (param i32) (param $size i32) (param $end i32) (result i32)
            (if (i32.eqz (local.get $end)) (then (return %pause)))
            (if (i32.eq (local.get $size) (i32.const 10))
                (then (drop (call $set_buffer %MESSAGE_body (i32.const 0) (i32.const 10) %"whole")))
                (else (drop (call $set_buffer %MESSAGE_body (i32.const 0) (i32.const 10) %"parts"))))
            %continue)"#,
    );
    guest::filter(&format!(
        r#"(global $context (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $context (local.get 0))
            (drop (call $resume (i32.const 1)))
            (if (local.get 2) (then (return (i32.const 0))))
            (drop (call $call %"calls" %"{asked}" {nothing} {nothing} (i32.const 60000) (i32.const 24)))
            (i32.const 0))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (drop (call $become (global.get $context)))
            (drop (call $resume (i32.const 0)))
            (drop (call $resume (i32.const 1))))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (if (i32.eqz (call $has (i32.const 2) %"x-refused")) (then (return (i32.const 0))))
            (drop (call $timer (i64.const 1000) (i64.const 0)))
            (i32.const 1))
        (func (export "tollgate_on_timer") (param i32 i64)
            (drop (call $reply (i32.const 403) %"refused" {nothing} {nothing} (i32.const -1))))
        {bodies}"#
    ))
}

/// A premature continue must not release what is held later.
#[test]
fn continue_before_a_pause_releases_nothing() {
    let gate = Gate::default();
    let shut = gate.clone();
    let upstream = Upstream::scripted(move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target() == "/refused" {
                connection.send("HTTP/1.1 200 OK\r\nx-refused: 1\r\ncontent-length: 0\r\n\r\n");
                continue;
            }
            connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
            shut.wait();
            connection.send("5\r\nworld\r\n0\r\n\r\n");
        }
    });
    let calls = Upstream::saying("");
    let config = Config::to(&upstream).top("workers: 1").cluster("calls", &[&calls], "");
    let proxy = Proxy::start_with(config.filter("hasty", "hasty.wasm", ""), &[("hasty.wasm", &hasty())]);
    let called = |times: u64| {
        wait_until("the filter's call", || proxy.filter("hasty")["calls"].as_u64() >= Some(times));
    };
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n");
    // The head, and the call's response.
    called(2);
    client.send("hello");
    called(3);
    client.send("world");
    // The rest of the request, the response's head, and a part of its body.
    called(6);
    gate.open();
    assert_eq!(client.read().text(), "whole");
    assert_eq!(upstream.only_request().text(), "whole");
    assert_eq!(proxy.get("/refused").status(), 403, "the response's head");
}
