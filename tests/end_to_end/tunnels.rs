//! Tunnels (upgrades and `CONNECT`) end the way their sides end them: a clean end stays clean, and an abort an abort,
//! in whichever version of HTTP either side speaks. Tunnels on HTTP/2 streams are in `http2/tunnels.rs`.

use std::{io::ErrorKind, sync::mpsc};

use crate::harness::{
    Client, Config, H2, Proxy, Secure, Upstream, Wire,
    frames::{Frame, code, kind, setting},
    pki::{SelfSigned, TLS},
    wait_until,
};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const WEBSOCKET: [(&str, &str); 5] = [
    (":method", "CONNECT"),
    (":protocol", "websocket"),
    (":scheme", "http"),
    (":authority", "test:443"),
    (":path", "/chat"),
];

/// The bytes that an upstream received through a tunnel, and how it ended.
type Seen = (Vec<u8>, Option<ErrorKind>);

/// Echoes four bytes, then waits for the end and reports it.
fn watching(upgrades: bool) -> (Upstream, mpsc::Receiver<Seen>) {
    let (seen, saw) = mpsc::channel();
    let upstream = Upstream::scripted(move |mut connection| {
        if upgrades {
            connection.request();
            connection.send(SWITCHING);
        }
        let Ok(first) = connection.wire.read_exact(4) else { return };
        connection.send(first);
        let (mut all, mut some) = (Vec::new(), [0; 1000]);
        let end = loop {
            match connection.wire.read_some(&mut some) {
                Ok(0) => break None,
                Ok(n) => all.extend(&some[..n]),
                Err(error) => break Some(error.kind()),
            }
        };
        seen.send((all, end)).unwrap();
    });
    (upstream, saw)
}

/// Resets the connection after four bytes.
fn resetting(upgrades: bool) -> Upstream {
    Upstream::scripted(move |mut connection| {
        if upgrades {
            connection.request();
            connection.send(SWITCHING);
        }
        if connection.wire.read_exact(4).is_ok() {
            connection.wire.reset();
        }
    })
}

/// A client whose upgrade was answered with 101, and which has sent four bytes.
fn upgraded(proxy: &Proxy, first: &str) -> Client {
    let mut client = proxy.client();
    client.send(UPGRADE);
    assert_eq!(client.read().status(), 101);
    client.send(first);
    client
}

/// The same on a stream.
fn opened(client: &mut H2, head: &[(&str, &str)], first: &str) -> u32 {
    let stream = client.open(head, false);
    assert_eq!(client.wait(stream, "a head", |m| !m.blocks.is_empty()).status(), 200);
    client.data(stream, first.as_bytes(), false);
    stream
}

