//! Slow uploads: clients that send a request's body slowly, or not at all, do not block others. They wait where waiting
//! is cheap, use only a share of the connections, and must keep a minimum rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::sleep,
    time::Duration,
};

use crate::{
    grpc::GRPC,
    guest,
    harness::{Client, Config, DEADLINE, Proxy, Upstream, answer, frames::code, in_time, turnstile, wait_until},
};

/// More than the proxy reads ahead of a body.
const LONG: usize = 1 << 20;

/// One worker, because each worker may always have one connection.
fn to(upstream: &Upstream, limits: &str) -> Config {
    Config::to_with(upstream, &format!("limits: {{{limits}}}")).top("workers: 1").listener("trusted_hops: 1")
}

fn reading() -> Upstream {
    Upstream::reading(|_| {})
}

/// A client that starts to send a body, and then stops.
fn upload(proxy: &Proxy, path: &str, from: &str, length: usize) -> Client {
    let mut client = proxy.client();
    client.send(format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: {from}\r\nContent-Length: {length}\r\n\r\nx"
    ));
    client
}

fn uploads(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("tollgate_cluster_uploads", &[("cluster", "web")])
}

fn assert_refused(proxy: &Proxy, client: &mut Client, path: &str, details: &str) {
    assert_eq!(client.read().status(), 503);
    proxy.entry_for(path).expect(503, "UO").because(details);
}

#[test]
fn requests_without_a_body_never_wait_behind_uploads() {
    let upstream = reading();
    let proxy = Proxy::start(to(&upstream, "connections: 4, uploads_per_client: 100"));
    let mut held: Vec<_> = (0..3).map(|n| upload(&proxy, &format!("/{n}"), "192.0.2.1", LONG)).collect();
    upstream.wait_for_requests(3);
    for n in 3..6 {
        let path = format!("/{n}");
        assert_refused(&proxy, &mut upload(&proxy, &path, "192.0.2.1", LONG), &path, "uploads_overflow");
    }
    let mut client = proxy.client();
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "0");
        assert_eq!(
            client.request("POST", "/short", &[], b"short").text(),
            "5",
            "a body that has arrived is not an upload"
        );
    }
    assert_eq!(proxy.metrics().sum("tollgate_cluster_upload_overflows_total", &[("cluster", "web")]), 3.0);
    // A finished upload frees its permit.
    held[0].send(vec![b'x'; LONG - 1]);
    assert_eq!(held[0].read().text(), LONG.to_string());
    wait_until("its permit to be free", || uploads(&proxy) == 2.0);
    let mut next = upload(&proxy, "/next", "192.0.2.1", LONG);
    wait_until("the next upload to get it", || uploads(&proxy) == 3.0);
    next.send(vec![b'x'; LONG - 1]);
    assert_eq!(next.read().text(), LONG.to_string());
    drop((held, next));
    wait_until("the aborted uploads to be gone", || uploads(&proxy) == 0.0);
}

/// Also when no connection is free: complete requests go before incomplete ones.
#[test]
fn uploads_wait_behind_complete_requests() {
    let (go, wait) = turnstile();
    let upstream = Upstream::reading(move |request| {
        if request.method() == "GET" {
            wait();
        }
    });
    let proxy = Proxy::start(to(&upstream, "connections: 1, pending: 4"));
    let pending = || proxy.metrics().sum("tollgate_cluster_requests_pending", &[("cluster", "web")]);
    let mut first = proxy.client();
    first.send_request("GET", "/first", &[], b"");
    upstream.wait_for_requests(1);
    let mut slow = upload(&proxy, "/upload", "192.0.2.1", LONG);
    wait_until("the upload to wait", || pending() == 1.0);
    let mut second = proxy.client();
    second.send_request("GET", "/second", &[], b"");
    wait_until("both to wait", || pending() == 2.0);
    (0..2).for_each(|_| go.send(()).expect("the upstream is running"));
    assert_eq!((first.read().status(), second.read().status()), (200, 200));
    slow.send(vec![b'x'; LONG - 1]);
    assert_eq!(slow.read().status(), 200);
    let order: Vec<_> = upstream.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(order, ["/first", "/second", "/upload"]);
}

