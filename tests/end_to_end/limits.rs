//! Limits on what a client sends, and on how long it takes.

use std::{net::TcpStream, thread};

use crate::{
    guest::holding,
    harness::{Client, Config, Proxy, Upstream, Wire, answer, wait_for},
};

#[test]
fn an_oversized_head_gets_431() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {header_bytes: 2KiB}"));
    let long = "x".repeat(3000);
    assert_eq!(proxy.request("GET", "/", &[("X-A", &long[..1000])], b"").status(), 200);
    let mut client = proxy.client();
    client.send_request("GET", "/", &[("X-A", &long)], b"");
    let response = client.read();
    assert_eq!((response.status(), response.text()), (431, "Request Header Fields Too Large"));
    assert_eq!(response.field("content-type"), Some("text/plain"));
    assert!(client.wire.is_closed());
    assert_eq!(proxy.get(&format!("/{long}")).status(), 431, "the request line counts");
    proxy.entry(|entry| entry["status"] == 431).flagged("DPE").because("head_too_large");
    assert_eq!(upstream.requests().len(), 1);
}

/// The limit applies to each head, however many arrive together.
#[test]
fn many_pipelined_heads_do_not_exceed_the_limit() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {header_bytes: 1KiB, headers: 5}"));
    let mut client = proxy.client();
    client.send(format!("GET / HTTP/1.1\r\nHost: test\r\nX-A: {}\r\n\r\n", "x".repeat(900)).repeat(100));
    (0..100).for_each(|_| assert_eq!(client.read().status(), 200));
    // A body does not count, even if it looks like a head.
    let body = "X-A: 1\r\n".repeat(10_000);
    assert_eq!(client.request("POST", "/", &[], body.as_bytes()).status(), 200);
    assert_eq!(upstream.requests().pop().expect("a request").text(), body);
}

#[test]
fn too_many_header_fields_get_431() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {headers: 10}"));
    // `Host` counts as well.
    let fields = [("X-A", "1"); 10];
    assert_eq!(proxy.request("GET", "/", &fields[..9], b"").status(), 200);
    assert_eq!(proxy.request("GET", "/", &fields, b"").status(), 431);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn an_endless_head_gets_431_at_the_limit() {
    let proxy = Proxy::start(Config::to(Upstream::refusing()).listener("limits: {header_bytes: 8KiB}"));
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: test\r\nX-A: ");
    // The proxy need not read all of this.
    let _ = client.wire.send("x".repeat(64 << 10));
    assert_eq!(client.read().status(), 431);
}

#[test]
fn a_request_body_that_a_filter_holds_is_bounded() {
    let upstream = Upstream::saying("ok");
    let config =
        Config::to(&upstream).listener("limits: {buffered_body: 64KiB}").module("holds", &holding(&["request"]), "");
    let proxy = Proxy::start(config);
    let body = vec![b'x'; (64 << 10) + 1];
    assert_eq!(proxy.request("POST", "/small", &[], &body[1..]).status(), 200);
    assert_eq!(upstream.only_request().body.len(), 64 << 10);

    assert_eq!(proxy.request("POST", "/large", &[], &body).status(), 413);
    proxy.entry_for("/large").flagged("OM").because("request_body_too_large");
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_response_body_that_a_filter_holds_is_bounded() {
    let upstream = Upstream::replying(|request| {
        let size = if request.target() == "/small" { 64 << 10 } else { (64 << 10) + 1 };
        answer(200, &[], vec![b'x'; size])
    });
    let config =
        Config::to(&upstream).listener("limits: {buffered_body: 64KiB}").module("holds", &holding(&["response"]), "");
    let proxy = Proxy::start(config);
    let small = proxy.get("/small");
    assert_eq!((small.status(), small.body.len()), (200, 64 << 10));

    assert_eq!(proxy.get("/large").status(), 500);
    proxy.entry_for("/large").flagged("OM").because("response_body_too_large");
}

/// Opens a connection; returns it, after one request, if the proxy accepted it. A rejected one gets 503.
fn let_in(proxy: &Proxy) -> Option<Client> {
    let stream = TcpStream::connect(proxy.address("main")).expect("the system accepts connections");
    let mut wire = Wire::new(stream);
    wire.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").ok()?;
    match wire.read_response("GET").expect("an answer").status() {
        503 => {
            assert!(wire.is_closed());
            None
        }
        status => {
            assert_eq!(status, 200);
            Some(Client { wire })
        }
    }
}

#[test]
fn connections_over_the_limit_get_503() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {connections: 3}"));
    let mut inside: Vec<_> = (0..3).map(|_| let_in(&proxy).expect("there is room")).collect();
    for _ in 0..5 {
        assert!(let_in(&proxy).is_none(), "the limit applies across workers");
    }
    assert_eq!(inside[0].get("/").status(), 200, "accepted connections stay");
    inside.pop();
    inside.push(wait_for("the permit of a closed connection", || let_in(&proxy)));
    assert!(let_in(&proxy).is_none());
}

