//! Flow control: a peer that does not read delays no other, and not forever.

use std::{thread::sleep, time::Duration};

use crate::harness::{
    Config, H2, Proxy, Upstream, answer,
    frames::{code, flag, kind, setting},
    in_time, turnstile,
};

const MIB: usize = 1 << 20;

/// Sends `/large` as long as the proxy accepts it, and other responses immediately.
fn upstream() -> Upstream {
    Upstream::scripted(|mut connection| {
        while let Some(request) = connection.request() {
            match request.target() {
                "/large" => {
                    connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 256 * MIB));
                    for _ in 0..256 {
                        if connection.wire.send(vec![b'x'; MIB]).is_err() {
                            return;
                        }
                    }
                }
                _ => connection.send(answer(200, &[], "hello")),
            }
        }
    })
}

/// A client that gives each stream this initial window, and enlarges it only explicitly.
pub(super) fn stingy(proxy: &Proxy, room: u32) -> H2 {
    let mut client = H2::connect_with(proxy.address("main"), &[(setting::INITIAL_WINDOW_SIZE, room)]);
    client.generous = false;
    client.window(0, 1 << 30);
    client
}

/// Reads from a stream with an initial window of one byte, a little at a time, for one and a half times the idle
/// timeout. `None` if the stream has ended.
pub(super) fn reads_little_by_little(client: &mut H2, stream: u32, idle_ms: u32) -> Option<()> {
    for step in 0..15 {
        let room = 1 + step * 100;
        let so_far =
            client.wait(stream, "what its window allows", |m| m.body.len() == room || m.ended || m.reset.is_some());
        if so_far.ended || so_far.reset.is_some() {
            return None;
        }
        assert_eq!(so_far.body.len(), room);
        sleep(Duration::from_millis(idle_ms.into()) / 10);
        client.window(stream, 100);
    }
    Some(())
}

/// Streams with tiny windows end after `timeouts.idle`; other streams on the connection are served.
#[test]
fn an_unread_stream_ends_after_the_idle_timeout() {
    let upstream = upstream();
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {idle: 1s}"));
    let mut client = stingy(&proxy, 1);
    let stalled: Vec<u32> = (0..10).map(|_| client.request("GET", "/large", &[], true)).collect();
    let fine = client.request("GET", "/fine", &[], true);
    client.window(fine, 1000);
    assert_eq!(client.response(fine).text(), "hello");
    for stream in stalled {
        let response = client.response(stream);
        assert_eq!((response.status(), response.text(), response.ended), (200, "x", false));
        assert_eq!(response.reset, Some(code::CANCEL));
    }
    proxy.entry_for("/large").expect(200, "SI");
    proxy.wait_for_zero("tollgate_requests_active", &[("listener", "main")]);
    proxy.wait_for_zero("tollgate_cluster_requests_active", &[("cluster", "web")]);
    // The connection is still usable.
    let stream = client.request("GET", "/again", &[], true);
    client.window(stream, 1000);
    assert_eq!(client.response(stream).text(), "hello");
}

/// A client that reads slowly keeps its stream active, long before it has read what the upstream sent in one piece.
#[test]
fn a_slowly_read_stream_is_not_idle() {
    let upstream = upstream();
    in_time(|ms| {
        let proxy = Proxy::start(Config::to(&upstream).listener(&format!("timeouts: {{idle: {ms}ms}}")));
        let mut client = stingy(&proxy, 1);
        let stream = client.request("GET", "/large", &[], true);
        reads_little_by_little(&mut client, stream, ms)?;
        // It is idle only when the client stops reading.
        assert_eq!(client.response(stream).reset, Some(code::CANCEL));
        proxy.entry_for("/large").expect(200, "SI");
        Some(())
    });
}

/// Streams that share a window too small for all of them take turns, each with as much as possible.
#[test]
fn streams_that_share_a_window_do_not_send_byte_by_byte() {
    const LONG: usize = 500_000;
    let upstream = Upstream::saying(&"x".repeat(LONG));
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = H2::connect_with(proxy.address("main"), &[(setting::INITIAL_WINDOW_SIZE, 30_000)]);
    let streams: Vec<u32> = (0..4).map(|_| client.request("GET", "/", &[], true)).collect();
    let (mut ended, mut frames, mut short) = (0, 0, 0);
    while ended < streams.len() {
        let frame = client.read().expect("the responses");
        if frame.kind == kind::DATA {
            frames += 1;
            short += usize::from(frame.payload.len() == 1);
            ended += usize::from(frame.flags & flag::END_STREAM != 0);
        }
    }
    for stream in streams {
        assert_eq!(client.so_far(stream).body.len(), LONG);
    }
    assert!(short * 20 < frames, "{short} of {frames} frames of data have one byte");
}

/// The same for a client whose connection window is exhausted.
#[test]
fn streams_blocked_by_an_exhausted_connection_window_time_out() {
    let upstream = upstream();
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {idle: 1s}"));
    let mut client = H2::connect_with(proxy.address("main"), &[(setting::INITIAL_WINDOW_SIZE, 1 << 30)]);
    client.generous = false;
    let first = client.request("GET", "/large", &[], true);
    let second = client.request("GET", "/large", &[], true);
    for stream in [first, second] {
        let response = client.response(stream);
        assert_eq!((response.reset, response.ended), (Some(code::CANCEL), false));
    }
    assert_eq!(client.so_far(first).body.len() + client.so_far(second).body.len(), 65_535);
    // Data buffered in the ended streams takes nothing from later streams.
    client.window(0, 1000);
    assert_eq!(client.get("/fine").text(), "hello");
}

