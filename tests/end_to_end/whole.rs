//! Complete messages are forwarded as complete, incomplete ones as broken: responses that end early, wrong lengths set
//! by filters, targets that cannot be sent, uploads whose exchange has ended.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::{
    guest,
    harness::{
        Config, DEADLINE, H2, Proxy, Upstream, answer,
        frames::{Message, code, flag, kind},
        telling, wait_until,
    },
};

pub(crate) fn to_h2(upstream: &Upstream) -> Config {
    Config::to_with(upstream, "protocol: h2").top("workers: 1")
}

/// The body of the response to a POST for an HTTP/1.1 client, if it is complete.
fn over_h1(proxy: &Proxy) -> Option<Vec<u8>> {
    let mut client = proxy.client();
    client.send_request("POST", "/", &[], b"hello");
    client.wire.whole_response("POST").map(|response| response.body)
}

/// The same over HTTP/2.
fn over_h2(proxy: &Proxy) -> Option<Vec<u8>> {
    let mut client = proxy.h2();
    let stream = client.request("POST", "/", &[], false);
    client.data(stream, b"hello", true);
    let response = client.response(stream);
    (response.ended && response.reset.is_none()).then_some(response.body)
}

/// Asserts that each of two requests has a line with these flags.
fn assert_logged_twice(proxy: &Proxy, flags: &str) {
    wait_until("two lines", || proxy.entries().len() == 2);
    assert!(proxy.entries().iter().all(|entry| entry["flags"] == flags), "{:?}", proxy.entries());
}

/// A reset without an error, or a GOAWAY, does not complete a response that has not ended (RFC 9113 section 8.1).
#[test]
fn a_truncated_http2_response_is_broken_however_it_ends() {
    type End = fn(&mut H2, u32);
    let ends: [(&str, End); 3] = [
        ("a reset without an error", |h2, stream| h2.reset(stream, code::NO_ERROR)),
        ("a reset", |h2, stream| h2.reset(stream, code::INTERNAL_ERROR)),
        ("GOAWAY without an error", |h2, _| h2.goaway(0, code::NO_ERROR)),
    ];
    for (what, end) in ends {
        for length in [None, Some("1000")] {
            let upstream = Upstream::replying_by_h2(move |h2, stream, _| {
                let head = [(":status", "200")].into_iter().chain(length.map(|length| ("content-length", length)));
                h2.headers(stream, &head.collect::<Vec<_>>(), false);
                h2.data(stream, b"half of it", false);
                end(h2, stream);
            });
            let proxy = Proxy::start(to_h2(&upstream));
            assert_eq!([over_h1(&proxy), over_h2(&proxy)], [None, None], "{what}, {length:?}");
            assert_logged_twice(&proxy, "UC");
        }
    }
}

/// An early response that has ended is complete, whatever its server does to the rest of the request.
#[test]
fn an_early_complete_response_survives_the_reset_of_its_stream() {
    let upstream = Upstream::by_h2(|h2| {
        while let Ok((stream, _)) = h2.next_head() {
            h2.headers(stream, &[(":status", "413")], false);
            h2.data(stream, b"too much", true);
            h2.reset(stream, code::NO_ERROR);
        }
    });
    let proxy = Proxy::start(to_h2(&upstream));
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\nhello");
    let response = client.read_for("POST");
    assert_eq!((response.status(), response.text()), (413, "too much"));
    let mut client = proxy.h2();
    let stream = client.request("POST", "/", &[], false);
    client.data(stream, b"hello", false);
    let response = client.response(stream);
    assert_eq!((response.status(), response.text(), response.ended), (413, "too much", true));
}

/// A filter that sets another length for requests, or for responses.
fn wrong_length(direction: &str, length: &str) -> Vec<u8> {
    let map = if direction == "request" { "0" } else { "2" };
    guest::filter(&format!(
        r#"(func (export "proxy_on_{direction}_headers") (param i32 i32 i32) (result i32)
            (drop (call $set_header (i32.const {map}) %"content-length" %"{length}")) (i32.const 0))"#
    ))
}

#[test]
fn a_wrong_length_set_by_a_filter_is_attributed_to_the_filter_in_every_version() {
    let h1 = Upstream::replying(|request| answer(200, &[], &request.body));
    let chunked = Upstream::replying(|_| {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec()
    });
    let (seen, saw) = telling();
    let h2 = Upstream::by_h2(move |h2| {
        while let Ok((stream, _)) = h2.next_head() {
            let request = h2.wait(stream, "its end", |message| message.ended || message.reset.is_some());
            seen(request.ended);
            h2.answer(stream, 200, b"hello");
        }
    });
    for length in ["2", "50"] {
        for (direction, config) in [
            ("request", Config::to(&h1)),
            ("request", to_h2(&h2)),
            ("response", Config::to(&h1)),
            ("response", to_h2(&h2)),
            ("response", Config::to(&chunked)),
        ] {
            let proxy = Proxy::start(config.module("length", &wrong_length(direction, length), ""));
            let what = format!("{direction}, {length}");
            let is_wrong = |message: Option<Vec<u8>>| message.is_none_or(|body| body != b"hello");
            assert!(is_wrong(over_h1(&proxy)), "{what}, HTTP/1.1");
            assert!(is_wrong(over_h2(&proxy)), "{what}, HTTP/2");
            assert_logged_twice(&proxy, "FF");
            for entry in proxy.entries() {
                assert!(direction == "response" || entry["status"] == 500, "{what}: {entry}");
            }
        }
    }
    let ended: Vec<bool> = saw.try_iter().collect();
    // Uploads were complete where only the response was wrong.
    assert_eq!(ended.iter().filter(|ended| !**ended).count(), 4, "{ended:?}");
}

