//! The time that an upstream has for the head of its response, which is bounded by default, and for the whole, which is
//! not.

use std::{thread, time::Duration};

use crate::harness::{Config, Proxy, Upstream, answer, in_time};

/// What an upstream is given for the head of its response.
const LIMIT: &str = "response_head_timeout: 500ms";
/// Longer than that.
const LONGER: Duration = Duration::from_millis(1500);

/// An upstream whose body takes so many milliseconds.
pub(crate) fn flowing(ms: u32) -> Upstream {
    Upstream::scripted(move |mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
            for _ in 0..10 {
                thread::sleep(Duration::from_millis(ms.into()) / 10);
                connection.send("x");
            }
        }
    })
}

/// An upstream whose head takes longer than it may.
fn late() -> Upstream {
    Upstream::replying(|_| {
        thread::sleep(LONGER);
        answer(200, &[], "late")
    })
}

fn assert_late(proxy: &Proxy, path: &str) {
    let entry = proxy.entry_for(path).flagged("UT").because("response_head_timeout");
    let why = entry["upstream_failure"].as_str().unwrap_or_default();
    assert!(why.contains("no response within") && why.contains("response_head_timeout"), "{why}");
}

#[test]
fn a_response_that_flows_takes_as_long_as_it_takes() {
    in_time(|ms| {
        let upstream = flowing(ms * 3);
        let proxy = Proxy::start(Config::to_with(&upstream, &format!("response_head_timeout: {ms}ms")));
        let (one, two) = (proxy.get("/one"), proxy.h2().get("/two"));
        if one.status() == 504 || two.status() == 504 {
            return None;
        }
        assert_eq!((one.text(), two.text(), two.reset), ("xxxxxxxxxx", "xxxxxxxxxx", None));
        for path in ["/one", "/two"] {
            assert!(proxy.entry_for(path)["flags"].is_null());
        }
        Some(())
    });
}

#[test]
fn a_head_that_does_not_come_in_time_is_504() {
    let upstream = late();
    let h2 = Upstream::replying_by_h2(|h2, stream, _| {
        thread::sleep(LONGER);
        h2.answer(stream, 200, b"late");
    });
    for config in [Config::to_with(&upstream, LIMIT), Config::to_with(&h2, &format!("protocol: h2\n{LIMIT}"))] {
        let proxy = Proxy::start(config);
        assert_eq!(proxy.get("/one").status(), 504);
        assert_late(&proxy, "/one");
        assert_eq!(proxy.h2().get("/two").status(), 504);
        assert_late(&proxy, "/two");
    }
}

/// Bytes of an interim response are no head.
#[test]
fn an_interim_response_is_no_head() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
        connection.wait_for_end();
    });
    let proxy = Proxy::start(Config::to_with(&upstream, LIMIT));
    assert_eq!(proxy.get("/").status(), 504);
    assert_late(&proxy, "/");
}

/// What the client takes to send the request is not the upstream's.
#[test]
fn the_time_begins_when_the_request_has_ended() {
    let upstream = Upstream::saying("ok");
    in_time(|ms| {
        // It has a connection from the first byte on.
        let config =
            Config::to_with(&upstream, &format!("response_head_timeout: {ms}ms")).listener("limits: {read_ahead: 0}");
        let proxy = Proxy::start(config);
        let mut client = proxy.client();
        client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n");
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(ms.into()) / 5);
            client.wire.send("x").ok()?;
        }
        (client.read().text() == "ok").then_some(())
    });
}

/// All tries are within it, and their waits.
#[test]
fn it_bounds_all_tries() {
    in_time(|ms| {
        let upstream = Upstream::silent();
        let (limit, each) = (format!("response_head_timeout: {ms}ms"), ms * 2 / 5);
        let retry = format!("retry: {{on: [reset], attempts: 10, per_try_timeout: {each}ms, backoff: 1ms}}");
        let proxy = Proxy::start(Config::to_with(&upstream, &format!("{limit}\n{retry}")));
        assert_eq!(proxy.get("/").status(), 504);
        let tries = upstream.requests().len();
        assert!(tries <= 4, "{tries}");
        let entry = proxy.entry_for("/").flagged("UT").because("response_head_timeout");
        // If the time of a try is over as well when the proxy looks, it may name that.
        let why = entry["upstream_failure"].as_str().unwrap_or_default();
        (tries > 1 && why.contains("response_head_timeout")).then_some(())
    });
}

