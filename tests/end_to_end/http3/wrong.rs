//! Clients that violate the protocol, or attack.

use std::{
    net::UdpSocket,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    Site, code,
    raw::{Beginners, CONTROL, End, Raw, frame, head, headers, varint},
};
use crate::harness::{Config, DEADLINE, Upstream, answer, in_time, wait_until};

fn echo() -> Upstream {
    Upstream::replying(|request| answer(200, &[], &request.body))
}

/// The status in a response as h3 encodes it: an index into QPACK's static table, or digits.
fn status(end: &End) -> Option<u16> {
    let End::Finished(bytes) = end else { return None };
    // HEADERS, its length in one byte, and the section's two-byte prefix.
    let line = bytes.get(if bytes.get(1)? < &64 { 4 } else { 5 }..)?;
    match line {
        [0xd9, ..] => Some(200),
        [0xff, 0x04, ..] => Some(400),
        _ => None,
    }
}

#[test]
fn a_valid_request_is_answered() {
    let (upstream, unknown) = (echo(), frame(0x21, b"grease"));
    let site = Site::to(&upstream, "");
    let raw = Raw::connect(&site);
    let _control = raw.one_way(&[&CONTROL[..], &unknown].concat());
    let _others = [raw.one_way(&[2]), raw.one_way(&[3]), raw.one_way(&[0x21, 1, 2, 3])];
    let request = [unknown.clone(), head(&[("content-length", "10")]), frame(0, b"hello"), unknown, frame(0, b"world")];
    let end = raw.request(&request.concat());
    assert_eq!(status(&end), Some(200), "{end:?}");
    assert_eq!(upstream.only_request().text(), "helloworld");
}

/// The client ends the tunnel: it resets the stream, or the connection is lost.
#[test]
fn a_tunnel_dropped_by_its_client_is_no_longer_counted() {
    let upstream = Upstream::scripted(|mut connection| {
        let _ = connection.wire.read_to_end();
    });
    let site = Site::to(&upstream, "connect: true");
    let connect = headers(&[(":method", "CONNECT"), (":authority", "web.test:443")]);
    let tunnels = |count| site.proxy.wait_for_metric("tollgate_tunnels_active", &[], count);
    let raw = Raw::connect(&site);
    let (mut send, mut recv) = raw.open(&[connect.clone(), frame(0, b"hello")].concat());
    tunnels(1.0);
    raw.cancel(&mut send, &mut recv);
    tunnels(0.0);
    let streams = raw.open(&connect);
    tunnels(1.0);
    drop(raw);
    tunnels(0.0);
    drop(streams);
    site.proxy.wait_for_metric("tollgate_requests_active", &[], 0.0);
}

/// The proxy has sent the whole response, but its client does not read it.
#[test]
fn an_unread_response_does_not_hold_its_connection() {
    let upstream = Upstream::replying(|_| answer(200, &[], vec![b'x'; 100_000]));
    let site = Site::to(&upstream, "timeouts: {idle: 500ms, keep_alive: 500ms}");
    let raw = Raw::connect_with_window(&site, 1000);
    let (mut send, _recv) = raw.open(&head(&[]));
    let _ = send.finish();
    assert_eq!(raw.closed(), code::NO_ERROR);
}

/// A client that reads slowly keeps its stream active, long before it has read a whole frame.
#[test]
fn a_slowly_read_stream_is_not_idle() {
    let upstream = Upstream::replying(|_| answer(200, &[], vec![b'x'; 1_000_000]));
    in_time(|ms| {
        let site = Site::to(&upstream, &format!("timeouts: {{idle: {ms}ms}}"));
        let raw = Raw::connect_with_window(&site, 1000);
        let (mut send, mut recv) = raw.open(&head(&[]));
        let _ = send.finish();
        // For one and a half times the idle timeout.
        for _ in 0..15 {
            raw.try_read(&mut recv, 200)?;
            sleep(Duration::from_millis(ms.into()) / 10);
        }
        // It is idle only when the client stops reading.
        site.proxy.entry(|_| true).expect(200, "SI");
        Some(())
    });
}

