//! Vulnerabilities of other proxies, each under its CVE number, and tests that they do not exist here.

use crate::guest;
use crate::harness::{
    Config, Proxy, Upstream,
    exchange::{Everywhere, Request},
};

/// Denies requests that match this rule.
fn denying(config: Config, operation: &str) -> Everywhere {
    let rules = format!("[{{to: [{{operation: {operation}}}]}}]");
    let policies = format!("config: {{policies: [{{name: p, action: deny, rules: {rules}}}]}}");
    Everywhere::start(config.filter("access", "builtin:authz", &policies))
}

/// The status of a request, which must be the same in each version of HTTP.
#[track_caller]
fn status(proxy: &Everywhere, method: &str, target: &str, host: &str, fields: &[(&str, &str)]) -> u16 {
    let mut request = Request::get(target).with(fields);
    request.fields.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
    (request.method, request.host) = (method.to_owned(), Some(host.to_owned()));
    proxy.status(&request)
}

/// Envoy: dot segments with parameters, which servlet containers strip.
#[test]
fn cve_2026_73551_dot_segments_with_parameters() {
    let upstream = Upstream::saying("ok");
    let proxy = denying(Config::to(&upstream), "{paths: [/admin*]}");
    for target in ["/public/..;/admin", "/public/..;x=1/admin", "/.;x/admin", "/%2e%2e;/admin", "/;x/admin", "/;/admin"]
    {
        assert_eq!(status(&proxy, "GET", target, "test", &[]), 400, "{target}");
    }
    assert_eq!(proxy.entry_for("/;/admin")["details"], "hidden_segment_in_path");
    for (target, seen) in [("/a;x=1/b", "/a;x=1/b"), ("/;jsessionid=1", "/;jsessionid=1")] {
        assert_eq!(status(&proxy, "GET", target, "test", &[]), 200, "{target}");
        assert_eq!(upstream.requests().last().expect("a request").target(), seen);
    }
}

/// Envoy: a path that rules see with parameters and a router sees without them.
#[test]
fn cve_2026_73511_parameters_are_treated_alike_by_rules_and_routes() {
    for (parameters, expected, seen) in [("keep", 200, "/admin;x=1"), ("strip", 403, ""), ("reject", 400, "")] {
        let upstream = Upstream::saying("ok");
        let config = Config::to(&upstream).listener(&format!("path: {{parameters: {parameters}}}"));
        let proxy = denying(config, "{paths: [/admin]}");
        assert_eq!(status(&proxy, "GET", "/admin;x=1", "test", &[]), expected, "{parameters}");
        let targets: Vec<_> = upstream.requests().iter().map(|request| request.target().to_owned()).collect();
        // Once over each version.
        assert_eq!(targets, vec![seen; if expected == 200 { 3 } else { 0 }], "{parameters}");
    }
    let upstream = Upstream::saying("ok");
    let proxy = Everywhere::start(Config::to(&upstream).listener("path: {parameters: strip}"));
    assert_eq!(status(&proxy, "GET", "/a;b/c;d?e;f", "test", &[]), 200);
    assert_eq!(upstream.requests()[0].target(), "/a/c?e;f");
}

/// Istio and Envoy: a fragment hid the end of a path from rules.
#[test]
fn cve_2021_32779_fragments() {
    let upstream = Upstream::saying("ok");
    let proxy = denying(Config::to(&upstream), "{paths: ['*/admin']}");
    assert_eq!(status(&proxy, "GET", "/admin#x", "test", &[]), 403);
    assert!(upstream.requests().is_empty());
}

/// Envoy: the case of a host name; Authelia (CVE-2026-48794): the same in one of its labels.
#[test]
fn cve_2021_39155_the_case_of_a_host() {
    let upstream = Upstream::saying("ok");
    let proxy = denying(Config::to(&upstream), "{hosts: [admin.example, '*.secret.example:8443']}");
    for host in [
        "admin.example",
        "ADMIN.example",
        "Admin.Example:80",
        "admin.example.",
        "admin.example.:080",
        "admin.example:",
        "x.SECRET.example:8443",
        "x.secret.example:08443",
        "x.secret.example.:8443",
    ] {
        assert_eq!(status(&proxy, "GET", "/", host, &[]), 403, "{host}");
    }
    assert_eq!(status(&proxy, "GET", "/", "Other.EXAMPLE.:08080", &[]), 200);
    let request = upstream.requests().pop().expect("a request");
    assert_eq!(request.field("host"), Some("other.example:8080"), "one spelling for the upstream, too");
}

/// oauth2-proxy; Traefik (CVE-2026-39858) and Caddy (CVE-2026-52845) had the same: `_` instead of `-` in the name of a
/// trusted header.
#[test]
fn cve_2025_64484_underscores_in_names() {
    for (listener, expected, passes) in [
        ("", 200, false),
        ("header_underscores: drop", 200, false),
        ("header_underscores: reject", 400, false),
        ("header_underscores: keep", 200, true),
    ] {
        let upstream = Upstream::saying("ok");
        let proxy = Everywhere::start(Config::to(&upstream).listener(listener));
        let fields = [("X_Forwarded_User", "admin"), ("X-Other", "1")];
        assert_eq!(status(&proxy, "GET", "/", "test", &fields), expected, "{listener}");
        for request in upstream.requests() {
            assert_eq!(request.field("x_forwarded_user").is_some(), passes, "{listener}");
            assert_eq!(request.field("x-other"), Some("1"));
        }
    }
}

