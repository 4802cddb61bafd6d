//! Upstream failures: whatever an upstream does wrong, the client gets one status, the access log one flag and the
//! reason, and it is counted.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::harness::{Config, Gate, Proxy, Upstream, answer, wait_until};

/// No endpoints in the list: `options` may contain them.
const NONE: &[&str] = &[];

/// Sends one request to an endpoint with these options of its cluster, and asserts the response, the log line and the
/// metrics.
fn assert_failure(name: &str, endpoint: SocketAddr, options: &str, status: u16, flags: &str, details: &str) {
    let config = Config::to_with(endpoint, options);
    assert_failure_of(name, &Proxy::start(config), status, flags, details);
}

fn assert_failure_of(name: &str, proxy: &Proxy, status: u16, flags: &str, details: &str) {
    let response = proxy.get("/fails");
    assert_eq!(response.status(), status, "{name}");
    assert!(!response.text().contains(details), "{name}: the client must not see the reason");
    let entry = proxy.entry_for("/fails").expect(status, flags);
    assert_eq!(entry["details"], details, "{name}");
    proxy.wait_for_metric("tollgate_requests_total", &[("class", "5xx")], 1.0);
    assert_eq!(proxy.metrics().sum("tollgate_response_flags_total", &[("flag", flags)]), 1.0, "{name}");
    // Whatever the failure, its connection is not reused.
    wait_until("the upstream's connections to be closed", || {
        proxy.metrics().sum("tollgate_cluster_connections", &[]) == 0.0
    });
}

#[test]
fn a_refused_connection_gets_503() {
    assert_failure("refused", Upstream::refusing(), "", 503, "UF", "connect_failure");
    let proxy = Proxy::start(Config::to(Upstream::refusing()));
    proxy.get("/");
    assert_eq!(proxy.metrics().sum("tollgate_cluster_connect_failures_total", &[("cluster", "web")]), 1.0);
    assert_eq!(proxy.metrics().sum("tollgate_upstream_responses_total", &[("class", "none")]), 1.0);
}

/// A listener with a full accept queue, so that the system leaves further connections unanswered.
fn not_accepting() -> (Socket, Vec<TcpStream>) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket.listen(0).expect("a listener");
    let address = socket.local_addr().ok().and_then(|a| a.as_socket()).expect("an address");
    let mut waiting = Vec::new();
    // The system accepts more than the requested backlog.
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
        waiting.push(stream);
        assert!(waiting.len() < 1000, "the queue never fills up");
    }
    (socket, waiting)
}

#[test]
fn a_connect_timeout_gets_503() {
    let (socket, _waiting) = not_accepting();
    let address = socket.local_addr().ok().and_then(|a| a.as_socket()).expect("an address");
    assert_failure("timeout", address, "connect_timeout: 300ms", 503, "UF", "connect_timeout");
}

#[test]
fn a_connection_closed_before_the_response_gets_an_error() {
    let half_closed = Upstream::scripted(|mut connection| {
        connection.request();
        connection.wire.finish();
        connection.wait_for_end();
    });
    for (name, upstream) in [
        ("reset", Upstream::resetting()),
        ("closed", Upstream::canned("")),
        ("closed in the head", Upstream::canned("HTTP/1.1 200 OK\r\nContent-")),
        ("half closed", half_closed),
    ] {
        assert_failure(name, upstream.address, "", 502, "UC", "upstream_reset");
    }
}

