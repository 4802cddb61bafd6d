//! Actions on requests: each action and each option.

use router::Router;
use serde_json::{Value, json};
use tollgate_sdk::{
    Reply,
    doc::{self, RetryOn},
    testing::{Outcome, TestHost},
};

/// A host with only this rule.
fn host(rule: Value) -> TestHost<Router> {
    TestHost::new(json!({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [rule]}]})).unwrap()
}

/// The route of a request without special properties.
fn route(rule: Value) -> doc::Route {
    host(rule).request("GET", "/").send().selected().unwrap().route.clone()
}

/// The path as the upstream sees it: the host replaces the prefix, with exactly one slash between it and the rest.
fn upstream_path(outcome: &Outcome<Router>) -> String {
    let path = outcome.request_header(":path").unwrap();
    let Some(doc::PrefixRewrite { strip, with }) = &outcome.selected().unwrap().route.prefix else {
        return path.into();
    };
    let rest = &path[*strip as usize..];
    format!("{with}{}", if with.ends_with('/') { rest.strip_prefix('/').unwrap_or(rest) } else { rest })
}

#[test]
fn a_cluster() {
    let expected =
        doc::Route { name: "v/0".into(), clusters: vec![doc::WeightedCluster::new("c", 1)], ..doc::Route::default() };
    assert_eq!(route(json!({"cluster": "c"})), expected);
    assert_eq!(route(json!({"cluster": "c", "name": "start"})).name, "v/start");
    let host = host(json!({"cluster": "c"}));
    assert_eq!(upstream_path(&host.request("GET", "/a%40b?%40").send()), "/a%40b?%40", "as written");
}