/// Fabio: headers listed in `Connection` were removed even if the proxy itself had added them.
#[test]
fn cve_2025_48865_connection_hides_nothing_from_filters() {
    let policy = "config:
      principal_header: x-peer
      policies:
        - {name: p, action: deny, rules: [{from: [{source: {principals: [mallory]}}]}]}
        - {name: q, action: deny, rules: [{when: [{key: 'request.headers[x-role]', values: [guest]}]}]}";
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).filter("access", "builtin:authz", policy));
    for field in [("X-Peer", "mallory"), ("X-Role", "guest")] {
        let listed = [field, ("Connection", "close, X-Peer, x-role")];
        assert_eq!(proxy.request("GET", "/", &listed, b"").status(), 403, "{field:?}");
    }
    // It reaches the filters, but not the upstream (RFC 9110 section 7.6.1).
    let listed = [("X-Peer", "alice"), ("X-Kept", "1"), ("Connection", "x-peer")];
    assert_eq!(proxy.request("GET", "/", &listed, b"").status(), 200);
    let request = upstream.only_request();
    assert_eq!((request.field("x-peer"), request.field("x-kept")), (None, Some("1")));
}

/// The reverse: a client that guesses a filter's header must not get it removed.
#[test]
fn cve_2025_48865_connection_removes_nothing_that_a_filter_writes() {
    let tier = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $set_header (i32.const 0) %"x-tier" %"free"))
            (drop (call $add_header (i32.const 0) %"x-more" %"filter"))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).module("tier", &tier, ""));
    for value in ["free", "paid", ""] {
        let fields = [("X-Tier", value), ("X-More", "filter"), ("Connection", "x-tier, x-more")];
        assert_eq!(proxy.request("GET", "/", &fields, b"").status(), 200);
        let request = upstream.requests().pop().expect("a request");
        let of = |wanted: &str| request.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).count();
        assert_eq!((request.field("x-tier"), of("x-tier")), (Some("free"), 1), "{value}");
        assert_eq!((request.field("x-more"), of("x-more")), (Some("filter"), 1), "the client's own is not forwarded");
    }
}

/// Envoy: several fields of a name, of which only some were checked.
#[test]
fn cve_2026_26308_several_fields_of_a_name() {
    let policy = "config: {policies: [{name: p, action: deny, rules: [
        {when: [{key: 'request.headers[x-role]', values: [guest]}]}, {when: [{key: 'request.headers[cookie]', values: [role=guest]}]}]}]}";
    let upstream = Upstream::saying("ok");
    let proxy = Everywhere::start(Config::to(&upstream).filter("access", "builtin:authz", policy));
    for fields in [
        &[("X-Role", "guest")][..],
        &[("X-Role", "admin"), ("X-Role", "guest")],
        &[("X-Role", "guest"), ("X-Role", "admin")],
        &[("X-Role", "admin, guest")],
        &[("Cookie", "role=guest")],
        &[("Cookie", "a=b"), ("Cookie", "role=guest")],
        &[("Cookie", "role=guest; a=b")],
    ] {
        assert_eq!(status(&proxy, "GET", "/", "test", fields), 403, "{fields:?}");
    }
    assert_eq!(status(&proxy, "GET", "/", "test", &[("X-Role", "admin"), ("Cookie", "role=admin")]), 200);
}

/// Envoy: bytes above 0x7f in a value made a regular expression fail, and with it the condition.
#[test]
fn cve_2026_73552_bytes_that_are_not_text() {
    let upstream = Upstream::saying("ok");
    let evil = "{match: {headers: [{name: x-a, regex: '.*evil.*'}]}, respond: {status: 403}}, {cluster: web}";
    let proxy = Everywhere::start(Config::to(&upstream).routes(evil));
    assert_eq!(status(&proxy, "GET", "/", "test", &[("X-A", "\u{ff}evil\u{fe}")]), 403);
}

/// Istio: paths in other spellings than the rules use; Traefik (GHSA-6jwx): the encoded path treated differently from
/// the decoded one.
#[test]
fn cve_2021_31920_spellings_of_a_path() {
    let upstream = Upstream::saying("ok");
    let proxy = denying(Config::to(&upstream), "{paths: ['/caf%C3%A9*', '/a:b', '/x%7By']}");
    for target in ["/caf%C3%A9", "/caf%c3%a9/x", "/café", "/a:b", "/a%3Ab", "/%61%3a%62", "/x%7By", "/x%7by", "/x{y"] {
        assert_eq!(status(&proxy, "GET", target, "test", &[]), 403, "{target}");
    }
    assert_eq!(proxy.get("/a%3Ac").status(), 200);
    assert_eq!(upstream.only_request().target(), "/a%3Ac", "forwarded unchanged");
}

/// Methods are case-sensitive here and in most servers, but not in all.
#[test]
fn methods_are_case_sensitive() {
    let upstream = Upstream::saying("ok");
    let proxy = denying(Config::to(&upstream), "{methods: [DELETE]}");
    for (method, expected) in [("DELETE", 403), ("delete", 400), ("Delete", 400), ("deletE", 400), ("PURGE", 200)] {
        assert_eq!(status(&proxy, method, &format!("/{method}"), "test", &[]), expected, "{method}");
    }
    assert_eq!(proxy.entry_for("/delete")["details"], "bad_method");
}

/// HTTP/1.0 does not require `Host`, but the same values are invalid as in HTTP/1.1.
#[test]
fn hosts_are_validated_in_every_version() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    for (head, expected) in [
        ("GET / HTTP/1.0\r\n", 200),
        ("GET / HTTP/1.0\r\nHost: test\r\n", 200),
        ("GET / HTTP/1.0\r\nHost: user@test\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: test\r\nHost: test\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: test:x\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: a b\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: a/b\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n", 400),
        ("GET / HTTP/1.1\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: .\r\n", 400),
    ] {
        let mut client = proxy.client();
        client.send(format!("{head}\r\n"));
        assert_eq!(client.read().status(), expected, "{head:?}");
    }
}
