//! The options of a retry policy, in a cluster and in a route, over each version of HTTP.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use crate::harness::{
    Config, Proxy, Upstream, answer,
    exchange::{Everywhere, Outcome, Request},
};

/// Answers every other request with this head, and the others with 200, over HTTP/1.1 and HTTP/2.
fn failing_every_other(status: u16, field: &'static str) -> [(&'static str, Upstream); 2] {
    let by_h1 = AtomicUsize::new(0);
    let by_h2 = Arc::new(AtomicUsize::new(0));
    let h1 = Upstream::replying(move |_| match by_h1.fetch_add(1, SeqCst) % 2 {
        0 => answer(status, &[field], "no"),
        _ => answer(200, &[], "yes"),
    });
    let h2 = Upstream::replying_by_h2(move |h2, stream, _| match by_h2.fetch_add(1, SeqCst) % 2 {
        0 => {
            let (name, value) = field.split_once(": ").unwrap();
            h2.headers(stream, &[(":status", &status.to_string()), (name, value)], true);
        }
        _ => h2.answer(stream, 200, b"yes"),
    });
    [("protocol: h1", h1), ("protocol: h2", h2)]
}

#[test]
fn responses_are_retried_by_status_and_by_header() {
    for (status, field, policy) in [
        (425, "x-a: 1", "{on: [], retriable_status_codes: [425]}"),
        (200, "x-retry: 1", "{on: [], retriable_headers: [{name: X-Retry}]}"),
        (200, "x-retry: no, now", "{on: [], retriable_headers: [{name: x-retry, regex: '.*now'}]}"),
        (500, "x-a: 1", "{on: [5xx], retriable_request_headers: [{name: x-safe, exact: '1'}]}"),
    ] {
        for (protocol, upstream) in failing_every_other(status, field) {
            // In the cluster, and in the route, which takes precedence.
            let cluster = Config::to_with(&upstream, &format!("{protocol}\nretry: {policy}"));
            let route = Config::new().cluster("web", &[&upstream], &format!("{protocol}\nretry: {{attempts: 0}}"));
            for config in [cluster, route.routes(&format!("{{cluster: web, retry: {policy}}}"))] {
                let proxy = Everywhere::start(config);
                let request = Request::get("/").with(&[("x-safe", "1")]);
                proxy.each(&request, |version, outcome| match outcome {
                    Outcome::Whole(response) => assert_eq!(response.body, b"yes", "{policy} {protocol} {version:?}"),
                    other => panic!("{other:?}: {policy} {protocol} {version:?}"),
                });
                let entries = proxy.entries();
                assert!(entries.iter().all(|entry| entry["attempts"] == 2), "{entries:?}");
            }
        }
    }
}

#[test]
fn requests_without_the_headers_are_not_retried() {
    let upstream = Upstream::replying(|_| answer(500, &[], ""));
    let options = "retry: {on: [5xx], retriable_request_headers: [{name: x-safe}, {name: x-risky, present: false}]}";
    let proxy = Proxy::start(Config::to_with(&upstream, options));
    for (fields, attempts) in [(&[][..], 2), (&[("x-risky", "1")], 1), (&[("x-risky", "1"), ("x-safe", "")], 2)] {
        proxy.request("GET", "/", fields, b"");
        assert_eq!(upstream.take_requests().len(), attempts, "{fields:?}");
    }
}

/// The upstream asks for another attempt at once, or later than the request may take.
#[test]
fn the_upstream_can_request_the_delay() {
    let asked = AtomicUsize::new(0);
    let upstream = Upstream::replying(move |request| match asked.fetch_add(1, SeqCst) % 2 {
        0 => answer(429, &[&format!("x-reset: {}", request.target().trim_start_matches('/'))], ""),
        _ => answer(200, &[], ""),
    });
    // Without the header's delay, half of the retries would wait for more than half an hour.
    let headers = "reset_headers: [{name: x-gone}, {name: X-Reset}]";
    let policy =
        format!("{{on: [rate_limited], attempts: 1, backoff: 1h, rate_limited_backoff: {{{headers}, max: 1h}}}}");
    let proxy = Proxy::start(Config::to_with(&upstream, &format!("retry: {policy}")));
    for _ in 0..5 {
        assert_eq!(proxy.get("/0").status(), 200);
    }
    assert_eq!(proxy.get("/1000").status(), 429, "it would end in a timeout");
    assert_eq!(proxy.entry_for("/1000")["attempts"], 1);
}

#[test]
fn an_idle_attempt_is_retried() {
    let turn = AtomicUsize::new(0);
    let upstream = Upstream::scripted(move |mut connection| {
        // The first attempt's body is not read.
        if turn.fetch_add(1, SeqCst) == 0 {
            connection.head();
            return connection.wait_for_end();
        }
        connection.request();
        connection.send(answer(200, &[], "at last"));
    });
    let options = "retry: {on: [reset], attempts: 1, per_try_idle_timeout: 3s}";
    let proxy = Proxy::start(Config::to_with(&upstream, options));
    assert_eq!(proxy.request("PUT", "/", &[], &[b'x'; 100_000]).text(), "at last");
    assert_eq!(proxy.entry_for("/")["attempts"], 2);

    let silent = Upstream::silent();
    let proxy = Proxy::start(Config::to_with(&silent, "retry: {on: [connect_failure], per_try_idle_timeout: 100ms}"));
    assert_eq!(proxy.get("/").status(), 504);
    proxy.entry_for("/").expect(504, "UT").because("per_try_idle_timeout");
}