#[test]
fn filters_are_part_of_the_route() {
    let filters = route(json!({"cluster": "c", "filters": {"limits": "strict", "authz": "off"}})).filters;
    let expected = [("authz", "off"), ("limits", "strict")].map(|(filter, name)| (filter.to_owned(), name.to_owned()));
    assert_eq!(filters.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn random_and_sticky_splits() {
    let clusters = json!([{"cluster": "a", "weight": 99}, {"cluster": "b"}, {"cluster": "c", "weight": 0}]);
    let by_chance = host(json!({"split": {"clusters": clusters}}));
    let outcome = by_chance.request("GET", "/").send();
    let weights: Vec<_> = outcome.selected().unwrap().route.clusters.iter().map(|c| c.weight).collect();
    assert_eq!((weights, outcome.selected().unwrap().split), (vec![99, 1, 0], None));

    let sticky = host(json!({"split": {"clusters": clusters, "sticky": {"cookie": "user"}}}));
    let hash = |cookie: &str| sticky.request("GET", "/").header("cookie", cookie).send().selected().unwrap().split;
    assert!(hash("a=b; user=x").is_some());
    assert_eq!(hash("a=b; user=x"), hash("user=x"));
    assert_ne!(hash("user=x"), hash("user=y"));
    assert_eq!((hash("a=b"), hash("user=")), (None, None));
    // As authz, ratelimit and lenient servers parse cookies.
    for spelling in ["user = x", "user=\"x\"", "a=b,user=x", "user=\"\\170\"", "user=x,a=b"] {
        assert_eq!(hash(spelling), hash("user=x"), "{spelling}");
    }
}

#[test]
fn hash_keys() {
    let balance = |key: Value, path: &str, header: Option<&str>, source: &str| {
        let host = host(json!({"cluster": "c", "hash_key": key}));
        let request = host.request("GET", path).client(source);
        let request = if let Some(header) = header { request.header("x", header) } else { request };
        let outcome = request.send();
        outcome.selected().unwrap().balance
    };
    let header = || json!({"header": "X"});
    assert_eq!(balance(header(), "/", Some("1"), "::1"), balance(header(), "/a", Some("1"), "::2"));
    assert_ne!(balance(header(), "/", Some("1"), "::1"), balance(header(), "/", Some("2"), "::1"));
    assert_eq!(balance(header(), "/", None, "::1"), None);
    let path = || json!({"path": true});
    assert_eq!(balance(path(), "/a?b", None, "::1"), balance(path(), "/a", None, "::1"));
    assert_ne!(balance(path(), "/a", None, "::1"), balance(path(), "/b", None, "::1"));
    let source = || json!({"source": true});
    assert_eq!(balance(source(), "/", None, "192.0.2.1:1"), balance(source(), "/", None, "192.0.2.1:2"));
    assert_ne!(balance(source(), "/", None, "192.0.2.1"), balance(source(), "/", None, "192.0.2.2"));
    assert_ne!(balance(source(), "/", None, "2001:db8::1"), balance(source(), "/", None, "2001:db8::2"));

    let both = host(json!({"split": {"clusters": [{"cluster": "c"}], "sticky": {"path": true}}, "hash_key": path()}));
    let outcome = both.request("GET", "/").send();
    assert_ne!(outcome.selected().unwrap().split, outcome.selected().unwrap().balance);
}

#[test]
fn first_part_that_the_request_has_is_the_hash_key() {
    let host = host(json!({"cluster": "c", "hash_key": [{"header": "x"}, {"query": "user"}, {"cookie": "user"}]}));
    let balance = |path: &str, headers: &[(&str, &str)]| {
        let request =
            headers.iter().fold(host.request("GET", path), |request, (name, value)| request.header(name, value));
        request.send().selected().unwrap().balance
    };
    let one = balance("/", &[("x", "1")]);
    assert!(one.is_some());
    assert_eq!(balance("/?user=2", &[("x", "1"), ("cookie", "user=3")]), one);
    // The key is the value, wherever it is.
    for (path, cookie) in [("/?user=1", "user=3"), ("/", "user=1"), ("/?user=&user=2", "user=1")] {
        assert_eq!(balance(path, &[("cookie", cookie)]), one, "{path} {cookie}");
    }
    assert_eq!(balance("/?users=1", &[("cookie", "users=1")]), None);
}

#[test]
fn missing_cookie_is_issued_and_is_the_key_of_the_next_request() {
    let cookie = json!({"cookie": {"name": "node", "ttl": "90m", "path": "/app", "same_site": "lax"}});
    let host = host(json!({"cluster": "c", "hash_key": [{"header": "x"}, cookie]}));
    let first = host.request("GET", "/").send();
    let issued = first.response_header("set-cookie").unwrap().to_owned();
    let (pair, attributes) = issued.split_once(';').unwrap();
    assert_eq!(attributes, " HttpOnly; Max-Age=5400; Path=/app; SameSite=Lax");
    let (name, value) = pair.split_once('=').unwrap();
    assert!(name == "node" && value.len() == 16 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{pair}");
    let second = host.request("GET", "/").header("cookie", pair).send();
    assert_eq!(second.selected().unwrap().balance, first.selected().unwrap().balance);
    assert_eq!(second.response_header("set-cookie"), None);
    let other = host.request("GET", "/").send();
    assert_ne!(other.selected().unwrap().balance, first.selected().unwrap().balance, "each client has its own");
    let by_header = host.request("GET", "/").header("x", "1").send();
    assert_eq!(by_header.response_header("set-cookie"), None, "it is not needed");

    // Of the session, for the cluster and the endpoint.
    let cookie = || json!({"cookie": {"name": "s", "ttl": "0s", "secure": true}});
    let both = self::host(json!({"split": {"clusters": [{"cluster": "c"}], "sticky": cookie()}, "hash_key": cookie()}));
    let first = both.request("GET", "/").send();
    let issued = first.response_header("set-cookie").unwrap().to_owned();
    assert!(issued.ends_with("; HttpOnly; Path=/; Secure"), "{issued}");
    let second = both.request("GET", "/").header("cookie", issued.split_once(';').unwrap().0).send();
    let [first, second] = [&first, &second].map(|outcome| outcome.selected().unwrap());
    assert!(first.split.is_some() && first.split == second.split && first.balance == second.balance);
}

#[test]
fn prefixes_are_rewritten() {
    for (path, with, cases) in [
        (
            json!({"prefix": "/api"}),
            "/v2",
            vec![("/api", "/v2"), ("/api/", "/v2/"), ("/api/x?q", "/v2/x?q"), ("/api?q", "/v2?q")],
        ),
        (json!({"prefix": "/api/"}), "/v2/", vec![("/api", "/v2"), ("/api/x", "/v2/x")]),
        (
            json!({"prefix": "/api"}),
            "/",
            vec![("/api", "/"), ("/api?q", "/?q"), ("/api/", "/"), ("/api/x?q", "/x?q"), ("/api//x", "//x")],
        ),
        (json!({"prefix": "/"}), "/v2", vec![("/", "/v2/"), ("/x", "/v2/x")]),
        (json!({"prefix": "/"}), "/", vec![("/", "/"), ("/x", "/x")]),
        (json!({"exact": "/a/b"}), "/c/", vec![("/a/b", "/c/"), ("/a/b?q", "/c/?q")]),
        // The removed part is as long as it was in the request.
        (json!({"prefix": "/a@b"}), "/c", vec![("/a%40b/d?%40", "/c/d?%40"), ("/a@b/d", "/c/d")]),
    ] {
        let rule = json!({"match": {"path": path}, "cluster": "c", "prefix_rewrite": with});
        let host = host(rule.clone());
        for (from, to) in cases {
            assert_eq!(upstream_path(&host.request("GET", from).send()), to, "{from} {rule}");
        }
    }
}

#[test]
fn paths_are_rewritten_by_patterns() {
    for (pattern, substitution, from, to) in [
        ("^/users/([0-9]+)/(.*)$", r"/\2/of/\1", "/users/42/pets?q=/users", "/pets/of/42?q=/users"),
        ("a", "b", "/a/a?a", "/b/b?a"),
        ("^/v1", "", "/v1/x", "/x"),
        ("/v1", "", "/v1", "/"),
        ("x(y)?", r"[\1\0]\\", "/x/xy", "/%5Bx%5D%5C/%5Byxy%5D%5C"),
        ("none", "x", "/a?none", "/a?none"),
        ("^/a/", "", "/a/b", "/b"),
        // The server, not a path.
        ("^", "/x", "*", "*"),
        // The result has no dot segments.
        ("_", "", "/und/_._./admin", "/admin"),
        ("_", "", "/a/_./b", "/a/b"),
    ] {
        let host = host(json!({"cluster": "c", "regex_rewrite": {"pattern": pattern, "substitution": substitution}}));
        assert_eq!(upstream_path(&host.request("GET", from).send()), to, "{pattern}");
    }
}

#[test]
fn ambiguous_rewritten_path_is_rejected() {
    let host = host(json!({"cluster": "c", "regex_rewrite": {"pattern": "_", "substitution": ""}}));
    let outcome = host.request("GET", "/und/_._.;x/admin").send();
    assert_eq!(outcome.status(), Some(400));
}

#[test]
fn options_are_passed_to_the_host() {
    let route = route(json!({
        "cluster": "c",
        "host_rewrite": "inner.example.com:8080",
        "request_headers": {"set": {"X-A": "1"}, "add": {"x-b": "2"}, "remove": ["X-C"]},
        "response_headers": {"set": {"x-d": "3"}},
        "timeout": "1.5s",
        "idle_timeout": "0s",
        "retry": {"on": ["5xx", "connect_failure"], "attempts": 2, "per_try_timeout": "500ms", "backoff": "10ms"},
        "mirror": {"cluster": "shadow", "percent": 0.0001},
    }));
    assert_eq!(route.host.as_deref(), Some("inner.example.com:8080"));
    let pair = |n: &str, v: &str| (n.to_string(), v.to_string());
    let (set, add) = (vec![pair("x-a", "1")], vec![pair("x-b", "2")]);
    assert_eq!(route.request_headers, doc::HeaderOps { set, add, remove: vec!["x-c".into()] });
    assert_eq!(route.response_headers.set, [pair("x-d", "3")]);
    assert_eq!((route.timeout_ms, route.idle_timeout_ms), (Some(1500), Some(0)));
    let retry = doc::Retry {
        on: vec![RetryOn::ServerError, RetryOn::ConnectFailure],
        attempts: 2,
        per_try_timeout_ms: Some(500),
        backoff_ms: 10,
        ..doc::Retry::default()
    };
    assert_eq!(route.retry, Some(retry));
    assert_eq!(route.mirror, Some(doc::Mirror { cluster: "shadow".into(), per_million: 1 }));
}

#[test]
fn every_option_of_retries_is_passed_to_the_host() {
    let retry = |retry: Value| route(json!({"cluster": "c", "retry": retry})).retry.unwrap();
    let given = retry(json!({
        "on": [],
        "per_try_idle_timeout": "2s",
        "max_backoff": "3s",
        "rate_limited_backoff": {"reset_headers": [{"name": "X-Reset", "format": "unix_timestamp"}], "max": "1m"},
        "retriable_status_codes": [425, 404],
        "retriable_headers": [{"name": "x-retry"}, {"name": "x-b", "regex": "a|b", "invert": true}],
        "retriable_request_headers": [{"name": "x-safe", "exact": "1"}],
    }));
    let header = |name: &str| doc::HeaderMatch { name: name.into(), ..doc::HeaderMatch::default() };
    let reset_headers = vec![doc::ResetHeader { name: "X-Reset".into(), format: doc::ResetFormat::UnixTimestamp }];
    let expected = doc::Retry {
        attempts: 1,
        per_try_idle_timeout_ms: Some(2000),
        backoff_ms: 25,
        max_backoff_ms: Some(3000),
        rate_limited_backoff: Some(doc::RateLimitedBackoff { reset_headers, max_ms: 60_000 }),
        retriable_status_codes: vec![425, 404],
        retriable_headers: vec![
            header("x-retry"),
            doc::HeaderMatch { regex: Some("a|b".into()), invert: true, ..header("x-b") },
        ],
        retriable_request_headers: vec![doc::HeaderMatch { exact: Some("1".into()), ..header("x-safe") }],
        ..doc::Retry::default()
    };
    assert_eq!(given, expected);
    let defaults = retry(json!({"rate_limited_backoff": {}})).rate_limited_backoff.unwrap();
    assert_eq!((&*defaults.reset_headers[0].name, defaults.max_ms), ("retry-after", 300_000));
}

#[test]
fn hedging_is_passed_to_the_host() {
    let hedging = |hedging: Value| route(json!({"cluster": "c", "hedging": hedging})).hedging.unwrap();
    let methods = Some(vec!["POST".to_owned()]);
    assert_eq!(hedging(json!({"delay": "50ms", "methods": ["POST"]})), doc::Hedging { delay_ms: Some(50), methods });
    assert_eq!(hedging(json!({})), doc::Hedging::default());
    assert_eq!(route(json!({"cluster": "c"})).hedging, None);
}

#[test]
fn metadata_match_is_passed_for_each_cluster() {
    use doc::MetadataValue::{Boolean, Number, Text};
    let matched = |rule: Value| -> Vec<Vec<(String, doc::MetadataValue)>> {
        route(rule).clusters.into_iter().map(|cluster| cluster.metadata_match.into_iter().collect()).collect()
    };
    let pair = |name: &str, value| (name.to_owned(), value);
    let text = |text: &str| Text(text.to_owned());
    let rule = json!({"cluster": "c", "metadata_match": {"version": "v2", "shard": 7, "canary": true}});
    let expected = vec![pair("canary", Boolean(true)), pair("shard", Number(7.0)), pair("version", text("v2"))];
    assert_eq!(matched(rule), [expected]);
    // That of a cluster of a split comes in addition, and replaces properties of the same name.
    let clusters = json!([{"cluster": "a"}, {"cluster": "b", "metadata_match": {"version": "v3", "stage": "test"}}]);
    let rule = json!({"split": {"clusters": clusters}, "metadata_match": {"version": "v2"}});
    let own = vec![pair("stage", text("test")), pair("version", text("v3"))];
    assert_eq!(matched(rule), [vec![pair("version", text("v2"))], own]);
    // As older hosts know it.
    let sent = serde_json::to_value(route(json!({"cluster": "c"}))).unwrap();
    assert_eq!(sent["clusters"], json!([{"cluster": "c", "weight": 1}]));
}

#[test]
fn options_have_defaults() {
    let route = route(json!({"cluster": "c", "retry": {"per_try_timeout": "0s"}, "mirror": {"cluster": "shadow"}}));
    let on = vec![RetryOn::ConnectFailure, RetryOn::Reset];
    assert_eq!(route.retry, Some(doc::Retry { on, attempts: 1, backoff_ms: 25, ..doc::Retry::default() }));
    assert_eq!(route.mirror.unwrap().per_million, 1_000_000);
    assert_eq!((route.timeout_ms, route.idle_timeout_ms, route.prefix, route.host), (None, None, None, None));
}

/// The status and the `location` of a redirected request.
fn redirect(path: Value, config: Value, authority: &str, target: &str) -> (u16, String) {
    let host = host(json!({"match": {"path": path}, "redirect": config}));
    let outcome = host.request("GET", target).host(authority).send();
    assert_eq!(outcome.details(), Some("redirect"));
    (outcome.status().unwrap(), outcome.reply_header("location").unwrap().into())
}

#[test]
fn redirects() {
    let any = || json!({"prefix": "/"});
    for (config, authority, target, location) in [
        (json!({"scheme": "https"}), "a.com:8080", "/x?y", "https://a.com/x?y"),
        (json!({"scheme": "https", "port": 8443}), "a.com", "/x", "https://a.com:8443/x"),
        (json!({"scheme": "https", "port": 443}), "a.com", "/x", "https://a.com/x"),
        (json!({"host": "b.com"}), "a.com:8080", "/x?", "http://b.com/x?"),
        (json!({"host": "[::1]", "port": 80}), "a.com", "/x", "http://[::1]/x"),
        (json!({"port": 81}), "[::1]:80", "/", "http://[::1]:81/"),
        (json!({"path": "/new"}), "a.com:8080", "/x?y", "http://a.com:8080/new?y"),
        (json!({"path": "/new?z"}), "a.com", "/x?y", "http://a.com/new?z"),
        (json!({"path": "/new", "strip_query": true}), "a.com", "/x?y", "http://a.com/new"),
        // RFC 3986 section 3: the query precedes the fragment.
        (json!({"path": "/new#part"}), "a.com", "/x?y", "http://a.com/new?y#part"),
        (json!({"path": "/new?z#part"}), "a.com", "/x?y", "http://a.com/new?z#part"),
        (json!({"path": "/new#part?"}), "a.com", "/x", "http://a.com/new#part?"),
        (json!({"strip_query": true}), "a.com", "//evil.com?y", "http://a.com//evil.com"),
    ] {
        assert_eq!(redirect(any(), config, authority, target), (301, location.into()));
    }
    for status in [301, 302, 303, 307, 308] {
        assert_eq!(redirect(any(), json!({"port": 1, "status": status}), "a.com", "/").0, status);
    }
}

#[test]
fn redirects_rewrite_prefixes() {
    let location = |path, with, target| redirect(path, json!({"prefix_rewrite": with}), "a.com", target).1;
    let prefix = || json!({"prefix": "/old"});
    assert_eq!(location(prefix(), "/new", "/old/x?y"), "http://a.com/new/x?y");
    assert_eq!(location(prefix(), "/new/", "/old"), "http://a.com/new");
    assert_eq!(location(prefix(), "/", "/old?y"), "http://a.com/?y");
    assert_eq!(location(prefix(), "/", "/old/x"), "http://a.com/x");
    assert_eq!(location(json!({"exact": "/old"}), "/new/", "/old?y"), "http://a.com/new/?y");
}

#[test]
fn redirect_of_asterisk_does_not_change_the_host() {
    let host = host(json!({"redirect": {"scheme": "https"}}));
    let outcome = host.request("OPTIONS", "*").host("a.com").send();
    assert_eq!(outcome.reply_header("location"), Some("https://a.com/*"));
}

#[test]
fn responses() {
    let plain = host(json!({"respond": {"status": 503, "body": "later", "headers": {"Retry-After": "60"}}}));
    let outcome = plain.request("GET", "/").send();
    assert_eq!((outcome.status(), outcome.details()), (Some(503), Some("direct_response")));
    assert_eq!(outcome.reply_body(), Some(&b"later"[..]));
    assert_eq!(outcome.reply_header("retry-after"), Some("60"));
    assert_eq!(outcome.reply_header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(!outcome.continued() && outcome.selected().is_none() && outcome.flags().is_empty());
    let json = json!({"status": 200, "body": "{}", "headers": {"content-type": "application/json"}});
    for (respond, reply) in [
        (json!({"status": 200}), Reply::new(200)),
        (json, Reply::new(200).header("content-type", "application/json").body("{}")),
    ] {
        let reply = reply.details("direct_response");
        assert_eq!(host(json!({"respond": respond})).request("GET", "/").send().reply(), Some(&reply));
    }
}

#[test]
fn response_headers_change_the_filters_own_responses_too() {
    let ops = json!({"set": {"Content-Type": "text/html", "x-a": "1"}, "add": {"x-b": "2"}, "remove": ["X-C"]});
    let body = json!({"status": 200, "body": "<p>", "headers": {"x-c": "3", "x-d": "4", "x-a": "0"}});
    let respond = host(json!({"respond": body, "response_headers": ops}));
    let outcome = respond.request("GET", "/").send();
    let header = |name| outcome.reply_header(name);
    assert_eq!((header("content-type"), header("x-a"), header("x-b")), (Some("text/html"), Some("1"), Some("2")));
    assert_eq!((header("x-c"), header("x-d")), (None, Some("4")));
    drop(outcome);

    let redirect = host(json!({"redirect": {"port": 1}, "response_headers": {"set": {"x-a": "1"}}}));
    let outcome = redirect.request("GET", "/").send();
    assert_eq!((outcome.reply_header("x-a"), outcome.status()), (Some("1"), Some(301)));
}
