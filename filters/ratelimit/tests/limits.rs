//! Which requests are allowed, when, and under which key.

use std::time::Duration;

use ratelimit::Ratelimit;
use serde_json::{Value, json};
use tollgate_sdk::testing::{RequestBuilder, TestHost};

fn host(limits: Value) -> TestHost<Ratelimit> {
    TestHost::new(json!({"limits": limits})).unwrap()
}

/// Number of ten requests that are allowed.
fn passes(request: impl Fn() -> bool) -> usize {
    (0..10).filter(|_| request()).count()
}

#[test]
fn bucket_gives_its_burst_and_then_its_rate() {
    let host = host(json!([{"name": "all", "requests": 2, "per": "1s", "burst": 5}]));
    let pass = || host.request("GET", "/").send().continued();
    assert_eq!(passes(pass), 5);
    host.advance(Duration::from_millis(499));
    assert!(!pass());
    host.advance(Duration::from_millis(1));
    assert!(pass() && !pass());
    host.advance(Duration::from_secs(3600));
    assert_eq!(passes(pass), 5, "never more than the burst");
    assert_eq!((host.metric("ratelimit.allowed_total"), host.metric("ratelimit.limited_total")), (11, 5 + 1 + 1 + 5));
}

#[test]
fn burst_defaults_to_requests() {
    let host = host(json!([{"name": "all", "requests": 3, "per": "1m"}]));
    assert_eq!(passes(|| host.request("GET", "/").send().continued()), 3);
}

#[test]
fn over_time_the_rate_is_exact() {
    let host = host(json!([{"name": "all", "requests": 100, "per": "1s", "burst": 1}]));
    let mut passed = 0;
    for _ in 0..10_000 {
        host.advance(Duration::from_millis(1));
        passed += u32::from(host.request("GET", "/").send().continued());
    }
    assert_eq!(passed, 1000);
}

#[test]
fn a_limited_request() {
    let host = host(json!([{"name": "all", "requests": 1, "per": "90s"}]));
    host.request("GET", "/").send();
    host.advance(Duration::from_millis(500));
    let outcome = host.request("GET", "/").send();
    assert_eq!(outcome.status(), Some(429));
    assert_eq!(outcome.details(), Some("rate_limited[all]"));
    assert_eq!(outcome.flags(), ["RL"]);
    assert_eq!(outcome.reply_header("retry-after"), Some("90"), "89.5 seconds");
    assert_eq!(outcome.reply_header("content-type"), Some("text/plain"));
    assert_eq!(outcome.reply_body(), Some(b"too many requests".as_slice()));
    let other =
        TestHost::<Ratelimit>::new(json!({"status": 503, "limits": [{"name": "a", "requests": 1000, "per": "1s"}]}));
    let other = other.unwrap();
    (0..1000).for_each(|_| drop(other.request("GET", "/").send()));
    let outcome = other.request("GET", "/").send();
    assert_eq!((outcome.status(), outcome.reply_header("retry-after")), (Some(503), Some("1")), "a millisecond");
}

#[test]
fn each_source_has_its_own_bucket() {
    let keyed = |key: Value, more: Value| {
        let mut limit = json!({"name": "a", "requests": 1, "per": "1m", "key": [key]});
        more.as_object().into_iter().flatten().for_each(|(k, v)| limit[k] = v.clone());
        host(json!([limit]))
    };
    let table = [
        // The sources of two requests, and whether they are the same.
        (json!({"source": true}), json!({}), "10.0.0.1", "10.0.0.1", true),
        (json!({"source": "peer"}), json!({}), "10.0.0.1", "10.0.0.2", false),
        (json!({"source": true}), json!({}), "10.0.0.1", "::ffff:10.0.0.1", true),
        (json!({"source": true}), json!({}), "2001:db8::1", "2001:db8::2", true),
        (json!({"source": true}), json!({}), "2001:db8::1", "2001:db8:0:1::1", false),
        (json!({"source": true}), json!({"ipv6_prefix": 48}), "2001:db8::1", "2001:db8:0:1::1", true),
        (json!({"source": true}), json!({"ipv6_prefix": 128}), "2001:db8::1", "2001:db8::2", false),
        (json!({"source": true}), json!({"ipv6_prefix": 1}), "2001:db8::1", "3001:db8::2", true),
    ];
    for (key, more, first, second, same) in table {
        let host = keyed(key, more.clone());
        assert!(host.request("GET", "/").source(first).send().continued());
        let outcome = host.request("GET", "/").source(second).send();
        assert_eq!(outcome.continued(), !same, "{first} {second} {more}");
    }
    let host = keyed(json!({"source": "client"}), json!({}));
    assert!(host.request("GET", "/").source("10.0.0.1").client("203.0.113.1").send().continued());
    assert!(host.request("GET", "/").source("10.0.0.1").client("203.0.113.2").send().continued());
    assert!(!host.request("GET", "/").source("10.0.0.2").client("203.0.113.1").send().continued());
}

