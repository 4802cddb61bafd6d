//! Connections that the proxy closes: everything that was started arrives, however slowly the client reads and whatever
//! it still sends; and a truncated response never looks complete.

use std::{thread, time::Duration};

use crate::harness::{
    Config, H2, Proxy, Signal, Upstream, Wire, answer,
    frames::{kind, setting},
    wait_until,
};

/// The size of a response's body: several of these exceed a socket's buffers.
const LARGE: usize = 30_000;

/// The number of concurrent requests of a client.
const MANY: usize = 60;

/// A client's pause after each part that it reads.
const PAUSE: Duration = Duration::from_millis(20);

fn large() -> Upstream {
    Upstream::replying(|_| answer(200, &[], vec![b'x'; LARGE]))
}

/// Uses small buffers, so that the kernel does not hide the proxy's behaviour.
fn slow(wire: &Wire) {
    socket2::SockRef::from(wire.socket()).set_recv_buffer_size(32 << 10).expect("a buffer can be small");
}

/// An HTTP/2 client that has sent many requests reads slowly and pings meanwhile. Returns how many of the streams that
/// GOAWAY promised were complete, and how many were promised.
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
fn a_slow_reader_gets_all_responses_at_the_request_limit() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream).listener("limits: {requests_per_connection: 20}"));
    let (whole, promised) = read_slowly(&mut proxy, Duration::from_millis(5), |_| ());
    assert!(promised >= 20, "{promised}");
    assert_eq!(whole, promised);
}

#[test]
fn a_slow_reader_gets_all_responses_at_the_connection_age_limit() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {connection_age: 500ms}"));
    assert_eq!(read_slowly(&mut proxy, PAUSE, |_| ()), (MANY, MANY));
}

#[test]
fn a_slow_reader_gets_all_responses_when_the_proxy_shuts_down() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream).top("drain_timeout: 1h"));
    assert_eq!(read_slowly(&mut proxy, PAUSE, |proxy| proxy.signal(Signal::TERM)), (MANY, MANY));
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_slow_reader_gets_all_responses_when_the_listener_is_removed() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream));
    let (whole, promised) = read_slowly(&mut proxy, Duration::from_millis(20), |proxy| {
        let others = "listeners: [{name: other, address: '@other@', cluster: web}]";
        proxy.change_config(format!("{others}\nclusters: [{{name: web, endpoints: [{{address: \"{upstream}\"}}]}}]\n"));
    });
    assert_eq!((whole, promised), (MANY, MANY));
}

/// Data buffered in h2 beyond the client's window is delivered, too (RFC 9113 section 6.8).
#[test]
fn a_response_waiting_for_the_clients_window_survives_goaway() {
    // So small that h2 buffers all of it, and the exchange is over.
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

/// The client pipelines more requests than are answered; the last response must still arrive.
#[test]
fn a_pipelining_slow_reader_gets_the_last_response_over_http1() {
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
        // Whether the proxy reads it does not matter.
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

/// While the end of a response is pending, the connection is not idle.
#[test]
fn a_client_can_read_the_end_of_a_response_after_the_keep_alive_timeout() {
    // So large that its end is buffered in the proxy.
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

/// Without a length or chunks, the end of the connection ends the response; a truncated one is reset (RFC 9112 section
/// 8).
#[test]
fn a_truncated_response_is_reset_for_an_http_1_0_client() {
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
fn a_client_that_never_closes_does_not_delay_shutdown() {
    let upstream = large();
    let mut proxy = Proxy::start(Config::to(&upstream).top("drain_timeout: 1h"));
    let mut clients: Vec<_> = (0..3).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    wait_until("the connections to be closed", || clients.iter_mut().all(|client| client.wire.is_closed()));
}
