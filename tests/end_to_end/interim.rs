//! Interim responses (RFC 9110 section 15.2) of upstreams reach clients of every version that supports them.

use crate::harness::{Client, Config, Message, Proxy, Upstream, answer};

/// Two early hints, one of them with connection-specific fields, and then the response.
const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\
                     Keep-Alive: 5\r\nContent-Length: 0\r\n\r\n\
                     HTTP/1.1 103 Early Hints\r\nLink: </b.css>; rel=preload\r\n\r\n";

fn hinting() -> Upstream {
    Upstream::replying(|_| [HINTS.as_bytes(), &answer(200, &[], "hello")].concat())
}

/// The same over HTTP/2.
fn hinting_by_h2() -> Upstream {
    Upstream::replying_by_h2(|h2, stream, _| {
        for link in ["</a.css>; rel=preload", "</b.css>; rel=preload"] {
            h2.headers(stream, &[(":status", "103"), ("link", link)], false);
        }
        h2.answer(stream, 200, b"hello");
    })
}

fn hints_of(client: &mut Client) -> (Vec<Message>, Message) {
    client.send_request("GET", "/", &[], b"");
    let mut hints = Vec::new();
    loop {
        let response = client.read();
        if response.status() >= 200 {
            return (hints, response);
        }
        hints.push(response);
    }
}

#[test]
fn early_hints_reach_clients_in_order() {
    for (upstream, protocol, via) in [(hinting(), "h1", "1.1 tollgate"), (hinting_by_h2(), "h2", "2 tollgate")] {
        let options = format!("protocol: {protocol}");
        let proxy = Proxy::start(Config::to_with(&upstream, &options));
        let mut client = proxy.client();
        for _ in 0..2 {
            let (hints, response) = hints_of(&mut client);
            assert_eq!((response.status(), response.text()), (200, "hello"), "{protocol}");
            let links: Vec<_> = hints.iter().map(|hint| (hint.status(), hint.field("link").unwrap())).collect();
            assert_eq!(links, [(103, "</a.css>; rel=preload"), (103, "</b.css>; rel=preload")], "{protocol}");
            assert_eq!(hints[0].field("via"), Some(via));
            for name in ["connection", "x-hop", "keep-alive", "content-length", "transfer-encoding"] {
                assert_eq!(hints[0].field(name), None, "{protocol}: {name}");
            }
        }
        let mut client = proxy.h2();
        let stream = client.request("GET", "/", &[], true);
        let message = client.response(stream);
        assert_eq!((message.status(), message.text(), message.blocks.len()), (200, "hello", 3), "{protocol}");
        for (block, link) in message.blocks.iter().zip(["</a.css>; rel=preload", "</b.css>; rel=preload"]) {
            assert!(block.contains(&(":status".to_owned(), "103".to_owned())), "{protocol}: {block:?}");
            assert!(block.contains(&("link".to_owned(), link.to_owned())), "{protocol}: {block:?}");
            assert!(!block.iter().any(|(name, _)| ["connection", "x-hop", "content-length"].contains(&&**name)));
        }
        assert_eq!(proxy.metrics().sum("tollgate_requests_total", &[("class", "1xx")]), 0.0);
    }
}

/// A client must get them when they arrive, not with the response.
#[test]
fn early_hints_do_not_wait_for_the_response() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::scripted(move |mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
            let _ = wait.lock().unwrap().recv();
            connection.send(answer(200, &[], "hello"));
        }
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send_request("GET", "/", &[], b"");
    assert_eq!(client.read().status(), 103);
    go.send(()).unwrap();
    assert_eq!(client.read().text(), "hello");
    let mut client = proxy.h2();
    let stream = client.request("GET", "/", &[], true);
    client.wait(stream, "a hint", |message| message.blocks.len() == 1);
    go.send(()).unwrap();
    assert_eq!(client.response(stream).text(), "hello");
}

#[test]
fn early_hints_are_omitted_if_unsupported_or_disabled() {
    let upstream = hinting();
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: test\r\n\r\n");
    assert_eq!(client.read().text(), "hello", "HTTP/1.0");
    let proxy = Proxy::start(Config::to(&upstream).listener("interim_responses: false"));
    assert!(hints_of(&mut proxy.client()).0.is_empty());
    let mut client = proxy.h2();
    let stream = client.request("GET", "/", &[], true);
    assert_eq!(client.response(stream).blocks.len(), 1);
}

/// The client gets one 100, from the proxy or the upstream, and none if it did not ask for it.
#[test]
fn a_client_gets_100_continue_once() {
    let upstream = Upstream::replying(|request| {
        [b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), answer(200, &[], &request.body)].concat()
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.read().status(), 100);
    client.send("body");
    assert_eq!(client.read().text(), "body");
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nmore");
    assert_eq!(client.read().text(), "more");
    assert!(upstream.requests().iter().all(|request| request.field("expect").is_none()), "it was removed");
}

/// A failed attempt can be retried even if the client has seen its interim response.
#[test]
fn an_early_hint_does_not_prevent_a_retry() {
    let upstream = Upstream::scripted(|mut connection| {
        while let Some(request) = connection.request() {
            let first = request.field("x-try").is_none();
            connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
            if first {
                connection.send(answer(503, &[], "not yet"));
            }
        }
    });
    let second = hinting();
    let config = Config::new().listener("cluster: web").cluster(
        "web",
        &[&upstream, &second],
        "retry: {on: [gateway_error], attempts: 3, backoff: 1ms}",
    );
    let proxy = Proxy::start(config.top("workers: 1"));
    let mut hints = 0;
    for _ in 0..4 {
        let (seen, response) = hints_of(&mut proxy.client());
        assert_eq!((response.status(), response.text()), (200, "hello"));
        hints += seen.len();
    }
    // Two per response, and one per failed attempt.
    let attempts = upstream.requests().len();
    assert!(attempts > 0);
    assert_eq!(hints, 8 + attempts);
}
