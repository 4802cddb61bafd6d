//! Hosts, ports and protocols in requests and responses: handled as the standards require, or rejected.

use crate::{
    harness::{Config, Proxy, Upstream, telling},
    whole::to_h2,
};

/// HTTP/1.0 requires no host: the upstream gets the endpoint's address, as with nginx.
#[test]
fn a_request_without_a_host_gets_the_endpoints_address() {
    let (seen, saw) = telling();
    let h2 = Upstream::replying_by_h2(move |h2, stream, request| {
        seen(request);
        h2.answer(stream, 200, b"x");
    });
    let h1 = Upstream::saying("x");
    for config in [Config::to(&h1), to_h2(&h2)] {
        let proxy = Proxy::start(config);
        let mut client = proxy.client();
        client.send("GET / HTTP/1.0\r\n\r\n");
        assert_eq!(client.read().status(), 200);
    }
    let request = h1.only_request();
    assert_eq!((request.field("host"), request.field("x-forwarded-host")), (Some(&*h1.to_string()), None));
    let request = saw.recv().expect("a request");
    assert_eq!((request.field(":authority"), request.field("x-forwarded-host")), (Some(&*h2.to_string()), None));

    let proxy = Proxy::start(Config::new().routes("{redirect: {scheme: https}}"));
    let mut client = proxy.client();
    client.send("GET /x HTTP/1.0\r\n\r\n");
    assert_eq!(client.read().status(), 400, "without an endpoint there is no host");
}

#[test]
fn targets_without_a_host_or_port_are_rejected() {
    let upstream = Upstream::saying("x");
    let proxy = Proxy::start(Config::to(&upstream).listener("connect: true"));
    for (head, status) in [
        // RFC 9112 section 3.2: whatever the target contains.
        ("GET http://test/ HTTP/1.1\r\n", 400),
        ("GET http://test/ HTTP/1.1\r\nHost: test\r\n", 200),
        ("GET http://test/ HTTP/1.0\r\n", 200),
        // RFC 9110 section 9.3.6.
        ("CONNECT test HTTP/1.1\r\nHost: test\r\n", 400),
        ("CONNECT test:0 HTTP/1.1\r\nHost: test\r\n", 400),
        ("CONNECT /x HTTP/1.1\r\nHost: test\r\n", 400),
        ("CONNECT test:80 HTTP/1.1\r\nHost: test:80\r\n", 200),
    ] {
        let mut client = proxy.client();
        client.send(format!("{head}\r\n"));
        let response = client.wire.read_head().expect("a response");
        assert_eq!(response.status(), status, "{head:?}");
    }
    let mut client = proxy.h2();
    let stream = client.open(&[(":method", "CONNECT"), (":authority", "test")], false);
    assert_eq!(client.wait(stream, "a head", |message| message.status() > 0 || message.reset.is_some()).status(), 400);
}

/// The client would speak another protocol than the upstream (RFC 9110 section 7.8).
#[test]
fn an_upgrade_to_another_protocol_is_an_invalid_response() {
    for (said, status) in [("Upgrade: chat\r\n", 502), ("Upgrade: WebSocket\r\n", 101), ("", 101)] {
        let upstream =
            Upstream::canned(format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n{said}\r\n"));
        let proxy = Proxy::start(Config::to(&upstream).listener("upgrades: [websocket]"));
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
        assert_eq!(client.wire.read_head().expect("a response").status(), status, "{said:?}");
    }
}

/// With a body it is unclear where the other protocol begins, and HTTP/1.0 has no upgrades.
#[test]
fn an_impossible_upgrade_is_an_ordinary_request() {
    let upstream = Upstream::saying("x");
    let proxy = Proxy::start(Config::to(&upstream));
    for (version, fields, body) in [("1.1", "Content-Length: 5\r\n", "hello"), ("1.0", "", "")] {
        let mut client = proxy.client();
        let upgrade = "Connection: upgrade\r\nUpgrade: websocket";
        client.send(format!("GET / HTTP/{version}\r\nHost: test\r\n{upgrade}\r\n{fields}\r\n{body}"));
        assert_eq!(client.read().status(), 200);
        let request = upstream.requests().pop().expect("a request");
        assert_eq!((request.field("upgrade"), &*request.body), (None, body.as_bytes()), "{version}");
    }
}

/// RFC 9112 section 3.2.4: without a path, the request is about the server, not about `/`.
#[test]
fn options_without_a_path_becomes_asterisk() {
    let upstream = Upstream::saying("x");
    let proxy = Proxy::start(Config::to(&upstream));
    for (method, target, sent) in [
        ("OPTIONS", "http://test", "*"),
        ("OPTIONS", "*", "*"),
        ("OPTIONS", "http://test/", "/"),
        ("OPTIONS", "http://test?a", "/?a"),
        ("OPTIONS", "http://test/test", "/test"),
        ("GET", "http://test", "/"),
    ] {
        let mut client = proxy.client();
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert_eq!(client.read().status(), 200, "{method} {target}");
        let request = upstream.requests().pop().expect("a request");
        assert_eq!((request.method(), request.target()), (method, sent), "{target}");
    }
}