#[test]
fn a_client_is_limited_to_its_share_of_uploads() {
    let upstream = reading();
    let proxy = Proxy::start(to(&upstream, "connections: 8"));
    let _held = [("/1", "192.0.2.1"), ("/2", "192.0.2.1"), ("/3", "2001:db8::1"), ("/4", "2001:db8::2:1")]
        .map(|(path, from)| upload(&proxy, path, from, LONG));
    upstream.wait_for_requests(4);
    for (path, from) in [("/5", "192.0.2.1"), ("/6", "2001:db8:0:0:ffff::9")] {
        assert_refused(&proxy, &mut upload(&proxy, path, from, LONG), path, "client_uploads_overflow");
        // The share applies only to uploads.
        assert_eq!(proxy.request("GET", "/", &[("X-Forwarded-For", from)], b"").status(), 200);
    }
    let mut others = ["192.0.2.2", "2001:db8:0:1::1"].map(|from| upload(&proxy, "/others", from, LONG));
    wait_until("the other uploads to be accepted", || uploads(&proxy) == 6.0);
    for other in &mut others {
        other.send(vec![b'x'; LONG - 1]);
        assert_eq!(other.read().status(), 200);
    }
}

/// An upstream that accepts upgrades, and reads the bodies of other requests.
fn switching() -> Upstream {
    Upstream::scripted(|mut connection| {
        while let Some(mut request) = connection.head() {
            if request.field("upgrade").is_some() {
                connection
                    .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n");
                return connection.wait_for_end();
            }
            if connection.wire.read_body(&mut request, false).is_err() {
                return;
            }
            connection.send(answer(200, &[], "ok"));
        }
    })
}

