//! Which requests are allowed and which are rejected, and how often the service is called.

use std::time::Duration;

use api_key::ApiKey;
use serde_json::json;
use tollgate_sdk::{
    CallError,
    testing::{Scripted, TestHost},
};

fn host() -> TestHost<ApiKey> {
    let host = TestHost::new(json!({"cluster": "auth", "ttl": "10s"})).unwrap();
    host.service("auth", |call| match call.header("x-api-key") {
        Some("open-sesame") => Scripted::answer(200).header("x-user", "ann"),
        _ => Scripted::answer(404),
    });
    host
}

#[test]
fn known_key_becomes_a_user() {
    let host = host();
    let passed = host.request("GET", "/").header("x-api-key", "open-sesame").header("x-user", "root").send();
    assert!(passed.continued());
    assert_eq!((passed.request_header("x-user"), passed.request_header("x-api-key")), (Some("ann"), None));
}

#[test]
fn other_requests_are_rejected() {
    let host = host();
    let none = host.request("GET", "/").send();
    assert_eq!((none.status(), none.details()), (Some(401), Some("no_api_key")));
    let wrong = host.request("GET", "/").header("x-api-key", "guess").send();
    assert_eq!((wrong.status(), wrong.details()), (Some(403), Some("unknown_api_key")));
    assert_eq!(wrong.flags(), ["UAEX"]);
}

#[test]
fn answers_are_cached_for_a_limited_time() {
    let host = host();
    let ask = |key: &str| host.request("GET", "/").header("x-api-key", key).send().status();
    for _ in 0..3 {
        assert_eq!((ask("open-sesame"), ask("guess")), (None, Some(403)));
    }
    assert_eq!((host.metric("api_key.hits"), host.recorded("api_key.call_us").len()), (4, 2));
    host.advance(Duration::from_secs(10));
    assert_eq!(ask("open-sesame"), None);
    assert_eq!(host.recorded("api_key.call_us").len(), 3);
}

#[test]
fn new_keys_are_rejected_without_the_service() {
    let host = host();
    let ask = || host.request("GET", "/").header("x-api-key", "open-sesame").send().status();
    for broken in [Scripted::answer(500), Scripted::fail(CallError::Reset)] {
        host.service("auth", move |_| broken.clone());
        assert_eq!(ask(), Some(503));
    }
    host.service("auth", |_| Scripted::answer(200).after(Duration::from_secs(1)));
    let slow = host.request("GET", "/").header("x-api-key", "open-sesame").send();
    host.advance(Duration::from_millis(500));
    assert_eq!(slow.status(), Some(503));
}

#[test]
fn configuration_errors_have_locations() {
    let error = |config| TestHost::<ApiKey>::new(config).map(|_| ()).unwrap_err().to_string();
    let expected = "cluster: there is no cluster `missing`; path: a path begins with `/`";
    assert_eq!(error(json!({"cluster": "missing", "path": "x"})), expected);
}
