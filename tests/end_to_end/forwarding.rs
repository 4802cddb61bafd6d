//! Forwarding: requests and responses pass the proxy as RFC 9110 and 9112 require.

use crate::harness::{Client, Config, Message, Proxy, Upstream, answer, wait_until};

#[test]
fn a_request_reaches_the_upstream_and_its_response_the_client() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let response = proxy.request("POST", "/path?query=1", &[("X-Some", "thing")], b"body");
    assert_eq!((response.status(), response.text()), (200, "hello"));
    let request = upstream.only_request();
    assert_eq!((request.method(), request.target(), request.field("host")), ("POST", "/path?query=1", Some("test")));
    assert_eq!((request.field("x-some"), request.text()), (Some("thing"), "body"));
    let entry = proxy.entry_for("/path?query=1");
    assert_eq!((&entry["status"], &entry["cluster"], &entry["attempts"]), (&200.into(), &"web".into(), &1.into()));
    assert_eq!((&entry["request_bytes"], &entry["response_bytes"]), (&4.into(), &5.into()));
    assert_eq!((&entry["endpoint"], &entry["flags"]), (&upstream.to_string().into(), &serde_json::Value::Null));
    proxy.wait_for_metric("tollgate_requests_total", &[("listener", "main"), ("class", "2xx")], 1.0);
}

#[test]
fn all_methods_pass() {
    let upstream = Upstream::replying(|request| answer(200, &[], request.method()));
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"] {
        let response = client.request(method, "/", &[], b"");
        assert_eq!((response.status(), response.text()), (200, method));
    }
    assert_eq!(client.request("OPTIONS", "*", &[], b"").status(), 200);
    assert_eq!(upstream.requests().last().unwrap().target(), "*");
    // Tunnels are not enabled.
    let refused = proxy.request("CONNECT", "other:443", &[], b"");
    assert_eq!(refused.status(), 405);
    assert_eq!(upstream.requests().len(), 9);
}

/// Both framings of a body are kept, in both directions.
#[test]
fn lengths_stay_lengths_and_chunks_stay_chunks() {
    let upstream = Upstream::replying(|request| match request.target() {
        "/chunked" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n".to_vec(),
        _ => answer(200, &[], "abcde"),
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    for target in ["/length", "/chunked"] {
        let chunked: &[(&str, &str)] = &[("Transfer-Encoding", "chunked")];
        let response = match target {
            "/chunked" => client.request("POST", target, chunked, b"4\r\nwxyz\r\n0\r\n\r\n"),
            _ => client.request("POST", target, &[], b"wxyz"),
        };
        let framing = |m: &Message| {
            let length = m.field("content-length").map(str::to_owned);
            (length, m.field("transfer-encoding").map(str::to_owned))
        };
        let request = upstream.requests().pop().unwrap();
        assert_eq!((request.text(), response.text()), ("wxyz", "abcde"));
        let chunked = target == "/chunked";
        let expected = |length: &str| ((!chunked).then(|| length.to_owned()), chunked.then(|| "chunked".to_owned()));
        assert_eq!(framing(&request), expected("4"), "{target}");
        assert_eq!(framing(&response), expected("5"), "{target}");
    }
}

#[test]
fn unannounced_trailers_reach_clients_that_accept_trailers() {
    let upstream = Upstream::replying(|_| {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-Late: 1\r\nHost: evil\r\n\r\n".into()
    });
    let proxy = Proxy::start(Config::to(&upstream));
    for (fields, expected) in [(&[("TE", "gzip, trailers")][..], 1), (&[("TE", "gzip")], 0), (&[], 0)] {
        let response = proxy.request("GET", "/", fields, b"");
        assert_eq!((response.text(), response.trailers.len()), ("ab", expected), "{fields:?}: {:?}", response.trailers);
    }
}

#[test]
fn an_unneeded_body_gets_no_100_continue() {
    let proxy = Proxy::start(Config::new());
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.read().status(), 404, "the final response comes without an interim response");
}

/// RFC 9110 section 7.6.2.
#[test]
fn max_forwards_limits_options_and_trace() {
    let upstream = Upstream::replying(|_| answer(200, &[], "upstream"));
    let proxy = Proxy::start(Config::to(&upstream));
    for (method, max, status, passed) in [
        ("OPTIONS", "0", 200, None),
        ("TRACE", "0", 501, None),
        ("OPTIONS", "1", 200, Some("0")),
        ("TRACE", "7", 200, Some("6")),
        ("GET", "0", 200, Some("0")),
        ("OPTIONS", "many", 200, Some("many")),
    ] {
        let before = upstream.requests().len();
        let response = proxy.request(method, "/", &[("Max-Forwards", max)], b"");
        assert_eq!(response.status(), status, "{method} {max}");
        let there = upstream.requests().split_off(before);
        let there: Vec<_> = there.iter().map(|request| request.field("max-forwards")).collect();
        assert_eq!(there, passed.map(Some).into_iter().collect::<Vec<_>>(), "{method} {max}");
    }
    assert_eq!(proxy.entry(|entry| entry["status"] == 501)["details"], "max_forwards");
}

#[test]
fn connections_are_reused_on_both_sides() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).top("workers: 1"));
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "ok");
    }
    assert_eq!((upstream.requests().len(), upstream.connections()), (20, 1));
}

