//! Clients that do not read their responses keep no more than their share of an upstream's connections once others need
//! them; slow readers get everything.

use std::{
    io::Read,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::harness::{
    Client, Config, H2, Proxy, Upstream, answer,
    frames::{code, setting},
    wait_until,
};

const MIB: usize = 1 << 20;

/// More than all buffers on the path can hold.
const LONG: usize = 256 * MIB;

/// Answers `/long` without end, `/slow` with as much as the slow reader wants, and other paths immediately.
fn upstream() -> Upstream {
    Upstream::scripted(|mut connection| {
        while let Some(request) = connection.request() {
            let length = match request.target() {
                "/long" => LONG,
                "/slow" => 8 * MIB,
                _ => {
                    connection.send(answer(200, &[], "hello"));
                    continue;
                }
            };
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
            let block = vec![b'x'; MIB];
            if !(0..length / MIB).all(|_| connection.wire.send(&block).is_ok()) {
                return;
            }
        }
    })
}

fn to(upstream: &Upstream, top: &str, cluster: &str) -> Config {
    Config::to_with(upstream, &format!("request_timeout: 0s\n{cluster}")).top(top).listener("trusted_hops: 1")
}

/// An HTTP/2 client that sends many requests and reads nothing.
fn unread(proxy: &Proxy, from: &str, count: usize) -> (H2, Vec<u32>) {
    let mut client = H2::connect_with(proxy.address("main"), &[(setting::INITIAL_WINDOW_SIZE, 0)]);
    client.generous = false;
    let streams = (0..count).map(|_| client.request("GET", "/long", &[("x-forwarded-for", from)], true)).collect();
    (client, streams)
}

/// The same over HTTP/1.1.
fn unread_1(proxy: &Proxy, from: &str) -> Client {
    let mut client = proxy.client();
    client.send_request("GET", "/long", &[("X-Forwarded-For", from)], b"");
    client
}

/// Sends many requests, reads nothing, and immediately repeats every request that is aborted.
fn insist(proxy: &Proxy, from: &str, count: usize, over: &AtomicBool) {
    let (mut client, mut streams) = unread(proxy, from, count);
    client.window(0, 1 << 24);
    // Ends even if the test has failed.
    for _ in 0..1000 {
        client.ping();
        for stream in &mut streams {
            let seen = client.so_far(*stream);
            let refused = seen.head().is_some() && seen.status() != 200;
            if refused && !seen.ended {
                client.window(*stream, 1 << 16);
            }
            if refused || seen.reset.is_some() {
                *stream = client.request("GET", "/long", &[("x-forwarded-for", from)], true);
            }
        }
        if over.load(Relaxed) {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A client that pauses for longer than a client with more permits would be allowed to, and then reads everything.
/// Returns the number of bytes.
fn reads_slowly(proxy: &Proxy) -> usize {
    let mut client = proxy.client();
    client.send_request("GET", "/slow", &[("X-Forwarded-For", "192.0.2.200")], b"");
    thread::sleep(Duration::from_secs(4));
    let mut all = 0;
    let mut part = vec![0; MIB / 4];
    let head = client.wire.read_head().expect("a head");
    assert_eq!(head.status(), 200);
    while all < 8 * MIB {
        let read = client.wire.read_some(&mut part).expect("the rest of it");
        assert!(read > 0, "it was aborted after {all}");
        all += read;
        thread::sleep(Duration::from_millis(20));
    }
    all
}

fn of_cluster(proxy: &Proxy, name: &str) -> f64 {
    proxy.metrics().sum(&format!("tollgate_cluster_{name}"), &[("cluster", "web")])
}

fn others_are_answered(proxy: &Proxy, count: usize) {
    let mut client = proxy.client();
    for n in 0..count {
        let from = format!("192.0.2.{n}");
        let response = client.request("GET", "/", &[("X-Forwarded-For", &from)], b"");
        assert_eq!((response.status(), response.text()), (200, "hello"), "{n}");
    }
}

fn assert_evicted(proxy: &Proxy) {
    let entry = proxy.entry(|entry| entry["details"] == "download_evicted").expect(200, "UO");
    assert_eq!(entry["path"], "/long");
    assert!(of_cluster(proxy, "downloads_evicted_total") >= 1.0);
}

#[test]
fn unread_downloads_make_room_and_slow_readers_get_everything() {
    let upstream = upstream();
    let proxy = Proxy::start(to(&upstream, "workers: 1", "limits: {connections: 12}"));
    thread::scope(|scope| {
        let slow = scope.spawn(|| reads_slowly(&proxy));
        upstream.wait_for_requests(1);
        let mut held: Vec<_> = (0..4).map(|_| unread(&proxy, "203.0.113.1", 25)).collect();
        wait_until("all permits to be taken", || of_cluster(&proxy, "connections") >= 12.0);
        others_are_answered(&proxy, 40);
        assert_evicted(&proxy);
        assert!(slow.join().expect("the slow reader") >= 8 * MIB);
        // Aborted streams are reset, and the connection stays open.
        let reset = held.iter_mut().any(|(client, streams)| {
            client.ping();
            streams.iter().any(|stream| client.so_far(*stream).reset == Some(code::CANCEL))
        });
        assert!(reset);
    });
    wait_until("all downloads to end", || {
        of_cluster(&proxy, "requests_active") == 0.0 && of_cluster(&proxy, "downloads_waiting") == 0.0
    });
}

/// Neither the permits that become free nor the queue for them go to the client with the most requests, on whatever worker.
#[test]
fn a_client_that_repeats_aborted_requests_blocks_no_other() {
    let upstream = upstream();
    let proxy = Proxy::start(to(&upstream, "workers: 2", "limits: {connections: 8, pending: 40}"));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let slow = scope.spawn(|| reads_slowly(&proxy));
        upstream.wait_for_requests(1);
        for _ in 0..4 {
            scope.spawn(|| insist(&proxy, "203.0.113.1", 25, &over));
        }
        wait_until("the queue to be full", || of_cluster(&proxy, "requests_pending") >= 40.0);
        // Each over another connection, possibly on another worker.
        let others = (0..12).map(|n| {
            thread::sleep(Duration::from_millis(300));
            let from = format!("192.0.2.{n}");
            proxy.client().request("GET", "/", &[("X-Forwarded-For", &from)], b"").status()
        });
        let answered: Vec<_> = others.collect();
        over.store(true, Relaxed);
        assert_eq!(answered, [200; 12]);
        assert!(slow.join().expect("the slow reader") >= 8 * MIB);
    });
    assert_evicted(&proxy);
}

#[test]
fn no_download_is_aborted_while_permits_are_free() {
    let upstream = upstream();
    let proxy = Proxy::start(to(&upstream, "workers: 1", "limits: {connections: 5}"));
    let mut held: Vec<_> = (0..4).map(|_| unread_1(&proxy, "203.0.113.1")).collect();
    upstream.wait_for_requests(4);
    // Longer than a download may wait for its client while others have no permit.
    thread::sleep(Duration::from_millis(1500));
    others_are_answered(&proxy, 20);
    assert_eq!(of_cluster(&proxy, "downloads_evicted_total"), 0.0);
    for client in &mut held {
        assert_eq!(client.wire.read_head().expect("a head").status(), 200);
        client.wire.socket().read_exact(&mut vec![0; 16 * MIB]).expect("it continues");
    }
}

/// The limit per client, and the limit for all of them.
#[test]
fn unread_downloads_over_http1_by_many_clients_make_room() {
    let upstream = upstream();
    let proxy = Proxy::start(to(&upstream, "workers: 1", "limits: {connections: 8}"));
    let mut held: Vec<_> = (0..8).map(|n| unread_1(&proxy, &format!("203.0.113.{}", n / 2))).collect();
    upstream.wait_for_requests(8);
    others_are_answered(&proxy, 20);
    assert_evicted(&proxy);
    let cut = |client: &mut Client| {
        let mut part = vec![0; MIB];
        let socket = client.wire.socket();
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        // The remaining downloads that were not aborted are not waited for.
        (0..64).any(|_| matches!(client.wire.read_some(&mut part), Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset))
    };
    assert!(held.iter_mut().any(cut), "no client was aborted");
}

/// Permits and clients are counted across all workers.
#[test]
fn unread_downloads_on_several_workers_make_room() {
    let upstream = upstream();
    let proxy = Proxy::start(to(&upstream, "workers: 2", "limits: {connections: 12}"));
    let _held: Vec<_> = (0..24).map(|_| unread_1(&proxy, "203.0.113.1")).collect();
    wait_until("all permits to be taken", || of_cluster(&proxy, "connections") >= 12.0);
    for _ in 0..4 {
        // Each over another connection, on another worker.
        others_are_answered(&proxy, 5);
    }
    assert_evicted(&proxy);
}

/// There the permits are streams, and the upstream may allow fewer than configured.
#[test]
fn unread_streams_of_an_http2_upstream_make_room() {
    let upstream = Upstream::by_h2_with(&[(setting::MAX_CONCURRENT_STREAMS, 4)], |h2, _| {
        while let Ok((stream, request)) = h2.next_request() {
            match request.field(":path") {
                Some("/long") => {
                    h2.headers(stream, &[(":status", "200")], false);
                    h2.data(stream, &[b'x'; 60_000], false);
                }
                _ => h2.answer(stream, 200, b"hello"),
            }
        }
    });
    let proxy = Proxy::start(to(&upstream, "workers: 1", "protocol: h2\nlimits: {connections: 1}"));
    others_are_answered(&proxy, 1);
    let _held = unread(&proxy, "203.0.113.1", 20);
    wait_until("all permits to be taken", || of_cluster(&proxy, "requests_pending") > 0.0);
    others_are_answered(&proxy, 20);
    assert_evicted(&proxy);
    assert_eq!(upstream.connections(), 1);
}

/// `limits.requests` is reached before the connection limit when connections carry many streams.
#[test]
fn unread_downloads_make_room_under_the_request_limit() {
    let upstream = upstream();
    let proxy = Proxy::start(to(&upstream, "workers: 1", "limits: {connections: 100, requests: 8}"));
    let _held: Vec<_> = (0..8).map(|_| unread_1(&proxy, "203.0.113.1")).collect();
    upstream.wait_for_requests(8);
    // As above: before that, no download is aborted.
    thread::sleep(Duration::from_millis(1500));
    others_are_answered(&proxy, 1);
    assert_evicted(&proxy);
}