#[test]
fn a_stream_that_ends_within_a_frame_ends_the_connection() {
    let upstream = echo();
    let site = Site::to(&upstream, "");
    let cut = |bytes: &[u8]| bytes[..bytes.len() - 1].to_vec();
    for request in [cut(&head(&[])), [head(&[]), cut(&frame(0, b"body"))].concat()] {
        // In one piece, and with an end that arrives later than the rest.
        assert_eq!(Raw::connect(&site).request(&request), End::Closed(code::FRAME_ERROR));
        let raw = Raw::connect(&site);
        let (mut send, recv) = raw.open(&request);
        site.proxy.wait_for_metric("tollgate_connections_active", &[], 1.0);
        let _ = send.finish();
        assert_eq!(raw.end(recv), End::Closed(code::FRAME_ERROR));
    }
    assert_eq!(site.proxy.metrics().sum("tollgate_connections_refused_total", &[("reason", "http3")]), 4.0);
    assert!(upstream.requests().iter().all(|request| request.text() != "bod"), "a truncated body must not be complete");
}

#[test]
fn oversized_frames_are_not_buffered() {
    let upstream = echo();
    let site = Site::to(&upstream, "");
    // An oversized head gets 431, and the client may continue.
    let raw = Raw::connect(&site);
    let (send, recv) = raw.open(&[&[1][..], &varint(1 << 40)].concat());
    let too_large = [1, 8, 0, 0, 0x5f, 9, 3, b'4', b'3', b'1'];
    assert_eq!(raw.end(recv), End::Finished(too_large.to_vec()));
    drop(send);
    // Unknown frames can have any length.
    let (mut send, _recv) = raw.open(&[&[0x21][..], &varint(1 << 40)].concat());
    raw.write(&mut send, &vec![0; 4 << 20]);
    assert!(raw.is_open());
    let _control = raw.one_way(&[&[0, 4][..], &varint(1 << 30)].concat());
    raw.closed();
    assert_eq!(site.proxy.metrics().sum("tollgate_connections_refused_total", &[("reason", "http3")]), 1.0);
}

#[test]
fn useless_frames_and_streams_are_a_flood() {
    let upstream = echo();
    let site = Site::to(&upstream, "");
    // Frames; an occasional byte of data does not make them useful.
    for frames in [frame(0, b"").repeat(20_000), [frame(0x21, b"").repeat(95), frame(0, b"x")].concat().repeat(400)] {
        let raw = Raw::connect(&site);
        let (mut send, recv) = raw.open(&head(&[]));
        raw.write(&mut send, &frames);
        assert_eq!(raw.end(recv), End::Closed(code::EXCESSIVE_LOAD));
    }
    // Streams.
    let raw = Raw::connect(&site);
    let request = head(&[]);
    let end = Instant::now() + DEADLINE;
    while let Some((mut send, mut recv)) = raw.try_open(&request) {
        assert!(Instant::now() < end, "the connection is not closed");
        raw.cancel(&mut send, &mut recv);
    }
    assert_eq!(raw.closed(), code::EXCESSIVE_LOAD);
    assert_eq!(site.proxy.metrics().sum("tollgate_connections_refused_total", &[("reason", "flood")]), 3.0);
}

#[test]
fn a_missing_head_times_out() {
    let upstream = echo();
    let site = Site::to(&upstream, "timeouts: {header_read: 500ms}");
    let raw = Raw::connect(&site);
    let (_send, recv) = raw.open(&head(&[])[..9]);
    assert_eq!(raw.end(recv), End::Reset(code::REQUEST_CANCELLED));
    site.proxy.entry(|entry| entry["details"] == "header_read_timeout").expect((), "DT");
    assert!(raw.is_open());
}

#[test]
fn a_stalled_handshake_times_out() {
    let upstream = echo();
    let site = Site::to(&upstream, "timeouts: {handshake: 500ms}");
    // The handshake includes the proxy's own streams, and this client allows none.
    let raw = Raw::connect_without_streams(&site);
    raw.closed();
    assert_eq!(site.proxy.metrics().sum("tollgate_connections_refused_total", &[("reason", "silent")]), 1.0);
}

#[test]
fn streams_after_the_last_one_are_rejected() {
    let upstream = echo();
    let site = Site::to(&upstream, "limits: {requests_per_connection: 1}");
    let raw = Raw::connect(&site);
    let end = raw.request(&head(&[]));
    assert_eq!(status(&end), Some(200), "{end:?}");
    // Streams in transit are still answered.
    let mut ends = Vec::new();
    while raw.is_open() {
        ends.push(raw.request(&head(&[])));
    }
    let refused = ends.iter().position(|end| status(end).is_none()).expect("an end");
    let allowed = [End::Reset(code::REQUEST_REJECTED), End::Closed(code::NO_ERROR)];
    assert!(ends[refused..].iter().all(|end| allowed.contains(end)), "{:?}", &ends[refused..]);
    assert!(ends.contains(&allowed[0]));
}

