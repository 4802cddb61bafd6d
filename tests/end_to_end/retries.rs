//! Retries: for the configured reasons, within the limits, and only if a retry is safe.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::harness::{Config, Gate, Proxy, Upstream, answer};

/// Answers with these statuses one after the other, then with 200. 0 resets the connection.
fn saying_in_turn(statuses: &'static [u16]) -> Upstream {
    let turn = AtomicUsize::new(0);
    Upstream::scripted(move |mut connection| {
        while connection.request().is_some() {
            match statuses.get(turn.fetch_add(1, SeqCst)).copied().unwrap_or(200) {
                0 => return connection.wire.reset(),
                status => connection.send(answer(status, &[], status.to_string())),
            }
        }
    })
}

fn with_retry(upstream: &Upstream, retry: &str) -> Proxy {
    Proxy::start(Config::to_with(upstream, &format!("retry: {retry}")))
}

#[test]
fn only_configured_failures_are_retried() {
    for (on, statuses, expected, attempts) in [
        ("5xx", &[500][..], 200, 2),
        ("5xx", &[502], 200, 2),
        ("5xx", &[0], 200, 2),
        ("5xx", &[404], 404, 1),
        ("gateway_error", &[503], 200, 2),
        ("gateway_error", &[504], 200, 2),
        ("gateway_error", &[500], 500, 1),
        ("gateway_error", &[0], 200, 2),
        ("reset", &[0], 200, 2),
        ("reset", &[503], 503, 1),
        ("retriable_4xx", &[409], 200, 2),
        ("retriable_4xx", &[404], 404, 1),
        ("rate_limited", &[429], 200, 2),
        ("rate_limited", &[503], 503, 1),
        ("connect_failure", &[0], 502, 1),
        ("connect_failure", &[503], 503, 1),
    ] {
        let upstream = saying_in_turn(statuses);
        let proxy = with_retry(&upstream, &format!("{{on: [{on}]}}"));
        // Not idempotent: HTTP itself does not allow a retry.
        assert_eq!(proxy.request("POST", "/", &[], b"body").status(), expected, "{on} {statuses:?}");
        assert_eq!(upstream.requests().len(), attempts, "{on} {statuses:?}");
        assert_eq!(proxy.entry_for("/")["attempts"], attempts, "{on} {statuses:?}");
        let counted = proxy.metrics().sum("tollgate_cluster_retries_total", &[("cluster", "web")]);
        assert_eq!(counted, (attempts - 1) as f64, "{on} {statuses:?}");
    }
}

#[test]
fn the_number_of_attempts_is_limited() {
    let upstream = saying_in_turn(&[503; 100]);
    let proxy = with_retry(&upstream, "{on: [5xx], attempts: 3, backoff: 1ms}");
    let response = proxy.get("/");
    assert_eq!((response.status(), response.text()), (503, "503"), "the last response is forwarded");
    assert_eq!(upstream.requests().len(), 4);
    let entry = proxy.entry_for("/");
    assert_eq!((&entry["flags"], &entry["attempts"]), (&"URX".into(), &4.into()));

    let upstream = saying_in_turn(&[503, 503, 503]);
    let proxy = with_retry(&upstream, "{on: [5xx], attempts: 3, backoff: 1ms}");
    assert_eq!(proxy.get("/").status(), 200, "the last attempt can succeed");
}

#[test]
fn retries_prefer_another_endpoint() {
    let sound = Upstream::saying("sound");
    let config = Config::new().listener("cluster: web");
    let options = "retry: {on: [connect_failure], attempts: 1, backoff: 0s}";
    let proxy = Proxy::start(config.cluster("web", &[Upstream::refusing(), sound.address], options));
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "sound");
    }
    assert!(proxy.metrics().sum("tollgate_cluster_connect_failures_total", &[]) >= 1.0, "the other one was tried, too");
}

/// Nothing has been sent to an endpoint that refuses connections, so the request immediately moves to another one,
/// whatever its method and body length, and without using the retry budget.
#[test]
fn an_unreachable_endpoint_fails_no_request() {
    let sound = Upstream::saying("sound");
    let dead = || Upstream::refusing().to_string();
    let spent = "retry_budget: {percent: 0, min_concurrent: 0}";
    let connect_failure = format!("retry: {{on: [connect_failure], attempts: 1, backoff: 60s}}\n{spent}");
    let long = vec![b'x'; 3 << 20];
    for (others, options) in [
        (vec![dead()], spent),
        (vec![dead()], &format!("retry: {{on: [reset], attempts: 1}}\n{spent}")),
        (vec![dead()], &*connect_failure),
        (vec![dead(), dead(), dead()], &*connect_failure),
    ] {
        let endpoints = [&others[..], &[sound.to_string()]].concat();
        let proxy = Proxy::start(Config::new().listener("cluster: web").cluster("web", &endpoints, options));
        let mut client = proxy.client();
        for _ in 0..10 {
            assert_eq!(client.get("/").text(), "sound", "{options}");
            assert_eq!(client.request("POST", "/", &[], &long).text(), "sound", "{options}");
        }
        let metrics = proxy.metrics();
        assert!(metrics.sum("tollgate_cluster_connect_failures_total", &[]) >= 1.0, "the others were tried, too");
        assert_eq!(metrics.sum("tollgate_cluster_retries_total", &[]), 0.0, "{options}");
    }
    // Each endpoint is tried once before the configured retries begin. Without retries there are none.
    for (options, attempts, flags) in [
        ("", 2, "UF"),
        ("retry: {on: [connect_failure], attempts: 1, backoff: 1ms}", 3, "UF,URX"),
        ("retry: {attempts: 0}", 1, "UF"),
    ] {
        let proxy = Proxy::start(Config::new().listener("cluster: web").cluster("web", &[dead(), dead()], options));
        assert_eq!(proxy.get("/").status(), 503);
        let entry = proxy.entry_for("/");
        assert_eq!((&entry["attempts"], &entry["flags"]), (&attempts.into(), &flags.into()), "{options}");
    }
}