#[test]
fn an_invalid_response_gets_502() {
    let in_chunks = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    for (name, bytes) in [
        ("garbage", "garbage\r\n\r\n".to_owned()),
        ("binary", "\x16\x03\x01\x02\x00\x01".to_owned() + &"\u{1}".repeat(100)),
        ("another protocol", "220 mail.example ESMTP\r\n".repeat(5)),
        ("an invalid status", "HTTP/1.1 99999 OK\r\n\r\n".to_owned()),
        ("a bad field", "HTTP/1.1 200 OK\r\nX A: 1\r\n\r\n".to_owned()),
        ("a head that is too long", format!("HTTP/1.1 200 OK\r\nX-A: {}\r\n\r\n", "x".repeat(100 << 10))),
        ("too many fields", format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-A: 1\r\n".repeat(200))),
        // RFC 9112, section 6.3, would allow ignoring one; if recipients ignore different ones, responses can be split.
        ("two framings", in_chunks("Content-Length: 3\r\nTransfer-Encoding: chunked")),
        // The proxy would decode an unknown encoding, and so lose it.
        ("an unknown encoding", in_chunks("Transfer-Encoding: gzip")),
        ("an unknown encoding in chunks", in_chunks("Transfer-Encoding: gzip, chunked")),
        ("what only looks like chunks", in_chunks("Transfer-Encoding: xchunked")),
    ] {
        let upstream = Upstream::canned(bytes);
        assert_failure(name, upstream.address, "", 502, "UPE", "upstream_protocol_error");
    }
}

#[test]
fn interim_responses_without_a_final_one_are_bounded() {
    for hint in ["HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let upstream = Upstream::canned(hint.repeat(32) + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(Proxy::start(Config::to(&upstream)).get("/").text(), "ok", "this many are allowed");
        let endless = Upstream::scripted(move |mut connection| {
            connection.request();
            while connection.wire.send(hint.repeat(1000)).is_ok() {}
        });
        assert_failure("storm", endless.address, "", 502, "UPE", "too_many_interim_responses");
    }
}

#[test]
fn a_response_timeout_gets_504() {
    let upstream = Upstream::silent();
    assert_failure("slow", upstream.address, "request_timeout: 300ms", 504, "UT", "response_timeout");
    let options = "request_timeout: 0s\nretry: {on: [connect_failure], per_try_timeout: 300ms}";
    assert_failure("slow try", upstream.address, options, 504, "UT", "per_try_timeout");
}

#[test]
fn a_cluster_without_endpoints_gets_503() {
    let config = |endpoints: &str| Config::new().listener("cluster: web").cluster("web", NONE, endpoints);
    for endpoints in ["", "endpoints: []"] {
        assert_failure_of(endpoints, &Proxy::start(config(endpoints)), 503, "UH", "no_endpoint");
    }
}

#[test]
fn an_unknown_cluster_is_a_configuration_error() {
    let unknown = Proxy::try_start(Config::new().listener("cluster: webb").cluster("web", NONE, ""), &[]);
    let output = unknown.err().expect("the proxy does not start");
    assert!(output.contains("webb") && output.contains("config.yaml"), "{output}");
    let config = Config::new().routes("{cluster: webb}").cluster("web", NONE, "");
    let output = Proxy::try_start(config, &[]).err().expect("the proxy does not start");
    assert!(output.contains("there is no cluster `webb`"), "{output}");
}

/// A started response cannot be replaced: the client must see that the body is truncated.
#[test]
fn a_truncated_response_is_truncated_for_the_client() {
    let length = "Content-Length: 10\r\n\r\nhello";
    let chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    // Without a length or chunks, an end of the connection ends the body, but a reset does not.
    let rows = [
        ("length", length, false, &[false, true][..]),
        ("chunks", chunked, true, &[false, true]),
        ("end", "\r\nhello", true, &[true]),
    ];
    for (name, head, chunks, resets) in rows {
        for reset in resets.iter().copied() {
            let gate = Gate::default();
            let shut = gate.clone();
            let upstream = Upstream::scripted(move |mut connection| {
                connection.request();
                connection.send(format!("HTTP/1.1 200 OK\r\n{head}"));
                // Not before the client has received this, or a reset would discard it.
                shut.wait();
                if reset {
                    connection.wire.reset();
                }
            });
            let proxy = Proxy::start(Config::to(&upstream));
            let mut client = proxy.client();
            client.send_request("GET", "/half", &[], b"");
            let response = client.wire.read_head().expect("a response");
            assert_eq!(response.status(), 200);
            let begun = if chunks { "5\r\nhello\r\n" } else { "hello" };
            assert_eq!(client.wire.read_exact(begun.len()).expect("half a body"), begun.as_bytes());
            gate.open();
            assert!(client.wire.is_closed(), "{name}: no further data, not even a last chunk");
            proxy.entry_for("/half").expect(200, "UC");
        }
    }
}

/// Without a length, only close_notify distinguishes a complete response from one truncated by an attacker on the path
/// (RFC 9112 section 9.8).
#[test]
fn a_response_without_a_length_ends_with_close_notify_under_tls() {
    let pair = rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let tls = tls.with_no_client_auth().with_single_cert(vec![pair.cert.der().clone()], key);
    let tls = Arc::new(tls.expect("a pair"));
    for notify in [true, false] {
        let tls = tls.clone();
        let upstream = Upstream::scripted(move |connection| {
            let socket = connection.wire.socket().try_clone().expect("a socket");
            let mut stream = StreamOwned::new(ServerConnection::new(tls.clone()).expect("a server"), socket);
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                request.extend(byte);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").expect("it can be sent");
            if notify {
                stream.conn.send_close_notify();
            }
            stream.flush().expect("it can be sent");
        });
        let proxy = Proxy::start(Config::to_with(&upstream, "tls: {insecure: true}"));
        let mut client = proxy.client();
        client.send_request("GET", "/cut", &[("Connection", "close")], b"");
        let all = client.wire.read_to_end();
        assert_eq!(all.ends_with(b"0\r\n\r\n"), notify, "{}", all.escape_ascii());
        let flags = if notify { Value::Null } else { "UC".into() };
        assert_eq!(proxy.entry_for("/cut")["flags"], flags, "{notify}");
    }
}

#[test]
fn an_invalid_chunk_truncates_the_response() {
    for chunk in ["zz\r\n", "-1\r\n", "5\r\nhello!", "fffffffffffffffff\r\n"] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let upstream = Upstream::canned(format!("{head}3\r\nabc\r\n{chunk}0\r\n\r\n"));
        let proxy = Proxy::start(Config::to(&upstream));
        let mut client = proxy.client();
        client.send_request("GET", "/chunk", &[], b"");
        let all = String::from_utf8(client.wire.read_to_end()).expect("text");
        assert!(all.starts_with("HTTP/1.1 200 ") && !all.ends_with("0\r\n\r\n"), "{chunk:?}: {all}");
        assert_eq!(proxy.entry_for("/chunk")["flags"], "UC", "{chunk:?}");
    }
}

