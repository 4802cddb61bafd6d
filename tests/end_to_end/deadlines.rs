//! How long a stream may take in all: by its client's word (`grpc-timeout`), and by the listener's (`stream_age`).

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use crate::{
    grpc::head_only,
    harness::{Config, Message, Proxy, Upstream, answer, in_time, wait_until},
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

/// A call that takes longer than it may ends, and nothing else of the configuration needs to say so.
#[test]
fn a_call_ends_with_its_time() {
    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&upstream, "request_timeout: 0s"));
    // On a busy machine its time may be over before it is sent on.
    wait_until("a call to reach the upstream", || {
        assert_exceeded(&proxy, &call(&proxy, "200m"), "grpc_deadline");
        !upstream.requests().is_empty()
    });
    assert_exceeded(&proxy, &call(&proxy, "0n"), "grpc_deadline");
}

#[test]
fn time_in_filters_counts() {
    let upstream = Upstream::saying("too late");
    let delays = "config: {delay: {fixed: 1h, percent: 100}}";
    let proxy = Proxy::start(Config::to_with(&upstream, "").filter("delays", "builtin:fault", delays));
    let response = call(&proxy, "200m");
    assert_eq!(response.field("grpc-status"), Some("4"));
    assert_eq!(proxy.entry_for("/a.B/C")["details"], "grpc_deadline");
    assert!(upstream.requests().is_empty());
}

#[test]
fn the_clients_time_goes_before_the_clusters_and_not_before_the_routes() {
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

    // Whoever does not believe clients takes it away.
    let upstream = slow();
    let config = Config::to_with(&upstream, "request_timeout: 100ms");
    let proxy = Proxy::start(config.routes("{cluster: web, request_headers: {remove: [grpc-timeout]}}"));
    assert_exceeded(&proxy, &call(&proxy, "60S"), "response_timeout");
    assert_eq!(upstream.only_request().field("grpc-timeout"), None);
}

/// Nobody makes a request last by saying that it is a call.
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
fn a_client_may_ask_for_so_long_and_no_longer() {
    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&upstream, "max_grpc_timeout: 300ms"));
    assert_exceeded(&proxy, &call(&proxy, "99999999H"), "grpc_deadline");
    assert!(left(&upstream.only_request()) <= 300_000, "the upstream is told the time that there is");

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

/// The time that is left, in microseconds.
fn left(request: &Message) -> u64 {
    let value = request.field("grpc-timeout").expect("a timeout");
    value.strip_suffix('u').expect("microseconds").parse().expect("a number")
}

#[test]
fn each_try_is_told_how_much_is_left() {
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
        "a try is given up here, and its upstream would race with that"
    );
}

#[test]
fn what_is_no_timeout_is_not_touched() {
    let upstream = Upstream::replying(|_| head_only(0));
    let proxy = Proxy::start(Config::to_with(&upstream, ""));
    for value in ["soon", "5", "123456789S"] {
        call(&proxy, value);
        assert_eq!(upstream.requests().last().and_then(|r| r.field("grpc-timeout")), Some(value));
    }
    proxy.request("POST", "/plain", &[("grpc-timeout", "1n")], b"");
    assert_eq!(upstream.requests().last().and_then(|r| r.field("grpc-timeout")), Some("1n"), "it is no call");
}

/// Has calls whose time is over when their responses have begun: by the client's word, which is a field, and by the listener's. Both
/// are logged alike. `ask` says whether the response had begun.
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

/// gRPC's clients take a reset for an internal error, and trailers for what they say.
#[test]
fn a_response_that_has_begun_ends_with_its_status_over_http_2() {
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

/// The head says that it goes well; after that, and without trailers, only an end before the end can say otherwise.
#[test]
fn a_response_that_has_begun_is_cut_off() {
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

/// Who always has something to send puts off no deadline, and is not said to have sent nothing.
#[test]
fn a_body_without_end_ends_with_its_time() {
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
fn a_stream_gets_only_so_old() {
    let upstream = Upstream::silent();
    let proxy =
        Proxy::start(Config::to_with(&upstream, "request_timeout: 0s").listener("timeouts: {stream_age: 300ms}"));
    let response = proxy.get("/old");
    assert_eq!(response.status(), 504);
    proxy.entry_for("/old").flagged("UT").because("stream_age");
    // Also while its client still sends.
    let mut client = proxy.client();
    client.send("POST /sending HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nbeginning");
    assert_eq!(client.read().status(), 504);
    assert_eq!(proxy.entry_for("/sending")["details"], "stream_age");
}

/// A filter that wants the body waits for it; the client may not let it wait for ever.
#[test]
fn a_body_that_filters_wait_for_has_its_bounds() {
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