#[test]
fn a_connection_ends_at_its_request_limit() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {requests_per_connection: 3}"));
    let mut client = proxy.client();
    for expected in [None, None, Some("close")] {
        assert_eq!(client.get("/").field("connection"), expected);
    }
    assert!(client.wire.is_closed());
}

/// Closing a connection with unread bytes resets it, and a response in transit may be lost.
#[test]
fn a_connection_is_closed_without_a_reset() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {requests_per_connection: 2}"));
    let next = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    let upload = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n".to_owned();
    for (answers, sent) in [(2, next.repeat(5000)), (1, upload + &"x".repeat(1_000_000) + &next.repeat(1000))] {
        let mut client = proxy.client();
        client.send(sent);
        (0..answers).for_each(|_| assert_eq!(client.read().status(), 200));
        let end = client.wire.read_some(&mut [0; 100]);
        assert!(matches!(end, Ok(0)), "{end:?}");
    }
}

#[test]
fn a_head_that_takes_too_long_gets_408() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {header_read: 500ms}"));
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: te");
    assert_eq!(client.read().status(), 408);
    assert!(client.wire.is_closed());
    proxy.entry(|entry| entry["status"] == 408).flagged("DT").because("header_read_timeout");
    assert!(upstream.requests().is_empty());
}

/// A received byte does not restart the timeout.
#[test]
fn a_head_that_trickles_gets_408() {
    let proxy = Proxy::start(Config::to(Upstream::refusing()).listener("timeouts: {header_read: 500ms}"));
    let mut client = proxy.client();
    let mut trickle = Wire::new(client.wire.socket().try_clone().expect("a second handle"));
    let trickling = thread::spawn(move || {
        let head = "GET / HTTP/1.1\r\nX-Slow: ".bytes().chain(std::iter::repeat(b'x'));
        for byte in head {
            if trickle.send([byte]).is_err() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    assert_eq!(client.read().status(), 408);
    drop(client);
    trickling.join().expect("the proxy closes the connection");
}

#[test]
fn a_connection_without_a_request_is_closed() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {keep_alive: 2s}"));
    assert!(proxy.client().wire.is_closed(), "without any request");
    let mut client = wait_for("a connection with a request", || let_in(&proxy));
    assert!(client.wire.is_closed(), "after a request");
    let statuses: Vec<_> = proxy.entries().iter().map(|entry| entry["status"].clone()).collect();
    assert_eq!(statuses, [200], "the close is not logged");
}

#[test]
fn header_and_keep_alive_timeouts_are_independent() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {header_read: 0s, keep_alive: 1s}"));
    assert!(proxy.client().wire.is_closed());
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {header_read: 1s, keep_alive: 0s}"));
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\n");
    assert_eq!(client.read().status(), 408);
}

#[test]
fn a_missing_body_gets_408() {
    let upstream = Upstream::saying("ok");
    // The rest of the body is awaited for as long as the next request would be.
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {idle: 500ms, keep_alive: 500ms}"));
    let mut client = proxy.client();
    client.send("POST /slow HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nabc");
    assert_eq!(client.read().status(), 408);
    assert!(client.wire.is_closed(), "the rest of the body must not be read as a request");
    proxy.entry_for("/slow").flagged("DT").because("request_body_timeout");
}

#[test]
fn a_silent_upstream_gets_504() {
    let upstream = Upstream::silent();
    let config = Config::new().listener("cluster: web\ntimeouts: {idle: 500ms}");
    let proxy = Proxy::start(config.cluster("web", &[&upstream], "request_timeout: 0s"));
    assert_eq!(proxy.get("/silent").status(), 504);
    proxy.entry_for("/silent").flagged("SI").because("stream_idle_timeout");
}

/// The crate h2 would silently drop the excess fields.
#[test]
fn oversized_request_trailers_are_rejected() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {header_bytes: 16KiB}"));
    let mut client = proxy.h2();
    for (path, length, status) in [("/short", 15_000, 200), ("/long", 17_000, 400), ("/longer", 40_000, 400)] {
        let stream = client.request("POST", path, &[("trailer", "x-large")], false);
        client.data(stream, b"hello", false);
        client.headers(stream, &[("x-large", &"v".repeat(length))], true);
        assert_eq!(client.response(stream).status(), status, "{path}");
        if status == 400 {
            let entry = proxy.entry_for(path);
            assert_eq!(entry["details"], "bad_request_body", "{entry}");
            let why = entry["downstream_failure"].as_str().unwrap_or_default();
            assert!(why.contains("trailers exceed `limits.header_bytes`"), "{why}");
        }
    }
}
