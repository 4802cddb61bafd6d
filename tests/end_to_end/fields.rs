//! Header fields that the proxy removes or adds: hop-by-hop fields, `Via`, `X-Forwarded-*`, `X-Request-Id`.

use std::collections::HashSet;

use crate::harness::{
    Config, Message, Proxy, Upstream, answer,
    exchange::{Everywhere, Outcome, Request, Version},
    wait_until,
};

/// Calls `look` with the requests that reach the upstream when clients of each version send these fields to `web.test`.
fn forwarded(listener: &str, fields: &[(&str, &str)], look: impl Fn(Version, &Message)) {
    let upstream = Upstream::saying("ok");
    let proxy = Everywhere::start(Config::to(&upstream).listener(listener));
    proxy.each(&Request::get("/").with(fields), |version, outcome| {
        assert_eq!(outcome.status(), 200, "{version:?}");
        look(version, &upstream.take_requests()[0]);
    });
}

/// The expected `X-Forwarded-Proto` for a version's listener in a proxy of [`Everywhere`].
fn scheme(version: Version) -> Option<&'static str> {
    Some(if version == Version::H3 { "https" } else { "http" })
}

/// HTTP/1.1 only: the other versions reject such fields.
#[test]
fn hop_by_hop_fields_are_removed() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let fields = [
        ("Connection", "keep-alive, X-Private"),
        ("Connection", "x-other"),
        ("X-Private", "1"),
        ("X-Other", "1"),
        ("X-Kept", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Upgrade", "h2c"),
        ("TE", "gzip;q=0.5, trailers"),
    ];
    assert_eq!(proxy.request("GET", "/", &fields, b"").status(), 200);
    let request = upstream.only_request();
    for gone in ["x-private", "x-other", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(request.field(gone), None, "{gone}");
    }
    assert_eq!((request.field("te"), request.field("x-kept")), (Some("trailers"), Some("1")));
    // The proxy's own TE (RFC 9110 section 10.1.4).
    assert_eq!(request.field("connection"), Some("te"));
}

#[test]
fn connection_cannot_remove_fields_that_others_rely_on() {
    let listed = "host, content-length, authorization, cookie, x-forwarded-for, x-forwarded-proto, x-request-id";
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener("trusted_hops: 1"));
    let fields = [("Connection", listed), ("Authorization", "a"), ("Cookie", "b"), ("X-Forwarded-For", "192.0.2.1")];
    assert_eq!(proxy.request("POST", "/", &fields, b"body").status(), 200);
    let request = upstream.only_request();
    assert_eq!(request.text(), "body");
    assert_eq!((request.field("authorization"), request.field("cookie")), (Some("a"), Some("b")));
    assert_eq!(request.field("x-forwarded-for"), Some("192.0.2.1, 127.0.0.1"));
    assert_eq!((request.field("host"), request.field("content-length")), (Some("test"), Some("4")));
    assert!(request.field("x-request-id").is_some() && request.field("x-forwarded-proto").is_some());
}

#[test]
fn the_upstreams_connection_fields_are_not_forwarded() {
    let upstream = Upstream::canned(answer(
        200,
        &["Connection: close, X-Internal", "X-Internal: 1", "Keep-Alive: timeout=5", "Upgrade: h2", "X-Kept: 1"],
        "ok",
    ));
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    let response = client.get("/");
    for gone in ["connection", "x-internal", "keep-alive", "upgrade"] {
        assert_eq!(response.field(gone), None, "{gone}");
    }
    assert_eq!(response.field("x-kept"), Some("1"));
    assert_eq!(client.get("/").status(), 200, "only the upstream's connection was closed");
}

#[test]
fn via_names_the_proxy_in_both_directions() {
    let upstream = Upstream::replying(|_| answer(200, &["Via: 1.1 inner"], "ok"));
    let proxy = Everywhere::start(Config::to(&upstream));
    proxy.each(&Request::get("/").with(&[("via", "1.0 outer")]), |version, outcome| {
        let Outcome::Whole(response) = outcome else { panic!("{outcome:?}") };
        let via = response.fields.iter().filter(|(name, _)| name == "via").map(|(_, value)| value.as_str());
        assert_eq!(via.collect::<Vec<_>>(), ["1.1 inner", "1.1 tollgate"], "{version:?}");
        let received = match version {
            Version::H1 => "1.1 tollgate",
            Version::H2 => "2 tollgate",
            Version::H3 => "3 tollgate",
        };
        assert_eq!(upstream.take_requests()[0].all("via"), ["1.0 outer", received]);
    });
    forwarded("via: edge", &[], |_, request| assert!(request.field("via").is_some_and(|via| via.ends_with(" edge"))));
    forwarded("via: ''", &[], |_, request| assert_eq!(request.field("via"), None));
}

/// Fields that clients send about others, and about themselves.
const SAID: &[(&str, &str)] = &[
    ("x-forwarded-for", "192.0.2.1, 192.0.2.2"),
    ("x-forwarded-proto", "ftp"),
    ("x-forwarded-host", "shop.example"),
    ("x-forwarded-client-cert", "URI=spiffe://mesh.local/admin"),
    ("x-request-id", "mine"),
];

