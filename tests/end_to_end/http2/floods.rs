//! Floods: clients that cause work without making requests. Each is disconnected and counted, and the proxy's memory
//! does not grow.

use crate::harness::{
    Config, H2, Proxy, Upstream,
    frames::{Frame, code, encode, flag, head, kind},
};

/// More than any of these attacks may cost, and less than any of them sends or requests.
const ALLOWED_KIB: u64 = 32 << 10;

/// Runs an attack until its connection is closed. Asserts that memory does not grow and that another client is not
/// affected; returns that client.
fn cut_off(upstream: &Upstream, evil: impl FnOnce(&mut H2)) -> (Proxy, H2) {
    let proxy = Proxy::start(Config::to(upstream));
    let mut other = proxy.h2();
    other.ping();
    let before = proxy.peak_kib();
    let mut client = proxy.h2();
    evil(&mut client);
    client.read_to_end();
    proxy.wait_for_metric("tollgate_connections_refused_total", &[("listener", "main")], 1.0);
    let grown = proxy.peak_kib() - before;
    assert!(grown < ALLOWED_KIB, "{grown} KiB more");
    other.ping();
    (proxy, other)
}

fn attack(evil: impl FnOnce(&mut H2)) {
    let upstream = Upstream::saying("hello");
    let (proxy, other) = cut_off(&upstream, evil);
    proxy.refused_one("flood");
    for mut client in [other, proxy.h2()] {
        assert_eq!(client.get("/").text(), "hello");
    }
}

/// The frames of this many requests, each with a further frame on its stream after the head.
fn requests(client: &mut H2, count: usize, flags: u8, kind: u8, payload: &[u8]) -> Vec<u8> {
    let block = encode(&head("POST", "/", &[]));
    let one = |stream| [Frame::bytes(kind::HEADERS, flags, stream, &block), Frame::bytes(kind, 0, stream, payload)];
    (0..count).flat_map(|_| one(client.next_stream()).concat()).collect()
}

/// Requests that are cancelled immediately.
fn taken_back(client: &mut H2, count: usize) -> Vec<u8> {
    requests(client, count, flag::END_STREAM | flag::END_HEADERS, kind::RST_STREAM, &code::CANCEL.to_be_bytes())
}

#[test]
fn rapid_reset_ends_the_connection() {
    attack(|client| {
        for _ in 0..200 {
            let bytes = taken_back(client, 100);
            client.raw(bytes);
        }
    });
}

/// A proxy in front quickly cancels what many clients cancel, and its connection carries other clients' requests.
#[test]
fn cancellations_by_a_proxy_in_front_are_not_an_attack() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream).listener("trusted_hops: 1"));
    let mut client = proxy.h2();
    let bytes = taken_back(&mut client, 150);
    client.raw(bytes);
    assert_eq!(client.get("/").text(), "hello");
}

/// Rapid reset without RST_STREAM: the client violates the protocol so that the proxy resets its streams
/// (CVE-2025-8671).
#[test]
fn provoked_resets_end_the_connection() {
    let upstream = Upstream::silent();
    cut_off(&upstream, |client| {
        for _ in 0..200 {
            let bytes = requests(client, 100, flag::END_HEADERS, kind::WINDOW_UPDATE, &[0; 4]);
            client.raw(bytes);
        }
    });
    let connections = upstream.connections();
    assert!(connections < 5000, "{connections} requests of a flood have reached the upstream");
}

/// Useless frames, on the connection or on the stream of a request.
#[test]
fn floods_of_useless_frames_end_the_connection() {
    let ping = Frame::bytes(kind::PING, 0, 0, &[0; 8]);
    let data = |payload: &[u8]| Frame::bytes(kind::DATA, 0, 1, payload);
    for (what, has_request, frames, times) in [
        ("pings", false, ping.clone(), 40_000),
        ("settings", false, Frame::bytes(kind::SETTINGS, 0, 0, b""), 40_000),
        ("priorities", false, Frame::bytes(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 1]), 40_000),
        ("unknown types", false, Frame::bytes(0xee, 0, 0, b"x"), 40_000),
        ("windows", true, Frame::bytes(kind::WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()), 40_000),
        ("empty data", true, data(b""), 40_000),
        ("pings with a byte now and then", true, [ping.repeat(95), data(b"x")].concat(), 400),
    ] {
        eprintln!("{what}");
        attack(|client| {
            if has_request {
                assert_eq!(client.request("POST", "/", &[], false), 1);
            }
            client.raw(frames.repeat(times));
        });
    }
}

/// Pings whose acknowledgements the client does not read: they must not pile up (CVE-2019-9512).
#[test]
fn pings_with_unread_acknowledgements_end_the_connection() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let before = proxy.peak_kib();
    let mut client = proxy.h2();
    client.wire.socket().set_nonblocking(true).unwrap();
    let bytes = Frame::bytes(kind::PING, 0, 0, &[0; 8]).repeat(1000);
    // As much as the proxy accepts, or until it closes the connection.
    for _ in 0..4000 {
        if client.wire.send(&bytes).is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock) {
            break;
        }
    }
    proxy.refused_one("flood");
    let grown = proxy.peak_kib() - before;
    assert!(grown < ALLOWED_KIB, "{grown} KiB more");
}

