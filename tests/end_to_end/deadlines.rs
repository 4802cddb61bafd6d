//! Deadlines of a whole stream: the client's (`grpc-timeout`), a trusted proxy's (`deadline_header`) and the listener's
//! (`stream_age`).

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use crate::{
    grpc::head_only,
    harness::{
        Config, Message, Proxy, Upstream, answer,
        exchange::{Everywhere, Request},
        in_time, wait_until,
    },
};

fn call(proxy: &Proxy, timeout: &str) -> Message {
    let fields = [("content-type", "application/grpc"), ("grpc-timeout", timeout)];
    proxy.request("POST", "/a.B/C", &fields, b"\0\0\0\0\0")
}

fn assert_exceeded(proxy: &Proxy, response: &Message, details: &str) {
    assert_eq!((response.status(), response.field("grpc-status")), (200, Some("4")), "{response:?}");
    let entry = proxy.entry_for("/a.B/C");
    assert_eq!((&entry["flags"], &entry["details"]), (&"UT".into(), &details.into()));
}

/// A call ends at its timeout without any further configuration.
#[test]
fn a_call_ends_at_its_timeout() {
    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&upstream, "request_timeout: 0s"));
    // On a busy machine it may time out before it is forwarded.
    wait_until("a call to reach the upstream", || {
        assert_exceeded(&proxy, &call(&proxy, "200m"), "grpc_deadline");
        !upstream.requests().is_empty()
    });
    assert_exceeded(&proxy, &call(&proxy, "0n"), "grpc_deadline");
}

#[test]
fn time_in_filters_counts_towards_the_deadline() {
    let upstream = Upstream::saying("too late");
    let delays = "config: {delay: {fixed: 1h, percent: 100}}";
    let proxy = Proxy::start(Config::to_with(&upstream, "").filter("delays", "builtin:fault", delays));
    let response = call(&proxy, "200m");
    assert_eq!(response.field("grpc-status"), Some("4"));
    assert_eq!(proxy.entry_for("/a.B/C")["details"], "grpc_deadline");
    assert!(upstream.requests().is_empty());
}

#[test]
fn the_clients_timeout_overrides_the_clusters_but_not_the_routes() {
    let slow = || {
        Upstream::replying(|_| {
            // Longer than the cluster and the route allow.
            std::thread::sleep(Duration::from_millis(500));
            head_only(0)
        })
    };
    let upstream = slow();
    let proxy = Proxy::start(Config::to_with(&upstream, "request_timeout: 100ms"));
    assert_eq!(call(&proxy, "60S").field("grpc-status"), Some("0"));

    let upstream = slow();
    let config = Config::to_with(&upstream, "request_timeout: 0s");
    let proxy = Proxy::start(config.routes("{cluster: web, timeout: 100ms}"));
    assert_exceeded(&proxy, &call(&proxy, "60S"), "response_timeout");

    // The client's timeout can be removed by configuration.
    let upstream = slow();
    let config = Config::to_with(&upstream, "request_timeout: 100ms");
    let proxy = Proxy::start(config.routes("{cluster: web, request_headers: {remove: [grpc-timeout]}}"));
    assert_exceeded(&proxy, &call(&proxy, "60S"), "response_timeout");
    assert_eq!(upstream.only_request().field("grpc-timeout"), None);
}

/// A client cannot prolong other requests by declaring them to be calls.
#[test]
fn only_a_post_is_a_call() {
    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&upstream, "request_timeout: 200ms").listener("grpc_web: true"));
    for (method, media_type) in
        [("GET", "application/grpc"), ("PUT", "application/grpc+proto"), ("GET", "application/grpc-web")]
    {
        let fields = [("content-type", media_type), ("grpc-timeout", "99999999H")];
        let response = proxy.request(method, "/a.B/C", &fields, b"");
        assert_eq!((response.status(), response.field("grpc-status")), (504, None), "{method} {media_type}");
        let entry = proxy.entry_for("/a.B/C");
        assert_eq!((&entry["details"], &entry["grpc_status"]), (&"response_timeout".into(), &().into()));
    }
}

