//! Upstream connections are reused when that is safe, and never when something is left on them.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use crate::harness::{Config, Gate, Proxy, Upstream, answer, pki::Authority, telling, wait_until};

/// One worker, so that there is one connection pool.
fn one_pool(upstream: &Upstream, options: &str) -> Proxy {
    Proxy::start(Config::to_with(upstream, options).top("workers: 1"))
}

/// Answers the first request of each connection, and closes the connection when the second one arrives.
fn closing_on_the_second() -> Upstream {
    Upstream::scripted(|mut connection| {
        if connection.request().is_some() {
            connection.send(answer(200, &[], "ok"));
            connection.request();
        }
    })
}

/// RFC 9112, section 9.3.1: an idempotent request is retried when a reused connection closes without a response.
#[test]
fn an_idempotent_request_is_retried_when_a_reused_connection_closes() {
    let upstream = closing_on_the_second();
    let proxy = one_pool(&upstream, "");
    let mut client = proxy.client();
    assert_eq!(client.get("/1").status(), 200);
    assert_eq!(client.get("/2").status(), 200);
    let targets: Vec<_> = upstream.requests().iter().map(|r| r.target().to_owned()).collect();
    assert_eq!(targets, ["/1", "/2", "/2"]);
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn a_non_idempotent_request_is_not_retried() {
    let upstream = closing_on_the_second();
    let proxy = one_pool(&upstream, "");
    let mut client = proxy.client();
    assert_eq!(client.get("/1").status(), 200);
    assert_eq!(client.request("POST", "/2", &[], b"pay").status(), 502);
    assert_eq!(upstream.requests().len(), 2, "it arrived once");
    assert_eq!(proxy.entry_for("/2")["flags"], "UC");
}

/// Idle connections are often closed together.
#[test]
fn a_retry_uses_a_new_connection() {
    const MANY: usize = 5;
    let together = std::sync::Barrier::new(MANY);
    let upstream = Upstream::scripted(move |mut connection| {
        if let Some(request) = connection.request() {
            if request.target() == "/together" {
                together.wait();
            }
            connection.send(answer(200, &[], "ok"));
            // It is closed when the next request arrives.
            connection.request();
        }
    });
    let proxy = one_pool(&upstream, "");
    let mut clients: Vec<_> = (0..MANY).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(|client| client.send_request("GET", "/together", &[], b""));
    clients.iter_mut().for_each(|client| assert_eq!(client.read().status(), 200));
    assert_eq!(upstream.connections(), MANY);
    assert_eq!(proxy.get("/again").status(), 200);
    assert_eq!(upstream.connections(), MANY + 1);
}

/// A second retry would not be covered by that rule.
#[test]
fn a_request_is_retried_only_once() {
    let turn = AtomicUsize::new(0);
    let upstream = Upstream::scripted(move |mut connection| {
        while connection.request().is_some() {
            // Only the first request is answered.
            if turn.fetch_add(1, SeqCst) > 0 {
                return;
            }
            connection.send(answer(200, &[], "ok"));
        }
    });
    let proxy = one_pool(&upstream, "");
    let mut client = proxy.client();
    assert_eq!(client.get("/1").status(), 200);
    assert_eq!(client.get("/2").status(), 502);
    assert_eq!(upstream.requests().len(), 3);
}

/// The rest of an upload would be parsed as the next request.
#[test]
fn a_connection_with_an_unfinished_upload_is_not_reused() {
    let upstream = Upstream::scripted(|mut connection| {
        while connection.head().is_some() {
            // Immediately, without reading the body or closing the connection.
            connection.send(answer(200, &[], "early"));
        }
    });
    let proxy = one_pool(&upstream, "");
    let mut first = proxy.client();
    first.send("POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\nGET /smuggled HTTP/1.1\r\n");
    assert_eq!(first.read().text(), "early");
    assert_eq!(proxy.get("/next").text(), "early");
    let _ = first.wire.send("Host: test\r\n\r\n");
    drop(first);
    assert_eq!(proxy.get("/last").text(), "early");
    let seen: Vec<_> = upstream.requests().iter().map(|r| r.target().to_owned()).collect();
    assert_eq!((seen, upstream.connections()), (["/upload", "/next", "/last"].map(str::to_owned).into(), 2));
}

/// An incomplete body must not look complete.
#[test]
fn a_truncated_upload_is_never_complete() {
    let (ended, ends) = telling();
    let upstream = Upstream::scripted(move |mut connection| {
        // Records nothing, since the request is incomplete.
        ended(connection.request().is_some());
    });
    let proxy = one_pool(&upstream, "");
    for (name, sent) in [
        ("length", "POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\nhalf"),
        ("chunks", "POST /b HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("no last line", "POST /c HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n"),
    ] {
        let (mut client, before) = (proxy.client(), upstream.connections());
        client.send(sent);
        wait_until("the upload to begin", || upstream.connections() > before);
        drop(client);
        assert!(!ends.recv_timeout(crate::harness::DEADLINE).expect("the upstream's end"), "{name}");
    }
    assert!(upstream.requests().is_empty());
    assert_eq!(proxy.entry_for("/a")["request_bytes"], 4);
}

/// Bytes beyond a response would be taken for the response to another client's request.
#[test]
fn an_excess_response_reaches_no_client() {
    let extra = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned";
    for (name, method, body, response) in [
        ("two responses", "GET", "ok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("a body after HEAD", "HEAD", "", "HTTP/1.1 200 OK\r\nContent-Length: 59\r\n\r\n"),
        ("a body after 204", "GET", "", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("a body after 304", "GET", "", "HTTP/1.1 304 Not Modified\r\n\r\n"),
        ("two responses in chunks", "GET", "", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ] {
        let (turn, gate) = (AtomicUsize::new(0), Gate::default());
        let shut = gate.clone();
        let upstream = Upstream::scripted(move |mut connection| {
            while connection.request().is_some() {
                if turn.fetch_add(1, SeqCst) > 0 {
                    connection.send(answer(200, &[], "sound"));
                    continue;
                }
                shut.wait();
                connection.send(format!("{response}{extra}"));
            }
        });
        // With one connection, the second request waits for the first one's.
        let proxy = one_pool(&upstream, "limits: {connections: 1}");
        let (mut one, mut other) = (proxy.client(), proxy.client());
        one.send_request(method, "/", &[], b"");
        upstream.wait_for_requests(1);
        other.send_request("GET", "/", &[], b"");
        proxy.wait_for_metric("tollgate_cluster_requests_pending", &[("cluster", "web")], 1.0);
        gate.open();
        assert_eq!([one.read_for(method).text(), other.read().text()], [body, "sound"], "{name}");
        assert_eq!(proxy.get("/").text(), "sound", "{name}");
    }
}

#[test]
fn a_connection_is_closed_at_its_request_limit() {
    let upstream = Upstream::saying("ok");
    let proxy = one_pool(&upstream, "limits: {requests_per_connection: 5}");
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").status(), 200);
    }
    assert_eq!((upstream.requests().len(), upstream.connections()), (20, 4));
}

#[test]
fn an_idle_connection_is_closed_after_its_timeout() {
    let upstream = Upstream::saying("ok");
    let proxy = one_pool(&upstream, "limits: {idle_timeout: 300ms}");
    assert_eq!(proxy.get("/").status(), 200);
    proxy.wait_for_zero("tollgate_cluster_connections", &[("cluster", "web")]);
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn connections_to_removed_endpoints_are_closed() {
    let (old, new) = (Upstream::saying("old"), Upstream::saying("new"));
    let mut proxy = Proxy::start(Config::to(&old));
    assert_eq!(proxy.get("/").text(), "old");
    proxy.change_config(Config::to(&new));
    for _ in 0..10 {
        assert_eq!(proxy.get("/").text(), "new");
    }
    wait_until("only the new connections to be left", || {
        let metrics = proxy.metrics();
        let count = |name: &str| metrics.sum(name, &[("cluster", "web")]);
        count("tollgate_cluster_connections") == new.connections() as f64
    });
    assert_eq!(old.requests().len(), 1);
}

/// Files by name.
type Files<'a> = &'a [(&'a str, &'a [u8])];

/// A pooled connection was verified by the TLS options of its time. If the current options would not accept it, it must
/// not carry requests.
#[test]
fn connections_with_outdated_tls_options_are_not_reused() {
    const BASE: &str = "ca: [ca.pem], sni: web.test, certificate: {certificate: one.pem, key: one.key}";
    let (ours, others) = (Authority::with(&["web.test", "one.test", "two.test"]), Authority::with(&[]));
    let file = |authority: &Authority, name: &str| fs::read(authority.path(name)).expect("a file");
    let upstream = Upstream::replying(|_| answer(200, &[], "ok"));
    let tls = ours.tls(&["web.test"], &format!("client_certificates: request, client_ca: {}", ours.path("ca.pem")));
    let behind = Proxy::start(
        Config::to(&upstream).listener(&tls).listener("forwarded_client_cert: set\ntimeouts: {handshake: 100s}"),
    );
    let (ours_pem, others_pem) = (file(&ours, "ca.pem"), file(&others, "ca.pem"));
    let [one, two] =
        ["one.test", "two.test"].map(|name| [file(&ours, &format!("{name}.pem")), file(&ours, &format!("{name}.key"))]);
    for protocol in ["h1", "h2"] {
        // The connect timeout is long enough for the test; `more` changes it, but nothing about TLS.
        let config = |tls: &str, more: u32| {
            let cluster = format!("protocol: {protocol}\ntls: {{{tls}}}\nconnect_timeout: {}s", 100 + more);
            Config::to_with(behind.address("main"), &cluster).top("workers: 1")
        };
        let files = [("ca.pem", &ours_pem), ("others.pem", &others_pem), ("one.pem", &one[0]), ("one.key", &one[1])];
        let files = files.map(|(name, content)| (name, &content[..]));
        let mut proxy = Proxy::start_with(config(BASE, 0), &files);
        proxy.put("list.crl", ours.crl(1));
        // The change, and the name in the client certificate that the upstream then sees, if any.
        let rows: [(&str, &str, Files<'_>, Option<&str>); 8] = [
            (BASE, BASE, &[], Some("one.test")),
            (BASE, "ca: [others.pem], sni: web.test", &[], None),
            (BASE, BASE, &[("ca.pem", &others_pem)], None),
            (BASE, "ca: [ca.pem], sni: other.test", &[], None),
            (BASE, "ca: [ca.pem], sni: web.test, sans: ['spiffe://mesh/web']", &[], None),
            (BASE, "ca: [ca.pem], sni: web.test, crl: [list.crl]", &[], None),
            ("insecure: true, sni: other.test", "ca: [ca.pem], sni: other.test", &[], None),
            (BASE, BASE, &[("one.pem", &two[0]), ("one.key", &two[1])], Some("two.test")),
        ];
        for (row, (before, after, changed, seen)) in rows.into_iter().enumerate() {
            files.iter().for_each(|(name, content)| proxy.put(name, content));
            proxy.change_config(config(before, 0));
            assert_eq!(proxy.get("/before").status(), 200, "{protocol} {row}");
            let (requests, connections) =
                (upstream.requests().len(), behind.metrics().sum("tollgate_connections_total", &[]));
            changed.iter().for_each(|(name, content)| proxy.put(name, content));
            proxy.change_config(config(after, 1));
            let status = proxy.get("/after").status();
            let told = upstream.requests().split_off(requests).pop();
            let client =
                told.and_then(|told| Some(told.field("x-forwarded-client-cert")?.rsplit_once("DNS=")?.1.to_owned()));
            assert_eq!((status, client.as_deref()), (if seen.is_some() { 200 } else { 503 }, seen), "{protocol} {row}");
            let new = behind.metrics().sum("tollgate_connections_total", &[]) - connections;
            assert_eq!(new > 0.0, row > 0, "{protocol} {row}: {new} new connections");
        }
    }
}
