//! One spelling for each path, before any filter sees it: a rule about `/admin` cannot be walked around.

use crate::harness::{Config, Proxy, Upstream};

const DENY_ADMIN: &str = "config:
  policies:
    - name: admin
      action: deny
      rules: [{to: [{operation: {paths: [/admin*]}}]}]";

fn guarded(upstream: &Upstream, path_rules: &str) -> Proxy {
    let config = Config::to(upstream).filter("access", "builtin:authz", DENY_ADMIN);
    Proxy::start(config.listener(&format!("path: {path_rules}")))
}

/// The status, and the path that the upstream saw.
fn ask(proxy: &Proxy, upstream: &Upstream, target: &str) -> (u16, Option<String>) {
    let before = upstream.requests().len();
    let mut client = proxy.client();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
    let status = client.read().status();
    (status, upstream.requests().get(before).map(|request| request.target().to_owned()))
}

#[test]
fn a_rule_about_a_path_cannot_be_walked_around() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "{}");
    for target in [
        "/admin",
        "/admin/x",
        "/admin?query",
        "/%61dmin",
        "/%61%64%6D%69%6e",
        "//admin",
        "///admin//",
        "/./admin",
        "/././/admin",
        "/public/../admin",
        "/public/./../admin/",
        "/public/..//admin",
        "/public/%2e%2e/admin",
        "/public/%2E./%61dmin",
        "/public/.%2e/admin",
        "/../admin",
        "/../../../admin",
        "/public/x/../../admin",
        "/admin/.",
        "/admin/../admin",
        "/admin;x=1",
        "http://test/admin",
        "http://test//%61dmin",
        "http://other/public/../admin",
    ] {
        assert_eq!(ask(&proxy, &upstream, target), (403, None), "{target}");
    }
    // Not this path, and not let through as if it were.
    for (target, seen) in [
        ("/", "/"),
        ("/public", "/public"),
        ("/public/admin", "/public/admin"),
        ("/admin/../public", "/public"),
        ("/admin/%2e%2e/public/", "/public/"),
        ("/%2561dmin", "/%2561dmin"),
        ("/.admin", "/.admin"),
        ("/...", "/..."),
        ("http://test", "/"),
    ] {
        assert_eq!(ask(&proxy, &upstream, target), (200, Some(seen.to_owned())), "{target}");
    }
}

#[test]
fn the_query_stays_as_it_is() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "{}");
    for (target, seen) in [
        ("/a/../b?x=/../%61&y=%2F//", "/b?x=/../%61&y=%2F//"),
        ("/%7Eu?%zz", "/~u?%zz"),
        ("/a?", "/a?"),
        ("/a??b", "/a??b"),
    ] {
        assert_eq!(ask(&proxy, &upstream, target), (200, Some(seen.to_owned())), "{target}");
    }
}

/// A fragment has no place in a target (RFC 9112, section 3.2). It is cut off before anybody looks, so it hides nothing.
#[test]
fn a_fragment_hides_nothing() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "{}");
    for (target, status, seen) in
        [("/public#/../admin", 200, Some("/public")), ("/public/..#/admin", 200, Some("/")), ("/admin#x", 403, None)]
    {
        assert_eq!(ask(&proxy, &upstream, target), (status, seen.map(str::to_owned)), "{target}");
    }
}

#[test]
fn escaped_slashes_are_treated_as_configured() {
    // Target; status with `keep`, `reject`, `decode`; what the upstream sees with `keep`, `decode`.
    let cases = [
        ("/public/..%2Fadmin", [200, 400, 403], [Some("/public/..%2Fadmin"), None]),
        ("/public%2f..%2fadmin", [200, 400, 403], [Some("/public%2F..%2Fadmin"), None]),
        ("/%2Fadmin", [200, 400, 403], [Some("/%2Fadmin"), None]),
        ("/public%5C..%5Cadmin", [200, 400, 403], [Some("/public%5C..%5Cadmin"), None]),
        ("/public\\..\\admin", [200, 400, 403], [Some("/public%5C..%5Cadmin"), None]),
        ("/a%2Fb", [200, 400, 200], [Some("/a%2Fb"), Some("/a/b")]),
        ("/a%252Fb", [200, 200, 200], [Some("/a%252Fb"), Some("/a%252Fb")]),
        ("/admin%2Fx", [403, 400, 403], [None, None]),
        ("/a?b%2Fc", [200, 200, 200], [Some("/a?b%2Fc"), Some("/a?b%2Fc")]),
    ];
    let upstream = Upstream::saying("ok");
    for (index, mode) in ["keep", "reject", "decode"].into_iter().enumerate() {
        let proxy = guarded(&upstream, &format!("{{escaped_slashes: {mode}}}"));
        for (target, statuses, [kept, decoded]) in cases {
            let (status, seen) = ask(&proxy, &upstream, target);
            assert_eq!(status, statuses[index], "{target} with {mode}");
            match mode {
                "keep" => assert_eq!(seen.as_deref(), kept, "{target}"),
                "decode" => assert_eq!(seen.as_deref(), decoded, "{target}"),
                _ => assert_eq!(seen.is_some(), status == 200, "{target}"),
            }
        }
    }
}

#[test]
fn slashes_are_merged_unless_configured_otherwise() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "{merge_slashes: false}");
    assert_eq!(ask(&proxy, &upstream, "//public//x"), (200, Some("//public//x".to_owned())));
    assert_eq!(ask(&proxy, &upstream, "/x/../admin"), (403, None));
}

/// The access log tells both: what was asked for, and what the decision was about.
#[test]
fn a_refused_path_is_logged_as_it_came() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "{}");
    ask(&proxy, &upstream, "/x/../%61dmin?q");
    let entry = proxy.entry_for("/x/../%61dmin?q");
    assert_eq!((&entry["status"], &entry["upstream_path"]), (&403.into(), &"/admin?q".into()));
    ask(&proxy, &upstream, "/%zz");
    let entry = proxy.entry_for("/%zz");
    assert_eq!((&entry["details"], &entry["flags"]), (&"bad_path_encoding".into(), &"DPE".into()));
}
