//! HTTP/2 to scripted upstreams, frame by frame.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use crate::harness::{
    Config, H2, Proxy, Upstream, answer,
    frames::{PREFACE, code, flag, kind, setting},
    in_time, turnstile,
};

/// The configuration of one HTTP/2 cluster with further options. One worker, so that connections can be counted.
pub(super) fn config(upstream: &Upstream, options: &str) -> Config {
    Config::to_with(upstream, &format!("protocol: h2\n{options}")).top("workers: 1")
}

pub(super) fn connects(proxy: &Proxy) -> f64 {
    proxy.metrics().sum("tollgate_cluster_connects_total", &[("cluster", "web")])
}

#[test]
fn requests_are_valid_http2_and_share_a_connection() {
    let (seen, saw) = mpsc::channel();
    let upstream = Upstream::replying_by_h2(move |h2, stream, request| {
        seen.send(request).unwrap();
        h2.answer(stream, 200, b"hello");
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let response =
        proxy.request("POST", "/a?b", &[("X-Some", "thing"), ("Connection", "x-gone"), ("X-Gone", "1")], b"body");
    assert_eq!((response.status(), response.text(), response.field("via")), (200, "hello", Some("2 tollgate")));
    let request = saw.recv().unwrap();
    let named = |name| request.field(name);
    assert_eq!((named(":method"), named(":path"), named(":scheme")), (Some("POST"), Some("/a?b"), Some("http")));
    assert_eq!((named(":authority"), named("host"), request.text()), (Some("test"), None, "body"));
    assert_eq!((named("x-some"), named("x-gone"), named("connection")), (Some("thing"), None, None));
    for _ in 0..20 {
        assert_eq!(proxy.h2().get("/").status(), 200);
        assert_eq!(proxy.get("/").status(), 200);
    }
    assert_eq!((connects(&proxy), upstream.connections()), (1.0, 1));
}

#[test]
fn interim_responses_are_bounded() {
    let upstream = Upstream::replying_by_h2(|h2, stream, request| {
        let count = if request.field(":path") == Some("/storm") { 1000 } else { 32 };
        (0..count).for_each(|_| h2.headers(stream, &[(":status", "103"), ("link", "</a>")], false));
        h2.answer(stream, 200, b"hello");
    });
    let proxy = Proxy::start(config(&upstream, ""));
    assert_eq!(proxy.get("/few").text(), "hello");
    assert_eq!(proxy.get("/storm").status(), 502);
    proxy.entry_for("/storm").expect(502, "UPE").because("too_many_interim_responses");
    assert_eq!(proxy.get("/few").text(), "hello", "the connection is still usable");
    assert_eq!(connects(&proxy), 1.0);
}

/// A GOAWAY names the last processed stream; later requests are retried elsewhere, whatever their method (RFC 9113
/// section 6.8).
#[test]
fn streams_after_the_last_one_of_a_goaway_are_retried() {
    let upstream = Upstream::by_h2_with(&[], |h2, nth| {
        if nth > 0 {
            while let Ok((stream, _)) = h2.next_request() {
                h2.answer(stream, 200, b"second");
            }
            return;
        }
        let mut streams: Vec<u32> = (0..3).map(|_| h2.next_request().unwrap().0).collect();
        streams.sort_unstable();
        h2.goaway(streams[0], code::NO_ERROR);
        h2.answer(streams[0], 200, b"first");
        let _ = h2.read_to_end();
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let streams = [(); 3].map(|()| client.begin("/", &[], b"body"));
    streams.iter().for_each(|stream| client.data(*stream, b"", true));
    let mut bodies: Vec<String> = streams.iter().map(|s| client.response(*s).text().to_owned()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, ["first", "second", "second"]);
    assert_eq!(upstream.connections(), 2);
}

/// Each of these connections ends before it has processed anything.
#[test]
fn a_request_survives_several_closed_connections() {
    for (ending, expected) in [(3, 200), (100, 502)] {
        let upstream = Upstream::by_h2_with(&[], move |h2, nth| {
            while let Ok((stream, _)) = h2.next_request() {
                if nth < ending {
                    h2.goaway(0, code::NO_ERROR);
                    let _ = h2.read_to_end();
                    return;
                }
                h2.answer(stream, 200, b"done");
            }
        });
        let proxy = Proxy::start(config(&upstream, ""));
        assert_eq!(proxy.request("POST", "/a", &[], b"body").status(), expected);
        assert_eq!(proxy.entry_for("/a")["attempts"], 4);
    }
}

#[test]
fn a_refused_stream_is_retried_whatever_its_method() {
    let refused = Arc::new(AtomicUsize::new(0));
    let counted = refused.clone();
    let upstream = Upstream::replying_by_h2(move |h2, stream, _| match counted.fetch_add(1, Ordering::SeqCst) {
        0 => h2.reset(stream, code::REFUSED_STREAM),
        _ => h2.answer(stream, 200, b"taken"),
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let response = proxy.request("POST", "/", &[], b"body");
    assert_eq!((response.status(), response.text()), (200, "taken"));
    assert_eq!(refused.load(Ordering::SeqCst), 2);
}

/// Only the upstream knows whether it has processed a part of it.
#[test]
fn a_stream_reset_for_another_reason_is_not_retried_by_default() {
    let upstream = Upstream::replying_by_h2(|h2, stream, _| h2.reset(stream, code::INTERNAL_ERROR));
    let proxy = Proxy::start(config(&upstream, ""));
    assert_eq!(proxy.request("POST", "/reset", &[], b"body").status(), 502);
    let entry = proxy.entry_for("/reset").expect(502, "UC").because("upstream_reset");
    assert_eq!(entry["attempts"], 1);
}

/// The upstream allows two streams. A new connection may get more before its settings are known; the upstream refuses
/// those, as the standard says, and they succeed anyway.
#[test]
fn an_upstreams_stream_limit_is_respected() {
    let refused = Arc::new(AtomicUsize::new(0));
    let seen = refused.clone();
    let upstream = Upstream::by_h2_with(&[(setting::MAX_CONCURRENT_STREAMS, 2)], move |h2, _| {
        while let Ok((stream, _)) = h2.next_request() {
            let mut open = vec![stream];
            // A ping round trip ensures that all possible requests have arrived; then they are answered.
            h2.ping();
            while let Some((stream, _)) = h2.taken(|message| message.ended) {
                open.push(stream);
            }
            for stream in open.split_off(open.len().min(2)) {
                seen.fetch_add(1, Ordering::SeqCst);
                h2.reset(stream, code::REFUSED_STREAM);
            }
            open.drain(..).for_each(|stream| h2.answer(stream, 200, b"done"));
        }
    });
    let proxy = Proxy::start(config(&upstream, ""));
    // The limit is known from the first response on.
    assert_eq!(proxy.get("/").status(), 200);
    let mut client = proxy.h2();
    let streams: Vec<u32> = (0..40).map(|_| client.request("GET", "/", &[], true)).collect();
    for stream in streams {
        assert_eq!(client.response(stream).text(), "done");
    }
    let (refused, connections) = (refused.load(Ordering::SeqCst), upstream.connections());
    assert!(refused <= 20 * connections && refused < 40, "{refused} refused on {connections} connections");
}

/// With one connection at most, requests wait for a free stream on it.
#[test]
fn requests_wait_when_all_streams_are_in_use() {
    let upstream = Upstream::by_h2_with(&[(setting::MAX_CONCURRENT_STREAMS, 1)], |h2, _| {
        while let Ok((stream, _)) = h2.next_request() {
            h2.answer(stream, 200, b"done");
        }
    });
    let proxy = Proxy::start(config(&upstream, "limits: {connections: 1}"));
    assert_eq!(proxy.get("/").status(), 200);
    let mut client = proxy.h2();
    let streams: Vec<u32> = (0..50).map(|_| client.request("GET", "/", &[], true)).collect();
    for stream in streams {
        assert_eq!(client.response(stream).text(), "done");
    }
    assert_eq!(upstream.connections(), 1);
}

/// What an upstream does to a stream.
type Deed = fn(&mut H2, u32);

/// Does this when told to, after half of a response.
fn breaks_off(how: Deed) -> (Upstream, mpsc::Sender<()>) {
    let (go, wait) = turnstile();
    let upstream = Upstream::replying_by_h2(move |h2, stream, _| {
        h2.headers(stream, &[(":status", "200")], false);
        h2.data(stream, b"half of it", false);
        wait();
        how(h2, stream);
    });
    (upstream, go)
}

/// A truncated response must not look complete, whatever version it is forwarded in.
#[test]
fn a_truncated_response_is_truncated_for_the_client_too() {
    // With the code that the client gets.
    let ways: [(&str, u32, Deed); 4] = [
        ("reset", code::INTERNAL_ERROR, |h2, stream| h2.reset(stream, code::INTERNAL_ERROR)),
        ("reset without an error", code::INTERNAL_ERROR, |h2, stream| h2.reset(stream, code::NO_ERROR)),
        ("cancelled", code::CANCEL, |h2, stream| h2.reset(stream, code::CANCEL)),
        ("the connection ends", code::INTERNAL_ERROR, |h2, _| _ = h2.wire.socket().shutdown(std::net::Shutdown::Both)),
    ];
    for (what, code, how) in ways {
        let (upstream, go) = breaks_off(how);
        let proxy = Proxy::start(config(&upstream, ""));
        let mut client = proxy.h2();
        let stream = client.request("GET", "/cut", &[], true);
        client.wait(stream, "half of it", |m| m.body == b"half of it");
        go.send(()).unwrap();
        let response = client.response(stream);
        assert_eq!((response.ended, response.reset), (false, Some(code)), "{what}");
        client.ping();
        let mut client = proxy.client();
        client.send_request("GET", "/cut-too", &[], b"");
        assert_eq!(client.wire.read_head().expect("a head").status(), 200);
        assert_eq!(client.wire.read_exact(15).expect("half of it"), b"a\r\nhalf of it\r\n");
        go.send(()).unwrap();
        assert!(client.wire.is_closed(), "{what}");
        for path in ["/cut", "/cut-too"] {
            proxy.entry_for(path).expect(200, "UC");
        }
    }
}

/// More or less than `content-length` declares.
#[test]
fn a_response_with_a_wrong_length_is_aborted_for_the_client_too() {
    for body in ["four", "seven77"] {
        let (go, wait) = turnstile();
        let upstream = Upstream::replying_by_h2(move |h2, stream, _| {
            h2.headers(stream, &[(":status", "200"), ("content-length", "5")], false);
            // Together with the head, the response would be rejected as a whole.
            wait();
            h2.data(stream, body.as_bytes(), true);
        });
        let proxy = Proxy::start(config(&upstream, ""));
        let mut client = proxy.h2();
        let stream = client.request("GET", "/", &[], true);
        client.wait(stream, "a head", |m| m.status() == 200);
        go.send(()).unwrap();
        let response = client.response(stream);
        assert_eq!((response.ended, response.reset), (false, Some(code::INTERNAL_ERROR)), "{body}");
        let mut client = proxy.client();
        client.send_request("GET", "/", &[], b"");
        let head = client.wire.read_head().expect("a head");
        assert_eq!((head.status(), head.field("content-length")), (200, Some("5")));
        go.send(()).unwrap();
        let said = client.wire.read_to_end();
        assert!(said.len() < 5, "{body}: {}", said.escape_ascii());
    }
}

/// Some of these also end their connection.
#[test]
fn responses_that_violate_http2_get_502() {
    let cases: &[(&str, Deed)] = &[
        ("no status", |h2, s| h2.headers(s, &[("x-a", "1")], true)),
        ("a status that is too low", |h2, s| h2.headers(s, &[(":status", "99")], true)),
        ("a malformed status", |h2, s| h2.headers(s, &[(":status", "abc")], true)),
        ("transfer-encoding", |h2, s| h2.headers(s, &[(":status", "200"), ("transfer-encoding", "chunked")], true)),
        ("data before a head", |h2, s| h2.data(s, b"x", true)),
        ("101", |h2, s| h2.headers(s, &[(":status", "101")], true)),
        ("no compression", |h2, s| h2.send(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, s, &[0x80 | 126])),
        ("a promise", |h2, s| h2.send(5, flag::END_HEADERS, s, &[0, 0, 0, 2, 0x88])),
    ];
    for (what, evil) in cases {
        let evil = *evil;
        let upstream = Upstream::replying_by_h2(move |h2, stream, request| match request.field(":path") {
            Some("/evil") => evil(h2, stream),
            _ => h2.answer(stream, 200, b"fine"),
        });
        let proxy = Proxy::start(config(&upstream, ""));
        assert_eq!(proxy.get("/evil").status(), 502, "{what}");
        assert_eq!(proxy.get("/").text(), "fine", "after {what}");
        proxy.entry_for("/evil").expect(502, "UPE");
    }
}

/// In a head and in trailers. Each ends only its own stream: another one, which began earlier, is answered afterwards.
#[test]
fn a_malformed_response_ends_only_its_stream() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("/control", &[("x-a", "a\x1f")]),
        ("/del", &[("x-a", "\x7f")]),
        ("/upper", &[("X-A", "1")]),
        ("/space", &[("x a", "1")]),
        ("/empty", &[("", "1")]),
        ("/connection", &[("connection", "close")]),
        ("/unknown", &[(":what", "1")]),
        // h2 silently drops such fields of trailers (RFC 9113 section 8.1).
        ("/status", &[(":status", "500"), ("x-sum", "1")]),
        ("/status-alone", &[(":status", "200")]),
        ("/path", &[("x-sum", "1"), (":path", "/other")]),
    ];
    let upstream = Upstream::by_h2(|h2| {
        let mut held = None;
        while let Ok((stream, request)) = h2.next_head() {
            let path = request.field(":path").unwrap_or_default();
            let trailers = path.strip_prefix("/trailers");
            let case = cases.iter().find(|(case, _)| *case == trailers.unwrap_or(path));
            let Some((_, fields)) = case else {
                if path == "/held" {
                    held = Some(stream);
                    continue;
                }
                h2.answer(held.take().expect("a stream"), 200, b"held");
                h2.answer(stream, 200, b"released");
                continue;
            };
            if trailers.is_some() {
                h2.headers(stream, &[(":status", "200")], false);
                h2.data(stream, b"body", false);
                h2.headers(stream, fields, true);
            } else {
                h2.headers(stream, &[&[(":status", "200")][..], *fields].concat(), true);
            }
        }
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let held = client.request("GET", "/held", &[], true);
    client.ping();
    for (path, _) in cases {
        let response = client.get(path);
        assert_eq!(response.status(), 502, "{path}: {response:?}");
        proxy.entry_for(path).expect(502, "UPE").because("upstream_protocol_error");
        let trailers = format!("/trailers{path}");
        let response = client.get(&trailers);
        assert!(response.reset.is_some() && !response.ended, "{trailers}: {response:?}");
        proxy.entry_for(&trailers).expect(200, "UPE").because("upstream_protocol_error");
    }
    assert_eq!(client.get("/release").text(), "released");
    assert_eq!(client.response(held).text(), "held");
    assert_eq!(connects(&proxy), 1.0);
}

#[test]
fn an_oversized_response_head_gets_502() {
    let upstream = Upstream::replying_by_h2(|h2, stream, request| match request.field(":path") {
        Some("/large") => h2.headers(stream, &[(":status", "200"), ("x-large", &"v".repeat(100_000))], false),
        _ => h2.answer(stream, 200, b"fine"),
    });
    let proxy = Proxy::start(config(&upstream, ""));
    assert_eq!(proxy.get("/large").status(), 502);
    assert_eq!(proxy.get("/").text(), "fine");
}

/// An upstream that is unreachable without having closed its connection.
#[test]
fn a_connection_without_ping_acknowledgements_is_abandoned() {
    in_time(|ms| {
        let upstream = Upstream::by_h2_with(&[], |h2, nth| {
            h2.answers_pings = nth > 0;
            while let Ok((stream, request)) = h2.next_request() {
                if nth > 0 || request.field(":path") != Some("/dead") {
                    h2.answer(stream, 200, b"fine");
                }
            }
        });
        let pings = format!("http2: {{ping_interval: 200ms, ping_timeout: {ms}ms}}");
        let proxy = Proxy::start(config(&upstream, &pings));
        // A POST: the proxy must not retry it by itself.
        assert_eq!(proxy.request("POST", "/dead", &[], b"body").status(), 502);
        proxy.entry_for("/dead").expect(502, "UC");
        // The second connection may also have answered too late.
        let is_fine = proxy.get("/").text() == "fine";
        (is_fine && upstream.connections() == 2).then_some(())
    });
}

#[test]
fn an_upstream_that_closes_an_idle_connection_causes_no_error() {
    let upstream = Upstream::by_h2(|h2| {
        if let Ok((stream, _)) = h2.next_request() {
            h2.answer(stream, 200, b"fine");
            h2.goaway(stream, code::NO_ERROR);
        }
    });
    let proxy = Proxy::start(config(&upstream, ""));
    for n in 1..=10 {
        assert_eq!(proxy.request("POST", "/", &[], b"body").text(), "fine");
        // Until the proxy notices, it could pick this connection again, and find it closed.
        proxy.wait_for_metric("tollgate_cluster_connects_total", &[("cluster", "web")], f64::from(n));
        proxy.wait_for_zero("tollgate_cluster_connections", &[("cluster", "web")]);
    }
}

#[test]
fn an_upload_is_paced_by_the_upstreams_window() {
    let (go, wait) = turnstile();
    let upstream = Upstream::by_h2_with(&[(setting::INITIAL_WINDOW_SIZE, 10)], move |h2, _| {
        while let Ok((stream, request)) = h2.next_head() {
            if request.field(":path") == Some("/slow") {
                h2.generous = false;
                h2.wait(stream, "what the window allows", |m| m.body.len() == 10);
                wait();
                h2.generous = true;
                h2.window(stream, 10);
            }
            let length = h2.response(stream).body.len();
            h2.answer(stream, 200, length.to_string().as_bytes());
        }
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let body = vec![b'x'; 100_000];
    let before = proxy.peak_kib();
    let mut client = proxy.h2();
    // Until its settings arrive, the upstream has the default windows.
    assert_eq!(client.get("/").text(), "0");
    let slow = client.request("POST", "/slow", &[], false);
    client.data_within(slow, &body[..60_000]);
    client.send(kind::DATA, flag::END_STREAM, slow, b"");
    go.send(()).unwrap();
    assert_eq!(client.response(slow).text(), "60000");
    let response = proxy.request("POST", "/fast", &[], &body);
    assert_eq!(response.text(), "100000");
    assert!(proxy.peak_kib() - before < 16 << 10);
}

/// A complete response to an unfinished upload, followed by a reset without an error (RFC 9113 section 8.1).
#[test]
fn an_early_response_and_a_reset_without_an_error_are_complete() {
    let upstream = Upstream::by_h2(|h2| {
        while let Ok((stream, _)) = h2.next_head() {
            h2.answer(stream, 403, b"no");
            h2.reset(stream, code::NO_ERROR);
        }
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let stream = client.begin("/", &[], b"some");
    let response = client.wait(stream, "an answer", |m| m.ended || m.reset.is_some_and(|c| c != code::NO_ERROR));
    assert_eq!((response.status(), response.text(), response.ended), (403, "no", true));
    assert_eq!(proxy.request("POST", "/", &[], b"body").text(), "no");
}

/// A client that disconnects cancels its stream at the upstream, and the connection stays.
#[test]
fn a_cancelled_request_is_cancelled_at_the_upstream() {
    let (seen, saw) = mpsc::channel();
    let upstream = Upstream::replying_by_h2(move |h2, stream, request| {
        if request.field(":path") != Some("/held") {
            return h2.answer(stream, 200, b"fine");
        }
        seen.send(None).unwrap();
        seen.send(h2.wait(stream, "a reset", |m| m.reset.is_some()).reset).unwrap();
    });
    let proxy = Proxy::start(config(&upstream, ""));
    let mut client = proxy.h2();
    let stream = client.request("GET", "/held", &[], true);
    assert_eq!(saw.recv().unwrap(), None);
    client.reset(stream, code::CANCEL);
    assert_eq!(saw.recv().unwrap(), Some(code::CANCEL));
    assert_eq!(client.get("/").text(), "fine");
    let mut client = proxy.client();
    client.send_request("GET", "/held", &[], b"");
    assert_eq!(saw.recv().unwrap(), None);
    drop(client);
    assert_eq!(saw.recv().unwrap(), Some(code::CANCEL));
    assert_eq!(proxy.get("/").text(), "fine");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn another_protocol_for_the_same_endpoints_opens_other_connections() {
    // The upstream responds in the protocol of the request.
    let upstream = Upstream::scripted(|mut connection| {
        let mut first = connection.wire.read_exact(3).unwrap_or_default();
        if first == b"PRI" {
            first.extend(connection.wire.read_exact(PREFACE.len() - 3).unwrap());
            let mut h2 = H2::accepted(connection.wire, &[]);
            while let Ok((stream, _)) = h2.next_request() {
                h2.answer(stream, 200, b"two");
            }
            return;
        }
        while connection.wire.read_head().is_ok() {
            connection.send(answer(200, &[], "one"));
        }
    });
    let mut proxy = Proxy::start(config(&upstream, ""));
    assert_eq!(proxy.get("/").text(), "two");
    proxy.change_config(Config::to(&upstream).top("workers: 1"));
    assert_eq!(proxy.get("/").text(), "one");
    proxy.change_config(config(&upstream, ""));
    assert_eq!(proxy.get("/").text(), "two");
    assert_eq!(upstream.connections(), 3);
}

#[test]
fn the_request_limit_per_connection_is_respected() {
    let upstream = Upstream::replying_by_h2(|h2, stream, _| h2.answer(stream, 200, b"fine"));
    let proxy = Proxy::start(config(&upstream, "limits: {requests_per_connection: 2}"));
    (0..6).for_each(|_| assert_eq!(proxy.get("/").text(), "fine"));
    assert_eq!((connects(&proxy), upstream.connections()), (3.0, 3));
}

#[test]
fn an_upstream_without_http2_gets_502() {
    let upstream = Upstream::canned(answer(400, &[], "what?")).allow_malformed();
    let proxy = Proxy::start(config(&upstream, ""));
    assert_eq!(proxy.get("/fails").status(), 502);
    proxy.entry_for("/fails").expect(502, "UPE");
}
