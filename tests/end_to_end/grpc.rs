//! gRPC calls: the proxy's own responses, retries, logging and metrics. A call is recognized by its media type,
//! whatever version of HTTP carries it.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::{
    guest,
    harness::{Client, Config, Entry, Message, Proxy, Upstream, answer, frames::code},
    whole::to_h2,
};

pub(crate) const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

/// Calls a method.
fn call(client: &mut Client, path: &str) -> Message {
    client.request("POST", path, &GRPC, b"\0\0\0\0\0")
}

/// A response that consists of a head only.
pub(crate) fn head_only(status: u32) -> Vec<u8> {
    answer(200, &["content-type: application/grpc", &format!("grpc-status: {status}")], "")
}

/// A response with a message and trailers.
pub(crate) fn whole(status: u32) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n\
         6\r\n\0\0\0\0\x01m\r\n0\r\ngrpc-status: {status}\r\ngrpc-message: said\r\n\r\n"
    )
    .into()
}

/// The status and the message of a trailers-only response.
fn told(response: &Message) -> (u32, &str) {
    assert_eq!(response.status(), 200);
    assert_eq!(response.field("content-type"), Some("application/grpc"));
    assert_eq!(response.field("content-length"), Some("0"));
    assert!(response.body.is_empty(), "{response:?}");
    let status = response.field("grpc-status").expect("a status");
    (status.parse().expect("a number"), response.field("grpc-message").unwrap_or_default())
}

/// Waits for and returns the access log line of a failed call.
#[track_caller]
fn failed(proxy: &Proxy, path: &str, flags: &str, details: &str, grpc_status: u32) -> Entry {
    let entry = proxy.entry_for(path).expect(200, flags).because(details);
    assert_eq!(entry["grpc_status"], grpc_status, "{entry}");
    entry
}

#[test]
fn local_replies_have_a_grpc_status() {
    let proxy = Proxy::start(Config::new());
    assert_eq!(told(&call(&mut proxy.client(), "/a.B/C")), (12, "Not Found (route_not_found)"));
    failed(&proxy, "/a.B/C", "NR", "route_not_found", 12);
    let plain = proxy.request("POST", "/plain", &[("content-type", "application/grpc-like")], b"");
    assert_eq!((plain.status(), plain.text()), (404, "Not Found"));
    assert!(proxy.entry_for("/plain")["grpc_status"].is_null());

    let proxy = Proxy::start(Config::to(Upstream::refusing()));
    assert_eq!(told(&call(&mut proxy.client(), "/a.B/C")), (14, "Service Unavailable (connect_failure)"));
    failed(&proxy, "/a.B/C", "UF", "connect_failure", 14);

    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&upstream, "request_timeout: 100ms"));
    assert_eq!(told(&call(&mut proxy.client(), "/a.B/C")), (4, "Gateway Timeout (response_timeout)"));
}

#[test]
fn filter_replies_have_a_grpc_status() {
    let denies = "config: {policies: [{name: p, action: deny, rules: [{}]}]}";
    let proxy = Proxy::start(Config::new().filter("access", "builtin:authz", denies));
    let response = call(&mut proxy.client(), "/a.B/C");
    assert_eq!(told(&response), (7, "access denied"));
    assert!(!format!("{response:?}").contains("matched_policy"), "the details appear in the log only");
    assert_eq!(proxy.entry_for("/a.B/C")["details"], "rbac_access_denied_matched_policy[p]");

    let fields = guest::pairs(&[("x-own", "1"), ("content-type", "text/plain")]);
    for (grpc, expected) in [(5, 5), (0, 0), (-1, 7)] {
        let filter = guest::filter(&format!(
            r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (drop (call $reply (i32.const 403) %"why" %"not 100%" %"{fields}" (i32.const {grpc})))
                (i32.const 1))"#
        ));
        let config = Config::new().filter("answers", "answers.wasm", "");
        let proxy = Proxy::start_with(config, &[("answers.wasm", &filter)]);
        let mut client = proxy.client();
        let response = call(&mut client, "/a.B/C");
        assert_eq!((told(&response), response.field("x-own")), ((expected, "not 100%25"), Some("1")));
        failed(&proxy, "/a.B/C", "LR", "why", expected);
        assert_eq!(client.get("/plain").status(), 403);
    }
}

