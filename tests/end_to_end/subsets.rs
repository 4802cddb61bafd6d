//! Subsets: routes choose among the endpoints of one cluster by their metadata.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    grpc::{GRPC, whole},
    guest,
    harness::{Config, Proxy, Upstream, answer},
};

const NONE: &[&str] = &[];

/// The option `endpoints` for upstreams with this metadata, in flow style.
fn endpoints(upstreams: &[(&dyn std::fmt::Display, &str)]) -> String {
    let endpoint = |(address, metadata): &(&dyn std::fmt::Display, &str)| {
        format!("{{address: '{address}', metadata: {{{metadata}}}}}")
    };
    format!("endpoints: [{}]\n", upstreams.iter().map(endpoint).collect::<Vec<_>>().join(", "))
}

/// The upstreams that answer requests of this path.
fn used(proxy: &Proxy, path: &str) -> BTreeSet<String> {
    let mut client = proxy.client();
    (0..12).map(|_| client.get(path)).map(|response| format!("{}{}", response.status(), response.text())).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A route for a path with more fields, in flow style.
fn route(path: &str, fields: &str) -> String {
    format!("{{match: {{path: {{exact: {path}}}}}, {fields}}}")
}

#[test]
fn routes_select_endpoints_by_metadata() {
    let [one, other, two, plain] = ["one", "other", "two", "plain"].map(Upstream::saying);
    let endpoints = endpoints(&[
        (&one, "version: v1, stage: prod"),
        (&other, "version: v1, stage: test"),
        (&two, "version: v2, shard: 7"),
        (&plain, ""),
    ]);
    let routes = [
        route("/v1", "cluster: web, metadata_match: {version: v1}"),
        route("/test", "cluster: web, metadata_match: {stage: test, version: v1}"),
        route("/shard", "cluster: web, metadata_match: {shard: 7.0}"),
        route("/v3", "cluster: web, metadata_match: {version: v3}"),
        route("/zone", "cluster: web, metadata_match: {zone: a}"),
        route("/any", "cluster: web"),
        route(
            "/split",
            "metadata_match: {version: v1}, split: {clusters: [{cluster: web, metadata_match: {version: v2}}, {cluster: web, \
             metadata_match: {stage: prod}}]}",
        ),
    ];
    let selectors = "selectors: [{keys: [version]}, {keys: [version, stage]}, {keys: [shard]}, \
                     {keys: [zone], fallback_policy: no_fallback}]";
    let config = |more: &str| {
        let options = format!("{endpoints}subsets: {{{selectors}{more}}}");
        Config::new().routes(&routes.join(", ")).cluster("web", NONE, &options)
    };
    let mut proxy = Proxy::start(config(", fallback_policy: any_endpoint"));
    for (path, expected) in [
        ("/v1", set(&["200one", "200other"])),
        ("/test", set(&["200other"])),
        ("/shard", set(&["200two"])),
        ("/v3", set(&["200one", "200other", "200two", "200plain"])),
        ("/any", set(&["200one", "200other", "200two", "200plain"])),
        ("/zone", set(&["503Service Unavailable"])),
        ("/split", set(&["200one", "200two"])),
    ] {
        assert_eq!(used(&proxy, path), expected, "{path}");
    }
    proxy.entry_for("/zone").expect(503, "UH");
    let metrics = proxy.metrics();
    let picks = |from| metrics.sum("tollgate_cluster_subset_picks_total", &[("cluster", "web"), ("from", from)]);
    assert_eq!(["subset", "fallback", "nothing"].map(picks), [48.0, 24.0, 12.0]);
    let clusters: Value = serde_json::from_slice(&proxy.admin("GET", "/clusters", "").body).expect("JSON");
    let shown = clusters["clusters"][0]["subsets"].as_array().expect("subsets").clone();
    let subset = |metadata| json!({"metadata": metadata, "default": false, "healthy": 1, "unhealthy": 0});
    assert!(shown.contains(&subset(json!({"stage": "test", "version": "v1"}))), "{shown:?}");
    assert!(shown.contains(&subset(json!({"shard": 7}))) && shown.len() == 5, "{shown:?}");

    proxy.change_config(config(", fallback_policy: default_subset, default_subset: {stage: test}"));
    assert_eq!((used(&proxy, "/any"), used(&proxy, "/v3")), (set(&["200other"]), set(&["200other"])));
    proxy.change_config(config(""));
    assert_eq!(used(&proxy, "/any"), set(&["503Service Unavailable"]));
    assert_eq!(used(&proxy, "/v1"), set(&["200one", "200other"]));
}

/// A request stays in its subset when it is retried, hedged, or finds an endpoint that is ejected.
#[test]
fn further_attempts_stay_in_the_subset() {
    let selectors = "subsets: {selectors: [{keys: [version]}], fallback_policy: any_endpoint}";
    let (good, other) = (Upstream::saying("good"), Upstream::saying("other"));
    let (bad, silent) = (Upstream::replying(|_| answer(500, &[], "bad")), Upstream::silent());
    for (failing, option) in [
        (Upstream::refusing(), ""),
        (bad.address, "retry: {on: [5xx], backoff: 0s, attempts: 5}\nretry_budget: {min_concurrent: 9}"),
        (silent.address, "hedging: {delay: 10ms}\nretry_budget: {min_concurrent: 9}"),
        (bad.address, "outlier_detection: {consecutive_5xx: 1}\nretry: {on: [5xx], backoff: 0s}"),
    ] {
        let endpoints = endpoints(&[(&failing, "version: v1"), (&good, "version: v1"), (&other, "version: v2")]);
        let config = Config::new().routes("{cluster: web, metadata_match: {version: v1}}");
        let proxy = Proxy::start(config.cluster("web", NONE, &format!("{endpoints}{selectors}\n{option}")));
        assert_eq!(used(&proxy, "/"), set(&["200good"]), "{option}");
    }
    // A subset whose endpoints all fail is not empty.
    let refusing = Upstream::refusing();
    let endpoints = endpoints(&[(&refusing, "version: v1"), (&other, "version: v2")]);
    let config = Config::new().routes("{cluster: web, metadata_match: {version: v1}}");
    let proxy = Proxy::start(config.cluster("web", NONE, &format!("{endpoints}{selectors}")));
    assert_eq!(used(&proxy, "/"), set(&["503Service Unavailable"]));
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn grpc_calls_and_mirrored_copies_have_subsets_like_other_requests() {
    let [one, two] = [0, 0].map(|_| Upstream::replying(|_| whole(0)));
    let endpoints = endpoints(&[(&one, "version: v1"), (&two, "version: v2")]);
    let subsets =
        "subsets: {selectors: [{keys: [version]}], fallback_policy: default_subset, default_subset: {version: v1}}";
    let web = Upstream::saying("");
    let routes = "{match: {path: {prefix: /a.B}}, cluster: calls, metadata_match: {version: v2}}, \
                  {cluster: web, mirror: {cluster: calls}}";
    let config = Config::new().routes(routes).cluster("web", &[&web], "");
    let proxy = Proxy::start(config.cluster("calls", NONE, &format!("{endpoints}{subsets}")));
    let mut client = proxy.client();
    for _ in 0..5 {
        client.request("POST", "/a.B/C", &GRPC, b"\0\0\0\0\0");
    }
    assert_eq!((one.requests().len(), two.requests().len()), (0, 5));
    // A copy has no properties: it goes to the fallback.
    for _ in 0..5 {
        client.get("/copied");
    }
    crate::harness::wait_until("the copies", || one.requests().len() == 5);
    assert_eq!(two.requests().len(), 5);
}

/// A filter's own calls have no properties either.
#[test]
fn calls_of_filters_go_to_the_fallback() {
    let [one, two] = ["one", "two"].map(Upstream::saying);
    let endpoints = endpoints(&[(&one, "version: v1"), (&two, "version: v2")]);
    let pairs = guest::pairs(&[(":method", "GET"), (":path", "/"), (":authority", "calls")]);
    let nothing = "(i32.const 0) (i32.const 0)";
    // Responds when the call ends.
    let calling = guest::filter(&format!(
        r#"(global $context (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $context (local.get 0))
            (drop (call $call %"calls" %"{pairs}" {nothing} {nothing} (i32.const 20000) (i32.const 24)))
            (i32.const 1))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (drop (call $become (global.get $context)))
            (drop (call $reply (i32.const 204) {nothing} {nothing} {nothing} (i32.const -1))))"#
    ));
    let subsets =
        "subsets: {selectors: [{keys: [version]}], fallback_policy: default_subset, default_subset: {version: v2}}";
    let config = Config::to(Upstream::refusing()).cluster("calls", NONE, &format!("{endpoints}{subsets}"));
    let proxy = Proxy::start(config.module("calling", &calling, ""));
    for _ in 0..4 {
        assert_eq!(proxy.get("/").status(), 204);
    }
    assert_eq!((one.requests().len(), two.requests().len()), (0, 4));
}

