//! Single requests, valid or not according to RFC 9113 section 8.

use crate::harness::{
    Client, Config, H2, Proxy, Upstream, answer,
    frames::{PREFACE, code, encode, flag, head, kind},
};

#[test]
fn a_request_is_forwarded_as_http1() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let response = client.exchange("POST", "/path?query", &[("x-some", "thing")], b"body");
    assert_eq!((response.status(), response.text(), response.field("via")), (200, "hello", Some("1.1 tollgate")));
    let request = upstream.only_request();
    assert_eq!((request.start.as_str(), request.text()), ("POST /path?query HTTP/1.1", "body"));
    assert_eq!((request.field("host"), request.field("via")), (Some("test"), Some("2 tollgate")));
    assert_eq!(request.field("x-some"), Some("thing"));
    let entry = proxy.entry_for("/path?query").expect(200, "");
    assert_eq!((&entry["protocol"], &entry["request_bytes"]), (&"HTTP/2".into(), &4.into()));
}

/// A literal field without indexing.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0, name.len() as u8], name, &[value.len() as u8], value].concat()
}

/// Each is malformed, and ends only its own stream (RFC 9113 section 8.1.1), while another stream on the connection
/// continues. These are the cases that the table of all versions cannot express: non-text bytes, and table entries.
#[test]
fn malformed_requests_end_only_their_stream() {
    let upstream = Upstream::replying(|request| answer(200, &[], &request.body));
    let proxy = Proxy::start(Config::to(&upstream));
    let right = head("GET", "/malformed", &[]);
    let without = |name: &str| encode(&right.iter().copied().filter(|(n, _)| *n != name).collect::<Vec<_>>());
    let instead = |name: &str, value: &[u8]| [without(name), literal(name.as_bytes(), value)].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a non-text byte in a path", instead(":path", b"/\xe9")),
        ("a non-text authority", instead(":authority", b"a\xff")),
        ("a non-text scheme", instead(":scheme", b"http\xff")),
        ("a DEL in a value whose name is in the static table", [encode(&right), vec![0x0f, 4, 1, 0x7f]].concat()),
        ("a field that is kept in the table", [encode(&right), vec![0x40, 1, b'x', 1, 0x1f]].concat()),
        ("the same from the table", [encode(&right), vec![0x80 | 62]].concat()),
        ("another value that DEL is in", [encode(&right), vec![0x0f, 47, 2, b'a', 0x7f]].concat()),
    ];
    let mut client = proxy.h2();
    let other = client.request("POST", "/other", &[], false);
    let mut failures = Vec::new();
    for (what, block) in cases {
        let stream = client.next_stream();
        client.send(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &block);
        let response = client.response(stream);
        if response.reset != Some(code::PROTOCOL_ERROR) && response.status() != 400 {
            failures.push(format!("{what}: {response:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    client.data(other, b"hello", true);
    assert_eq!(client.response(other).text(), "hello");
    assert_eq!(upstream.only_request().target(), "/other");
}

/// Heads whose frames end within a field, or between two fields.
#[test]
fn a_malformed_head_in_several_frames_ends_only_its_stream() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let right = encode(&head("GET", "/malformed", &[]));
    for bad in [
        literal(b"x-a", b"a\x1f"),
        literal(b":path", b"/other"),
        literal(b"connection", b"close"),
        literal(b"x-a", b" "),
        literal(b"X", b""),
    ] {
        let last = literal(b"x-last", b"1");
        let block = [&right[..], &bad, &last].concat();
        for cut in right.len()..=block.len() {
            let stream = client.next_stream();
            client.send(kind::HEADERS, flag::END_STREAM, stream, &block[..cut]);
            client.send(kind::CONTINUATION, flag::END_HEADERS, stream, &block[cut..]);
            let response = client.response(stream);
            assert_eq!(response.reset, Some(code::PROTOCOL_ERROR), "cut at {cut} of {block:?}: {response:?}");
        }
    }
    assert_eq!(client.get("/").text(), "hello");
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_host_that_contradicts_the_authority_is_rejected() {
    let upstream = Upstream::saying("");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    assert_eq!(client.exchange("GET", "/other", &[("host", "other")], b"").status(), 400);
    proxy.entry_for("/other").expect(400, "DPE").because("bad_host");
    assert_eq!(client.exchange("GET", "/", &[("host", "test")], b"").status(), 200);
    // Without an authority, `Host` replaces it (RFC 9113 section 8.3.1).
    let stream = client.open(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "only")], true);
    assert_eq!(client.response(stream).status(), 200);
    let stream = client.open(&[(":method", "GET"), (":scheme", "http"), (":path", "/none")], true);
    assert_eq!(client.response(stream).status(), 400);
    let hosts: Vec<_> = upstream.requests().iter().map(|r| r.field("host").unwrap().to_owned()).collect();
    assert_eq!(hosts, ["test", "only"]);
}

/// RFC 9113 section 8.1.1: the declared and the actual length must be equal.
#[test]
fn a_body_with_a_wrong_length_is_not_completed_upstream() {
    let upstream = Upstream::saying("");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let cases: &[(&[&str], &str)] = &[
        (&["3"], "four"),
        (&["5"], "four"),
        (&["5"], ""),
        (&["4", "5"], "body"),
        (&["4", "4"], "body"),
        (&["4", "x"], "body"),
        (&["-4", "4"], "body"),
        (&["4, 5", "4"], "body"),
    ];
    for (lengths, body) in cases {
        let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
        let response = client.exchange("POST", "/", &fields, body.as_bytes());
        assert_eq!((response.status(), response.reset), (0, Some(code::PROTOCOL_ERROR)), "{lengths:?}: {response:?}");
    }
    assert_eq!(client.get("/after").status(), 200, "the connection can be reused");
    assert_eq!(upstream.only_request().target(), "/after");
}

#[test]
fn an_upgrade_to_http2_is_ignored() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    for version in ["1.0", "1.1"] {
        let mut client = Client::connect(proxy.address("main"));
        client.send(format!(
            "GET / HTTP/{version}\r\nHost: test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        ));
        let response = client.read();
        assert_eq!((response.status(), response.text()), (200, "hello"));
    }
    for request in upstream.requests() {
        assert_eq!((request.field("upgrade"), request.field("http2-settings")), (None, None));
    }
}

#[test]
fn garbage_is_answered_in_the_version_it_resembles() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    // It resembles HTTP/2 up to its 18th byte.
    let mut client = Client::connect(proxy.address("main"));
    client.send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
    assert_eq!(client.read().status(), 400);
    assert!(client.wire.is_closed());
    // A valid preface followed by garbage.
    let mut client = H2::connect(proxy.address("main"));
    client.ping();
    client.raw(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(4));
    assert_eq!(client.read_to_end().expect("a GOAWAY").code(), code::FRAME_SIZE_ERROR);
    proxy.refused_one("http2");
    // The first frame is not SETTINGS.
    let mut client = H2::connect_with(proxy.address("main"), &[]);
    client.send(kind::DATA, flag::END_STREAM, 1, b"x");
    assert_eq!(client.read_to_end().expect("a GOAWAY").code(), code::PROTOCOL_ERROR);
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_listener_of_one_version_does_not_speak_the_other() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream).listener("protocol: http2"));
    assert_eq!(proxy.h2().get("/").status(), 200);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let said = client.wire.read_to_end();
    // Its SETTINGS, and no response.
    assert_eq!((said[3], said.len()), (kind::SETTINGS, 9 + usize::from(said[2])), "{}", said.escape_ascii());
    let proxy = Proxy::start(Config::to(&upstream).listener("protocol: http1"));
    assert_eq!(proxy.get("/").status(), 200);
    let mut client = proxy.client();
    client.send(PREFACE);
    assert_eq!(client.read().status(), 400);
    assert!(client.wire.is_closed());
    assert_eq!(upstream.requests().len(), 2);
}