/// A body is declared where there is none.
#[test]
fn a_length_set_by_a_filter_without_a_body_is_broken_too() {
    let upstream = Upstream::saying("");
    let module = wrong_length("response", "50");
    let proxy = Proxy::start(Config::to(&upstream).module("length", &module, ""));
    assert_eq!([over_h1(&proxy), over_h2(&proxy)], [None, None]);
    assert_logged_twice(&proxy, "FF");
}

/// A filter that sets another path.
fn target(path: &str) -> Vec<u8> {
    guest::filter(&format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $set_header (i32.const 0) %":path" %"{path}")) (i32.const 0))"#
    ))
}

#[test]
fn a_target_is_sent_unchanged_or_not_at_all() {
    let upstream = Upstream::replying_by_h2(|h2, stream, request| {
        let path = request.field(":path").unwrap_or_default().to_owned();
        h2.answer(stream, 200, path.as_bytes());
    });
    for path in ["/fine?a=b", "/x<y>", "/x`y", "/x?a|b", "/x#y"] {
        let module = target(path);
        let proxy = Proxy::start(to_h2(&upstream).module("target", &module, ""));
        let response = proxy.request("DELETE", "/", &[], b"");
        match response.status() {
            200 => assert_eq!(response.text(), path),
            status => assert_eq!(status, 502, "{path}"),
        }
        if response.status() != 200 {
            assert_eq!(proxy.entry(|entry| entry["method"] == "DELETE")["details"], "unsendable_target");
        }
    }
}

/// An upstream that answers before it has read the request, and reports how the stream ended.
fn early(status: &'static str) -> (Upstream, mpsc::Receiver<Message>) {
    let (seen, saw) = telling();
    let upstream = Upstream::by_h2(move |h2| {
        while let Ok((stream, _)) = h2.next_head() {
            h2.headers(stream, &[(":status", status)], true);
            let message = h2.wait(stream, "the end", |message| message.ended || message.reset.is_some());
            seen(message);
        }
    });
    (upstream, saw)
}

#[test]
fn an_upload_ends_with_its_exchange_by_a_reset() {
    let (upstream, saw) = early("200");
    let proxy = Proxy::start(to_h2(&upstream));
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\nhello");
    let response = client.read_for("POST");
    assert_eq!((response.status(), response.field("connection")), (200, Some("close")));
    let upload = saw.recv_timeout(DEADLINE).expect("the stream ends");
    assert_eq!(upload.reset, Some(code::CANCEL), "the client has sent no more, and the exchange is over");
    proxy.wait_for_metric("tollgate_cluster_requests_active", &[("cluster", "web")], 0.0);
}

/// Two attempts must never read from the client concurrently.
#[test]
fn a_retry_resends_a_body_that_was_still_being_read() {
    let (seen, saw) = telling();
    let attempts = AtomicUsize::new(0);
    let upstream = Upstream::by_h2(move |h2| {
        while let Ok((stream, _)) = h2.next_head() {
            if attempts.fetch_add(1, SeqCst) == 0 {
                h2.headers(stream, &[(":status", "503")], true);
                continue;
            }
            let message = h2.wait(stream, "the end", |message| message.ended || message.reset.is_some());
            seen(message);
            h2.answer(stream, 200, b"done");
        }
    });
    let config = Config::to_with(&upstream, "protocol: h2\nretry: {attempts: 1, on: [5xx], backoff: 1ms}");
    let proxy = Proxy::start(config.top("workers: 1"));
    let mut client = proxy.h2();
    let stream = client.request("POST", "/", &[], false);
    let parts: Vec<Vec<u8>> = (0..50_u8).map(|n| vec![n; 100]).collect();
    for part in &parts {
        client.data(stream, part, false);
        // So that they do not all arrive together.
        thread::sleep(Duration::from_millis(1));
    }
    client.send(kind::DATA, flag::END_STREAM, stream, b"");
    assert_eq!(client.response(stream).status(), 200);
    let body = saw.recv_timeout(DEADLINE).expect("a second attempt").body;
    assert_eq!(body, parts.concat());
}