#[test]
fn a_connection_is_closed_at_the_clients_request() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    let response = client.request("GET", "/", &[("Connection", "close")], b"");
    assert_eq!(response.field("connection"), Some("close"));
    assert!(client.wire.is_closed());
    // HTTP/1.0 has neither keep-alive nor chunks.
    let upstream = Upstream::canned("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let response = client.read();
    assert_eq!((response.text(), response.field("transfer-encoding")), ("ok", None));
    assert!(client.wire.is_closed());
}

#[test]
fn http_1_0_is_supported() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    // Without a host, which HTTP/1.0 does not have, and with keep-alive, an extension of HTTP/1.0.
    client.send("GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let response = client.read();
    assert_eq!((response.text(), response.field("connection")), ("ok", Some("keep-alive")));
    client.send("GET /old HTTP/1.0\r\nHost: test\r\n\r\n");
    assert_eq!(client.read().text(), "ok");
    assert!(client.wire.is_closed());
    let requests = upstream.requests();
    assert_eq!((requests[0].field("host"), requests[1].field("host")), (Some(&*upstream.to_string()), Some("test")));
    assert!(requests.iter().all(|request| request.start.ends_with("HTTP/1.1")));
    assert_eq!(proxy.entry_for("/old")["protocol"], "HTTP/1.0");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::replying(|request| answer(200, &[], format!("{} {}", request.target(), request.text())));
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    let mut all = String::new();
    for n in 0..50 {
        all += &match n % 3 {
            0 => format!("GET /{n} HTTP/1.1\r\nHost: test\r\n\r\n"),
            1 => format!("POST /{n} HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nGET"),
            _ => {
                format!("POST /{n} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n0\r\n\r\n")
            }
        };
    }
    client.send(all);
    for n in 0..50 {
        let body = if n % 3 == 0 { "" } else { "GET" };
        assert_eq!(client.read().text(), format!("/{n} {body}"));
    }
    assert_eq!(upstream.requests().len(), 50);
}

/// An unread body must not be parsed as the next request.
#[test]
fn an_unread_body_is_not_parsed_as_the_next_request() {
    let proxy = Proxy::start(Config::new().routes("{respond: {status: 200, body: mine}}"));
    let mut client = proxy.client();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n";
    client.send(format!("POST /1 HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()));
    client.send("GET /2 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert_eq!(client.read().text(), "mine");
    assert_eq!(client.read().text(), "mine");
    assert!(client.wire.is_closed());
    wait_until("two lines", || proxy.entries().len() == 2);
    let asked: Vec<_> = proxy.entries().iter().map(|entry| entry["path"].clone()).collect();
    assert_eq!(asked, ["/1", "/2"]);
}

#[test]
fn each_listener_has_its_own_options() {
    let (one, two) = (Upstream::saying("one"), Upstream::saying("two"));
    let config = Config::to(&one).listener("via: a").cluster("two", &[&two], "");
    let proxy = Proxy::start(config.beside("second", "cluster: two\nvia: b\nlimits: {headers: 2}"));
    let ask = |listener: &str, fields: &[(&str, &str)]| {
        Client::connect(proxy.address(listener)).request("GET", "/", fields, b"")
    };
    for (listener, said, via) in [("main", "one", "1.1 a"), ("second", "two", "1.1 b")] {
        let response = ask(listener, &[]);
        assert_eq!((response.text(), response.field("via")), (said, Some(via)));
    }
    let fields = [("X-A", "1"), ("X-B", "2")];
    assert_eq!((ask("main", &fields).status(), ask("second", &fields).status()), (200, 431));
    for (listener, count) in [("main", 2.0), ("second", 1.0)] {
        proxy.wait_for_metric("tollgate_requests_total", &[("listener", listener), ("class", "2xx")], count);
    }
}

#[test]
fn a_client_disconnect_aborts_the_upstream_request() {
    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send_request("GET", "/gone", &[], b"");
    upstream.wait_for_requests(1);
    proxy.wait_for_metric("tollgate_cluster_connections", &[("cluster", "web")], 1.0);
    drop(client);
    assert_eq!(proxy.entry_for("/gone")["flags"], "DC");
    proxy.wait_for_zero("tollgate_cluster_connections", &[("cluster", "web")]);
}