#[test]
fn a_stalled_response_is_aborted_at_its_timeout() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
        connection.wait_for_end();
    });
    let config = Config::to_with(&upstream, "request_timeout: 3s");
    let proxy = Proxy::start(config);
    let mut client = proxy.client();
    client.send_request("GET", "/stalls", &[], b"");
    assert_eq!(client.wire.read_head().expect("a response").status(), 200);
    assert_eq!(client.wire.read_exact(5).expect("half a body"), b"hello");
    assert!(client.wire.is_closed());
    assert_eq!(proxy.entry_for("/stalls")["flags"], "UT");
}

#[test]
fn an_early_response_is_forwarded() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.head();
        connection.send(answer(413, &["Connection: close"], "enough"));
        connection.wire.finish();
        connection.wait_for_end();
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send("POST /early HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\nbegun");
    let response = client.read();
    assert_eq!((response.status(), response.text()), (413, "enough"));
    assert_eq!(proxy.entry_for("/early")["flags"], Value::Null);
}

/// Closing an idle connection is not an error of the upstream, even if a request is in transit.
#[test]
fn a_closed_idle_connection_fails_no_request() {
    let upstream = Upstream::scripted(|mut connection| {
        // One request per connection, without announcing that.
        if connection.request().is_some() {
            connection.send(answer(200, &[], "ok"));
        }
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    for _ in 0..50 {
        assert_eq!(client.get("/").status(), 200);
    }
    assert_eq!(upstream.requests().len(), 50);
}

#[test]
fn the_proxy_recovers_after_failures() {
    let (broken, sound) = (Upstream::resetting(), Upstream::saying("ok"));
    let routes = "
        {match: {path: {prefix: /broken}}, cluster: broken},
        {match: {path: {prefix: /refused}}, cluster: refused},
        {cluster: sound}";
    let config = Config::new()
        .routes(routes)
        .cluster("broken", &[&broken], "")
        .cluster("refused", &[Upstream::refusing()], "")
        .cluster("sound", &[&sound], "");
    let proxy = Proxy::start(config);
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.get("/broken").status(), 502);
        assert_eq!(client.get("/refused").status(), 503);
        assert_eq!(client.get("/").status(), 200);
    }
}
