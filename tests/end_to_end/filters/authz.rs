//! Authorization: a denied client gets no reason; the log has it.

use crate::harness::{Config, Proxy, Upstream};

fn guarded(upstream: &Upstream, listener: &str, config: &str) -> Proxy {
    Proxy::start(Config::to(upstream).listener(listener).filter(
        "access",
        "builtin:authz",
        &format!("config: {config}"),
    ))
}

const DENY_ADMIN: &str = "[{name: keep-out, action: deny, rules: [{to: [{operation: {paths: [/admin*]}}]}]}]";

#[test]
fn the_reason_is_in_the_log_and_not_in_the_response() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "", &format!("{{policies: {DENY_ADMIN}}}"));
    let response = proxy.get("/admin/x");
    assert_eq!((response.status(), response.text()), (403, "access denied"));
    let told = response.fields.iter().any(|(_, value)| value.contains("keep-out"));
    assert!(!told, "{response:?}");
    let entry = proxy.entry_for("/admin/x");
    assert_eq!(entry["details"], "rbac_access_denied_matched_policy[keep-out]");
    assert_eq!((&entry["flags"], &entry["attempts"]), (&"UAEX,LR".into(), &0.into()));
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(upstream.requests().len(), 1);
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("wasmcustom_authz_denied_total", &[]), 1.0);
    assert_eq!(metrics.sum("wasmcustom_authz_allowed_total", &[]), 1.0);
}

#[test]
fn a_dry_run_denies_nothing_and_logs() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "", &format!("{{dry_run: true, policies: {DENY_ADMIN}}}"));
    assert_eq!(proxy.get("/admin").status(), 200);
    let entry = proxy.entry_for("/admin");
    assert_eq!(entry["fields"]["authz_dry_run"], "rbac_access_denied_matched_policy[keep-out]");
    assert!(entry["flags"].is_null());
    assert_eq!(proxy.metrics().sum("wasmcustom_authz_dry_run_denied_total", &[]), 1.0);
    proxy.wait_for_output("authz would deny GET /admin");
}

#[test]
fn with_an_allow_policy_all_others_are_denied() {
    let upstream = Upstream::saying("ok");
    let policies = "{policies: [{name: readers, rules: [
        {to: [{operation: {methods: [GET], paths: [/public*]}}]},
        {when: [{key: 'request.headers[x-token]', values: [open-sesame]}]}]}]}";
    let proxy = guarded(&upstream, "", policies);
    let mut client = proxy.client();
    for (method, target, token, status) in [
        ("GET", "/public/a", "", 200),
        ("POST", "/public/a", "", 403),
        ("GET", "/private", "", 403),
        ("POST", "/private", "open-sesame", 200),
        ("GET", "/private", "open", 403),
    ] {
        let fields = [("X-Token", token)];
        let response = client.request(method, target, &fields[..usize::from(!token.is_empty())], b"");
        assert_eq!(response.status(), status, "{method} {target} {token}");
    }
    assert_eq!(proxy.entry_for("/private")["details"], "rbac_access_denied_matched_policy[none]");
}

/// The connection's address, and the client's address as far as proxies in front are trusted.
#[test]
fn addresses_respect_trusted_hops() {
    let upstream = Upstream::saying("ok");
    let remote = "{policies: [{name: inside, rules: [{from: [{source: {remote_ip_blocks: [192.0.2.0/24]}}]}]}]}";
    let said = [("X-Forwarded-For", "192.0.2.7")];
    let proxy = guarded(&upstream, "trusted_hops: 0", remote);
    assert_eq!(proxy.request("GET", "/", &said, b"").status(), 403, "an untrusted claim");
    let proxy = guarded(&upstream, "trusted_hops: 1", remote);
    assert_eq!(proxy.request("GET", "/", &said, b"").status(), 200);
    let farther = [("X-Forwarded-For", "192.0.2.7, 198.51.100.1")];
    assert_eq!(proxy.request("GET", "/", &farther, b"").status(), 403, "only one hop is trusted");

    let peer = "{policies: [{name: here, rules: [{from: [{source: {ip_blocks: [127.0.0.1]}}]}]}]}";
    let proxy = guarded(&upstream, "trusted_hops: 1", peer);
    assert_eq!(proxy.request("GET", "/", &said, b"").status(), 200);
}

#[test]
fn hosts_are_normalized_before_they_are_compared() {
    let upstream = Upstream::saying("ok");
    let policies = "{policies: [{name: internal, action: deny, rules: [
        {to: [{operation: {hosts: [internal.example]}}]}]}]}";
    let proxy = guarded(&upstream, "", policies);
    let mut client = proxy.client();
    for host in ["internal.example", "INTERNAL.example", "internal.example:8080", "internal.example."] {
        assert_eq!(client.request("GET", "/", &[("Host", host)], b"").status(), 403, "{host}");
    }
    // An empty port means the default port.
    assert_eq!(proxy.request("GET", "/", &[("Host", "internal.example:")], b"").status(), 403);
    assert_eq!(client.request("GET", "/", &[("Host", "example")], b"").status(), 200);
    assert_eq!(client.request("GET", "http://internal.example/", &[("Host", "example")], b"").status(), 403);
}