/// HTTP/2 streams count per client, over all its connections; so do calls and tunnels.
#[test]
fn streams_and_tunnels_count_for_their_client() {
    let upstream = switching();
    let proxy = Proxy::start(Config::to_with(&upstream, "limits: {connections: 12}"));
    let mut client = proxy.h2();
    client.begin("/a.B/C", &GRPC, b"\0\0\0\0\0");
    client.begin("/stream", &[], b"x");
    let mut tunnel = proxy.client();
    tunnel.send("GET /chat HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(tunnel.read().status(), 101);
    upstream.wait_for_requests(3);
    let over = client.begin("/over", &[], b"x");
    assert_eq!(client.response(over).status(), 503);
    proxy.entry_for("/over").expect(503, "UO").because("client_uploads_overflow");
    drop(tunnel);
    proxy.entry(|entry| entry["status"] == 101);
    client.begin("/next", &[], b"x");
    wait_until("the tunnel's permit to be taken", || uploads(&proxy) == 3.0);
}

/// A tunnel occupies a connection like an upload, from however many addresses.
#[test]
fn tunnels_are_limited_like_uploads() {
    let upstream = switching();
    let proxy = Proxy::start(to(&upstream, "connections: 8"));
    let tunnel = |path: &str, from: u32| {
        let mut client = proxy.client();
        client.send(format!(
            "GET {path} HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 192.0.2.{from}\r\nConnection: upgrade\r\n\
             Upgrade: websocket\r\n\r\n"
        ));
        client
    };
    let mut held: Vec<_> = (0..5).map(|n| tunnel("/chat", n / 2)).collect();
    for tunnel in &mut held {
        assert_eq!(tunnel.read().status(), 101);
    }
    let _upload = upload(&proxy, "/upload", "192.0.2.3", LONG);
    wait_until("the upload to get the last permit", || uploads(&proxy) == 6.0);
    assert_refused(&proxy, &mut tunnel("/over", 4), "/over", "uploads_overflow");
    assert_refused(&proxy, &mut upload(&proxy, "/upload-over", "192.0.2.4", LONG), "/upload-over", "uploads_overflow");
    assert_eq!(proxy.get("/").status(), 200, "a complete request gets a connection");
    held.pop();
    wait_until("the tunnel's permit to be free", || uploads(&proxy) == 5.0);
    assert_eq!(tunnel("/next", 4).read().status(), 101);
}

#[test]
fn a_short_body_is_read_before_an_upstream_is_chosen() {
    let upstream = reading();
    let proxy = Proxy::start(to(&upstream, "connections: 1"));
    let mut slow: Vec<_> = (0..20).map(|_| upload(&proxy, "/slow", "192.0.2.1", 10)).collect();
    assert_eq!(proxy.get("/").status(), 200);
    proxy.wait_for_metric("tollgate_requests_active", &[("listener", "main")], 20.0);
    assert_eq!((upstream.requests().len(), uploads(&proxy)), (1, 0.0), "none of them was forwarded");
    for client in &mut slow {
        client.send("123456789");
        assert_eq!(client.read().text(), "10");
    }
    // Over HTTP/2, with a length and without one.
    let mut client = proxy.h2();
    let stream = client.begin("/length", &[("content-length", "10")], b"x");
    proxy.wait_for_metric("tollgate_requests_active", &[("listener", "main")], 1.0);
    assert_eq!(upstream.requests().len(), 21);
    client.data(stream, b"123456789", true);
    assert_eq!(client.response(stream).text(), "10");
    assert_eq!(client.exchange("POST", "/unknown", &[], b"0123456789").text(), "10");
    // Trailers are included.
    let chunked = [("Transfer-Encoding", "chunked"), ("Trailer", "X-Sum")];
    assert_eq!(proxy.request("POST", "/", &chunked, b"3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n").status(), 200);
}

/// Over HTTP/1.1 a body with a length has no trailers.
#[test]
fn trailers_read_ahead_are_not_lost() {
    let looks =
        guest::filter(r#"(func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (i32.const 0))"#);
    let upstream = Upstream::saying("ok");
    let config = to(&upstream, "connections: 4").filter("looks", "looks.wasm", "");
    let proxy = Proxy::start_with(config, &[("looks.wasm", &looks)]);
    let mut client = proxy.h2();
    let stream = client.begin("/", &[("content-length", "3"), ("trailer", "x-sum")], b"abc");
    client.headers(stream, &[("x-sum", "7")], true);
    assert_eq!(client.response(stream).status(), 200);
    let request = upstream.only_request();
    assert_eq!((request.text(), &request.trailers[..]), ("abc", &[("x-sum".to_owned(), "7".to_owned())][..]));
}

/// A client that waits for a response before it has sent everything gets it.
#[test]
fn a_body_of_unknown_length_is_forwarded_before_its_end() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.head();
        assert_eq!(connection.wire.read_exact(8).expect("a chunk"), b"3\r\nabc\r\n");
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nABC\r\n");
        assert_eq!(connection.wire.read_exact(13).expect("the rest"), b"3\r\ndef\r\n0\r\n\r\n");
        connection.send("3\r\nDEF\r\n0\r\n\r\n");
    });
    // From then on its rate does not count either.
    let listener = "limits: {body_rate: 1MiB}\ntimeouts: {body_grace: 1s}";
    let proxy = Proxy::start(to(&upstream, "connections: 4").listener(listener));
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    assert_eq!(client.wire.read_head().expect("a response").status(), 200);
    assert_eq!(client.wire.read_exact(8).expect("a part of it"), b"3\r\nABC\r\n");
    // Longer than its grace period.
    sleep(Duration::from_secs(2));
    client.send("3\r\ndef\r\n0\r\n\r\n");
    assert_eq!(client.wire.read_exact(13).expect("the rest of it"), b"3\r\nDEF\r\n0\r\n\r\n");
}

