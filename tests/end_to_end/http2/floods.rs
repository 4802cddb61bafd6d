//! Clients that make work and bring nothing. Each is cut off and counted, and the proxy's memory stays where it was.

use crate::harness::{
    Config, H2, Proxy, Upstream,
    frames::{Frame, code, encode, flag, head, kind},
};

/// More than any of these attacks may cost, and less than any of them sends or asks for in vain.
const ALLOWED_KIB: u64 = 32 << 10;

/// Lets a client do its worst until it is cut off. The memory stays where it was, and so does another client, which is
/// given back.
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

/// So many requests, and after the head of each a frame on its stream.
fn requests(client: &mut H2, count: usize, flags: u8, kind: u8, payload: &[u8]) -> Vec<u8> {
    let block = encode(&head("POST", "/", &[]));
    let one = |stream| [Frame::bytes(kind::HEADERS, flags, stream, &block), Frame::bytes(kind, 0, stream, payload)];
    (0..count).flat_map(|_| one(client.next_stream()).concat()).collect()
}

/// Requests that are taken back at once.
fn taken_back(client: &mut H2, count: usize) -> Vec<u8> {
    requests(client, count, flag::END_STREAM | flag::END_HEADERS, kind::RST_STREAM, &code::CANCEL.to_be_bytes())
}

#[test]
fn rapid_reset() {
    attack(|client| {
        for _ in 0..200 {
            let bytes = taken_back(client, 100);
            client.raw(bytes);
        }
    });
}

/// A proxy in front takes back at once what many clients do, and its connection carries the requests of others.
#[test]
fn what_a_proxy_in_front_takes_back_at_once_is_no_attack() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream).listener("trusted_hops: 1"));
    let mut client = proxy.h2();
    let bytes = taken_back(&mut client, 150);
    client.raw(bytes);
    assert_eq!(client.get("/").text(), "hello");
}

/// Rapid reset without RST_STREAM: the client breaks its streams so that the proxy resets them (CVE-2025-8671).
#[test]
fn resets_that_the_client_makes_the_proxy_send() {
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

/// Frames that lead to nothing, on the connection or on the stream of a request.
#[test]
fn frames_that_bring_nothing() {
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

/// Pings whose answers are not read: they must not be heaped up (CVE-2019-9512).
#[test]
fn pings_that_nobody_reads_the_answers_of() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let before = proxy.peak_kib();
    let mut client = proxy.h2();
    client.wire.socket().set_nonblocking(true).unwrap();
    let bytes = Frame::bytes(kind::PING, 0, 0, &[0; 8]).repeat(1000);
    // As much as the proxy takes, or until it has had enough.
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
fn continuations() {
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

/// The same with nothing in them, so that no length grows.
#[test]
fn empty_continuations() {
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
fn a_head_that_is_too_large_is_answered_with_431() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {header_bytes: 16KiB}"));
    let mut client = proxy.h2();
    let value = "v".repeat(4000);
    let fields = ["x-a", "x-b", "x-c", "x-d", "x-e"].map(|name| (name, value.as_str()));
    let response = client.exchange("GET", "/large", &fields, b"");
    assert_eq!((response.status(), response.text()), (431, "Request Header Fields Too Large"));
    proxy.entry_for("/large").expect(431, "DPE").because("head_too_large");
    assert_eq!(client.get("/").text(), "hello", "the connection can be used on");
    assert_eq!(upstream.requests().len(), 1);
}

/// A proxy in front may send the requests of many on one connection: one of them does not end it, as long as its head
/// is no flood.
#[test]
fn heads_of_several_times_the_bound_end_nothing_but_their_stream() {
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
fn too_many_fields_are_answered_with_431() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let names: Vec<String> = (0..250).map(|n| format!("x-{n}")).collect();
    let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    assert_eq!(client.exchange("GET", "/many", &fields, b"").status(), 431);
    proxy.entry_for("/many").expect(431, "DPE").because("too_many_fields");
    assert!(upstream.requests().is_empty());
}

/// A few bytes that stand for many: an entry of 4000 bytes in the table, and a head that names it again and again.
#[test]
fn a_head_that_grows_when_it_is_decompressed() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let before = proxy.peak_kib();
    // So many times over the bound that the connection is ended, and so few that only the stream is.
    for times in [10_000, 20] {
        for _ in 0..50 {
            let mut client = proxy.h2();
            let value = "v".repeat(4000);
            let mut block = encode(&head("GET", "/bomb", &[]));
            // A literal that goes into the table (RFC 7541 section 6.2.1), and then the entry, which is number 62.
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

/// A peer that does nothing wrong is not taken for one of these: many small requests, with a ping and a window for each.
#[test]
fn a_busy_client_is_no_flood() {
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
