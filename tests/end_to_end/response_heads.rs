//! The timeout for the head of a response, which exists by default, and for the whole response, which does not.

use std::{thread, time::Duration};

use crate::harness::{Config, Proxy, Upstream, answer, in_time};

/// The `response_head_timeout` of a cluster.
const LIMIT: &str = "response_head_timeout: 500ms";
/// Longer than that.
const LONGER: Duration = Duration::from_millis(1500);

/// An upstream whose body takes this many milliseconds.
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

/// An upstream whose head exceeds the timeout.
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
fn a_flowing_response_has_no_timeout() {
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
fn a_late_head_gets_504() {
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

/// Bytes of an interim response do not count as the head.
#[test]
fn an_interim_response_does_not_stop_the_timeout() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
        connection.wait_for_end();
    });
    let proxy = Proxy::start(Config::to_with(&upstream, LIMIT));
    assert_eq!(proxy.get("/").status(), 504);
    assert_late(&proxy, "/");
}

/// The time that the client takes to send the request does not count.
#[test]
fn the_timeout_begins_at_the_end_of_the_request() {
    let upstream = Upstream::saying("ok");
    in_time(|ms| {
        // The upstream connection exists from the first byte on.
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

/// It includes all attempts and their backoff.
#[test]
fn the_timeout_covers_all_attempts() {
    in_time(|ms| {
        let upstream = Upstream::silent();
        let (limit, each) = (format!("response_head_timeout: {ms}ms"), ms * 2 / 5);
        let retry = format!("retry: {{on: [reset], attempts: 10, per_try_timeout: {each}ms, backoff: 1ms}}");
        let proxy = Proxy::start(Config::to_with(&upstream, &format!("{limit}\n{retry}")));
        assert_eq!(proxy.get("/").status(), 504);
        let attempts = upstream.requests().len();
        assert!(attempts <= 4, "{attempts}");
        let entry = proxy.entry_for("/").flagged("UT").because("response_head_timeout");
        // If an attempt's own timeout has expired as well when the proxy checks, the proxy may report that one.
        let why = entry["upstream_failure"].as_str().unwrap_or_default();
        (attempts > 1 && why.contains("response_head_timeout")).then_some(())
    });
}

/// An explicit timeout of the whole response, or its absence, also applies to the head.
#[test]
fn an_explicit_timeout_replaces_the_default() {
    let upstream = late();
    let proxy = Proxy::start(Config::new().routes("{cluster: web, timeout: 0s}").cluster("web", &[&upstream], LIMIT));
    assert_eq!(proxy.get("/").text(), "late", "the route's timeout");

    let silent = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&silent, &format!("{LIMIT}\nrequest_timeout: 1h")));
    assert_eq!(proxy.get("/both").status(), 504, "unless both are configured");
    assert_late(&proxy, "/both");
}

/// The whole response, if the configuration limits it.
#[test]
fn a_configured_timeout_aborts_a_flowing_response() {
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
        assert!(cut.is_none() && reset.reset.is_some(), "it is truncated");
        Some(())
    });
}

/// A streaming call's response may begin with its first message, whenever that is. But any client can send a call to a
/// cluster that does not support gRPC.
#[test]
fn grpc_calls_are_exempt_on_http2_clusters() {
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

/// The mirror's upstream neither delays nor aborts the request.
#[test]
fn a_mirror_has_its_own_timeout() {
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

/// HTTP/2 streams share a connection.
#[test]
fn a_late_head_does_not_affect_other_streams() {
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
