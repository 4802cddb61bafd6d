//! What comes before the first request: the PROXY protocol.

use crate::harness::{Config, Proxy, Upstream};

const TRUSTING: &str = "proxy_protocol: {trusted: [127.0.0.1]}";

/// Version 2, from 192.0.2.7:1000 to 192.0.2.1:80.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x03\xe8\0\x50";

#[test]
fn a_proxy_that_is_trusted_says_who_the_client_is() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener(TRUSTING));
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for (header, client) in [
        (&b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\n"[..], "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 1000 80\r\n", "2001:db8::7"),
        (V2, "192.0.2.7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (local, "127.0.0.1"),
    ] {
        let mut connection = proxy.client();
        // In two pieces, of which the first is no header yet.
        let (first, rest) = header.split_at(5);
        connection.send(first);
        connection.send(rest);
        assert_eq!(connection.get("/").status(), 200);
        let request = upstream.requests().pop().expect("a request");
        assert_eq!(request.field("x-forwarded-for"), Some(client), "{}", header.escape_ascii());
    }
}

#[test]
fn a_trusted_proxy_must_send_a_header_that_is_one() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener(TRUSTING));
    let wrong: [&[u8]; 3] =
        [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 99999\r\n", &V2[..12]];
    for (n, wrong) in wrong.into_iter().enumerate() {
        let mut connection = proxy.client();
        connection.send(wrong);
        if wrong.len() == 12 {
            connection.send(b"\x31");
        }
        assert!(connection.wire.is_closed(), "{}", wrong.escape_ascii());
        let refused = [("reason", "proxy_protocol")];
        proxy.wait_for_metric("tollgate_connections_refused_total", &refused, (n + 1) as f64);
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn who_is_not_trusted_sends_garbage() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("proxy_protocol: {trusted: [192.0.2.0/24]}"));
    assert_eq!(proxy.get("/").status(), 200);
    let mut connection = proxy.client();
    connection.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(connection.read().status(), 400);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_header_need_not_be_there_if_it_is_not_required() {
    let upstream = Upstream::saying("ok");
    let optional = "proxy_protocol: {trusted: [127.0.0.1], required: false}";
    let proxy = Proxy::start(Config::to(&upstream).listener(optional));
    assert_eq!(proxy.get("/").status(), 200);
    let mut connection = proxy.client();
    connection.send(V2);
    assert_eq!(connection.get("/").status(), 200);
    let clients: Vec<_> = upstream.requests().iter().map(|r| r.field("x-forwarded-for").map(str::to_owned)).collect();
    assert_eq!(clients, [Some("127.0.0.1".to_owned()), Some("192.0.2.7".to_owned())]);
}

/// A connection that begins with one header carries nobody else's requests, wherever they were sent to.
#[test]
fn an_endpoint_is_told_of_both_ends_of_each_client() {
    let (told, was_told) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let upstream = Upstream::scripted(move |mut connection| {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let Ok(byte) = connection.wire.read_exact(1) else { return };
            line.extend(byte);
        }
        let line = String::from_utf8(line).unwrap();
        while connection.request().is_some() {
            told.lock().unwrap().send(line.clone()).unwrap();
            connection.send(crate::harness::answer(200, &[], "ok"));
        }
    });
    let config = Config::new().top("workers: 1").listener("cluster: web").listener(TRUSTING);
    let proxy = Proxy::start(config.cluster("web", &[&upstream], "proxy_protocol: v1"));
    let header = |to: &str| format!("PROXY TCP4 192.0.2.7 {to} 1000 80\r\n");
    for to in ["192.0.2.1", "192.0.2.2", "192.0.2.1"] {
        let mut client = proxy.client();
        client.send(header(to));
        for _ in 0..2 {
            assert_eq!(client.get("/").status(), 200);
            assert_eq!(was_told.recv().unwrap(), header(to));
        }
    }
    assert_eq!(upstream.connections(), 2, "the third client is the first one again");
}