#[test]
fn keys_of_headers_cookies_and_paths() {
    let key = json!([{"header": "X-User"}, {"cookie": "id"}, {"path": true}, {"constant": "v1"}]);
    let host = host(json!([{"name": "a", "requests": 1, "per": "1m", "key": key}]));
    let pass = |user: &str, cookie: &str, path: &str| {
        host.request("GET", path).header("x-user", user).header("cookie", cookie).send().continued()
    };
    assert!(pass("ann", "id=1", "/a"));
    assert!(!pass("ann", "id=1; theme=dark", "/a?page=2"));
    assert!(pass("ben", "id=1", "/a"));
    assert!(pass("ann", "id=2", "/a"));
    assert!(pass("ann", "id=1", "/b"));
    assert!(pass("an", "id=n1", "/a"), "parts do not run together");
}

#[test]
fn requests_that_lack_a_part_of_the_key() {
    for (mode, expected) in [(json!("skip"), 10), (json!("shared"), 2)] {
        for part in [json!({"header": "x-user"}), json!({"cookie": "id"})] {
            let limit = json!({"name": "a", "requests": 2, "per": "1m", "key": [part], "on_missing_key": mode});
            let host = host(json!([limit]));
            let passed = passes(|| host.request("GET", "/").header("cookie", "no=1").send().continued());
            assert_eq!(passed, expected, "{mode} {part}");
            assert_eq!(host.metric("ratelimit.allowed_total"), if expected == 2 { 2 } else { 0 });
            assert!(host.request("GET", "/").header("x-user", "").header("cookie", "id=").send().continued(), "empty");
        }
    }
}

#[test]
fn limits_apply_to_matching_requests() {
    let host = host(json!([
        {"name": "api", "requests": 1, "per": "1m", "match": {"path": {"prefix": "/api"}, "methods": ["POST"]}},
        {"name": "bots", "requests": 2, "per": "1m", "match": {"headers": [{"name": "user-agent", "prefix": "bot"}]}},
    ]));
    let post = |path| passes(|| host.request("POST", path).send().continued());
    assert_eq!((post("/api/x"), post("/apix")), (1, 10));
    assert_eq!(passes(|| host.request("GET", "/api").send().continued()), 10);
    assert_eq!(passes(|| host.request("GET", "/").header("user-agent", "bot/1").send().continued()), 2);
}

#[test]
fn denied_request_returns_the_other_tokens() {
    let host = host(json!([
        {"name": "wide", "requests": 5, "per": "1h"},
        {"name": "user", "requests": 1, "per": "1h", "key": [{"header": "x-user"}]},
        {"name": "after", "requests": 100, "per": "1h"},
    ]));
    let send = |r: RequestBuilder<'_, Ratelimit>| r.send().details().map(str::to_string);
    assert_eq!(send(host.request("GET", "/").header("x-user", "ann")), None);
    for _ in 0..10 {
        assert_eq!(send(host.request("GET", "/").header("x-user", "ann")).as_deref(), Some("rate_limited[user]"));
    }
    for user in ["b", "c", "d", "e"] {
        assert_eq!(send(host.request("GET", "/").header("x-user", user)), None, "{user}");
    }
    assert_eq!(send(host.request("GET", "/").header("x-user", "f")).as_deref(), Some("rate_limited[wide]"));
    let outcome = host.request("GET", "/").send();
    assert_eq!(outcome.response_header("ratelimit"), Some("\"wide\";r=0;t=720"));
    assert_eq!((host.metric("ratelimit.allowed_total"), host.metric("ratelimit.limited_total")), (5, 12));
}

#[test]
fn dry_run_limit_denies_nothing() {
    let strict = json!({"name": "strict", "requests": 1, "per": "1h", "dry_run": true});
    let wide = json!({"name": "wide", "requests": 3, "per": "1h"});
    let host = host(json!([strict, wide]));
    let details = |expected_log: Option<&str>| {
        let outcome = host.request("GET", "/").send();
        assert_eq!(outcome.log_field("ratelimit_dry_run"), expected_log);
        outcome.details().map(str::to_string)
    };
    let tried = Some("rate_limited[strict]");
    assert_eq!(details(None), None);
    assert_eq!(details(tried), None);
    assert_eq!(details(tried), None);
    assert_eq!(details(tried).as_deref(), Some("rate_limited[wide]"));
    assert_eq!(host.metric("ratelimit.dry_run_limited_total"), 3);
    assert_eq!((host.metric("ratelimit.allowed_total"), host.metric("ratelimit.limited_total")), (3, 1));
}

#[test]
fn dry_run_for_all_limits() {
    let limits = json!([{"name": "a", "requests": 1, "per": "1h"}, {"name": "b", "requests": 2, "per": "1h"}]);
    let host = TestHost::<Ratelimit>::new(json!({"dry_run": true, "limits": limits})).unwrap();
    let logged: Vec<_> = (0..3)
        .map(|_| {
            let outcome = host.request("GET", "/").send();
            assert!(outcome.continued() && outcome.flags().is_empty());
            assert_eq!(outcome.response_header("ratelimit"), None, "dry-run limits are not reported to clients");
            outcome.log_field("ratelimit_dry_run").unwrap_or_default().to_string()
        })
        .collect();
    assert_eq!(logged, ["", "rate_limited[a]", "rate_limited[a] rate_limited[b]"]);
    assert_eq!((host.metric("ratelimit.dry_run_limited_total"), host.metric("ratelimit.limited_total")), (2, 0));
}

