//! Tunnels on streams: `CONNECT`, and extended `CONNECT` (RFC 8441).

use super::windows::{reads_little_by_little, stingy};
use crate::harness::{
    Config, H2, Proxy, Upstream, answer,
    frames::{code, setting},
    in_time,
};

/// Echoes what it receives; for an upgrade, after a 101.
fn echoing(upgrades: bool) -> Upstream {
    Upstream::scripted(move |mut connection| {
        if upgrades {
            let Some(request) = connection.request() else { return };
            assert_eq!(request.field("connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
            let token = request.field("upgrade").expect("an upgrade").to_owned();
            connection.send(format!("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: {token}\r\n\r\n"));
        }
        let mut some = [0; 16 << 10];
        while let Ok(n @ 1..) = connection.wire.read_some(&mut some) {
            connection.send(&some[..n]);
        }
    })
}

fn connect(client: &mut H2, fields: &[(&str, &str)]) -> u32 {
    let stream = client.open(&[&[(":method", "CONNECT"), (":authority", "test:443")], fields].concat(), false);
    client.wait(stream, "a head", |m| !m.blocks.is_empty() || m.reset.is_some());
    stream
}

const WEBSOCKET: [(&str, &str); 3] = [(":protocol", "websocket"), (":scheme", "http"), (":path", "/chat")];

/// Asserts that more than both sides' windows is echoed in both directions.
fn echoes(client: &mut H2, stream: u32) {
    let sent: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_be_bytes).take(3 << 20).collect();
    let mut rest = &sent[..];
    while !rest.is_empty() {
        match client.data_within(stream, rest) {
            0 => _ = client.read().expect("a window"),
            n => rest = &rest[n..],
        }
    }
    let got = client.wait(stream, "all of it", |m| m.body.len() >= sent.len() || m.ended);
    assert!(got.body == sent, "{} bytes of {}", got.body.len(), sent.len());
    // The client ends its side, and then the upstream does.
    client.data(stream, b"", true);
    assert!(client.response(stream).ended);
}

#[test]
fn connect_is_a_tunnel_on_one_stream() {
    let upstream = echoing(false);
    let proxy = Proxy::start(Config::to(&upstream).listener("connect: true"));
    let mut client = proxy.h2();
    client.ping();
    let (first, second) = (connect(&mut client, &[]), connect(&mut client, &[]));
    assert_eq!((client.so_far(first).status(), client.so_far(second).status()), (200, 200));
    echoes(&mut client, first);
    echoes(&mut client, second);
    assert_eq!(upstream.connections(), 2);
    proxy.wait_for_metric("tollgate_requests_total", &[("listener", "main")], 2.0);
}

#[test]
fn a_websocket_over_http2_is_forwarded_as_an_http1_upgrade() {
    let upstream = echoing(true);
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    client.ping();
    // ENABLE_CONNECT_PROTOCOL.
    assert_eq!(client.settings.get(&8), Some(&1));
    let stream = connect(&mut client, &WEBSOCKET);
    let head = client.so_far(stream);
    assert_eq!((head.status(), head.field("upgrade"), head.field("sec-websocket-accept")), (200, None, None));
    echoes(&mut client, stream);
    let request = upstream.only_request();
    assert_eq!((request.method(), request.target(), request.field("upgrade")), ("GET", "/chat", Some("websocket")));
    assert!(request.field("sec-websocket-key").is_some());
}

#[test]
fn tunnels_that_are_not_enabled_are_rejected() {
    let upstream = Upstream::saying("hello");
    let proxy = Proxy::start(Config::to(&upstream).listener("upgrades: []"));
    let mut client = proxy.h2();
    client.ping();
    assert_eq!(client.settings.get(&8).copied().unwrap_or(0), 0);
    let stream = connect(&mut client, &[]);
    assert_eq!(client.so_far(stream).status(), 405);
    let stream = connect(&mut client, &WEBSOCKET);
    assert_eq!(client.response(stream).reset, Some(code::PROTOCOL_ERROR));
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let stream = connect(&mut client, &[(":protocol", "other"), (":scheme", "http"), (":path", "/")]);
    assert_eq!(client.so_far(stream).status(), 501);
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(upstream.requests().len(), 1);
}

/// As for a body: progress counts by what the client's window accepts, not by what the tunnel has read from the
/// upstream.
#[test]
fn a_tunnel_with_a_slowly_reading_client_is_not_idle() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.send(vec![b'x'; 64 << 10]);
        connection.wait_for_end();
    });
    in_time(|ms| {
        let config = Config::to(&upstream).listener(&format!("connect: true\ntimeouts: {{idle: {ms}ms}}"));
        let proxy = Proxy::start(config);
        let mut client = stingy(&proxy, 1);
        let stream = connect(&mut client, &[]);
        reads_little_by_little(&mut client, stream, ms)
    });
}

/// An upstream's response other than a switch is forwarded.
#[test]
fn an_upstream_can_reject_a_tunnel() {
    let upstream = Upstream::replying(|_| answer(403, &[], "no"));
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let stream = connect(&mut client, &WEBSOCKET);
    let response = client.response(stream);
    assert_eq!((response.status(), response.text()), (403, "no"));
}

#[test]
fn a_tunnel_whose_client_resets_it_is_closed() {
    let upstream = echoing(false);
    let proxy = Proxy::start(Config::to(&upstream).listener("connect: true"));
    let mut client = H2::connect_with(proxy.address("main"), &[(setting::INITIAL_WINDOW_SIZE, 1000)]);
    let stream = connect(&mut client, &[]);
    proxy.wait_for_metric("tollgate_tunnels_active", &[("listener", "main")], 1.0);
    client.reset(stream, code::CANCEL);
    proxy.wait_for_zero("tollgate_tunnels_active", &[("listener", "main")]);
}
