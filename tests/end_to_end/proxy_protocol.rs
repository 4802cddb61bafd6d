//! The PROXY protocol on both sides.

use std::{io::Write, net::TcpStream, sync::mpsc};

use crate::harness::{Config, DEADLINE, Proxy, Secure, Upstream, answer, telling};

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\n";

const TRUSTING: &str = "proxy_protocol: {trusted: [127.0.0.1]}";

/// Version 2, from 192.0.2.7:1000 to 192.0.2.1:80.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x03\xe8\0\x50";

#[test]
fn a_trusted_proxys_header_sets_the_client_address() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener(TRUSTING));
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for (header, client) in [
        (V1, "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 1000 80\r\n", "2001:db8::7"),
        (V2, "192.0.2.7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (local, "127.0.0.1"),
    ] {
        let mut connection = proxy.client();
        // In two pieces; the first one is not yet recognizable as a header.
        let (first, rest) = header.split_at(5);
        connection.send(first);
        connection.send(rest);
        assert_eq!(connection.get("/").status(), 200);
        let request = upstream.requests().pop().expect("a request");
        assert_eq!(request.field("x-forwarded-for"), Some(client), "{}", header.escape_ascii());
    }
}

#[test]
fn a_trusted_proxy_must_send_a_valid_header() {
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
fn a_header_of_an_untrusted_peer_is_not_parsed() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("proxy_protocol: {trusted: [192.0.2.0/24]}"));
    assert_eq!(proxy.get("/").status(), 200);
    let mut connection = proxy.client();
    connection.send([V1, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
    assert_eq!(connection.read().status(), 400);
    assert_eq!(upstream.requests().len(), 1);
    // A TCP listener forwards it as the client's first bytes.
    let upstream = Upstream::scripted(|mut connection| {
        let first = connection.wire.read_exact(V1.len()).unwrap_or_default();
        connection.send(first);
    });
    let proxy =
        Proxy::start(Config::to(&upstream).listener("protocol: tcp\nproxy_protocol: {trusted: [192.0.2.0/24]}"));
    let mut connection = proxy.client();
    connection.send(V1);
    assert_eq!(connection.wire.read_to_end(), V1);
}

#[test]
fn a_header_can_be_absent_if_it_is_not_required() {
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

/// Filters and the access log use the address from the header.
#[test]
fn filters_and_the_log_use_the_header_address() {
    let upstream = Upstream::saying("ok");
    let policy = "config: {policies: [{name: p, action: deny, rules: [{from: [{source: {ip_blocks: [192.0.2.7]}}]}]}]}";
    let limit = "config: {limits: [{name: l, key: [source: true], requests: 1, per: 24h}]}";
    let config = Config::to(&upstream).listener(TRUSTING).filter("access", "builtin:authz", policy);
    let proxy = Proxy::start(config.filter("limits", "builtin:ratelimit", limit));
    for (path, client, status) in
        [("/a", "192.0.2.7", 403), ("/b", "192.0.2.8", 200), ("/c", "192.0.2.8", 429), ("/d", "192.0.2.9", 200)]
    {
        let mut connection = proxy.client();
        connection.send(format!("PROXY TCP4 {client} 192.0.2.1 1000 80\r\n"));
        assert_eq!(connection.get(path).status(), status, "{path}");
        let entry = proxy.entry_for(path);
        assert_eq!((&entry["peer"], &entry["client"]), (&format!("{client}:1000").into(), &client.into()));
    }
}

/// The header precedes the handshake. From an untrusted peer it is not a header: it breaks the handshake, or, inside
/// TLS, the request.
#[test]
fn with_tls_the_header_precedes_the_handshake_of_trusted_peers() {
    let upstream = Upstream::replying(|_| answer(200, &[], ""));
    let pair = rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate");
    let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    let files = [("server.pem", certificate.as_bytes()), ("server.key", key.as_bytes())];
    const NONE: &[u8] = b"";
    for (rules, rows) in [
        (
            "trusted: [127.0.0.1]",
            &[
                (V1, Ok("192.0.2.7")),
                (V2, Ok("192.0.2.7")),
                (NONE, Err("proxy_protocol")),
                (b"PROXY TCP4 192.0.2.7\r\n", Err("proxy_protocol")),
            ][..],
        ),
        ("trusted: [127.0.0.1], required: false", &[(V2, Ok("192.0.2.7")), (NONE, Ok("127.0.0.1"))]),
        ("trusted: [192.0.2.0/24]", &[(NONE, Ok("127.0.0.1")), (V1, Err("handshake")), (V2, Err("handshake"))]),
    ] {
        let tls = "tls: {certificates: [{certificate: server.pem, key: server.key}]}";
        let listener = format!("proxy_protocol: {{{rules}}}\n{tls}");
        let proxy = Proxy::start_with(Config::to(&upstream).listener(&listener), &files);
        let connect = |header: &[u8]| {
            let mut socket = TcpStream::connect(proxy.address("main")).expect("a connection");
            socket.write_all(header).expect("it can be sent");
            Secure::over(socket, &[pair.cert.der().clone()], None)
        };
        let mut refusals = 0.0;
        for (header, expected) in rows {
            let before = upstream.requests().len();
            let status = connect(header).get("");
            match expected {
                Ok(client) => {
                    assert_eq!(status.expect("a response"), 200);
                    let told = upstream.requests().pop().expect("a request");
                    assert_eq!(told.field("x-forwarded-for"), Some(*client), "{rules} {}", header.escape_ascii());
                }
                Err(reason) => {
                    status.expect_err("no response");
                    refusals += 1.0;
                    proxy.wait_for_metric("tollgate_connections_refused_total", &[("reason", reason)], refusals);
                    assert_eq!(upstream.requests().len(), before);
                }
            }
        }
        let first = rows.iter().find_map(|(header, expected)| expected.is_ok().then_some(*header)).expect("a row");
        let mut late = connect(first);
        late.send([V1, b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"].concat()).expect("it can be sent");
        assert_eq!(late.read_exact(12).expect("a response"), b"HTTP/1.1 400", "{rules}");
    }
}

/// An upstream that responds to each request with the header of its connection.
fn reading_headers() -> (Upstream, mpsc::Receiver<String>) {
    let (told, was_told) = telling();
    let upstream = Upstream::scripted(move |mut connection| {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let Ok(byte) = connection.wire.read_exact(1) else { return };
            line.extend(byte);
        }
        let line = String::from_utf8(line).unwrap();
        while connection.request().is_some() {
            told(line.clone());
            connection.send(answer(200, &[], "ok"));
        }
    });
    (upstream, was_told)
}

/// A connection that begins with one client's header carries no other client's requests, wherever they are routed, nor
/// copies of them.
#[test]
fn the_header_to_an_endpoint_has_both_addresses_of_each_client() {
    let ((upstream, was_told), (mirror, was_copied)) = (reading_headers(), reading_headers());
    let config = Config::new().top("workers: 1").listener(TRUSTING).routes("{cluster: web, mirror: {cluster: copies}}");
    let config = config.cluster("web", &[&upstream], "proxy_protocol: v1");
    let proxy = Proxy::start(config.cluster("copies", &[&mirror], "proxy_protocol: v1"));
    let header = |ends: &str| format!("PROXY TCP4 {ends} 80\r\n");
    let clients = [
        "192.0.2.7 192.0.2.1 1000",
        "192.0.2.7 192.0.2.2 1000",
        "192.0.2.8 192.0.2.1 1000",
        "192.0.2.7 192.0.2.1 1001",
        // The first client again.
        "192.0.2.7 192.0.2.1 1000",
    ];
    for ends in clients {
        let mut client = proxy.client();
        client.send(header(ends));
        for _ in 0..2 {
            assert_eq!(client.get("/").status(), 200);
            assert_eq!(was_told.recv_timeout(DEADLINE).unwrap(), header(ends));
            assert_eq!(was_copied.recv_timeout(DEADLINE).unwrap(), header(ends));
        }
    }
    assert_eq!(upstream.connections(), clients.len() - 1);
}