#[test]
fn a_clients_timeout_is_capped() {
    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&upstream, "max_grpc_timeout: 300ms"));
    assert_exceeded(&proxy, &call(&proxy, "99999999H"), "grpc_deadline");
    assert!(left(&upstream.only_request()) <= 300_000, "the upstream receives the actual timeout");

    let upstream = Upstream::replying(|_| head_only(0));
    let told = |cluster: &str| {
        call(&Proxy::start(Config::to_with(&upstream, cluster)), "99999999H");
        upstream.requests().pop().and_then(|request| request.field("grpc-timeout").map(str::to_owned))
    };
    assert_eq!(told("max_grpc_timeout: 0s").as_deref(), Some("99999998H"));
    let by_default = told("").expect("a timeout");
    assert!(
        by_default.starts_with("3599") && by_default.ends_with('m'),
        "an hour, but for what has passed: {by_default}"
    );
}

/// The remaining time in microseconds.
fn left(request: &Message) -> u64 {
    let value = request.field("grpc-timeout").expect("a timeout");
    value.strip_suffix('u').expect("microseconds").parse().expect("a number")
}

#[test]
fn each_attempt_receives_the_remaining_time() {
    let turn = AtomicUsize::new(0);
    let upstream = Upstream::replying(move |_| head_only(if turn.fetch_add(1, SeqCst) < 2 { 14 } else { 0 }));
    let options = "retry: {on: [grpc_unavailable], attempts: 2, backoff: 1ms}";
    let proxy = Proxy::start(Config::to_with(&upstream, options));
    assert_eq!(call(&proxy, "60S").field("grpc-status"), Some("0"));
    let requests = upstream.requests();
    let told: Vec<u64> = requests.iter().map(left).collect();
    assert_eq!(told.len(), 3);
    assert!(told[0] < 60_000_000 && told[0] > told[1] && told[1] > told[2], "{told:?}");

    let upstream = Upstream::replying(|_| head_only(0));
    let proxy = Proxy::start(Config::to_with(&upstream, "retry: {on: [reset], per_try_timeout: 20s}"));
    call(&proxy, "60S");
    assert!(
        left(&upstream.only_request()) > 20_000_000,
        "an attempt is abandoned here, which would race with its upstream"
    );
}

#[test]
fn invalid_timeouts_are_forwarded_unchanged() {
    let upstream = Upstream::replying(|_| head_only(0));
    let proxy = Proxy::start(Config::to_with(&upstream, ""));
    for value in ["soon", "5", "123456789S"] {
        call(&proxy, value);
        assert_eq!(upstream.requests().last().and_then(|r| r.field("grpc-timeout")), Some(value));
    }
    proxy.request("POST", "/plain", &[("grpc-timeout", "1n")], b"");
    assert_eq!(upstream.requests().last().and_then(|r| r.field("grpc-timeout")), Some("1n"), "it is not a call");
}

/// Makes calls that exceed their deadline after the response has begun: the client's, which is a field, and the
/// listener's. Both are logged alike. `ask` returns whether the response had begun.
fn for_streams_that_take_too_long(ask: impl Fn(&Proxy, (&str, &str)) -> bool) {
    let attempt = |is_clients: bool, ms: u32| {
        let (told, age) = (format!("{ms}m"), format!("timeouts: {{stream_age: {ms}ms}}"));
        let (listener, field) = if is_clients { ("", ("grpc-timeout", &*told)) } else { (&*age, ("x-plain", "1")) };
        let upstream = Upstream::scripted(|mut connection| {
            connection.request();
            connection.send(
                "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n",
            );
            connection.wait_for_end();
        });
        let proxy = Proxy::start(Config::to_with(&upstream, "request_timeout: 0s").listener(listener));
        let has_begun = ask(&proxy, field);
        let entry = proxy.entry_for("/a.B/C");
        let logged = (&entry["status"], &entry["grpc_status"], &entry["flags"]);
        assert_eq!(logged, (&200.into(), &4.into(), &"UT".into()));
        has_begun.then_some(())
    };
    [true, false].into_iter().for_each(|is_clients| in_time(|ms| attempt(is_clients, ms)));
}