/// Whether an upstream was chosen already or not.
#[test]
fn a_body_below_the_minimum_rate_gets_408() {
    let upstream = reading();
    // The rest of the body is awaited for as long as the next request would be.
    let options = "limits: {body_rate: 1000}\ntimeouts: {body_grace: 500ms, keep_alive: 500ms}";
    let config = to(&upstream, "connections: 8").listener(options);
    let proxy = Proxy::start(config);
    for (path, length) in [("/short", 100), ("/long", LONG)] {
        let mut client = upload(&proxy, path, "192.0.2.1", length);
        assert_eq!(client.read().status(), 408);
        assert!(client.wire.is_closed());
        proxy.entry_for(path).expect(408, "DT").because("request_body_too_slow");
    }
    let mut client = proxy.h2();
    for path in ["/a", "/b"] {
        let stream = client.begin(path, &[], b"x");
        assert_eq!(client.response(stream).status(), 408);
        proxy.entry_for(path).expect(408, "DT").because("request_body_too_slow");
    }
    proxy.wait_for_zero("tollgate_cluster_requests_active", &[("cluster", "web")]);
}

/// An upload at a sufficient rate may take any time, and the upstream's pace does not count against its client.
#[test]
fn a_body_at_the_minimum_rate_succeeds() {
    in_time(|ms| {
        let grace = Duration::from_millis(ms.into());
        let upstream = Upstream::reading(move |request| {
            if request.target() == "/slowly-read" {
                sleep(grace * 2);
            }
        });
        let rate = 4_000_000 / ms; // A tenth of the client's rate.
        let options = format!("limits: {{body_rate: {rate}}}\ntimeouts: {{body_grace: {ms}ms}}");
        let proxy = Proxy::start(to(&upstream, "connections: 8").listener(&options));
        let mut client = upload(&proxy, "/slow", "192.0.2.1", 80_001);
        // Twice as long as the grace period.
        for _ in 0..40 {
            sleep(grace / 20);
            client.wire.send([b'x'; 2000]).ok()?;
        }
        let large = 32 << 20;
        let is_whole = client.wire.read_response("POST").ok()?.text() == "80001";
        let slowly_read = || proxy.request("POST", "/slowly-read", &[], &vec![b'x'; large]).text() == large.to_string();
        (is_whole && slowly_read()).then_some(())
    });
}

/// If the upstream does not read other requests on the same connection, a client has no window, and cannot send.
#[test]
fn a_body_without_a_window_is_not_too_slow() {
    let is_full = Arc::new(AtomicBool::new(false));
    let full = is_full.clone();
    let upstream = Upstream::by_h2(move |h2| {
        h2.generous = false;
        let Ok((held, _)) = h2.next_head() else { return };
        h2.wait(held, "all that it has a window for", |m| m.body.len() == 65_535);
        full.store(true, Ordering::SeqCst);
        while let Ok((stream, request)) = h2.next_request() {
            let length = request.body.len().to_string();
            h2.answer(stream, 200, length.as_bytes());
        }
    });
    // Updates of the two windows are sent at different times: the stream's must not be the one that is exhausted.
    let listener = "limits: {body_rate: 1000}\ntimeouts: {body_grace: 500ms}\n\
                    http2: {stream_window: 256KiB, connection_window: 128KiB}";
    let proxy = Proxy::start(Config::to_with(&upstream, "protocol: h2").listener(listener));
    let mut client = proxy.h2();
    client.ping();
    // The upstream gives it no window, so the rest is buffered in the proxy.
    let held = client.request("POST", "/held", &[], false);
    let body = vec![b'x'; LONG];
    let mut quiet = 0;
    while quiet < 5 {
        match client.data_within(held, &body) {
            0 => {
                quiet += usize::from(is_full.load(Ordering::SeqCst));
                sleep(Duration::from_millis(50));
                client.ping();
            }
            _ => quiet = 0,
        }
    }
    assert_eq!(client.window_of(held), 0);
    let stream = client.request("POST", "/short", &[("content-length", "10")], false);
    let idle = client.request("POST", "/idle", &[("content-length", "10")], false);
    // Longer than their grace period.
    sleep(Duration::from_secs(2));
    client.ping();
    assert!(client.so_far(stream).blocks.is_empty(), "{:?}", client.so_far(stream));
    client.reset(held, code::CANCEL);
    while client.window_of(stream) < 10 {
        client.read().expect("a window");
    }
    client.data(stream, b"0123456789", true);
    assert_eq!(client.response(stream).text(), "10");
    // Now it can send.
    assert_eq!(client.response(idle).status(), 408);
    proxy.entry_for("/idle").expect(408, "DT").because("request_body_too_slow");
}

