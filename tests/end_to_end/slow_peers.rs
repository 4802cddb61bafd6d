//! Slow peers: a peer that stops in the middle of a message is disconnected at its timeout.

use crate::harness::{Config, Proxy, Upstream, answer};

/// More than all buffers on the path can hold.
const LONG: usize = 256 << 20;

fn endless() -> Upstream {
    Upstream::scripted(|mut connection| {
        connection.request();
        connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n"));
        let block = vec![b'x'; 1 << 20];
        (0..LONG / block.len()).all(|_| connection.wire.send(&block).is_ok());
    })
}

/// The client sends a request and does not read the response, which is aborted with this flag.
fn unread(listener: &str, cluster: &str, flag: &str) {
    let upstream = endless();
    let proxy = Proxy::start(Config::to_with(&upstream, cluster).listener(listener));
    let mut client = proxy.client();
    client.send_request("GET", "/unread", &[], b"");
    let entry = proxy.entry_for("/unread").expect(200, flag);
    assert!(entry["response_bytes"].as_u64() < Some(LONG as u64), "{entry}");
    drop(client);
}

#[test]
fn an_unread_response_is_aborted_after_the_idle_timeout() {
    unread("timeouts: {idle: 1s}", "request_timeout: 0s", "SI");
}

#[test]
fn an_unread_response_is_aborted_after_the_request_timeout() {
    unread("", "request_timeout: 2s", "UT");
}

/// In the middle of an upload one side stops: the upstream, or the client.
#[test]
fn a_stalled_upload_is_attributed_to_the_stalled_side() {
    let block = vec![b'x'; 1 << 20];
    for (reads, status, flag) in [(false, 504, "SI"), (true, 408, "DT")] {
        let upstream = Upstream::scripted(move |mut connection| {
            let Some(mut request) = connection.head() else { return };
            match reads {
                true => _ = connection.wire.read_body(&mut request, false),
                // Kept open and unread.
                false => std::thread::sleep(crate::harness::DEADLINE),
            }
        });
        let config = Config::new().listener("cluster: web\ntimeouts: {idle: 1s}");
        let proxy = Proxy::start(config.cluster("web", &[&upstream], "request_timeout: 0s"));
        let blocks = if reads { 2 } else { LONG / block.len() };
        let mut client = proxy.client();
        client.send(format!("POST /http1 HTTP/1.1\r\nHost: test\r\nContent-Length: {LONG}\r\n\r\n"));
        // It is aborted in the middle.
        let _ = (0..blocks).all(|_| client.wire.send(&block).is_ok());
        let mut client = proxy.h2();
        let stream = client.request("POST", "/http2", &[("content-length", &LONG.to_string())], false);
        let mut left = blocks * block.len();
        while client.so_far(stream).blocks.is_empty() {
            match client.data_within(stream, &block[..block.len().min(left)]) {
                0 => _ = client.read().expect("a window, or an answer"),
                sent => left -= sent,
            }
        }
        for path in ["/http1", "/http2"] {
            let entry = proxy.entry_for(path).expect(status, flag);
            let why = entry["upstream_failure"].as_str().unwrap_or_default();
            assert_eq!(why.contains("`timeouts.idle`"), !reads, "{entry}");
        }
    }
}

/// A body that arrives slowly is not idle, nor is one that is read slowly.
#[test]
fn a_slow_body_is_not_idle() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n");
        for _ in 0..20 {
            std::thread::sleep(std::time::Duration::from_millis(200));
            connection.send("x");
        }
    });
    let config = Config::to_with(&upstream, "request_timeout: 0s");
    let proxy = Proxy::start(config.listener("timeouts: {idle: 3s}"));
    assert_eq!(proxy.get("/").body.len(), 20, "four seconds in total");
}

/// A slow client on one connection delays no other client.
#[test]
fn a_slow_client_does_not_delay_others() {
    let upstream = Upstream::replying(|request| {
        let size = if request.target() == "/large" { LONG / 4 } else { 2 };
        answer(200, &[], vec![b'x'; size])
    });
    let proxy = Proxy::start(Config::to_with(&upstream, "request_timeout: 0s").top("workers: 1"));
    let mut slow: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    slow.iter_mut().for_each(|client| client.send_request("GET", "/large", &[], b""));
    upstream.wait_for_requests(4);
    for _ in 0..50 {
        assert_eq!(proxy.get("/small").text(), "xx");
    }
    for client in &mut slow {
        assert_eq!(client.read().body.len(), LONG / 4);
    }
}