#[test]
fn the_whole_body_is_resent() {
    let upstream = saying_in_turn(&[503, 0]);
    let proxy = with_retry(&upstream, "{on: [5xx], attempts: 2, backoff: 1ms}");
    let body: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).take(1_000_000).collect();
    assert_eq!(proxy.request("POST", "/", &[], &body).status(), 200);
    let requests = upstream.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| request.body == body));

    let upstream = saying_in_turn(&[503]);
    let proxy = with_retry(&upstream, "{on: [5xx]}");
    let chunked = [("Transfer-Encoding", "chunked")];
    assert_eq!(proxy.request("POST", "/", &chunked, b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n").status(), 200);
    let bodies: Vec<_> = upstream.requests().iter().map(|request| request.text().to_owned()).collect();
    assert_eq!(bodies, ["abcdef"; 2]);
}

#[test]
fn a_body_over_the_buffer_limit_is_not_retried() {
    let upstream = saying_in_turn(&[503]);
    let config = Config::new().listener("cluster: web\nlimits: {buffered_body: 64KiB}");
    let proxy = Proxy::start(config.cluster("web", &[&upstream], "retry: {on: [5xx]}"));
    assert_eq!(proxy.request("POST", "/long", &[], &vec![b'x'; 200_000]).status(), 503);
    assert_eq!((upstream.requests().len(), &proxy.entry_for("/long")["attempts"]), (1, &1.into()));
}

/// Bytes that the client has received cannot be undone.
#[test]
fn a_started_response_is_not_retried() {
    let upstream = Upstream::canned("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    let proxy = with_retry(&upstream, "{on: [5xx, reset], attempts: 3}");
    let mut client = proxy.client();
    client.send_request("GET", "/half", &[], b"");
    // The proxy may notice the end before it has sent the head; this must not cause a retry either.
    let _ = client.wire.read_to_end();
    assert_eq!(proxy.entry_for("/half")["attempts"], 1);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn an_attempt_that_times_out_is_retried() {
    let turn = AtomicUsize::new(0);
    let upstream = Upstream::scripted(move |mut connection| {
        connection.request();
        if turn.fetch_add(1, SeqCst) == 0 {
            return connection.wait_for_end();
        }
        connection.send(answer(200, &[], "at last"));
    });
    // The second attempt's timeout must suffice for a slow machine.
    let proxy = with_retry(&upstream, "{on: [reset], attempts: 1, per_try_timeout: 3s}");
    let response = proxy.get("/");
    assert_eq!((response.status(), response.text()), (200, "at last"));
    assert_eq!(proxy.entry_for("/")["attempts"], 2);
}

#[test]
fn retries_are_limited_by_the_budget() {
    // The second request to arrive is the retry of the first one; it is held while the test checks.
    let (turn, gate) = (AtomicUsize::new(0), Gate::default());
    let shut = gate.clone();
    let upstream = Upstream::replying(move |_| match turn.fetch_add(1, SeqCst) {
        1 => {
            shut.wait();
            answer(200, &[], "held")
        }
        _ => answer(503, &[], ""),
    });
    let options = "retry: {on: [5xx], backoff: 0s}\nretry_budget: {percent: 0, min_concurrent: 1}";
    let proxy = Proxy::start(Config::to_with(&upstream, options));
    let mut first = proxy.client();
    first.send_request("GET", "/first", &[], b"");
    upstream.wait_for_requests(2);
    assert_eq!(proxy.get("/second").status(), 503, "the budget has no room for its retry");
    let entry = proxy.entry_for("/second");
    assert_eq!((&entry["attempts"], &entry["flags"]), (&1.into(), &"URX".into()));
    assert_eq!(proxy.metrics().sum("tollgate_cluster_retry_overflows_total", &[("cluster", "web")]), 1.0);
    gate.open();
    assert_eq!(first.read().text(), "held");
}

#[test]
fn a_route_can_have_its_own_retry_policy() {
    let upstream = saying_in_turn(&[503, 503, 503]);
    let routes = "
        {match: {path: {prefix: /again}}, cluster: web, retry: {on: [gateway_error], attempts: 2, backoff: 1ms}},
        {cluster: web}";
    let proxy = Proxy::start(Config::new().routes(routes).cluster("web", &[&upstream], ""));
    assert_eq!(proxy.get("/once").status(), 503);
    assert_eq!(proxy.get("/again").status(), 200);
    assert_eq!(upstream.requests().len(), 4);
}
