//! Requests without an access log line: filters' calls, mirrored requests, health checks.

use serde_json::Value;

use super::endpoint;
use crate::{
    guest::{filter, pairs},
    harness::{
        Config, Proxy, Upstream,
        frames::{Frame, kind},
        wait_for,
    },
};

/// A filter that calls the cluster `auth` for each request and does not wait for it.
fn calling(timeout: u32) -> Vec<u8> {
    let head = pairs(&[(":method", "GET"), (":path", "/check"), (":authority", "auth")]);
    filter(&format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $call %"auth" %"{head}" %"" %"" (i32.const {timeout}) (global.get $out)))
            (i32.const 0))"#
    ))
}

/// A proxy whose filter calls the cluster `auth` with these endpoints, if any.
fn proxy(auth: &[String], timeout: u32) -> (Proxy, Upstream) {
    let upstream = Upstream::saying("ok");
    let config = Config::to(&upstream).module("caller", &calling(timeout), "").cluster("auth", auth, "");
    (Proxy::start(config), upstream)
}

fn last_error(proxy: &Proxy, cluster: &str) -> Value {
    wait_for("an endpoint's last error", || {
        let error = endpoint(proxy, cluster)["last_error"].clone();
        (!error.is_null()).then_some(error)
    })
}

#[test]
fn an_unreachable_service_is_logged_and_shown_at_its_endpoint() {
    let (proxy, _upstream) = proxy(&[Upstream::refusing().to_string()], 5000);
    (0..5).for_each(|_| assert_eq!(proxy.get("/").status(), 200));
    let error = last_error(&proxy, "auth");
    let why = error["error"].as_str().expect("a reason").to_owned();
    assert!(why.starts_with("connecting: Connection refused (os error 111), after "), "{why}");
    assert_eq!(error["kind"], "connect");
    proxy.wait_for_output("an endpoint failed: connecting: Connection refused");
    assert!(proxy.output().contains("cluster=\"auth\""), "{}", proxy.output());
}

#[test]
fn a_call_timeout_is_reported_with_its_duration() {
    let silent = Upstream::silent();
    let (proxy, _upstream) = proxy(&[silent.to_string()], 200);
    assert_eq!(proxy.get("/").status(), 200);
    let error = last_error(&proxy, "auth");
    assert_eq!(error["error"], "no response to a filter's call within 200ms, the timeout set by the filter");
    assert_eq!(error["kind"], "timeout");
}

#[test]
fn an_unsent_call_is_logged() {
    let (proxy, _upstream) = proxy(&[], 200);
    assert_eq!(proxy.get("/").status(), 200);
    proxy.wait_for_output("a filter's call was not sent: the cluster has no endpoint, or none that is healthy");
}

#[test]
fn an_unreachable_mirror_is_reported() {
    let upstream = Upstream::saying("ok");
    let config = Config::new().routes("{cluster: web, mirror: {cluster: shadow, percent: 100}}");
    let config = config.cluster("web", &[&upstream], "").cluster("shadow", &[Upstream::refusing()], "");
    let proxy = Proxy::start(config);
    assert_eq!(proxy.get("/").text(), "ok");
    let why = last_error(&proxy, "shadow")["error"].clone();
    assert!(why.as_str().is_some_and(|why| why.contains("Connection refused (os error 111)")), "{why}");
}

#[test]
fn health_checks_report_unexpected_responses() {
    let settings = Frame::bytes(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
    // Reads to the end: closing a socket with unread data resets the connection, and the response may be lost.
    let answering = |bytes: Vec<u8>| {
        Upstream::scripted(move |mut connection| {
            let _ = connection.wire.read_some(&mut [0; 100]);
            connection.send(&bytes);
            connection.wire.finish();
            connection.wait_for_end();
        })
    };
    let bad_request = || answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec());
    let cases: [(&str, Upstream, &str, &[&str]); 4] = [
        ("HTTP/2", answering(settings), "", &["expected HTTP/1.1", "set `protocol: h2`"]),
        ("HTTP/1.1", bad_request(), "protocol: h2\n", &["expected HTTP/2", "set `protocol: h1`"]),
        ("no TLS", bad_request(), "tls: {insecure: true}\n", &["peer does not speak TLS: first bytes 48 54 54 50"]),
        ("closed", Upstream::canned(""), "", &["connection closed"]),
    ];
    for (name, upstream, options, parts) in cases {
        let check = "health_check: {check: {http: {path: /up}}, interval: 20ms, timeout: 20s, unhealthy_threshold: 1}";
        let proxy = Proxy::start(Config::to_with(&upstream, &format!("{options}{check}")));
        let error = last_error(&proxy, "web");
        let why = error["error"].as_str().expect("a reason").to_owned();
        assert!(why.starts_with("health check: no "), "{name}: {why}");
        parts.iter().for_each(|part| assert!(why.contains(part), "{name}: no {part:?} in {why:?}"));
        proxy.wait_for_output("unhealthy: no ");
        let checked = endpoint(&proxy, "web")["check_error"].as_str().expect("a reason").to_owned();
        parts.iter().for_each(|part| assert!(checked.contains(part), "{name}: no {part:?} in {checked:?}"));
    }
}