#[test]
fn forwarded_fields_of_untrusted_clients_are_replaced() {
    forwarded("trusted_hops: 0", SAID, |version, request| {
        assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"), "{version:?}");
        assert_eq!(request.field("x-forwarded-proto"), scheme(version), "{version:?}");
        assert_eq!(request.field("x-forwarded-host"), Some("web.test"), "{version:?}");
        assert_eq!(request.field("x-forwarded-client-cert"), None, "{version:?}");
        let id = request.field("x-request-id").expect("a request id");
        assert!(id != "mine" && id.len() == 36, "{version:?}: {id}");
    });
}

#[test]
fn the_client_address_is_trusted_hops_away() {
    for (hops, client) in [(1, "192.0.2.2"), (2, "192.0.2.1"), (3, "192.0.2.1")] {
        let upstream = Upstream::saying("ok");
        let proxy = Everywhere::start(Config::to(&upstream).listener(&format!("trusted_hops: {hops}")));
        let said: Vec<_> =
            SAID.iter().map(|field| if field.1 == "ftp" { (field.0, "https") } else { *field }).collect();
        proxy.each(&Request::get("/hops").with(&said), |version, outcome| {
            assert_eq!(outcome.status(), 200, "{version:?}");
            let request = upstream.take_requests().remove(0);
            assert_eq!(request.field("x-forwarded-for"), Some("192.0.2.1, 192.0.2.2, 127.0.0.1"), "{version:?}");
            assert_eq!(request.field("x-forwarded-proto"), Some("https"), "{version:?}");
            assert_eq!(request.field("x-forwarded-host"), Some("shop.example"), "{version:?}");
            assert_eq!(request.field("x-request-id"), Some("mine"), "{version:?}");
            // There was no client certificate.
            assert_eq!(request.field("x-forwarded-client-cert"), None, "{version:?}");
        });
        wait_until("a line for each version", || proxy.entries().len() == 3);
        for entry in proxy.entries() {
            assert_eq!((&entry["client"], &entry["request_id"]), (&client.into(), &"mine".into()), "{entry}");
        }
    }
}

/// A client must not be able to pose as the proxy in front.
#[test]
fn no_client_can_pose_as_the_proxy_in_front() {
    let allow =
        "config: {policies: [{name: p, rules: [{from: [{source: {remote_ip_blocks: [127.0.0.0/8, '::/0']}}]}]}]}";
    let upstream = Upstream::saying("ok");
    let trusting = Config::to(&upstream).listener("trusted_hops: 1");
    let proxy = Everywhere::start(trusting.filter("access", "builtin:authz", allow));
    let client = || Some("203.0.113.9");
    for (nth, (said, status, client)) in [
        (&["203.0.113.9"][..], 403, client()),
        (&["\u{ff}, 203.0.113.9"], 403, client()),
        (&["\u{ff}", "203.0.113.9"], 403, client()),
        (&["127.0.0.1, 203.0.113.9"], 403, client()),
        (&["127.0.0.1, \"203.0.113.9:80\""], 403, client()),
        (&["127.0.0.1, \u{ff}"], 403, None),
        (&["127.0.0.1", "unknown"], 403, None),
        (&["127.0.0.1,"], 403, None),
        (&["127.0.0.1, ,"], 403, None),
        (&[""], 403, None),
        (&["203.0.113.9, 127.0.0.1"], 200, Some("127.0.0.1")),
        // The peer's own address.
        (&[], 200, Some("127.0.0.1")),
    ]
    .into_iter()
    .enumerate()
    {
        let fields: Vec<_> = said.iter().map(|said| ("x-forwarded-for", *said)).collect();
        let path = format!("/{nth}");
        assert_eq!(proxy.status(&Request::get(&path).with(&fields)), status, "{said:?}");
        let lines = || proxy.entries().into_iter().filter(|entry| entry["path"] == *path).collect::<Vec<_>>();
        wait_until("a line for each version", || lines().len() == 3);
        lines().iter().for_each(|entry| assert_eq!(entry["client"].as_str(), client, "{said:?}: {entry}"));
    }
    // The harness sends UTF-8 and reads Latin-1.
    let fields = [("x-forwarded-for", "\u{ff}"), ("x-forwarded-for", "203.0.113.9")];
    forwarded("trusted_hops: 1", &fields, |version, request| {
        assert_eq!(request.field("x-forwarded-for"), Some("\u{c3}\u{bf}, 203.0.113.9, 127.0.0.1"), "{version:?}");
    });
}

#[test]
fn fields_missing_from_a_trusted_proxy_are_added() {
    forwarded("trusted_hops: 1", &[], |version, request| {
        assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"), "{version:?}");
        assert_eq!(request.field("x-forwarded-proto"), scheme(version), "{version:?}");
        assert_eq!(request.field("x-forwarded-host"), Some("web.test"), "{version:?}");
        assert_eq!(request.field("x-request-id").map(str::len), Some(36), "{version:?}");
    });
}

#[test]
fn each_request_has_a_unique_id() {
    let upstream = Upstream::saying("ok");
    let proxy = Everywhere::start(Config::to(&upstream));
    for _ in 0..10 {
        assert_eq!(proxy.status(&Request::get("/")), 200);
    }
    let requests = upstream.requests();
    let ids: HashSet<_> = requests.iter().map(|request| request.field("x-request-id").expect("an id")).collect();
    assert_eq!(ids.len(), requests.len());
}