fn is_reset(wire: &mut Wire) -> bool {
    wire.read_some(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn a_client_reset_reaches_the_upstream_after_earlier_bytes() {
    let (upstream, saw) = watching(true);
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = upgraded(&proxy, "ping");
    assert_eq!(client.wire.read_exact(4).unwrap(), b"ping");
    client.wire.reset();
    assert_eq!(saw.recv().unwrap(), (Vec::new(), Some(ErrorKind::ConnectionReset)));
    proxy.entry_for("/chat").expect(101, "DC");

    let mut client = proxy.h2();
    let stream = opened(&mut client, &WEBSOCKET, "ping");
    client.wait(stream, "an echo", |message| message.body == b"ping");
    client.data(stream, b"last words", false);
    client.reset(stream, code::CANCEL);
    assert_eq!(saw.recv().unwrap(), (b"last words".to_vec(), Some(ErrorKind::ConnectionReset)));
}

/// A browser ends its side with its last frame, and then resets the stream, since it needs no further data.
#[test]
fn tunnel_that_ended_cleanly_stays_clean_after_a_reset() {
    let (upstream, saw) = watching(true);
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let stream = opened(&mut client, &WEBSOCKET, "ping");
    client.wait(stream, "an echo", |message| message.body == b"ping");
    client.data(stream, b"going away", true);
    client.reset(stream, code::CANCEL);
    assert_eq!(saw.recv().unwrap(), (b"going away".to_vec(), None));
    proxy.entry_for("/chat").expect(101, "");
}

#[test]
fn an_upstream_reset_reaches_the_client() {
    let upstream = resetting(true);
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = upgraded(&proxy, "ping");
    assert!(is_reset(&mut client.wire));
    let entry = proxy.entry_for("/chat").expect(101, "UC");
    assert!(entry["upstream_failure"].is_string(), "{entry}");

    let mut client = proxy.h2();
    let stream = opened(&mut client, &WEBSOCKET, "ping");
    assert_eq!(client.response(stream).reset, Some(code::CANCEL));

    let upstream = resetting(false);
    let proxy = Proxy::start(Config::to(&upstream).listener("connect: true"));
    let mut client = proxy.h2();
    let stream = opened(&mut client, &[(":method", "CONNECT"), (":authority", "test:443")], "ping");
    assert_eq!(client.response(stream).reset, Some(code::CONNECT_ERROR));
}

#[test]
fn a_clean_end_reaches_the_other_side() {
    let (upstream, saw) = watching(true);
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = upgraded(&proxy, "ping");
    assert_eq!(client.wire.read_exact(4).unwrap(), b"ping");
    client.wire.finish();
    assert_eq!(saw.recv().unwrap(), (Vec::new(), None));
    assert_eq!(client.wire.read_to_end(), b"");
    proxy.entry_for("/chat").expect(101, "");
}

/// An HTTP/2 upstream with these settings.
fn by_h2(settings: &'static [(u16, u32)], serve: impl Fn(&mut H2, u32) + Send + Sync + 'static) -> Upstream {
    Upstream::by_h2_with(settings, move |h2, _| {
        while let Ok((stream, _)) = h2.next_head() {
            serve(h2, stream);
        }
    })
}

fn to_h2(upstream: &Upstream) -> Proxy {
    Proxy::start(Config::to_with(upstream, "protocol: h2"))
}

#[test]
fn a_reset_passes_an_upstream_stream_in_both_directions() {
    let (reset, was_reset) = mpsc::channel();
    let upstream = by_h2(&[(setting::ENABLE_CONNECT_PROTOCOL, 1)], move |h2, stream| {
        h2.headers(stream, &[(":status", "200")], false);
        let message = h2.wait(stream, "four bytes", |message| message.body.len() == 4);
        if message.body == b"bang" {
            return h2.reset(stream, code::CANCEL);
        }
        h2.data(stream, b"pong", false);
        reset.send(h2.response(stream).reset).unwrap();
    });
    let proxy = to_h2(&upstream);
    let mut client = upgraded(&proxy, "bang");
    assert!(is_reset(&mut client.wire));
    proxy.entry_for("/chat").expect(101, "UC");

    let mut client = upgraded(&proxy, "ping");
    assert_eq!(client.wire.read_exact(4).unwrap(), b"pong");
    client.wire.reset();
    assert_eq!(was_reset.recv().unwrap(), Some(code::CANCEL));
}

/// Data directly followed by a reset.
fn last_words(stream: u32) -> Vec<u8> {
    let words = Frame::bytes(kind::DATA, 0, stream, b"last words");
    [words, Frame::bytes(kind::RST_STREAM, 0, stream, &code::CANCEL.to_be_bytes())].concat()
}

#[test]
fn bytes_before_a_reset_arrive_between_streams_too() {
    let (seen, saw) = mpsc::channel();
    let upstream = by_h2(&[(setting::ENABLE_CONNECT_PROTOCOL, 1)], move |h2, stream| {
        h2.headers(stream, &[(":status", "200")], false);
        let message = h2.wait(stream, "something", |message| !message.body.is_empty() || message.reset.is_some());
        if message.body == b"bang" {
            return h2.raw(last_words(stream));
        }
        let message = h2.response(stream);
        seen.send((message.body, message.reset)).unwrap();
    });
    let proxy = to_h2(&upstream);
    for by_upstream in [false, true] {
        let mut client = proxy.h2();
        if by_upstream {
            let stream = opened(&mut client, &WEBSOCKET, "bang");
            let message = client.response(stream);
            assert_eq!((message.body, message.reset), (b"last words".to_vec(), Some(code::CANCEL)));
        } else {
            let stream = opened(&mut client, &WEBSOCKET, "");
            client.raw(last_words(stream));
            assert_eq!(saw.recv().unwrap(), (b"last words".to_vec(), Some(code::CANCEL)));
        }
    }
}

/// RFC 8441 section 3.
#[test]
fn an_upgrade_is_not_sent_to_an_upstream_without_extended_connect() {
    let upstream = by_h2(&[], |h2, stream| {
        let message = h2.so_far(stream);
        assert_eq!(message.field(":method"), Some("GET"), "{message:?}");
        h2.answer(stream, 200, b"hello");
    });
    let proxy = to_h2(&upstream);
    let mut client = proxy.client();
    client.send(UPGRADE);
    assert_eq!(client.read().status(), 502);
    let entry = proxy.entry_for("/chat").expect(502, "UPE").because("upstream_protocol_error");
    assert!(entry["upstream_failure"].as_str().unwrap().contains("SETTINGS_ENABLE_CONNECT_PROTOCOL"), "{entry}");
    assert_eq!(proxy.get("/").text(), "hello", "the connection is still usable");
}

/// Browsers and many libraries close the socket without close_notify, or directly after it.
fn assert_close_is_not_a_failure(begin: &str, protocol: &str) {
    let (upstream, saw) = watching(!begin.is_empty());
    let pair = SelfSigned::new();
    let proxy = Proxy::start_with(Config::to(&upstream).listener(TLS).listener(protocol), &pair.files());
    for notifies in [false, true] {
        let mut client = Secure::connect(proxy.address("main"), &[pair.der()], None);
        client.send(begin).unwrap();
        let mut head = Vec::new();
        while !begin.is_empty() && !head.ends_with(b"\r\n\r\n") {
            head.extend(client.read_exact(1).unwrap());
        }
        client.send("ping").unwrap();
        assert_eq!(client.read_exact(4).unwrap(), b"ping");
        client.send("bye!").unwrap();
        if notifies {
            client.close().unwrap();
        }
        drop(client);
        assert_eq!(saw.recv().unwrap(), (b"bye!".to_vec(), None), "{notifies}");
    }
    wait_until("two lines", || proxy.entries().len() == 2);
    assert!(proxy.entries().iter().all(|entry| entry["flags"].is_null()), "{:?}", proxy.entries());
}

#[test]
fn a_close_under_tls_is_not_a_failure() {
    assert_close_is_not_a_failure(UPGRADE, "");
}

#[test]
fn a_close_of_a_tcp_connection_under_tls_is_not_a_failure() {
    assert_close_is_not_a_failure("", "protocol: tcp");
}
