//! Connections that the proxy ends: everything that was begun arrives, however slowly the client reads and whatever it
//! sends meanwhile; and what is not whole never looks whole.

use std::{thread, time::Duration};

use crate::harness::{
    Config, H2, Proxy, Signal, Upstream, Wire, answer,
    frames::{kind, setting},
    wait_until,
};

/// A response's body: more of these than a socket's buffers hold.
const LARGE: usize = 30_000;

/// Requests that a client sends at once.
const MANY: usize = 60;

/// What a client waits after each part that it reads.
const PAUSE: Duration = Duration::from_millis(20);

fn large() -> Upstream {
    Upstream::replying(|_| answer(200, &[], vec![b'x'; LARGE]))
}

/// Small buffers, so that the kernel does not hide what the proxy does.
fn slow(wire: &Wire) {
    socket2::SockRef::from(wire.socket()).set_recv_buffer_size(32 << 10).expect("a buffer can be small");
}

/// An HTTP/2 client that has sent many requests reads slowly, and pings as it reads. How many of the streams that
/// GOAWAY has promised it got as a whole, and how many those are.
fn read_slowly(proxy: &mut Proxy, pause: Duration, then: impl FnOnce(&mut Proxy)) -> (usize, usize) {
    let mut client = proxy.h2();
    slow(&client.wire);
    let streams: Vec<u32> = (0..MANY).map(|_| client.request("GET", "/large", &[], true)).collect();
    client.wait(streams[0], "the first answer", |message| !message.blocks.is_empty());
    then(proxy);
    while let Ok(frame) = client.read() {
        if frame.kind == kind::DATA {
            thread::sleep(pause);
            client.send(kind::PING, 0, 0, b"12345678");
        }
    }
    let last = client.goaways.last().expect("a GOAWAY").last_stream();
    let promised = streams.iter().filter(|stream| **stream <= last);
    let whole = promised.clone().filter(|stream| client.so_far(**stream).body.len() == LARGE);
    (whole.count(), promised.count())
}

#[test]
fn a_slow_reader_that_pings_gets_all_answers_of_a_connection_with_its_last_request() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream).listener("limits: {requests_per_connection: 20}"));
    let (whole, promised) = read_slowly(&mut proxy, Duration::from_millis(5), |_| ());
    assert!(promised >= 20, "{promised}");
    assert_eq!(whole, promised);
}

#[test]
fn a_slow_reader_that_pings_gets_all_answers_of_a_connection_that_is_old() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {connection_age: 500ms}"));
    assert_eq!(read_slowly(&mut proxy, PAUSE, |_| ()), (MANY, MANY));
}

#[test]
fn a_slow_reader_that_pings_gets_all_answers_of_a_proxy_that_ends() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream).top("drain_timeout: 1h"));
    assert_eq!(read_slowly(&mut proxy, PAUSE, |proxy| proxy.signal(Signal::TERM)), (MANY, MANY));
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_slow_reader_that_pings_gets_all_answers_of_a_listener_that_is_removed() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream));
    let (whole, promised) = read_slowly(&mut proxy, Duration::from_millis(20), |proxy| {
        let others = "listeners: [{name: other, address: '@other@', cluster: web}]";
        proxy.change_config(format!("{others}\nclusters: [{{name: web, endpoints: [{{address: \"{upstream}\"}}]}}]\n"));
    });
    assert_eq!((whole, promised), (MANY, MANY));
}

/// What h2 has of an answer and the client's window does not allow yet is delivered, too (RFC 9113 section 6.8).
#[test]
fn an_answer_that_waits_for_its_clients_window_outlasts_goaway() {
    // So small that h2 has all of it, and the exchange is over.
    let upstream = Upstream::saying(&"x".repeat(10_000));
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {requests_per_connection: 1}"));
    let mut client = H2::connect_with(proxy.address("main"), &[(setting::INITIAL_WINDOW_SIZE, 1000)]);
    client.generous = false;
    let stream = client.request("GET", "/large", &[], true);
    client.wait(stream, "as much as the window allows", |message| message.body.len() == 1000);
    proxy.entry_for("/large");
    if client.goaways.is_empty() {
        client.read_until("GOAWAY", |frame| frame.kind == kind::GOAWAY);
    }
    // Longer than a connection without requests is kept after GOAWAY.
    thread::sleep(Duration::from_secs(4));
    client.generous = true;
    client.window(stream, 1 << 20);
    let message = client.response(stream);
    assert_eq!((message.body.len(), message.ended), (10_000, true));
}

/// Requests are sent ahead, more of them than are answered; the last answer must still arrive.
#[test]
fn a_slow_reader_that_sends_on_gets_the_last_answer_over_http_1() {
    let upstream = Upstream::replying(|_| answer(200, &[], vec![b'x'; 1 << 20]));
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {requests_per_connection: 2}"));
    let mut client = proxy.client();
    slow(&client.wire);
    for _ in 0..3 {
        client.send_request("GET", "/large", &[], b"");
    }
    let mut read = 0;
    let mut some = vec![0; 16 << 10];
    loop {
        // Whether anybody hears it does not matter.
        let _ = client.wire.send("GET /more HTTP/1.1\r\nHost: test\r\n\r\n");
        match client.wire.read_some(&mut some) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) => panic!("{error} after {read} bytes"),
        }
        thread::sleep(Duration::from_millis(2));
    }
    assert!(read > 2 << 20, "{read} bytes of two answers");
}

/// The end of an answer is no idle connection.
#[test]
fn a_client_may_take_longer_for_the_end_of_an_answer_than_an_idle_connection_is_kept() {
    // So much that its end waits in the proxy.
    let upstream = Upstream::replying(|_| answer(200, &[], vec![b'x'; 8 << 20]));
    let proxy = Proxy::start(Config::to_with(&upstream, "request_timeout: 0s").listener("timeouts: {keep_alive: 1s}"));
    let mut client = proxy.client();
    slow(&client.wire);
    client.send_request("GET", "/large", &[], b"");
    let head = client.wire.read_head().expect("a head");
    assert_eq!(head.field("content-length"), Some("8388608"));
    let mut read = 0;
    let mut some = vec![0; 256 << 10];
    while read < 8 << 20 {
        if (6 << 20..7 << 20).contains(&read) || read > (8 << 20) - (300 << 10) {
            thread::sleep(Duration::from_millis(700));
        }
        match client.wire.read_some(&mut some) {
            Ok(n @ 1..) => read += n,
            other => panic!("{other:?} after {read} bytes"),
        }
    }
}

/// Without a length or chunks the connection's end is the answer's; what breaks off is reset (RFC 9112 section 8).
#[test]
fn an_answer_that_breaks_off_is_reset_for_a_client_of_http_1_0() {
    let upstream = Upstream::canned("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send("GET /cut HTTP/1.0\r\nHost: test\r\n\r\n");
    let mut some = [0; 4 << 10];
    let end = loop {
        match client.wire.read_some(&mut some) {
            Ok(0) => break None,
            Ok(_) => {}
            Err(error) => break Some(error.kind()),
        }
    };
    assert_eq!(end, Some(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn a_client_that_never_closes_does_not_hold_up_the_end() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream).top("drain_timeout: 1h"));
    let mut clients: Vec<_> = (0..3).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    wait_until("the connections to be closed", || clients.iter_mut().all(|client| client.wire.is_closed()));
}
