//! Header fields that a proxy takes away, and those that it adds: hop-by-hop fields, `Via`, `X-Forwarded-*`, `X-Request-Id`.

use crate::harness::{Config, Message, Proxy, Upstream, answer};

/// The request that reaches the upstream when a client sends these fields.
fn forwarded(listener: &str, fields: &[(&str, &str)]) -> Message {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).listener(listener));
    assert_eq!(proxy.request("GET", "/", fields, b"").status(), 200);
    upstream.only_request()
}

#[test]
fn what_is_for_the_next_hop_goes_no_further() {
    let request = forwarded(
        "",
        &[
            ("Connection", "keep-alive, X-Private"),
            ("Connection", "x-other"),
            ("X-Private", "1"),
            ("X-Other", "1"),
            ("X-Kept", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Upgrade", "h2c"),
            ("TE", "gzip;q=0.5, trailers"),
        ],
    );
    for gone in ["x-private", "x-other", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(request.field(gone), None, "{gone}");
    }
    assert_eq!((request.field("te"), request.field("x-kept")), (Some("trailers"), Some("1")));
    // The proxy's own word about its own TE (RFC 9110 section 10.1.4).
    assert_eq!(request.field("connection"), Some("te"));
}

#[test]
fn a_client_cannot_have_what_others_rely_on_removed() {
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
fn the_upstreams_connection_fields_are_its_own() {
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
fn values_pass_as_they_are() {
    let request = forwarded("", &[("X-Latin", "caf\u{e9}"), ("X-Twice", "1"), ("X-Twice", "2"), ("X-Empty", "")]);
    // The harness sends UTF-8 and reads Latin-1.
    assert_eq!(request.field("x-latin"), Some("caf\u{c3}\u{a9}"));
    assert_eq!((request.all("x-twice"), request.all("x-empty")), (vec!["1", "2"], vec![""]));
}

#[test]
fn via_names_the_proxy_in_both_directions() {
    let upstream = Upstream::replying(|_| answer(200, &["Via: 1.1 inner"], "ok"));
    let proxy = Proxy::start(Config::to(&upstream));
    let response = proxy.request("GET", "/", &[("Via", "1.0 outer")], b"");
    assert_eq!(response.all("via"), ["1.1 inner", "1.1 tollgate"]);
    assert_eq!(upstream.only_request().all("via"), ["1.0 outer", "1.1 tollgate"]);

    assert_eq!(forwarded("via: edge", &[]).all("via"), ["1.1 edge"]);
    assert!(forwarded("via: ''", &[]).all("via").is_empty());
}

const SAID: &[(&str, &str)] = &[
    ("X-Forwarded-For", "192.0.2.1, 192.0.2.2"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "shop.example"),
    ("X-Request-Id", "mine"),
];

#[test]
fn a_client_that_is_not_trusted_cannot_speak_for_others() {
    let request = forwarded("trusted_hops: 0", SAID);
    assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.field("x-forwarded-proto"), Some("http"));
    assert_eq!(request.field("x-forwarded-host"), Some("test"));
    let id = request.field("x-request-id").expect("a request id");
    assert!(id != "mine" && id.len() == 36, "{id}");
}

#[test]
fn the_client_is_as_many_hops_away_as_are_trusted() {
    for (hops, client) in [(1, "192.0.2.2"), (2, "192.0.2.1"), (3, "192.0.2.1")] {
        let upstream = Upstream::saying("ok");
        let proxy = Proxy::start(Config::to(&upstream).listener(&format!("trusted_hops: {hops}")));
        assert_eq!(proxy.request("GET", "/hops", SAID, b"").status(), 200);
        let request = upstream.only_request();
        assert_eq!(request.field("x-forwarded-for"), Some("192.0.2.1, 192.0.2.2, 127.0.0.1"));
        assert_eq!(request.field("x-forwarded-proto"), Some("https"));
        assert_eq!(request.field("x-forwarded-host"), Some("shop.example"));
        assert_eq!(request.field("x-request-id"), Some("mine"));
        let entry = proxy.entry_for("/hops");
        assert_eq!((&entry["client"], &entry["request_id"]), (&client.into(), &"mine".into()), "{hops} hops");
    }
}

/// A client must not look like the proxy in front by what it says itself.
#[test]
fn no_client_passes_for_the_proxy_in_front() {
    let allow =
        "config: {policies: [{name: p, rules: [{from: [{source: {remote_ip_blocks: [127.0.0.0/8, '::/0']}}]}]}]}";
    let upstream = Upstream::saying("ok");
    let proxy =
        Proxy::start(Config::to(&upstream).listener("trusted_hops: 1").filter("access", "builtin:authz", allow));
    let told = |said: &[&str], path: &str| {
        let fields: Vec<_> = said.iter().map(|said| ("X-Forwarded-For", *said)).collect();
        let status = proxy.request("GET", path, &fields, b"").status();
        (status, proxy.entry_for(path)["client"].as_str().map(str::to_owned))
    };
    let client = || Some("203.0.113.9".to_owned());
    for (nth, (said, expected)) in [
        (&["203.0.113.9"][..], (403, client())),
        (&["\u{ff}, 203.0.113.9"], (403, client())),
        (&["\u{ff}", "203.0.113.9"], (403, client())),
        (&["127.0.0.1, 203.0.113.9"], (403, client())),
        (&["127.0.0.1, \"203.0.113.9:80\""], (403, client())),
        (&["127.0.0.1, \u{ff}"], (403, None)),
        (&["127.0.0.1", "unknown"], (403, None)),
        (&["127.0.0.1,"], (403, None)),
        (&["127.0.0.1, "], (403, None)),
        (&[""], (403, None)),
        (&["203.0.113.9, 127.0.0.1"], (200, Some("127.0.0.1".to_owned()))),
        // The peer speaks for itself.
        (&[], (200, Some("127.0.0.1".to_owned()))),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(told(said, &format!("/{nth}")), expected, "{said:?}");
    }
    let proxy = Proxy::start(Config::to(&upstream).listener("trusted_hops: 1"));
    proxy.request("GET", "/", &[("X-Forwarded-For", "\u{ff}"), ("X-Forwarded-For", "203.0.113.9")], b"");
    // The harness sends UTF-8 and reads Latin-1.
    let last = upstream.requests().pop().expect("a request");
    assert_eq!(last.field("x-forwarded-for"), Some("\u{c3}\u{bf}, 203.0.113.9, 127.0.0.1"));
}

#[test]
fn what_a_trusted_proxy_does_not_say_is_added() {
    let request = forwarded("trusted_hops: 1", &[]);
    assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!((request.field("x-forwarded-proto"), request.field("x-forwarded-host")), (Some("http"), Some("test")));
    assert_eq!(request.field("x-request-id").map(str::len), Some(36));
}

#[test]
fn each_request_has_an_id_of_its_own() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    for _ in 0..20 {
        client.get("/");
    }
    let ids: std::collections::HashSet<String> =
        upstream.requests().iter().map(|r| r.field("x-request-id").expect("an id").to_owned()).collect();
    assert_eq!(ids.len(), 20);
}
