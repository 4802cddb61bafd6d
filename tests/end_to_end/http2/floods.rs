//! Clients that make work and bring nothing. Each is cut off and counted, and the proxy's memory stays where it was.

use crate::harness::{
    Config, H2, Proxy, Upstream,
    frames::{Frame, code, encode, flag, head, kind},
};

/// More than any of these attacks may cost, and less than any of them sends or asks for in vain.
const ALLOWED_KIB: u64 = 32 << 10;

/// Lets a client do its worst until it is cut off; the others do not notice.
fn attack(reason: &str, evil: impl FnOnce(&mut H2)) {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut other = proxy.h2();
    assert_eq!(other.get("/").status(), 200);
    let before = proxy.peak_kib();
    let mut client = proxy.h2();
    evil(&mut client);
    client.read_to_end();
    proxy.refused_one(reason);
    let grown = proxy.peak_kib() - before;
    assert!(grown < ALLOWED_KIB, "{grown} KiB more");
    assert_eq!(other.get("/").text(), "hello");
    assert_eq!(proxy.h2().get("/").text(), "hello");
}

#[test]
fn rapid_reset() {
    attack("flood", |client| {
        let block = encode(&head("GET", "/", &[]));
        for _ in 0..200 {
            let mut bytes = Vec::new();
            for _ in 0..100 {
                let stream = client.next_stream();
                bytes.extend(Frame::bytes(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, stream, &block));
                bytes.extend(Frame::bytes(kind::RST_STREAM, 0, stream, &code::CANCEL.to_be_bytes()));
            }
            client.raw(bytes);
        }
    });
}

/// A proxy in front takes back at once what many clients do, and its connection carries the requests of others.
#[test]
fn what_a_proxy_in_front_takes_back_at_once_is_no_attack() {
    let upstream = Upstream::saying("hello");
    let config = Config::new().listener("cluster: web\ntrusted_hops: 1").cluster("web", &[&upstream], "");
    let proxy = Proxy::start(config);
    let mut client = proxy.h2();
    let block = encode(&head("GET", "/", &[]));
    let mut bytes = Vec::new();
    for _ in 0..150 {
        let stream = client.next_stream();
        bytes.extend(Frame::bytes(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, stream, &block));
        bytes.extend(Frame::bytes(kind::RST_STREAM, 0, stream, &code::CANCEL.to_be_bytes()));
    }
    client.raw(bytes);
    assert_eq!(client.get("/").text(), "hello");
}

/// Rapid reset without RST_STREAM: the client breaks its streams so that the proxy resets them (CVE-2025-8671).
#[test]
fn resets_that_the_client_makes_the_proxy_send() {
    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to(&upstream));
    let before = proxy.peak_kib();
    let mut client = proxy.h2();
    let block = encode(&head("POST", "/", &[]));
    for _ in 0..200 {
        let mut bytes = Vec::new();
        for _ in 0..100 {
            let stream = client.next_stream();
            bytes.extend(Frame::bytes(kind::HEADERS, flag::END_HEADERS, stream, &block));
            bytes.extend(Frame::bytes(kind::WINDOW_UPDATE, 0, stream, &[0; 4]));
        }
        client.raw(bytes);
    }
    client.read_to_end();
    let labels = [("listener", "main")];
    proxy.wait_for_metric("tollgate_connections_refused_total", &labels, 1.0);
    let grown = proxy.peak_kib() - before;
    assert!(grown < ALLOWED_KIB, "{grown} KiB more");
    let connections = upstream.connections();
    assert!(connections < 5000, "{connections} requests of a flood have reached the upstream");
}

fn many(bytes: &[u8]) -> Vec<u8> {
    bytes.repeat(40_000)
}

#[test]
fn pings() {
    attack("flood", |client| client.raw(many(&Frame::bytes(kind::PING, 0, 0, &[0; 8]))));
}

#[test]
fn settings() {
    attack("flood", |client| client.raw(many(&Frame::bytes(kind::SETTINGS, 0, 0, b""))));
}

#[test]
fn priorities() {
    attack("flood", |client| client.raw(many(&Frame::bytes(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 1]))));
}

#[test]
fn window_updates() {
    attack("flood", |client| {
        let stream = client.request("POST", "/", &[], false);
        client.raw(Frame::bytes(kind::WINDOW_UPDATE, 0, stream, &1_u32.to_be_bytes()).repeat(40_000));
    });
}

#[test]
fn frames_of_unknown_types() {
    attack("flood", |client| client.raw(many(&Frame::bytes(0xee, 0, 0, b"x"))));
}

#[test]
fn empty_data() {
    attack("flood", |client| {
        let stream = client.request("POST", "/", &[], false);
        client.raw(many(&Frame::bytes(kind::DATA, 0, stream, b"")));
    });
}

/// A byte now and then does not make them worth anything.
#[test]
fn pings_with_a_byte_in_between() {
    attack("flood", |client| {
        let stream = client.request("POST", "/", &[], false);
        let pings = Frame::bytes(kind::PING, 0, 0, &[0; 8]).repeat(95);
        client.raw([pings, Frame::bytes(kind::DATA, 0, stream, b"x")].concat().repeat(400));
    });
}

/// Pings whose answers are not read: they must not be heaped up (CVE-2019-9512).
#[test]
fn pings_that_nobody_reads_the_answers_of() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream));
    let before = proxy.peak_kib();
    let client = proxy.h2();
    client.wire.socket().set_nonblocking(true).unwrap();
    let bytes = Frame::bytes(kind::PING, 0, 0, &[0; 8]).repeat(1000);
    let mut client = client;
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
    attack("flood", |client| {
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
    client.raw(many(&Frame::bytes(kind::CONTINUATION, 0, stream, b"")));
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
    let fields: Vec<_> = ["x-a", "x-b", "x-c", "x-d", "x-e"].map(|name| (name, value.as_str())).to_vec();
    let block = encode(&head("GET", "/large", &fields));
    let stream = client.next_stream();
    client.send(kind::HEADERS, flag::END_STREAM, stream, &block[..10_000]);
    client.send(kind::CONTINUATION, flag::END_HEADERS, stream, &block[10_000..]);
    let response = client.response(stream);
    assert_eq!((response.status(), response.text()), (431, "Request Header Fields Too Large"));
    assert_eq!(proxy.entry_for("/large")["details"], "head_too_large");
    assert_eq!(client.get("/").text(), "hello", "the connection can be used on");
    assert_eq!(upstream.requests().len(), 1);
}

/// A proxy in front may send the requests of many on one connection: one of them does not end it, as long as its head is no flood.
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
            let block = encode(&head("GET", "/large", &fields));
            let parts: Vec<_> = block.chunks(16 << 10).collect();
            let stream = client.next_stream();
            for (n, part) in parts.iter().enumerate() {
                let (kind, end) = if n == 0 { (kind::HEADERS, flag::END_STREAM) } else { (kind::CONTINUATION, 0) };
                let last = if n + 1 == parts.len() { flag::END_HEADERS } else { 0 };
                client.send(kind, end | last, stream, part);
            }
            let response = client.response(stream);
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
    let stream = client.request("GET", "/many", &fields, true);
    assert_eq!(client.response(stream).status(), 431);
    assert_eq!(proxy.entry_for("/many")["details"], "too_many_fields");
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