#[test]
fn a_grpc_call_is_exempt_from_the_minimum_rate() {
    let upstream = Upstream::replying_by_h2(|h2, stream, _| {
        h2.headers(stream, &[(":status", "200"), ("grpc-status", "0")], true);
    });
    let config = Config::to_with(&upstream, "protocol: h2");
    let proxy = Proxy::start(config.listener("limits: {body_rate: 1MiB}\ntimeouts: {body_grace: 100ms}"));
    let mut client = proxy.h2();
    let stream = client.begin("/a.B/C", &GRPC, b"\0\0\0\0\0");
    // Longer than its grace period.
    sleep(Duration::from_secs(1));
    client.data(stream, b"\0\0\0\0\0", true);
    assert_eq!(client.response(stream).field("grpc-status"), Some("0"));
}

/// Without HTTP/2 there is no gRPC, whatever a client declares.
#[test]
fn a_call_to_a_cluster_without_http2_has_a_minimum_rate() {
    let upstream = reading();
    let config = to(&upstream, "connections: 8").listener("limits: {body_rate: 1000}\ntimeouts: {body_grace: 500ms}");
    let proxy = Proxy::start(config);
    let mut client = proxy.client();
    client.send(
        "POST /a.B/C HTTP/1.1\r\nHost: test\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
    );
    assert_eq!(client.read().field("grpc-status"), Some("4"));
    proxy.entry_for("/a.B/C").expect(200, "DT").because("request_body_too_slow");
}

#[test]
fn the_request_body_limit_is_enforced() {
    let upstream = reading();
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {request_body: 1000}"));
    let over = |path: &str| _ = proxy.entry_for(path).expect(413, "OM").because("request_body_limit");
    assert_eq!(proxy.request("POST", "/", &[], &[b'x'; 1000]).text(), "1000");
    assert_eq!(proxy.request("POST", "/declared", &[], &[b'x'; 1001]).status(), 413);
    over("/declared");
    // The body is not even requested.
    let mut client = proxy.client();
    client.send("POST /expects HTTP/1.1\r\nHost: test\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.read().status(), 413);
    over("/expects");
    let chunks = |count: usize| [b"64\r\n".as_slice(), &[b'x'; 100], b"\r\n"].concat().repeat(count);
    let chunked = [("Transfer-Encoding", "chunked")];
    assert_eq!(proxy.request("POST", "/", &chunked, &[&chunks(10)[..], b"0\r\n\r\n"].concat()).text(), "1000");
    assert_eq!(proxy.request("POST", "/chunks", &chunked, &chunks(11)).status(), 413);
    over("/chunks");
    let mut client = proxy.h2();
    for (path, fields) in [("/h2", &[("content-length", "1001")][..]), ("/h2-unknown", &[])] {
        assert_eq!(client.exchange("POST", path, fields, &[b'x'; 1001]).status(), 413);
        over(path);
    }
    assert_eq!(client.get("/").text(), "0", "the connection is still usable");
    assert!(upstream.requests().iter().all(|request| !request.target().starts_with("/h2")));
}

/// A body of unknown length is aborted at the limit, and the upstream never takes it for complete.
#[test]
fn an_oversized_body_of_unknown_length_is_aborted() {
    let (ended, ends) = mpsc::channel();
    let upstream = Upstream::scripted(move |mut connection| {
        ended.send(connection.request().is_some()).expect("the test waits");
    });
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {request_body: 1MiB}"));
    let mut client = proxy.client();
    client.send("POST /long HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 1 << 16], b"\r\n"].concat();
    // The proxy need not read all of this.
    let _ = (0..17).all(|_| client.wire.send(&chunk).is_ok());
    assert_eq!(client.read().status(), 413);
    assert!(!ends.recv_timeout(DEADLINE).expect("the upstream's end"));
    proxy.entry_for("/long").expect(413, "OM").because("request_body_limit");
}