/// A client that is not told of a close sends its next request on this connection, and loses it (RFC 9112 section 9.6).
#[test]
fn a_close_after_an_early_response_is_announced() {
    let upstream = Upstream::scripted(|mut connection| {
        while connection.head().is_some() {
            connection.send(answer(200, &[], "early"));
            if connection.wire.read_exact(8 << 20).is_err() {
                return;
            }
        }
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let body = vec![b'x'; 8 << 20];
    let mut client = proxy.client();
    for nth in 0..10 {
        client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 8388608\r\n\r\n");
        // The proxy may close the connection while this is sent; the response arrives anyway.
        let _ = client.wire.send(&body);
        let response = client.read_for("POST");
        assert_eq!(response.status(), 200, "{nth}");
        match response.field("connection") {
            Some("close") => {
                assert!(client.wire.is_closed(), "{nth}");
                client = proxy.client();
            }
            other => assert_eq!(other, None, "{nth}"),
        }
    }
}

#[test]
fn a_close_after_a_rejected_expectation_is_announced() {
    let proxy = Proxy::start(Config::new());
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let response = client.read_for("POST");
    assert_eq!((response.status(), response.field("connection")), (404, Some("close")));
    assert!(client.wire.is_closed());
}

/// A short rest of a body is read, so that the connection can be reused.
#[test]
fn a_short_unneeded_body_does_not_cost_the_connection() {
    let proxy = Proxy::start(Config::new());
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n");
    let response = client.read_for("POST");
    assert_eq!((response.status(), response.field("connection")), (404, None));
    client.send("hello");
    assert_eq!(client.request("POST", "/", &[], b"again").status(), 404);
}

/// Trailers that a recipient might merge into the head contain nothing about framing, routing or authentication (RFC
/// 9110 section 6.5.1).
#[test]
fn trailers_cannot_contain_head_fields() {
    let misplaced = [
        ("x-forwarded-for", "9.9.9.9"),
        ("x-forwarded-client-cert", "By=evil"),
        ("x_forwarded_for", "9.9.9.9"),
        ("authorization", "x"),
        ("cookie", "a=b"),
        ("forwarded", "for=9.9.9.9"),
        ("host", "evil"),
        ("x-request-id", "mine"),
    ];
    let of_connection =
        [("connection", "close"), ("keep-alive", "5"), ("transfer-encoding", "chunked"), ("upgrade", "x")];
    let (seen, saw) = telling();
    let h2 = Upstream::replying_by_h2(move |h2, stream, request| {
        let trailers = request.blocks.get(1).cloned().unwrap_or_default();
        seen(trailers);
        h2.answer(stream, 200, b"x");
    });
    let h1 = Upstream::replying(|_| answer(200, &[], "x"));
    for (upstream, to_h1) in [(&h1, true), (&h2, false)] {
        let proxy = Proxy::start(if to_h1 { Config::to(upstream) } else { to_h2(upstream) });
        let all: String =
            misplaced.iter().chain(&of_connection).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let names: Vec<&str> = misplaced.iter().chain(&of_connection).map(|(name, _)| *name).collect();
        let mut client = proxy.client();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: {}, x-sum\r\n\r\n\
             2\r\nhi\r\n0\r\n{all}x-sum: 1\r\n\r\n",
            names.join(", ")
        ));
        assert_eq!(client.read_for("POST").status(), 200);
        let mut client = proxy.h2();
        let stream = client.request("POST", "/", &[("trailer", "x-sum, x-forwarded-for")], false);
        client.data(stream, b"hi", false);
        client.headers(stream, &[&misplaced[..], &[("x-sum", "1")]].concat(), true);
        assert_eq!(client.response(stream).status(), 200);
    }
    for request in h1.requests() {
        assert_eq!(request.trailers, [("x-sum".to_owned(), "1".to_owned())]);
    }
    for trailers in saw.try_iter().collect::<Vec<_>>() {
        assert_eq!(trailers, [("x-sum".to_owned(), "1".to_owned())]);
    }
}

/// Connection-specific fields in trailers, which HTTP/2 cannot express, are dropped without further effect.
#[test]
fn connection_fields_in_trailers_do_not_break_http2_responses() {
    let upstream = Upstream::replying(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nConnection: close\r\nKeep-Alive: 5\r\nX-Sum: 1\r\n\r\n"
            .to_vec()
    });
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.h2();
    let response = client.get("/");
    assert_eq!((response.text(), response.ended, response.reset), ("hi", true, None));
    assert_eq!((response.trailer("x-sum"), response.trailer("connection")), (Some("1"), None));
}

/// An empty field section is allowed, but some clients cannot read it.
#[test]
fn empty_trailers_are_not_sent() {
    for trailer in ["Content-Length: 5", "Connection: close", "Transfer-Encoding: chunked"] {
        let upstream = Upstream::canned(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n{trailer}\r\n\r\n"
        ));
        let proxy = Proxy::start(Config::to(&upstream));
        let response = proxy.h2().get("/");
        assert_eq!((response.text(), response.ended, response.blocks.len()), ("hi", true, 1), "{trailer}");
    }
}

/// RFC 9110 section 8.6.
#[test]
fn a_bodiless_response_has_no_content_length() {
    let upstream = Upstream::canned("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n");
    let proxy = Proxy::start(Config::to(&upstream));
    assert_eq!(proxy.request("GET", "/", &[], b"").field("content-length"), None);
    let response = proxy.h2().get("/");
    assert_eq!((response.status(), response.field("content-length"), response.ended), (204, None, true));
}