#[test]
fn the_status_is_logged_from_head_or_trailers() {
    let upstream = Upstream::replying(|request| match request.target() {
        "/s/Head" => head_only(9),
        "/s/Whole" => whole(3),
        "/s/Http" => answer(503, &[], "overloaded"),
        _ => answer(200, &["content-type: application/grpc"], ""),
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    for (path, status, grpc_status) in
        [("/s/Head", 200, 9), ("/s/Whole", 200, 3), ("/s/Http", 503, 14), ("/s/None", 200, 2)]
    {
        assert_eq!(call(&mut client, path).status(), status, "upstream responses are unchanged");
        assert_eq!(proxy.entry_for(path).expect(status, "")["grpc_status"], grpc_status, "{path}");
    }
    client.get("/s/Head?not=grpc");
    assert!(proxy.entry_for("/s/Head?not=grpc")["grpc_status"].is_null());
}

#[test]
fn filters_can_read_the_status() {
    let code = r#"(func (export "proxy_on_log") (param i32)
        (drop (call $get_property %"response.grpc_status" (global.get $out) (global.get $out_len)))
        (if (i64.eq (i64.load (i32.load (global.get $out))) (i64.const 3))
            (then (drop (call $log (i32.const 2) %"it is three")))))"#;
    // The parts of a property's path are separated by NUL.
    let filter = guest::filter(&code.replace("response.grpc", "response\0grpc"));
    let upstream = Upstream::replying(|_| whole(3));
    let config = Config::to(&upstream).filter("asks", "asks.wasm", "");
    let proxy = Proxy::start_with(config, &[("asks.wasm", &filter)]);
    call(&mut proxy.client(), "/a.B/C");
    proxy.wait_for_output("it is three");
}

#[test]
fn configured_statuses_are_retried() {
    for (on, first, tries) in [
        ("grpc_cancelled", head_only(1), 2),
        ("grpc_deadline_exceeded", head_only(4), 2),
        ("grpc_internal", head_only(13), 2),
        ("grpc_resource_exhausted", head_only(8), 2),
        ("grpc_unavailable", head_only(14), 2),
        ("grpc_unavailable, grpc_internal", head_only(13), 2),
        ("grpc_unavailable", head_only(13), 1),
        ("grpc_internal", head_only(0), 1),
        ("5xx", head_only(14), 1),
        // By the time the trailers arrive, a part of the response has been sent to the client.
        ("grpc_unavailable", whole(14), 1),
    ] {
        let turn = AtomicUsize::new(0);
        let upstream =
            Upstream::replying(move |_| if turn.fetch_add(1, SeqCst) == 0 { first.clone() } else { head_only(0) });
        let proxy = Proxy::start(Config::to_with(&upstream, &format!("retry: {{on: [{on}], backoff: 0s}}")));
        let response = call(&mut proxy.client(), "/a.B/C");
        assert_eq!(upstream.requests().len(), tries, "{on}: {response:?}");
    }
    // For other requests it is an ordinary field.
    let upstream = Upstream::replying(|_| head_only(14));
    let proxy = Proxy::start(Config::to_with(&upstream, "retry: {on: [grpc_unavailable]}"));
    proxy.get("/");
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_route_can_configure_status_retries() {
    let turn = AtomicUsize::new(0);
    let upstream = Upstream::replying(move |_| head_only(if turn.fetch_add(1, SeqCst) == 0 { 14 } else { 0 }));
    let routes = "config: {virtual_hosts: [{name: a, domains: ['*'], routes: [
        {cluster: web, retry: {on: [grpc_unavailable], attempts: 1, backoff: 1ms}}]}]}";
    let proxy = Proxy::start(Config::new().filter("routes", "builtin:router", routes).cluster("web", &[&upstream], ""));
    assert_eq!(told(&call(&mut proxy.client(), "/a.B/C")).0, 0);
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn calls_are_counted_by_method() {
    let upstream = Upstream::replying(|request| match request.target() {
        "/shop.Cart/Add" => whole(0),
        "/shop.Cart/Drop" => head_only(5),
        _ => head_only(12),
    });
    let mut proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    for path in ["/shop.Cart/Add", "/shop.Cart/Add", "/shop.Cart/Drop", "/shop.Cart/Nothing", "/no/method/at/all"] {
        call(&mut client, path);
    }
    client.get("/shop.Cart/Add");
    let count = |proxy: &Proxy, method: &str, status: &str, least: f64| {
        let labels = [("listener", "main"), ("method", method), ("status", status)];
        proxy.wait_for_metric("tollgate_grpc_requests_total", &labels, least);
        assert_eq!(proxy.metrics().sum("tollgate_grpc_requests_total", &labels), least, "{method} {status}");
    };
    count(&proxy, "Add", "OK", 2.0);
    count(&proxy, "Drop", "NOT_FOUND", 1.0);
    count(&proxy, "other", "UNIMPLEMENTED", 2.0);
    let metrics = proxy.metrics();
    let labels = [("service", "shop.Cart"), ("method", "Add")];
    assert_eq!(metrics.sum("tollgate_grpc_request_duration_seconds_count", &labels), 2.0);
    assert_eq!(metrics.sum("tollgate_grpc_requests_total", &[]), 5.0);
    // The counters continue across reloads, and are removed with their listener.
    proxy.change_config(Config::to(&upstream).top("drain_timeout: 1s"));
    call(&mut client, "/shop.Cart/Add");
    count(&proxy, "Add", "OK", 3.0);
    proxy.change_config("listeners: [{name: another, address: '@another@'}]");
    assert_eq!(proxy.metrics().sum("tollgate_grpc_requests_total", &[]), 0.0);
}

