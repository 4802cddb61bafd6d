//! The standard filters in the real proxy: what clients, upstreams, the access log and the metrics see of them. Each
//! filter's own tests cover its options; these cover the whole path.

mod authz;
mod fault;
mod ratelimit;
mod router;

use crate::harness::{Config, Proxy, Upstream};

/// In the order of the chain: a denied client does not use up a rate limit, and a rate-limited client reaches no route.
#[test]
fn filters_decide_in_the_order_of_the_chain() {
    let upstream = Upstream::saying("ok");
    let config = Config::new()
        .filter(
            "access",
            "builtin:authz",
            "config: {policies: [{name: none, action: deny, rules: [{to: [{operation: {paths: [/secret]}}]}]}]}",
        )
        .filter("limits", "builtin:ratelimit", "config: {limits: [{name: few, requests: 1, per: 24h, burst: 2}]}")
        .routes("{cluster: web}")
        .cluster("web", &[&upstream], "");
    let proxy = Proxy::start(config);
    let statuses: Vec<_> = ["/secret", "/", "/secret", "/", "/", "/secret"].map(|path| proxy.get(path).status()).into();
    assert_eq!(statuses, [403, 200, 403, 200, 429, 403]);
    assert_eq!(upstream.requests().len(), 2);
    for name in ["access", "limits", "routes"] {
        assert_eq!(proxy.filter(name)["state"], "ready");
    }
}

/// A filter's response header is added whatever produces the response.
#[test]
fn a_filters_response_header_is_added_to_any_response() {
    let config = Config::new()
        .filter("limits", "builtin:ratelimit", "config: {limits: [{name: few, requests: 9, per: 24h}]}")
        .routes(
            "{match: {path: {exact: /teapot}}, respond: {status: 418}}, {match: {path: {exact: /down}}, cluster: down}",
        )
        .cluster("down", &[Upstream::refusing()], "");
    let proxy = Proxy::start(config);
    for (path, status, left) in [("/teapot", 418, 8), ("/down", 503, 7), ("/nowhere", 404, 6)] {
        let response = proxy.get(path);
        assert_eq!(response.status(), status);
        let state = response.field("ratelimit").expect("a RateLimit field");
        assert!(state.starts_with(&format!("\"few\";r={left};")), "{state}");
    }
}
