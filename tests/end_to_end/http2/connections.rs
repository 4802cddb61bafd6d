//! A client's connection: the limit of its streams, and how it ends.

use std::{sync::mpsc, thread};

use crate::harness::{
    Config, H2, Proxy, Signal, Upstream, answer,
    frames::{code, flag, head, kind, setting},
    in_time, turnstile,
};

/// Answers `/held` when told to, and everything else immediately.
fn holding() -> (Upstream, mpsc::Sender<()>) {
    let (go, wait) = turnstile();
    let upstream = Upstream::replying(move |request| {
        if request.target() == "/held" {
            wait();
        }
        answer(200, &[], request.target())
    });
    (upstream, go)
}

/// A client with an in-flight stream.
fn busy(proxy: &Proxy, upstream: &Upstream) -> (H2, u32) {
    let mut client = proxy.h2();
    let stream = client.request("GET", "/held", &[], true);
    upstream.wait_for_requests(1);
    (client, stream)
}

fn goes_away(client: &mut H2) {
    if client.goaways.is_empty() {
        client.read_until("GOAWAY", |frame| frame.kind == kind::GOAWAY);
    }
    assert_eq!(client.goaways[0].code(), code::NO_ERROR);
}

/// Asserts that a connection that got a GOAWAY ends with its stream.
fn ends_with(mut client: H2, stream: u32, go: &mpsc::Sender<()>) {
    goes_away(&mut client);
    go.send(()).unwrap();
    assert_eq!(client.response(stream).text(), "/held");
    client.read_to_end();
}