/// A head without an end (CVE-2024-27316).
#[test]
fn endless_continuations_end_the_connection() {
    attack(|client| {
        let stream = client.next_stream();
        client.send(kind::HEADERS, flag::END_STREAM, stream, &encode(&head("GET", "/", &[])));
        let value = "v".repeat(8000);
        let part = encode(&[("x-more", &value), ("x-again", &value)]);
        for _ in 0..4000 {
            client.send(kind::CONTINUATION, 0, stream, &part);
        }
    });
}

/// The same with empty frames, so that no length grows.
#[test]
fn empty_continuations_end_the_connection() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let stream = client.next_stream();
    client.send(kind::HEADERS, flag::END_STREAM, stream, &encode(&head("GET", "/", &[])));
    client.raw(Frame::bytes(kind::CONTINUATION, 0, stream, b"").repeat(40_000));
    client.read_to_end();
    proxy.wait_for_metric("tollgate_connections_refused_total", &[("listener", "main")], 1.0);
    assert!(upstream.requests().is_empty());
}

#[test]
fn an_oversized_head_gets_431() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {header_bytes: 16KiB}"));
    let mut client = proxy.h2();
    let value = "v".repeat(4000);
    let fields = ["x-a", "x-b", "x-c", "x-d", "x-e"].map(|name| (name, value.as_str()));
    let response = client.exchange("GET", "/large", &fields, b"");
    assert_eq!((response.status(), response.text()), (431, "Request Header Fields Too Large"));
    proxy.entry_for("/large").expect(431, "DPE").because("head_too_large");
    assert_eq!(client.get("/").text(), "hello", "the connection can be reused");
    assert_eq!(upstream.requests().len(), 1);
}

/// A proxy in front may send requests of many clients on one connection: a large head must not end it, unless it is a
/// flood.
#[test]
fn heads_of_several_times_the_limit_end_only_their_stream() {
    let upstream = Upstream::saying("hello");
    for (name, bound) in [("16KiB", 16 << 10), ("64KiB", 64 << 10)] {
        let proxy =
            Proxy::start(Config::to(&upstream).listener(&format!("limits: {{header_bytes: {name}, headers: 1000}}")));
        let mut client = proxy.h2();
        for (tenths, field) in [(15, 100), (25, 100), (15, 4000), (25, 4000), (25, 15_000), (15, 30_000), (25, 40_000)]
        {
            let value = "v".repeat(field);
            let fields = vec![("x-a", value.as_str()); tenths * bound / 10 / field + 1];
            let response = client.exchange("GET", "/large", &fields, b"");
            assert_eq!(response.status(), 431, "{name}, {tenths} tenths, {field}");
            assert_eq!(client.get("/").text(), "hello");
        }
    }
}

#[test]
fn too_many_fields_get_431() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let names: Vec<String> = (0..250).map(|n| format!("x-{n}")).collect();
    let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    assert_eq!(client.exchange("GET", "/many", &fields, b"").status(), 431);
    proxy.entry_for("/many").expect(431, "DPE").because("too_many_fields");
    assert!(upstream.requests().is_empty());
}

/// A few bytes that expand to many: a table entry of 4000 bytes, and a head that references it repeatedly.
#[test]
fn a_decompression_bomb_in_a_head_is_rejected() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let before = proxy.peak_kib();
    // So far over the limit that the connection is ended, and so little that only the stream is.
    for times in [10_000, 20] {
        for _ in 0..50 {
            let mut client = proxy.h2();
            let value = "v".repeat(4000);
            let mut block = encode(&head("GET", "/bomb", &[]));
            // A literal with incremental indexing (RFC 7541 section 6.2.1), and then the entry, which has index 62.
            let mut literal = encode(&[("x-bomb", &value)]);
            literal[0] = 0x40;
            block.extend(literal);
            block.extend(vec![0x80 | 62; times]);
            let stream = client.next_stream();
            client.send(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, stream, &block);
            match times {
                20 => assert_eq!(client.response(stream).status(), 431),
                _ => assert_eq!(client.read_to_end().expect("a GOAWAY").code(), code::ENHANCE_YOUR_CALM),
            }
        }
    }
    let grown = proxy.peak_kib() - before;
    assert!(grown < ALLOWED_KIB, "{grown} KiB more");
    assert!(upstream.requests().is_empty());
}

/// A legitimate peer is not mistaken for an attacker: many small requests, each with a ping and a window update.
#[test]
fn a_busy_client_is_not_a_flood() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    for _ in 0..300 {
        for _ in 0..30 {
            client.ping();
        }
        assert_eq!(client.get("/").text(), "hello");
    }
}
