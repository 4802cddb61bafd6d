//! Faults injected into requests: delays, aborts, rules, request headers, and the limit.

use std::time::Duration;

use fault::Fault;
use serde_json::{Value, json};
use tollgate_sdk::testing::TestHost;

fn host(config: Value) -> TestHost<Fault> {
    TestHost::new(config).unwrap()
}

fn ms(n: u64) -> Option<Duration> {
    Some(Duration::from_millis(n))
}

#[test]
fn empty_configuration_injects_nothing() {
    let host = host(json!({}));
    let outcome = host.request("GET", "/").header("x-envoy-fault-abort-request", "503").send();
    assert!(outcome.continued());
    assert!(outcome.flags().is_empty());
}

#[test]
fn abort_sends_a_response() {
    let host = host(json!({"abort": {"status": 503, "percent": 100}}));
    let outcome = host.request("GET", "/").send();
    assert_eq!(outcome.status(), Some(503));
    assert_eq!(outcome.reply_body(), Some(b"fault filter abort".as_slice()));
    assert_eq!(outcome.details(), Some("fault_filter_abort"));
    assert_eq!(outcome.flags(), ["FI"]);
    assert_eq!((host.metric("fault.delays_total"), host.metric("fault.aborts_total")), (0, 1));
}

#[test]
fn delayed_request_continues() {
    let host = host(json!({"delay": {"fixed": "100ms", "percent": 100}}));
    let outcome = host.request("GET", "/").send();
    assert!(!outcome.continued() && outcome.reply().is_none());
    assert_eq!(outcome.waits(), ms(100));
    assert_eq!(outcome.flags(), ["DI"]);
    assert!(outcome.wait().continued());
    assert_eq!((host.metric("fault.delays_total"), host.metric("fault.aborts_total")), (1, 0));
}

#[test]
fn abort_follows_the_delay() {
    let host = host(json!({"delay": {"fixed": "1.5s", "percent": 100}, "abort": {"status": 429, "percent": 100}}));
    let outcome = host.request("GET", "/").send();
    assert_eq!((outcome.waits(), outcome.status()), (ms(1500), None));
    let outcome = outcome.wait();
    assert_eq!(outcome.status(), Some(429));
    assert!(!outcome.continued());
    assert_eq!(outcome.flags(), ["FI", "DI"]);
}

#[test]
fn delay_and_abort_are_independent() {
    let host = host(json!({"delay": {"fixed": "1ms", "percent": 30}, "abort": {"status": 500, "percent": 20}}));
    let mut counts = [[0u32; 2]; 2];
    for _ in 0..20_000 {
        let outcome = host.request("GET", "/").send();
        let delayed = outcome.waits().is_some();
        let aborted = outcome.wait().status().is_some();
        counts[usize::from(delayed)][usize::from(aborted)] += 1;
    }
    // Each of the four within one percent of its share: independent probabilities multiply.
    for (delayed, aborted, share) in [(0, 0, 0.56), (0, 1, 0.14), (1, 0, 0.24), (1, 1, 0.06)] {
        let found = f64::from(counts[delayed][aborted]) / 20_000.0;
        assert!((found - share).abs() < 0.01, "{delayed} {aborted}: {found}");
    }
}

#[test]
fn random_delays_stay_within_their_limits() {
    for (delay, least, most) in [
        (json!({"uniform": {"min": "10ms", "max": "20ms"}, "percent": 100}), 10, 20),
        (json!({"exponential": {"mean": "10ms", "max": "40ms"}, "percent": 100}), 0, 40),
        // The longest possible.
        (json!({"fixed": "1h", "percent": 100}), 3_600_000, 3_600_000),
        (json!({"uniform": {"min": "1h", "max": "1h"}, "percent": 100}), 3_600_000, 3_600_000),
        (json!({"exponential": {"mean": "1h", "max": "1h"}, "percent": 100}), 0, 3_600_000),
    ] {
        let host = host(json!({"delay": delay}));
        for _ in 0..200 {
            let time = host.request("GET", "/").send().waits().unwrap();
            assert!((Duration::from_millis(least)..=Duration::from_millis(most)).contains(&time), "{time:?}");
        }
    }
}

#[test]
fn the_first_rule_that_matches_counts() {
    let abort = |status: u16| json!({"status": status, "percent": 100});
    let host = host(json!({
        "rules": [
            {"match": {"path": {"exact": "/health"}}},
            {"match": {"path": {"prefix": "/api"}, "headers": [{"name": "x-test", "exact": "yes"}]}, "abort": abort(501)},
            {"match": {"path": {"prefix": "/api"}}, "abort": abort(502)},
            {"match": {"path": {"suffix": ".png"}, "methods": ["GET", "HEAD"]}, "abort": abort(504)},
        ],
        "abort": abort(500),
    }));
    let table = [
        ("GET", "/health?now", "", None),
        ("GET", "/api/x", "yes", Some(501)),
        ("GET", "/api/x", "no", Some(502)),
        ("GET", "/apix", "yes", Some(500)),
        ("GET", "/a.png", "", Some(504)),
        ("PUT", "/a.png", "", Some(500)),
    ];
    for (method, path, header, status) in table {
        let outcome = host.request(method, path).header("x-test", header).send();
        assert_eq!(outcome.status(), status, "{method} {path}");
    }
}