/// An upstream that answers `/a.B/Large` with trailers of this size while a call of `/a.B/Waits` is in flight, which it
/// answers afterwards.
fn with_trailers_of(bytes: usize) -> Upstream {
    Upstream::by_h2(move |h2| {
        let mut waits = None;
        while let Ok((stream, request)) = h2.next_request() {
            if request.field(":path") == Some("/a.B/Waits") {
                waits = Some(stream);
                continue;
            }
            let value = "v".repeat(bytes);
            h2.headers(stream, &[(":status", "200"), ("content-type", "application/grpc")], false);
            h2.data(stream, b"\0\0\0\0\x01m", false);
            h2.headers(stream, &[("grpc-status", "0"), ("x-large-bin", &value)], true);
            if let Some(waits) = waits.take() {
                h2.headers(waits, &[(":status", "200"), ("grpc-status", "0")], true);
            }
        }
    })
}

/// A success must not be reported without the trailers that belong to it, and no other call may be lost.
#[test]
fn oversized_trailers_fail_only_their_call() {
    for (bytes, fits) in [(60_000, true), (66_000, false), (130_000, false), (500_000, false)] {
        let upstream = with_trailers_of(bytes);
        let proxy = Proxy::start(to_h2(&upstream));
        let mut client = proxy.h2();
        let waits = client.request("POST", "/a.B/Waits", &GRPC, true);
        let response = client.exchange("POST", "/a.B/Large", &GRPC, b"");
        let told = response.trailer("grpc-status");
        assert_eq!((response.reset.is_none(), told), (fits, fits.then_some("0")), "{bytes}");
        assert_eq!(client.response(waits).field("grpc-status"), Some("0"), "{bytes}");
        if fits {
            proxy.entry_for("/a.B/Large").expect(200, "");
            continue;
        }
        assert_eq!(response.reset, Some(code::INTERNAL_ERROR));
        let entry = failed(&proxy, "/a.B/Large", "UPE", "upstream_protocol_error", 13);
        let why = entry["upstream_failure"].as_str().unwrap_or_default();
        assert!(why.contains("trailers are longer than 65536 bytes"), "{why}");
    }
}

