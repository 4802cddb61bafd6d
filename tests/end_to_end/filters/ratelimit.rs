//! Rate limits: exact across workers, reported to clients, and without effect in a dry run.
//!
//! Buckets are refilled so slowly that no test notices.

use std::thread;

use crate::harness::{Config, Proxy, Upstream};

fn limited(upstream: &Upstream, listener: &str, config: &str) -> Proxy {
    let config = format!("config: {config}");
    Proxy::start(Config::to(upstream).listener(listener).filter("limits", "builtin:ratelimit", &config))
}

#[test]
fn requests_over_the_limit_get_429() {
    let upstream = Upstream::saying("ok");
    let proxy = limited(&upstream, "", "{limits: [{name: few, requests: 24, per: 24h, burst: 2}]}");
    let mut client = proxy.client();
    for left in [1, 0] {
        let response = client.get("/in");
        assert_eq!(response.status(), 200);
        assert_eq!(response.field("ratelimit-policy"), Some("\"few\";q=24;w=86400"));
        let state = response.field("ratelimit").expect("a RateLimit field");
        assert!(state.starts_with(&format!("\"few\";r={left};t=")), "{state}");
        assert_eq!(response.field("retry-after"), None);
    }
    let response = client.get("/over");
    assert_eq!((response.status(), response.text()), (429, "too many requests"));
    let wait: u32 = response.field("retry-after").and_then(|v| v.parse().ok()).expect("seconds");
    assert!((3000..=3600).contains(&wait), "one an hour: {wait}");
    assert_eq!(response.field("ratelimit"), Some(format!("\"few\";r=0;t={wait}").as_str()));
    proxy.entry_for("/over").flagged("RL,LR").because("rate_limited[few]");
    assert_eq!(upstream.requests().len(), 2);
    let metrics = proxy.metrics();
    let counted = |name: &str| metrics.sum(&format!("wasmcustom_ratelimit_{name}_total"), &[]);
    assert_eq!((counted("allowed"), counted("limited")), (2.0, 1.0));
}

/// All workers share the bucket, and no interleaving lets one request more or fewer pass.
#[test]
fn the_limit_is_exact_under_concurrency() {
    let upstream = Upstream::saying("ok");
    let proxy = limited(&upstream, "", "{limits: [{name: fifty, requests: 1, per: 24h, burst: 50}]}");
    let passed: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = proxy.client();
                    let statuses = (0..10).map(|_| client.get("/").status());
                    statuses.inspect(|status| assert!([200, 429].contains(status))).filter(|s| *s == 200).count()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client's count")).sum()
    });
    assert_eq!((passed, upstream.requests().len()), (50, 50));
}

#[test]
fn each_key_has_its_own_bucket() {
    let upstream = Upstream::saying("ok");
    let config = "{limits: [{name: user, key: [{header: x-user}], requests: 1, per: 24h}]}";
    let proxy = limited(&upstream, "", config);
    let ask = |user: &str| proxy.request("GET", "/", &[("X-User", user)], b"").status();
    assert_eq!([ask("ann"), ask("ben"), ask("ann"), ask("ben"), ask("cid")], [200, 200, 429, 429, 200]);
    assert_eq!(
        [proxy.get("/").status(), proxy.get("/").status()],
        [200, 200],
        "requests without the key are not limited"
    );
}

/// The client is identified by the address that the listener trusts, not by the client's own claim.
#[test]
fn a_client_cannot_change_its_identity() {
    let upstream = Upstream::saying("ok");
    let config = "{limits: [{name: client, key: [{source: client}], requests: 1, per: 24h}]}";
    let ask = |proxy: &Proxy, address: &str| proxy.request("GET", "/", &[("X-Forwarded-For", address)], b"").status();
    let proxy = limited(&upstream, "trusted_hops: 0", config);
    assert_eq!([ask(&proxy, "192.0.2.1"), ask(&proxy, "192.0.2.2")], [200, 429]);
    let proxy = limited(&upstream, "trusted_hops: 1", config);
    assert_eq!([ask(&proxy, "192.0.2.1"), ask(&proxy, "192.0.2.2"), ask(&proxy, "192.0.2.1")], [200, 200, 429]);
    assert_eq!([ask(&proxy, "unknown"), ask(&proxy, "_hidden")], [200, 429], "all unknown addresses are one client");
}

/// A limit that rejects a request takes nothing from the other limits.
#[test]
fn a_rejected_request_returns_its_tokens() {
    let upstream = Upstream::saying("ok");
    let config = "{limits: [
        {name: wide, requests: 1, per: 24h, burst: 3},
        {name: narrow, match: {path: {prefix: /narrow}}, requests: 1, per: 24h}]}";
    let proxy = limited(&upstream, "", config);
    let statuses = ["/narrow", "/narrow", "/narrow", "/", "/", "/"].map(|path| proxy.get(path).status());
    assert_eq!(statuses, [200, 429, 429, 200, 200, 429]);
}

#[test]
fn a_dry_run_limits_nothing_and_logs() {
    let upstream = Upstream::saying("ok");
    let proxy = limited(&upstream, "", "{dry_run: true, limits: [{name: one, requests: 1, per: 24h}]}");
    for path in ["/first", "/second", "/third"] {
        let response = proxy.get(path);
        assert_eq!((response.status(), response.field("ratelimit")), (200, None));
    }
    assert!(proxy.entry_for("/first")["fields"].is_null());
    let entry = proxy.entry_for("/third");
    assert_eq!((&entry["fields"]["ratelimit_dry_run"], &entry["flags"]), (&"rate_limited[one]".into(), &().into()));
    assert_eq!(proxy.metrics().sum("wasmcustom_ratelimit_dry_run_limited_total", &[]), 2.0);
}

/// A reload must not reset the limits.
#[test]
fn a_reload_keeps_what_was_used() {
    let upstream = Upstream::saying("ok");
    let config = |options: &str| {
        let limits = "config: {limits: [{name: few, requests: 1, per: 24h, burst: 2}]}";
        Config::to(&upstream).listener(options).filter("limits", "builtin:ratelimit", limits)
    };
    let mut proxy = Proxy::start(config("via: one"));
    assert_eq!(proxy.get("/").status(), 200);
    proxy.change_config(config("via: two"));
    assert_eq!([proxy.get("/").status(), proxy.get("/").status()], [200, 429]);
    assert_eq!(upstream.requests().pop().expect("a request").field("via"), Some("1.1 two"));
}