/// A TCP filter's route selects a subset, and connections without one get the fallback.
#[test]
fn tcp_connections_have_the_subset_of_their_route() {
    let [one, two] = ["one", "two"].map(|name| Upstream::scripted(move |mut connection| connection.send(name)));
    let document = r#"{"clusters":[{"cluster":"web","weight":1,"metadata_match":{"version":"v2"}}]}"#;
    let selecting = guest::filter(&format!(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $route_define (i32.const 2048) (i32.const {})))
            (i32.const 1))
        (data (i32.const 2048) "{}")
        (func (export "proxy_on_new_connection") (param i32) (result i32)
            (drop (call $route_select (i32.const 0) (i32.const 0) (i64.const 0) (i64.const 0)))
            %continue)"#,
        document.len(),
        document.replace('"', "\\22"),
    ));
    let endpoints = endpoints(&[(&one, "version: v1"), (&two, "version: v2")]);
    let subsets =
        "subsets: {selectors: [{keys: [version]}], fallback_policy: default_subset, default_subset: {version: v1}}";
    let config = || {
        let config = Config::new().listener("protocol: tcp\ncluster: web");
        config.cluster("web", NONE, &format!("{endpoints}{subsets}"))
    };
    for (config, expected) in [(config().module("select", &selecting, ""), "two"), (config(), "one")] {
        let proxy = Proxy::start(config);
        for _ in 0..5 {
            let said = proxy.client().wire.read_exact(3).expect("a word");
            assert_eq!(String::from_utf8_lossy(&said), expected);
        }
    }
}