#[test]
fn many_handshakes_require_address_validation() {
    let upstream = echo();
    let site = Site::start(Config::to(&upstream).top("workers: 1").listener("timeouts: {handshake: 60s}"));
    // Datagrams are relayed to the proxy, but not back.
    let (relay, onwards) = (UdpSocket::bind("127.0.0.1:0").expect("a socket"), UdpSocket::bind("127.0.0.1:0"));
    let onwards = onwards.expect("a socket");
    onwards.connect(site.proxy.address("main")).expect("an address");
    [&relay, &onwards].iter().for_each(|socket| socket.set_nonblocking(true).expect("a socket that does not block"));
    // On a busy machine the relay loses many of their datagrams, and clients without a response give up: more are
    // started then.
    let relay_address = relay.local_addr().expect("an address");
    let (mut beginners, mut more) = (Vec::new(), Instant::now());
    let mut datagram = [0; 2048];
    wait_until("a Retry", || {
        if more <= Instant::now() {
            beginners.push(Beginners::begin(&site, relay_address, 80));
            more += Duration::from_secs(2);
        }
        while let Ok(length) = relay.recv(&mut datagram) {
            let _ = onwards.send(&datagram[..length]);
        }
        let answers = std::iter::from_fn(|| onwards.recv(&mut datagram).ok().map(|length| datagram[..length].to_vec()));
        // RFC 9000 section 17.2.5.
        answers.into_iter().any(|answer| answer[0] & 0xf0 == 0xf0 && answer[1..5] == [0, 0, 0, 1])
    });
    assert_eq!(site.proxy.metrics().sum("tollgate_connections_active", &[]), 64.0);
    let end = Raw::connect(&site).request(&head(&[]));
    assert_eq!(status(&end), Some(200), "{end:?}");
}

/// An Initial packet (RFC 9000 section 17.2.2) with invalid content.
fn initial(n: u32) -> Vec<u8> {
    let id: Vec<u8> = n.to_be_bytes().repeat(2);
    let mut datagram = [&[0xc3, 0, 0, 0, 1, 8][..], &id, &[0, 0, 0x44, 0x9e]].concat();
    datagram.resize(1200, n as u8);
    datagram
}

#[test]
fn garbage_affects_no_connection() {
    let upstream = echo();
    let site = Site::to(&upstream, "");
    let raw = Raw::connect(&site);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for n in 0..20_000_u32 {
        let bytes = match n % 4 {
            0 => initial(n),
            // Another version, a short header, nothing.
            1 => [&[0xc0, 0xba, 0xba, 0xba, 0xba, 8][..], &[7; 1200]].concat(),
            2 => (0..n % 1400).map(|i| (i * n) as u8 & 0x7f).collect(),
            _ => Vec::new(),
        };
        let _ = socket.send_to(&bytes, site.proxy.address("main"));
    }
    for raw in [raw, Raw::connect(&site)] {
        let end = raw.request(&[head(&[]), frame(0, b"hello")].concat());
        assert_eq!(status(&end), Some(200), "{end:?}");
    }
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_body_in_small_pieces_uses_bounded_memory() {
    let upstream = Upstream::saying("");
    let site = Site::to(&upstream, "");
    let raw = Raw::connect(&site);
    let before = site.proxy.peak_kib();
    let (mut send, recv) = raw.open(&head(&[]));
    let pieces = frame(0, &[b'x'; 60]).repeat(1 << 10);
    for _ in 0..512 {
        raw.write(&mut send, &pieces);
    }
    let _ = send.finish();
    assert_eq!(status(&raw.end(recv)), Some(200));
    assert_eq!(upstream.only_request().body.len(), 60 << 19);
    let more = site.proxy.peak_kib() - before;
    // Up to a window of it is buffered in quinn while the upstream is slow, as on a busy machine; the whole body would
    // be 30 MiB, and several times that with the overhead of each piece.
    assert!(more < 10 << 10, "{more} kB");
}
