//! Path normalization before any filter: a rule about `/admin` cannot be bypassed.

use crate::harness::{
    Config, Upstream,
    exchange::{Everywhere, Request, Version},
};

const DENY_ADMIN: &str = "config:
  policies:
    - name: admin
      action: deny
      rules: [{to: [{operation: {paths: [/admin*]}}]}]";

fn guarded(upstream: &Upstream, path_rules: &str) -> Everywhere {
    let config = Config::to(upstream).filter("access", "builtin:authz", DENY_ADMIN);
    Everywhere::start(config.listener(&format!("path: {path_rules}")))
}

/// Asserts the status, and the path that the upstream receives, if any. Only HTTP/1.1 has targets that contain a host.
#[track_caller]
fn expect(proxy: &Everywhere, upstream: &Upstream, target: &str, status: u16, seen: Option<&str>) {
    proxy.each(&Request::get(target), |version, outcome| {
        let requests = upstream.take_requests();
        let got = (outcome.status(), requests.first().map(|request| request.target()));
        let refused = version != Version::H1 && target.starts_with("http:");
        assert_eq!(got, if refused { (400, None) } else { (status, seen) }, "{target:?} over {version:?}");
    });
}

#[test]
fn a_path_rule_cannot_be_bypassed() {
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
        // A target cannot contain a fragment (RFC 9112 section 3.2), and a fragment hides nothing.
        "/admin#x",
    ] {
        expect(&proxy, &upstream, target, 403, None);
    }
    // Another path, and not treated as this one.
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
        ("/public#/../admin", "/public"),
        ("/public/..#/admin", "/"),
    ] {
        expect(&proxy, &upstream, target, 200, Some(seen));
    }
}

#[test]
fn the_query_is_not_normalized() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "{}");
    for (target, seen) in [
        ("/a/../b?x=/../%61&y=%2F//", "/b?x=/../%61&y=%2F//"),
        ("/%7Eu?%zz", "/~u?%zz"),
        ("/a?", "/a?"),
        ("/a??b", "/a??b"),
    ] {
        expect(&proxy, &upstream, target, 200, Some(seen));
    }
}

#[test]
fn escaped_slashes_are_treated_as_configured() {
    // Target; status with `keep`, `reject`, `decode`; the upstream's path with `keep`, `decode`.
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
            let seen = [kept, Some(target), decoded][index];
            expect(&proxy, &upstream, target, statuses[index], seen.filter(|_| statuses[index] == 200));
        }
    }
}

#[test]
fn slashes_are_merged_unless_configured_otherwise() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "{merge_slashes: false}");
    expect(&proxy, &upstream, "//public//x", 200, Some("//public//x"));
    expect(&proxy, &upstream, "/x/../admin", 403, None);
}

/// The access log has both: the requested path, and the path that was checked.
#[test]
fn a_rejected_path_is_logged_as_received() {
    let upstream = Upstream::saying("ok");
    let proxy = guarded(&upstream, "{}");
    expect(&proxy, &upstream, "/x/../%61dmin?q", 403, None);
    expect(&proxy, &upstream, "/%zz", 400, None);
    for protocol in ["HTTP/1.1", "HTTP/2", "HTTP/3"] {
        let of = |path: &str| proxy.entry(|entry| entry["path"] == path && entry["protocol"] == protocol);
        assert_eq!(of("/x/../%61dmin?q").expect(403, "UAEX,LR")["upstream_path"], "/admin?q");
        of("/%zz").expect(400, "DPE").because("bad_path_encoding");
    }
}