#[test]
fn a_slow_reader_stalls_only_its_stream_and_uses_no_memory() {
    let upstream = upstream();
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = stingy(&proxy, 1000);
    let before = proxy.peak_kib();
    let slow: Vec<u32> = (0..20).map(|_| client.request("GET", "/large", &[], true)).collect();
    for stream in &slow {
        client.wait(*stream, "what its window allows", |m| m.body.len() == 1000);
    }
    for _ in 0..100 {
        assert_eq!(client.get("/fine").text(), "hello");
    }
    let grown = proxy.peak_kib() - before;
    assert!(grown < 20 << 10, "{grown} KiB more for 20 streams");
    // The stream continues as soon as there is a window again.
    client.window(slow[0], 5000);
    client.wait(slow[0], "more", |m| m.body.len() == 6000);
}

#[test]
fn an_unread_upload_stalls_only_its_stream() {
    let (go, wait) = turnstile();
    let upstream = Upstream::reading(move |request| {
        if request.target() == "/slow" {
            wait();
        }
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    client.ping();
    let body = vec![b'x'; 32 * MIB];
    let before = proxy.peak_kib();
    let slow = client.request("POST", "/slow", &[("content-length", &body.len().to_string())], false);
    let mut sent = client.data_within(slow, &body);
    upstream.wait_for_requests(1);
    // Other uploads pass, while this one gets no more window: the system's buffers are full.
    let mut quiet = 0;
    while quiet < 50 {
        let stream = client.request("POST", "/fast", &[], false);
        client.upload(stream, &body[..100_000]);
        assert_eq!(client.response(stream).text(), "100000");
        match client.data_within(slow, &body[sent..]) {
            0 => quiet += 1,
            more => (sent, quiet) = (sent + more, 0),
        }
        assert!(sent < body.len(), "the upstream reads nothing, but all of it was accepted");
    }
    let grown = proxy.peak_kib() - before;
    assert!(grown < 16 << 10, "{grown} KiB more");
    go.send(()).unwrap();
    client.upload(slow, &body[sent..]);
    assert_eq!(client.response(slow).text(), body.len().to_string());
}

/// Sends fifty uploads that get this status before they are complete, as far as windows allow. The unread parts must be
/// returned to the connection's window, or it is exhausted.
fn rejected_uploads(proxy: &Proxy, status: u16) {
    let mut client = proxy.h2();
    client.ping();
    let body = vec![b'x'; 200_000];
    for n in 0..50 {
        let stream = client.request("POST", "/early", &[], false);
        let mut rest = &body[..];
        while !rest.is_empty() && client.so_far(stream).reset.is_none() {
            match client.data_within(stream, rest) {
                // The stream's own window may stay closed, since the stream was answered.
                0 if client.so_far(stream).ended => break,
                0 => _ = client.read().unwrap_or_else(|e| panic!("{e}: no window for upload {n}")),
                sent => rest = &rest[sent..],
            }
        }
        assert_eq!(client.response(stream).status(), status, "{n}");
        client.reset(stream, code::CANCEL);
    }
}

const NARROW: &str = "http2: {stream_window: 256KiB, connection_window: 1MiB}";

#[test]
fn uploads_answered_early_restore_the_connection_window() {
    let upstream = Upstream::scripted(|mut connection| {
        if connection.head().is_some() {
            connection.send(answer(403, &["connection: close"], "no"));
            connection.wait_for_end();
        }
    });
    rejected_uploads(&Proxy::start(Config::to(&upstream).listener(NARROW)), 403);
}

/// The same without any upstream.
#[test]
fn rejected_uploads_restore_the_connection_window() {
    rejected_uploads(&Proxy::start(Config::to(Upstream::refusing()).listener(NARROW)), 503);
}

#[test]
fn a_stalled_upload_gets_408() {
    let upstream = Upstream::saying("");
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {idle: 1s}"));
    let mut client = proxy.h2();
    let stream = client.begin("/stops", &[("content-length", "100")], b"some");
    assert_eq!(client.response(stream).status(), 408);
    proxy.entry_for("/stops").expect(408, "DT");
    assert_eq!(client.get("/").status(), 200, "the connection can be reused");
}

/// A window beyond 2^31 - 1 (RFC 9113 section 6.9.1), and an update of 0.
#[test]
fn invalid_window_updates_end_the_stream_or_the_connection() {
    let upstream = upstream();
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let stream = client.request("POST", "/", &[], false);
    client.window(stream, (1 << 31) - 1);
    assert_eq!(client.response(stream).reset, Some(code::FLOW_CONTROL_ERROR));
    assert_eq!(client.get("/").text(), "hello");
    client.window(0, (1 << 31) - 1);
    assert_eq!(client.read_to_end().expect("a GOAWAY").code(), code::FLOW_CONTROL_ERROR);
    let mut client = proxy.h2();
    client.send(kind::WINDOW_UPDATE, 0, 0, &[0; 4]);
    assert_eq!(client.read_to_end().expect("a GOAWAY").code(), code::PROTOCOL_ERROR);
    // SETTINGS that make a stream's window overflow.
    let mut client = proxy.h2();
    client.settings(&[(setting::INITIAL_WINDOW_SIZE, u32::MAX)]);
    assert_eq!(client.read_to_end().expect("a GOAWAY").code(), code::PROTOCOL_ERROR);
}