/// gRPC clients report a reset as an internal error, and trailers with their status.
#[test]
fn a_started_response_ends_with_a_grpc_status_over_http2() {
    for_streams_that_take_too_long(|proxy, field| {
        let mut client = proxy.h2();
        let stream = client.request("POST", "/a.B/C", &[("content-type", "application/grpc"), field], true);
        let response = client.response(stream);
        assert_eq!((response.status(), response.ended, response.reset), (200, true, None));
        let has_begun = response.text() == "x";
        assert!(!has_begun || response.trailer("grpc-status") == Some("4"), "{response:?}");
        has_begun
    });
}

/// The head reports success; after that, and without trailers, only a truncated body can report the failure.
#[test]
fn a_started_response_is_aborted_without_trailers() {
    for_streams_that_take_too_long(|proxy, field| {
        let mut client = proxy.client();
        let fields = [("content-type", "application/grpc"), ("connection", "close"), field];
        client.send_request("POST", "/a.B/C", &fields, b"");
        let text = String::from_utf8(client.wire.read_to_end()).expect("a text");
        let has_begun = text.contains("\r\n\r\n1\r\nx\r\n");
        assert!(text.starts_with("HTTP/1.1 200") && !(has_begun && text.ends_with("0\r\n\r\n")), "{text:?}");
        has_begun
    });
}

/// A client that keeps sending does not postpone its deadline, and is not reported as having sent nothing.
#[test]
fn an_endless_body_ends_at_the_deadline() {
    let attempt = |is_clusters: bool, reads: bool, ms: u32| {
        let (cluster, listener) = match is_clusters {
            true => (format!("request_timeout: {ms}ms"), String::new()),
            false => ("request_timeout: 0s".to_owned(), format!("timeouts: {{stream_age: {ms}ms}}")),
        };
        let upstream = Upstream::scripted(|mut connection| {
            connection.request();
            connection.send("HTTP/1.1 200 OK\r\n\r\n");
            let block = vec![b'x'; 1 << 20];
            while connection.wire.send(&block).is_ok() {}
        });
        let proxy = Proxy::start(Config::to_with(&upstream, &cluster).listener(&listener));
        let mut client = proxy.client();
        client.send_request("GET", "/endless", &[], b"");
        let mut block = vec![0; 1 << 20];
        while reads && client.wire.read_some(&mut block).is_ok_and(|read| read > 0) {}
        let entry = proxy.entry_for("/endless");
        assert_eq!(entry["flags"], "UT", "{reads} {cluster} {entry}");
        (entry["status"] == 200).then_some(())
    };
    for (is_clusters, reads) in [(true, true), (true, false), (false, true), (false, false)] {
        in_time(|ms| attempt(is_clusters, reads, ms));
    }
}

#[test]
fn a_stream_ends_at_the_stream_age() {
    let upstream = Upstream::silent();
    let proxy =
        Proxy::start(Config::to_with(&upstream, "request_timeout: 0s").listener("timeouts: {stream_age: 300ms}"));
    let response = proxy.get("/old");
    assert_eq!(response.status(), 504);
    proxy.entry_for("/old").flagged("UT").because("stream_age");
    // Also while its client is still sending.
    let mut client = proxy.client();
    client.send("POST /sending HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nbeginning");
    assert_eq!(client.read().status(), 504);
    assert_eq!(proxy.entry_for("/sending")["details"], "stream_age");
}

/// A filter waits for the body; the client must not make it wait forever.
#[test]
fn a_body_that_filters_wait_for_times_out() {
    let looks = crate::guest::filter(
        r#"(func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (i32.const 0))"#,
    );
    for (timeouts, status, details) in
        [("{stream_age: 300ms}", 504, "stream_age"), ("{idle: 300ms}", 408, "request_body_timeout")]
    {
        let upstream = Upstream::replying(|_| answer(200, &[], "ok"));
        let config =
            Config::to_with(&upstream, "").listener(&format!("timeouts: {timeouts}")).module("looks", &looks, "");
        let proxy = Proxy::start(config);
        let mut client = proxy.client();
        client.send("POST /waits HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n");
        assert_eq!(client.read().status(), status, "{timeouts}");
        assert_eq!(proxy.entry_for("/waits")["details"], details);
    }
}