/// Whoever has said how long the whole may take, or that it may take any time, has said so of the head too.
#[test]
fn another_bound_takes_its_place() {
    let upstream = late();
    let proxy = Proxy::start(Config::new().routes("{cluster: web, timeout: 0s}").cluster("web", &[&upstream], LIMIT));
    assert_eq!(proxy.get("/").text(), "late", "a route's");

    let silent = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&silent, &format!("{LIMIT}\nrequest_timeout: 1h")));
    assert_eq!(proxy.get("/both").status(), 504, "unless both are said");
    assert_late(&proxy, "/both");
}

/// The whole, as far as the configuration bounds it.
#[test]
fn a_response_that_flows_is_cut_off_where_that_was_asked_for() {
    in_time(|ms| {
        let upstream = flowing(ms * 3);
        let proxy = Proxy::start(Config::to_with(&upstream, &format!("request_timeout: {ms}ms")));
        let mut client = proxy.client();
        client.send_request("GET", "/cut", &[], b"");
        let cut = client.wire.whole_response("GET");
        let mut client = proxy.h2();
        let stream = client.request("GET", "/reset", &[], true);
        let reset = client.response(stream);
        for path in ["/cut", "/reset"] {
            let entry = proxy.entry_for(path).flagged("UT").because("response_timeout");
            if entry["status"] == 504 {
                return None;
            }
        }
        assert!(cut.is_none() && reset.reset.is_some(), "it is not whole");
        Some(())
    });
}

/// A server's stream may begin with its first message, whenever that is. To a cluster that cannot speak gRPC anybody
/// can make a call.
#[test]
fn calls_are_exempt_where_there_can_be_calls() {
    let call = [("content-type", "application/grpc"), ("te", "trailers")];
    let server = Upstream::replying_by_h2(|h2, stream, _| {
        thread::sleep(LONGER);
        let fields = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")];
        h2.headers(stream, &fields, true);
    });
    let proxy = Proxy::start(Config::to_with(&server, &format!("protocol: h2\n{LIMIT}")));
    let mut client = proxy.h2();
    let stream = client.request("POST", "/a.B/C", &call, true);
    assert_eq!(client.response(stream).field("grpc-status"), Some("0"));

    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&upstream, LIMIT));
    let response = proxy.request("POST", "/a.B/C", &call, b"");
    assert_eq!(response.field("grpc-status"), Some("4"));
    assert_eq!(response.field("grpc-message"), Some("Gateway Timeout (response_head_timeout)"));
    assert_late(&proxy, "/a.B/C");
}

/// The copy's upstream is no reason to wait, nor to give up.
#[test]
fn a_mirror_is_bounded_by_itself() {
    in_time(|ms| {
        let (upstream, mirror, limit) = (flowing(ms * 3), Upstream::silent(), format!("response_head_timeout: {ms}ms"));
        let config = Config::new().routes("{cluster: web, mirror: {cluster: copy}}");
        let config = config.cluster("web", &[&upstream], &limit).cluster("copy", &[&mirror], "request_timeout: 1s");
        let proxy = Proxy::start(config);
        let is_whole = proxy.get("/").text() == "xxxxxxxxxx";
        mirror.wait_for_requests(1);
        proxy.wait_for_zero("tollgate_cluster_requests_active", &[("cluster", "copy")]);
        is_whole.then_some(())
    });
}

/// Streams of HTTP/2 share a connection.
#[test]
fn a_late_head_costs_the_other_streams_nothing() {
    let h2 = Upstream::replying_by_h2(|h2, stream, request| {
        if request.field(":path") != Some("/late") {
            h2.answer(stream, 200, b"ok");
        }
    });
    let proxy = Proxy::start(Config::to_with(&h2, &format!("protocol: h2\n{LIMIT}")).top("workers: 1"));
    assert_eq!(proxy.get("/late").status(), 504);
    assert_eq!(proxy.get("/").text(), "ok");
    assert_eq!(proxy.metrics().sum("tollgate_cluster_connects_total", &[("cluster", "web")]), 1.0);
}