#[test]
fn limits_are_reported_to_clients() {
    let host = host(json!([
        {"name": "burst", "requests": 10, "per": "500ms", "burst": 40},
        {"name": "user", "requests": 2, "per": "1m", "key": [{"header": "x-user"}]},
    ]));
    let policy = "\"burst\";q=20;w=1, \"user\";q=2;w=60";
    let told = |outcome: &tollgate_sdk::testing::Outcome<'_, Ratelimit>| {
        let field = |name| outcome.reply_header(name).unwrap_or_default().to_string();
        (field("ratelimit-policy"), field("ratelimit"))
    };
    let send = || host.request("GET", "/").header("x-user", "ann").send();
    assert_eq!(told(&send()), (policy.into(), "\"burst\";r=39;t=2, \"user\";r=1;t=30".into()));
    assert_eq!(told(&send()), (policy.into(), "\"burst\";r=38;t=2, \"user\";r=0;t=60".into()));
    let refused = send();
    assert_eq!(refused.status(), Some(429));
    assert_eq!(refused.reply_header("retry-after"), Some("30"));
    assert_eq!(told(&refused), (policy.into(), "\"burst\";r=38;t=2, \"user\";r=0;t=30".into()));
    // Only limits that were checked are reported.
    assert_eq!(told(&host.request("GET", "/").send()), ("\"burst\";q=20;w=1".into(), "\"burst\";r=37;t=2".into()));
    let answered = host.request("GET", "/").send().respond(200, &[], b"hello");
    assert_eq!(answered.response_header("ratelimit"), Some("\"burst\";r=36;t=2"));
}

#[test]
fn reporting_can_be_turned_off() {
    let limits = json!([{"name": "a", "requests": 1, "per": "1h"}]);
    let host = TestHost::<Ratelimit>::new(json!({"headers": "off", "limits": limits})).unwrap();
    assert_eq!(host.request("GET", "/").send().reply_header("ratelimit"), None);
    let refused = host.request("GET", "/").send();
    assert_eq!((refused.reply_header("ratelimit"), refused.reply_header("retry-after")), (None, Some("3600")));
}

/// Neither whitespace that servers tolerate around a cookie's value, nor another cookie after a comma, gets its own
/// bucket.
#[test]
fn all_spellings_of_a_cookie_share_a_bucket() {
    let host = host(json!([{"name": "c", "requests": 1, "per": "1m", "key": [{"cookie": "sid"}]}]));
    let pass = |cookie: &str| host.request("GET", "/").header("cookie", cookie).send().continued();
    assert!(pass("sid=1"));
    for spelling in ["sid=\"1\"", "sid = 1", "sid=\t\"1\" ", "sid=\"\\061\"", "sid=1,a=2", "sid=1,a=3", "b=1,sid=1"] {
        assert!(!pass(spelling), "{spelling:?}");
    }
    assert!(pass("sid=1,sid=2") && !pass("sid=3,sid=4"), "requests with several share one");
    assert!(pass("sid=2"));
}

/// A second field or cookie must not get its own bucket.
#[test]
fn second_value_gains_nothing() {
    let host = host(json!([
        {"name": "h", "requests": 1, "per": "1m", "key": [{"header": "X-Api-Key"}]},
        {"name": "c", "requests": 1, "per": "1m", "key": [{"cookie": "id"}]},
    ]));
    let with = |name: &str, values: &[String]| {
        values.iter().fold(host.request("GET", "/"), |r, value| r.header(name, value)).send().continued()
    };
    let random = |n: usize| format!("random-{n}");
    assert_eq!((0..10).filter(|n| with("x-api-key", &["k".into(), random(*n)])).count(), 1);
    assert_eq!((0..10).filter(|n| with("x-api-key", &[random(*n), "k".into()])).count(), 0);
    assert!(with("x-api-key", &["k".into()]), "a single value has its own bucket");
    assert!(
        with("x-api-key", &["a, b".into()]) && with("x-api-key", &["a, c".into()]),
        "commas in one field are part of its value"
    );
    assert_eq!((0..10).filter(|n| with("cookie", &[format!("id={}; id=k", random(*n))])).count(), 1);
    assert_eq!((0..10).filter(|n| with("cookie", &["id=k".into(), format!("id={}", random(*n))])).count(), 0);
    assert!(with("cookie", &["id=k".into()]));
}

#[test]
fn one_path_has_one_bucket_in_all_its_spellings() {
    let host = host(json!([{"name": "p", "requests": 1, "per": "1m", "key": [{"path": true}]}]));
    assert_eq!(
        ["/a@b", "/a%40b", "/a@b?x"].iter().filter(|path| host.request("GET", path).send().continued()).count(),
        1
    );
}