/// The time that the upstream was told, in milliseconds.
fn told(request: &Message) -> Option<u64> {
    request.field("x-deadline").map(|value| value.parse().expect("a number"))
}

/// A deadline is believed from a trusted proxy only; from others, and if it is invalid, the header is removed.
#[test]
fn a_deadline_in_a_header_is_passed_on_less_the_time_used() {
    let upstream = Upstream::saying("ok");
    let config = |hops: u32| {
        Config::to_with(&upstream, "").listener(&format!("trusted_hops: {hops}\ndeadline_header: X-Deadline"))
    };
    let proxy = Everywhere::start(config(1));
    for (value, least, most) in [("60000", 50_000, 60_000), ("1000000000", 999_000_000, 1_000_000_000)] {
        proxy.each(&Request::get("/").with(&[("x-deadline", value)]), |version, outcome| {
            assert_eq!(outcome.status(), 200);
            let left = told(&upstream.take_requests()[0]).expect("a deadline");
            assert!(left >= least && left < most, "{version:?}: {left} of {value}");
        });
    }
    for invalid in ["soon", "-1", "1.5", "60000, 60000"] {
        assert_eq!(proxy.status(&Request::get("/").with(&[("x-deadline", invalid)])), 200);
        assert!(upstream.take_requests().iter().all(|request| told(request).is_none()), "{invalid}");
    }
    let untrusting = Everywhere::start(config(0));
    assert_eq!(untrusting.status(&Request::get("/").with(&[("x-deadline", "0")])), 200);
    assert!(upstream.take_requests().iter().all(|request| told(request).is_none()));
}

#[test]
fn a_request_ends_at_the_deadline_in_its_header() {
    let listener = "trusted_hops: 1\ndeadline_header: x-deadline";
    let fields = [("x-deadline", "200")];
    let silent = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&silent, "").listener(listener));
    assert_eq!(proxy.request("GET", "/a", &fields, b"").status(), 504);
    proxy.entry_for("/a").expect(504, "UT").because("request_deadline");

    // Retries do not prolong it, and each attempt is told less.
    let upstream = Upstream::replying(|_| answer(503, &[], ""));
    let options = "retry: {on: [5xx], attempts: 2, backoff: 10ms}";
    let proxy = Proxy::start(Config::to_with(&upstream, options).listener(listener));
    assert_eq!(proxy.request("GET", "/b", &[("x-deadline", "60000")], b"").status(), 503);
    let told: Vec<_> = upstream.requests().iter().map(told).collect();
    assert!(told.len() == 3 && told.is_sorted_by(|one, next| one >= next), "{told:?}");

    // After the response has begun, it is cut off.
    let upstream = Upstream::scripted(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
        connection.wait_for_end();
    });
    in_time(|millis| {
        let proxy = Proxy::start(Config::to(&upstream).listener(listener));
        let mut client = proxy.client();
        client.send_request("GET", "/c", &[("x-deadline", &millis.to_string())], b"");
        let text = client.wire.read_to_end();
        let entry = proxy.entry_for("/c");
        (entry["status"] == 200).then(|| {
            assert!(text.ends_with(b"half"), "{}", text.escape_ascii());
            entry.expect(200, "UT").because("request_deadline");
        })
    });
}

/// What filters do to the header counts.
#[test]
fn filters_can_set_the_deadline() {
    let silent = Upstream::silent();
    let config = Config::to_with(&silent, "").listener("deadline_header: x-deadline");
    let proxy = Proxy::start(config.routes("{cluster: web, request_headers: {set: {x-deadline: '200'}}}"));
    assert_eq!(proxy.get("/").status(), 504);
    proxy.entry_for("/").expect(504, "UT").because("request_deadline");
}