const DELAY: &str = "x-envoy-fault-delay-request";
const DELAY_PERCENT: &str = "x-envoy-fault-delay-request-percentage";
const ABORT: &str = "x-envoy-fault-abort-request";
const ABORT_PERCENT: &str = "x-envoy-fault-abort-request-percentage";

#[test]
fn headers_request_faults_only_if_allowed() {
    let both = json!({"headers": {"delay": {"max": "2s", "percent": 100}, "abort": {"percent": 100}}});
    let only_delay = json!({"headers": {"delay": {}}});
    type Case<'a> = (&'a Value, &'a [(&'a str, &'a str)], Option<Duration>, Option<u16>);
    let table: [Case<'_>; 15] = [
        (&both, &[], None, None),
        (&both, &[(DELAY, "250")], ms(250), None),
        (&both, &[(DELAY, "9999")], ms(2000), None),
        (&both, &[(DELAY, "0")], None, None),
        (&both, &[(DELAY, "-1")], None, None),
        (&both, &[(DELAY, "+1")], None, None),
        (&both, &[(DELAY, "soon"), (ABORT, "abc")], None, None),
        (&both, &[(DELAY, "250"), (DELAY_PERCENT, "0")], None, None),
        (&both, &[(ABORT, "418")], None, Some(418)),
        (&both, &[(ABORT, "199")], None, None),
        (&both, &[(ABORT, "600")], None, None),
        (&both, &[(ABORT, "418"), (ABORT_PERCENT, "0")], None, None),
        (&both, &[(DELAY, "5"), (ABORT, "503")], ms(5), Some(503)),
        (&only_delay, &[(DELAY, "9999"), (ABORT, "503")], ms(5000), None),
        (&json!({"headers": false}), &[(DELAY, "5"), (ABORT, "503")], None, None),
    ];
    for (config, headers, delay, status) in table {
        let host = host((*config).clone());
        let outcome = headers.iter().fold(host.request("GET", "/"), |r, (n, v)| r.header(n, v)).send();
        assert_eq!(outcome.waits(), delay, "{config} {headers:?}");
        assert_eq!(outcome.wait().status(), status, "{config} {headers:?}");
    }
    let host = host(json!({"headers": true}));
    let outcome = host.request("GET", "/").header(DELAY, "5").header(ABORT, "500").send();
    assert_eq!((outcome.waits(), outcome.wait().status()), (ms(5), Some(500)));
}

#[test]
fn requested_fault_replaces_the_rules_fault_of_its_kind() {
    let host = host(json!({
        "headers": true,
        "delay": {"fixed": "1s", "percent": 100},
        "abort": {"status": 500, "percent": 100},
    }));
    let outcome = host.request("GET", "/").header(DELAY, "5").send();
    assert_eq!((outcome.waits(), outcome.wait().status()), (ms(5), Some(500)));
    let outcome = host.request("GET", "/").header(ABORT, "503").header(ABORT_PERCENT, "0").send();
    assert!((outcome.waits(), outcome.wait().continued()) == (ms(1000), true));
}

#[test]
fn requested_fault_is_limited_by_the_configuration() {
    for (asked, share) in [(Some("100"), 0.25), (Some("200"), 0.25), (Some("x"), 0.25), (Some("10"), 0.1), (None, 0.25)]
    {
        let host = host(json!({"headers": {"abort": {"percent": 25}}}));
        let mut hits = 0;
        for _ in 0..5000 {
            let request = host.request("GET", "/").header(ABORT, "503");
            let request = if let Some(asked) = asked { request.header(ABORT_PERCENT, asked) } else { request };
            hits += u32::from(request.send().status().is_some());
        }
        assert!((f64::from(hits) / 5000.0 - share).abs() < 0.02, "{asked:?}: {hits}");
    }
}

#[test]
fn concurrent_faults_are_limited() {
    let host = host(json!({"max_active": 2, "delay": {"fixed": "1s", "percent": 100}}));
    let first = host.request("GET", "/").send();
    let second = host.request("GET", "/").send();
    assert!(host.request("GET", "/").send().continued(), "over the limit");
    assert_eq!(host.metric("fault.overflow_total"), 1);
    let first = first.wait();
    assert!(first.continued());
    let third = host.request("GET", "/").send();
    assert_eq!(third.waits(), ms(1000), "the first is still active but no longer delayed");
    drop(second);
    assert_eq!(host.request("GET", "/").send().waits(), ms(1000), "the second client has disconnected");
    assert_eq!(host.metric("fault.overflow_total"), 1);
    assert_eq!(host.metric("fault.delays_total"), 4);
}

#[test]
fn aborted_request_counts_until_it_ends() {
    let host = host(json!({
        "max_active": 1,
        "delay": {"fixed": "1s", "percent": 100},
        "abort": {"status": 503, "percent": 100},
    }));
    let first = host.request("GET", "/").send().wait();
    assert_eq!(first.status(), Some(503));
    assert!(host.request("GET", "/").send().continued());
    drop(first);
    assert!(!host.request("GET", "/").send().continued());
    assert_eq!((host.metric("fault.overflow_total"), host.metric("fault.aborts_total")), (1, 1));
}