#[test]
fn sigterm_sends_goaway_and_lets_streams_end() {
    let (upstream, go) = holding();
    let mut proxy = Proxy::start(Config::to(&upstream));
    let (mut client, stream) = busy(&proxy, &upstream);
    proxy.signal(Signal::TERM);
    goes_away(&mut client);
    // Sent before the client can know of the GOAWAY: it is served as well.
    let late = client.request("GET", "/late", &[], true);
    assert_eq!(client.response(late).text(), "/late");
    go.send(()).unwrap();
    assert_eq!(client.response(stream).text(), "/held");
    let last = client.read_to_end().expect("a GOAWAY");
    assert_eq!((last.code(), last.last_stream()), (code::NO_ERROR, late));
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_reload_keeps_connections_and_applies_to_their_next_streams() {
    let (upstream, go) = holding();
    let other = Upstream::saying("other");
    let mut proxy = Proxy::start(Config::to(&upstream));
    let (mut client, stream) = busy(&proxy, &upstream);
    proxy.change_config(Config::to(&other));
    assert_eq!(client.get("/").text(), "other");
    go.send(()).unwrap();
    assert_eq!(client.response(stream).text(), "/held");
    assert!(client.goaways.is_empty());
}

#[test]
fn connections_of_a_removed_listener_get_goaway() {
    let (upstream, go) = holding();
    let mut proxy = Proxy::start(Config::to(&upstream));
    let (client, stream) = busy(&proxy, &upstream);
    let rest = Config::to(&upstream);
    proxy.change_config(String::from(rest).replace("name: main", "name: next").replace("@main@", "@next@"));
    ends_with(client, stream, &go);
}

#[test]
fn the_stream_limit_is_enforced() {
    let (upstream, go) = holding();
    let proxy = Proxy::start(Config::to(&upstream).listener("http2: {max_concurrent_streams: 3}"));
    let mut client = proxy.h2();
    client.ping();
    assert_eq!(client.settings.get(&setting::MAX_CONCURRENT_STREAMS), Some(&3));
    let held: Vec<u32> = (0..3).map(|_| client.request("GET", "/held", &[], true)).collect();
    assert_eq!(client.get("/more").reset, Some(code::REFUSED_STREAM));
    held.iter().for_each(|_| go.send(()).unwrap());
    client.wait(1, "an end", |m| m.ended);
    assert_eq!(client.get("/then").text(), "/then");
    assert!(upstream.requests().iter().all(|r| r.target() != "/more"));
}

#[test]
fn the_connection_age_limit_is_enforced() {
    let (upstream, go) = holding();
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {connection_age: 1s}"));
    let (client, stream) = busy(&proxy, &upstream);
    ends_with(client, stream, &go);
    assert_eq!(proxy.h2().get("/").status(), 200);
}

#[test]
fn the_request_limit_per_connection_is_enforced() {
    let (upstream, _go) = holding();
    let proxy = Proxy::start(Config::to(&upstream).listener("limits: {requests_per_connection: 3}"));
    let mut client = proxy.h2();
    for _ in 0..3 {
        assert_eq!(client.get("/").status(), 200);
    }
    goes_away(&mut client);
    client.read_to_end();
}

#[test]
fn an_idle_connection_is_closed() {
    let (upstream, _go) = holding();
    let proxy = Proxy::start(Config::to(&upstream).listener("timeouts: {keep_alive: 1s}"));
    let mut client = proxy.h2();
    assert_eq!(client.get("/").status(), 200);
    goes_away(&mut client);
    client.read_to_end();
    // The same for a connection without any request.
    proxy.h2().read_to_end();
}

/// One client does not answer pings, the other one does.
#[test]
fn a_connection_whose_pings_are_not_answered_is_closed() {
    in_time(|ms| {
        let (upstream, _go) = holding();
        let pings = format!("http2: {{ping_interval: 200ms, ping_timeout: {ms}ms}}");
        let proxy = Proxy::start(Config::to(&upstream).listener(&pings));
        let (mut gone, _) = busy(&proxy, &upstream);
        gone.answers_pings = false;
        let mut alive = proxy.h2();
        alive.request("GET", "/held", &[], true);
        upstream.wait_for_requests(2);
        // Both are read concurrently: a client that does not read does not answer.
        let gone = thread::spawn(move || {
            gone.read_to_end();
            gone.pings
        });
        while alive.pings < 5 || !gone.is_finished() {
            // It may have answered too late.
            alive.read().ok()?;
        }
        assert!(gone.join().unwrap() > 0);
        assert_eq!(alive.get("/").status(), 200);
        proxy.entry_for("/held").expect((), "DC");
        Some(())
    });
}

/// RFC 9113 section 5.1: frames that a stream's state does not allow. The crate h2 reports most of them as
/// PROTOCOL_ERROR, even if there is a more specific code.
#[test]
fn frames_in_invalid_stream_states_end_the_connection() {
    let (upstream, _go) = holding();
    let proxy = Proxy::start(Config::to(&upstream));
    type Evil = fn(&mut H2);
    let cases: &[(&str, u32, Evil)] = &[
        ("data on an idle stream", code::PROTOCOL_ERROR, |c| c.send(kind::DATA, 0, 7, b"x")),
        ("a window for an idle stream", code::PROTOCOL_ERROR, |c| c.window(7, 1)),
        ("a reset of an idle stream", code::PROTOCOL_ERROR, |c| c.reset(7, code::CANCEL)),
        ("a server-initiated stream", code::PROTOCOL_ERROR, |c| c.headers(2, &head("GET", "/", &[]), true)),
        ("stream 0 with a head", code::PROTOCOL_ERROR, |c| c.headers(0, &head("GET", "/", &[]), true)),
        ("stream 0 with data", code::PROTOCOL_ERROR, |c| c.send(kind::DATA, 0, 0, b"x")),
        ("a continuation without headers", code::PROTOCOL_ERROR, |c| {
            c.send(kind::CONTINUATION, flag::END_HEADERS, 1, b"")
        }),
        ("headers within a header block", code::PROTOCOL_ERROR, |c| {
            c.send(kind::HEADERS, 0, 1, b"");
            c.send(kind::PING, 0, 0, &[0; 8]);
        }),
        ("a promise", code::PROTOCOL_ERROR, |c| c.send(5, flag::END_HEADERS, 1, &[0, 0, 0, 2])),
        ("settings of an invalid length", code::PROTOCOL_ERROR, |c| c.send(kind::SETTINGS, 0, 0, b"12345")),
        ("settings on a stream", code::PROTOCOL_ERROR, |c| c.send(kind::SETTINGS, 0, 1, b"")),
        ("a ping of an invalid length", code::PROTOCOL_ERROR, |c| c.send(kind::PING, 0, 0, b"1234567")),
        ("a frame that is too long", code::FRAME_SIZE_ERROR, |c| c.send(kind::DATA, 0, 1, &vec![0; (16 << 10) + 1])),
        ("a block that cannot be decompressed", code::PROTOCOL_ERROR, |c| {
            c.send(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &[0x80 | 126]);
        }),
        ("padding longer than its frame", code::PROTOCOL_ERROR, |c| c.send(kind::DATA, 8, 1, &[200, 1, 2])),
    ];
    for (nth, (what, code, evil)) in cases.iter().enumerate() {
        let mut client = proxy.h2();
        client.ping();
        evil(&mut client);
        let goaway = client.read_to_end().unwrap_or_else(|| panic!("no GOAWAY after {what}"));
        assert_eq!(goaway.code(), *code, "{what}");
        let labels = [("listener", "main"), ("reason", "http2")];
        proxy.wait_for_metric("tollgate_connections_refused_total", &labels, nth as f64 + 1.0);
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn connections_are_counted_until_they_end() {
    let (upstream, _go) = holding();
    let proxy = Proxy::start(Config::to(&upstream));
    let mut clients: Vec<H2> = (0..5).map(|_| proxy.h2()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
    assert_eq!(proxy.metrics().sum("tollgate_connections_active", &[("listener", "main")]), 5.0);
    drop(clients);
    proxy.wait_for_zero("tollgate_connections_active", &[("listener", "main")]);
}
