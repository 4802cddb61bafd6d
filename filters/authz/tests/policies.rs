//! What policies decide, and how their parts combine.

use authz::Authz;
use serde_json::{Value, json};
use tollgate_sdk::testing::{RequestBuilder, TestHost};

const NONE: &str = "rbac_access_denied_matched_policy[none]";

fn host(policies: Value) -> TestHost<Authz> {
    TestHost::new(json!({"policies": policies, "principal_header": "X-Peer"})).unwrap()
}

/// Whether one `allow` policy with this rule allows a request.
fn allows(rule: &Value, request: impl Fn(RequestBuilder<'_, Authz>) -> RequestBuilder<'_, Authz>) -> bool {
    let host = host(json!([{"name": "p", "rules": [rule]}]));
    request(host.request("GET", "/a/b?q=/c")).send().continued()
}

/// Whether one `deny` policy with this rule denies a request.
fn denies(rule: &Value, request: impl Fn(RequestBuilder<'_, Authz>) -> RequestBuilder<'_, Authz>) -> bool {
    let host = host(json!([{"name": "p", "action": "deny", "rules": [rule]}]));
    !request(host.request("GET", "/a/b?q=/c")).send().continued()
}

#[test]
fn deny_comes_first_and_allow_excludes_the_rest() {
    let get = json!({"to": [{"operation": {"methods": ["GET"]}}]});
    let admin = json!({"to": [{"operation": {"paths": ["/admin*"]}}]});
    let table = [
        (json!([]), "/", None),
        (json!([{"name": "a"}]), "/", Some(NONE)),
        (json!([{"name": "d", "action": "deny"}]), "/", None),
        (json!([{"name": "a", "rules": [{}]}]), "/", None),
        (json!([{"name": "d", "action": "deny", "rules": [{}]}]), "/", Some("rbac_access_denied_matched_policy[d]")),
        (json!([{"name": "a", "rules": [get]}]), "/", None),
        (json!([{"name": "a", "rules": [admin]}]), "/", Some(NONE)),
        (json!([{"name": "a", "rules": [admin]}, {"name": "b", "rules": [admin, get]}]), "/", None),
        (
            json!([{"name": "a", "rules": [get]}, {"name": "d", "action": "deny", "rules": [admin]}]),
            "/administer",
            Some("rbac_access_denied_matched_policy[d]"),
        ),
        (json!([{"name": "a", "rules": [get]}, {"name": "d", "action": "deny", "rules": [admin]}]), "/", None),
    ];
    for (policies, path, details) in table {
        let host = host(policies.clone());
        let outcome = host.request("GET", path).send();
        assert_eq!(outcome.details(), details, "{policies} {path}");
        assert_eq!(host.metric("authz.allowed_total"), i64::from(details.is_none()));
        assert_eq!(host.metric("authz.denied_total"), i64::from(details.is_some()));
    }
}

#[test]
fn denied_client_does_not_learn_the_reason() {
    let host = host(json!([{"name": "secret", "action": "deny", "rules": [{}]}]));
    let outcome = host.request("GET", "/").send();
    assert_eq!(outcome.status(), Some(403));
    assert_eq!(outcome.reply_body(), Some(b"access denied".as_slice()));
    assert_eq!(outcome.reply_header("content-type"), Some("text/plain"));
    assert_eq!(outcome.flags(), ["UAEX"]);
}

#[test]
fn list_items_are_alternatives_and_fields_are_all_required() {
    let rule = json!({
        "from": [{"source": {"ip_blocks": ["10.0.0.0/8"]}}, {"source": {"ip_blocks": ["192.0.2.1"], "principals": ["me"]}}],
        "to": [{"operation": {"methods": ["GET"], "paths": ["/x", "/a/b"]}}, {"operation": {"hosts": ["other.org"]}}],
        "when": [{"key": "request.headers[X-A]", "values": ["1", "2"]}, {"key": "request.headers[x-b]", "not_values": ["1"]}],
    });
    assert!(allows(&rule, |r| r.source("10.1.1.1").header("x-a", "1")));
    assert!(allows(&rule, |r| r.header("x-peer", "me").header("x-a", "2").header("x-b", "2")));
    assert!(allows(&rule, |r| r.source("10.1.1.1").host("OTHER.org:99").header("x-a", "1")));
    assert!(!allows(&rule, |r| r.header("x-a", "1")), "no source");
    assert!(!allows(&rule, |r| r.source("10.1.1.1")), "excluded by the first condition");
    assert!(!allows(&rule, |r| r.source("10.1.1.1").header("x-a", "1").header("x-b", "1")), "the second");
    let host = host(json!([{"name": "p", "rules": [rule]}]));
    assert!(!host.request("PUT", "/x").source("10.1.1.1").header("x-a", "1").send().continued(), "no operation");
}

#[test]
fn negated_lists() {
    let table = [
        (json!({"from": [{"source": {"not_ip_blocks": ["10.0.0.0/8"]}}]}), "10.0.0.1", false),
        (json!({"from": [{"source": {"not_ip_blocks": ["10.0.0.0/8"]}}]}), "11.0.0.1", true),
        (
            json!({"from": [{"source": {"ip_blocks": ["10.0.0.0/8"], "not_ip_blocks": ["10.1.0.0/16"]}}]}),
            "10.1.0.1",
            false,
        ),
        (
            json!({"from": [{"source": {"ip_blocks": ["10.0.0.0/8"], "not_ip_blocks": ["10.1.0.0/16"]}}]}),
            "10.2.0.1",
            true,
        ),
        (json!({"when": [{"key": "source.ip", "not_values": ["10.0.0.1"]}]}), "10.0.0.1", false),
        (json!({"when": [{"key": "source.ip", "values": ["10.0.0.1"]}]}), "::ffff:10.0.0.1", true),
        (json!({"to": [{"operation": {"not_paths": ["/a/*"]}}]}), "10.0.0.1", false),
        (json!({"to": [{"operation": {"not_paths": ["/b"]}}]}), "10.0.0.1", true),
        (json!({"to": [{"operation": {"not_methods": ["GET"]}}]}), "10.0.0.1", false),
        (json!({"to": [{"operation": {"not_hosts": ["*.com"]}}]}), "10.0.0.1", false),
        (json!({"to": [{"operation": {"not_hosts": ["*.org"]}}]}), "10.0.0.1", true),
    ];
    for (rule, source, expected) in table {
        assert_eq!(allows(&rule, |r| r.source(source)), expected, "{rule} {source}");
    }
}

#[test]
fn peer_and_client_addresses_are_distinct() {
    let peer = json!({"from": [{"source": {"ip_blocks": ["2001:db8::/32"]}}]});
    let remote = json!({"from": [{"source": {"remote_ip_blocks": ["203.0.113.0/24"], "not_remote_ip_blocks": ["203.0.113.9"]}}]});
    let key = json!({"when": [{"key": "remote.ip", "values": ["203.0.113.0/24"], "not_values": ["203.0.113.9"]}]});
    for (client, expected) in [("203.0.113.5", true), ("203.0.113.9", false), ("192.0.2.1", false)] {
        assert!(allows(&peer, |r| r.source("2001:db8::1").client(client)));
        assert!(!allows(&peer, |r| r.source("198.51.100.1").client("2001:db8::1")));
        assert_eq!(allows(&remote, |r| r.source("2001:db8::1").client(client)), expected, "{client}");
        assert_eq!(allows(&key, |r| r.source("2001:db8::1").client(client)), expected, "{client}");
    }
}

#[test]
fn paths_are_compared_without_the_query() {
    for (path, expected) in [("/a/b", true), ("/a*", true), ("*/b", true), ("*", true), ("*/c", false), ("/a", false)] {
        let rule = json!({"to": [{"operation": {"paths": [path]}}]});
        assert_eq!(allows(&rule, |r| r), expected, "{path}");
    }
}

#[test]
fn principals() {
    let cart = "spiffe://cluster.local/ns/shop/sa/cart";
    let table = [
        (json!(["cluster.local/ns/shop/sa/cart"]), Some(cart), true),
        (json!([cart]), Some(cart), true),
        (json!([cart]), Some("cluster.local/ns/shop/sa/cart"), true),
        (json!(["spiffe://cluster.local/ns/shop/*"]), Some(cart), true),
        (json!(["*/sa/cart"]), Some(cart), true),
        (json!(["*"]), Some(cart), true),
        (json!(["*/sa/till"]), Some(cart), false),
        (json!(["*"]), None, false),
        (json!(["*"]), Some(""), false),
    ];
    for (list, peer, expected) in table {
        let with = |r: RequestBuilder<'_, Authz>| -> bool {
            let r = if let Some(peer) = peer { r.header("x-peer", peer) } else { r };
            r.send().continued()
        };
        for (rule, expected) in [
            (json!({"from": [{"source": {"principals": list}}]}), expected),
            (json!({"when": [{"key": "source.principal", "values": list}]}), expected),
            (json!({"from": [{"source": {"not_principals": list}}]}), !expected),
            (json!({"when": [{"key": "source.principal", "not_values": list}]}), !expected),
        ] {
            let host = host(json!([{"name": "p", "rules": [rule]}]));
            assert_eq!(with(host.request("GET", "/")), expected, "{rule} {peer:?}");
        }
    }
    let rule = json!({"from": [{"source": {"principals": ["*"]}}]});
    assert!(!allows(&rule, |r| r.header("x-peer", "a").header("x-peer", "b")), "two identities count as none");
}

#[test]
fn second_header_field_does_not_bypass_a_policy() {
    let values = json!({"when": [{"key": "request.headers[x-role]", "values": ["admin"]}]});
    let not_values = json!({"when": [{"key": "request.headers[x-role]", "not_values": ["admin"]}]});
    let table: [(&[&str], bool, bool, bool, bool); 5] = [
        // The fields; whether `values` allows and denies; whether `not_values` allows and denies.
        (&[], false, false, true, true),
        (&["admin"], true, true, false, false),
        (&["guest"], false, false, true, true),
        (&["guest", "admin"], false, true, false, true),
        (&["guest,admin "], false, true, false, true),
    ];
    for (fields, some_allows, some_denies, none_allows, none_denies) in table {
        let with = |rule: &Value| {
            let allowed = allows(rule, |r| fields.iter().fold(r, |r, f| r.header("x-role", f)));
            (allowed, denies(rule, |r| fields.iter().fold(r, |r, f| r.header("x-role", f))))
        };
        let ((a, b), (c, d)) = (with(&values), with(&not_values));
        assert_eq!((a, b, c, d), (some_allows, some_denies, none_allows, none_denies), "{fields:?}");
    }
    let suffix = json!({"when": [{"key": "request.headers[x-role]", "values": ["ad*", "*"]}]});
    assert!(allows(&suffix, |r| r.header("x-role", "x")));
    assert!(!allows(&suffix, |r| r.header("x-role", "")));
}

#[test]
fn dry_run_denies_nothing() {
    let deny = json!({"name": "d", "action": "deny", "rules": [{}]});
    let dry = |mut policy: Value| {
        policy["dry_run"] = true.into();
        policy
    };
    let (open, shut) = (json!({"name": "open", "rules": [{}]}), json!({"name": "shut"}));
    let d = "rbac_access_denied_matched_policy[d]";
    let table = [
        // The policies, `dry_run` for all of them; which denies, which would deny.
        (json!([deny]), true, None, Some(d)),
        (json!([shut]), true, None, Some(NONE)),
        (json!([open]), true, None, None),
        (json!([dry(deny.clone())]), false, None, Some(d)),
        (
            json!([dry(deny.clone()), {"name": "e", "action": "deny", "rules": [{}]}]),
            false,
            Some("rbac_access_denied_matched_policy[e]"),
            None,
        ),
        (json!([dry(shut.clone())]), false, None, Some(NONE)),
        (json!([dry(shut.clone()), open]), false, None, None),
        (json!([dry(open.clone()), shut]), false, Some(NONE), None),
        (json!([dry(deny.clone()), shut]), false, Some(NONE), None),
        (json!([dry(deny.clone()), open]), false, None, Some(d)),
    ];
    for (policies, dry_run, denied, would) in table {
        let host = TestHost::<Authz>::new(json!({"policies": policies, "dry_run": dry_run})).unwrap();
        let outcome = host.request("GET", "/a\n?b").send();
        assert_eq!(outcome.details(), denied, "{policies}");
        assert_eq!(outcome.log_field("authz_dry_run"), would, "{policies}");
        assert_eq!(host.metric("authz.dry_run_denied_total"), i64::from(would.is_some()));
        assert_eq!(host.metric("authz.allowed_total"), i64::from(denied.is_none()));
        let line = would.map(|details| format!("authz would deny GET /a\\n: {details}"));
        assert_eq!(host.logs(), line.into_iter().collect::<Vec<_>>());
        assert_eq!(outcome.flags().is_empty(), denied.is_none());
    }
}