/// The server has executed the call: a retry could execute it twice.
#[test]
fn a_call_with_an_oversized_head_is_not_retried() {
    let upstream = Upstream::replying_by_h2(|h2, stream, _| {
        h2.headers(stream, &[(":status", "200"), ("x-large", &"v".repeat(70_000))], true);
    });
    let proxy = Proxy::start(to_h2(&upstream));
    assert_eq!(proxy.request("POST", "/long", &[], b"x").status(), 502);
    let entry = proxy.entry_for("/long").expect(502, "UPE").because("upstream_protocol_error");
    assert_eq!(entry["attempts"], 1);
    let why = entry["upstream_failure"].as_str().unwrap_or_default();
    assert!(why.contains("its head is longer than 65536 bytes"), "{why}");
}

/// The log shows what the client received, and why.
#[test]
fn a_truncated_call_is_logged_as_its_client_sees_it() {
    for (sent, passed_on, told) in [
        (code::CANCEL, code::CANCEL, 1),
        (code::ENHANCE_YOUR_CALM, code::ENHANCE_YOUR_CALM, 8),
        (code::INTERNAL_ERROR, code::INTERNAL_ERROR, 13),
        // The client might retry, as if nothing had been executed.
        (code::REFUSED_STREAM, code::INTERNAL_ERROR, 13),
    ] {
        let upstream = Upstream::replying_by_h2(move |h2, stream, _| {
            h2.headers(stream, &[(":status", "200"), ("content-type", "application/grpc")], false);
            h2.data(stream, b"\0\0\0\0\x01m", false);
            h2.reset(stream, sent);
        });
        let proxy = Proxy::start(to_h2(&upstream));
        let mut client = proxy.h2();
        assert_eq!(client.exchange("POST", "/a.B/C", &GRPC, b"").reset, Some(passed_on));
        failed(&proxy, "/a.B/C", "UC", "upstream_reset", told);
    }
}

/// When the response has begun, by the listener's timeouts.
#[test]
fn a_stalled_call_is_logged_with_its_timeout() {
    for (timeouts, flag, details) in
        [("{idle: 500ms}", "SI", "stream_idle_timeout"), ("{stream_age: 500ms}", "UT", "stream_age")]
    {
        let upstream = Upstream::replying_by_h2(|h2, stream, _| {
            h2.headers(stream, &[(":status", "200"), ("content-type", "application/grpc")], false);
        });
        let proxy = Proxy::start(to_h2(&upstream).listener(&format!("timeouts: {timeouts}")));
        let mut client = proxy.h2();
        assert_eq!(client.exchange("POST", "/a.B/C", &GRPC, b"").trailer("grpc-status"), Some("4"));
        failed(&proxy, "/a.B/C", flag, details, 4);
    }
}

/// A call with too much metadata gets a gRPC status.
#[test]
fn excessive_metadata_gets_a_grpc_status() {
    let upstream = Upstream::replying_by_h2(|h2, stream, _| {
        h2.headers(stream, &[(":status", "200"), ("grpc-status", "0")], true);
    });
    let proxy = Proxy::start(to_h2(&upstream));
    let mut client = proxy.h2();
    let mut ask = |path: &str, count: usize, value: &str| {
        let names: Vec<String> = (0..count).map(|n| format!("x-{n}")).collect();
        let mut fields = GRPC.to_vec();
        fields.extend(names.iter().map(|name| (name.as_str(), value)));
        client.exchange("POST", path, &fields, b"")
    };
    assert_eq!(ask("/a.B/Some", 120, "v").field("grpc-status"), Some("0"), "within the limit");
    for (path, count, value, details) in [
        ("/a.B/Many", 300, "v".to_owned(), "too_many_fields"),
        ("/a.B/Large", 10, "v".repeat(10_000), "head_too_large"),
    ] {
        let response = ask(path, count, &value);
        assert_eq!((response.status(), response.field("grpc-status")), (200, Some("8")), "{path}");
        let message = format!("Request Header Fields Too Large ({details})");
        assert_eq!(response.field("grpc-message"), Some(&*message));
        failed(&proxy, path, "DPE", details, 8);
    }
    assert_eq!(ask("/a.B/After", 1, "v").field("grpc-status"), Some("0"), "the connection is still usable");
}
