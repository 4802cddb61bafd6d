//! The router: virtual hosts, matches, and actions.

use crate::harness::{Client, Config, Message, Proxy, Upstream};

/// A proxy whose router has these virtual hosts, in flow style; the cluster is `web`.
fn routing(virtual_hosts: &str, upstream: &Upstream) -> Proxy {
    let config = format!("config: {{virtual_hosts: [{virtual_hosts}]}}");
    Proxy::start(Config::new().filter("routes", "builtin:router", &config).cluster("web", &[upstream], ""))
}

fn one_host(routes: &str, upstream: &Upstream) -> Proxy {
    routing(&format!("{{name: all, domains: ['*'], routes: [{routes}]}}"), upstream)
}

fn get(client: &mut Client, target: &str, fields: &[(&str, &str)]) -> Message {
    client.request("GET", target, fields, b"")
}

#[test]
fn the_most_specific_host_wins() {
    let host = |name: &str, domains: &str| {
        format!("{{name: {name}, domains: [{domains}], routes: [{{respond: {{status: 200, body: {name}}}}}]}}")
    };
    let hosts = [
        host("exact", "shop.example.com"),
        host("port", "'shop.example.com:8443'"),
        host("below", "'*.example.com'"),
        host("deeper", "'*.shop.example.com'"),
    ];
    let upstream = Upstream::saying("unused");
    let proxy = routing(&hosts.join(", "), &upstream);
    let mut client = proxy.client();
    for (asked, expected) in [
        ("shop.example.com", "exact"),
        ("SHOP.Example.com", "exact"),
        ("shop.example.com:80", "exact"),
        ("shop.example.com:8443", "port"),
        ("www.example.com", "below"),
        ("a.b.example.com", "below"),
        ("a.shop.example.com", "deeper"),
    ] {
        let response = get(&mut client, "/", &[("Host", asked)]);
        assert_eq!((response.status(), response.text()), (200, expected), "{asked}");
    }
    for asked in ["example.com", "other.org", "badexample.com"] {
        let response = get(&mut client, "/", &[("Host", asked)]);
        assert_eq!((response.status(), response.text()), (404, "Not Found"), "{asked}");
    }
    proxy.entry(|entry| entry["authority"] == "other.org").flagged("NR,LR").because("route_not_found");
}

#[test]
fn the_first_matching_route_is_used() {
    let routes = "
        {match: {path: {exact: /a}}, respond: {status: 200, body: exact}},
        {match: {path: {prefix: /a}, method: POST}, respond: {status: 200, body: post}},
        {match: {path: {prefix: /a}, headers: [{name: x-v, exact: '2'}]}, respond: {status: 200, body: header}},
        {match: {path: {prefix: /a}, query: [{name: q, prefix: x}]}, respond: {status: 200, body: query}},
        {match: {path: {prefix: /a}}, respond: {status: 200, body: prefix}},
        {match: {path: {regex: '/u/[0-9]+'}}, respond: {status: 200, body: regex}}";
    let upstream = Upstream::saying("unused");
    let proxy = one_host(routes, &upstream);
    let mut client = proxy.client();
    for (method, target, fields, expected) in [
        ("GET", "/a", &[][..], "exact"),
        ("GET", "/a?q=x", &[], "exact"),
        ("POST", "/a/b", &[], "post"),
        ("GET", "/a/b", &[("X-V", "2")], "header"),
        ("GET", "/a/b?p=1&q=xy", &[], "query"),
        ("GET", "/a/b?q=y", &[("X-V", "3")], "prefix"),
        ("GET", "/a/", &[], "prefix"),
        ("GET", "/u/42", &[], "regex"),
    ] {
        let response = client.request(method, target, fields, b"");
        assert_eq!((response.status(), response.text()), (200, expected), "{method} {target} {fields:?}");
    }
    for target in ["/ab", "/u/x", "/u/42/x", "/", "/A"] {
        assert_eq!(client.get(target).status(), 404, "{target}");
    }
}

#[test]
fn requests_are_rewritten() {
    let routes = "
        {match: {path: {prefix: /api}}, cluster: web, prefix_rewrite: /v1, host_rewrite: inner.example,
         request_headers: {set: {x-set: new}, add: {x-add: more}, remove: [x-gone]},
         response_headers: {set: {x-proxy: tollgate}, remove: [x-internal]}},
        {match: {path: {exact: /one}}, cluster: web, prefix_rewrite: /two},
        {match: {path: {prefix: /u}}, cluster: web,
         regex_rewrite: {pattern: '^/u/([a-z]+)/([0-9]+)', substitution: '/\\2/\\1'}},
        {match: {path: {prefix: /}}, cluster: web, prefix_rewrite: /root}";
    let upstream = Upstream::replying(|_| crate::harness::answer(200, &["X-Internal: 1", "X-Kept: 1"], "ok"));
    let proxy = one_host(routes, &upstream);
    let mut client = proxy.client();
    let mut seen = |target: &str, fields: &[(&str, &str)]| {
        let response = get(&mut client, target, fields);
        assert_eq!(response.status(), 200, "{target}");
        (upstream.requests().pop().expect("a request"), response)
    };
    let fields = [("X-Set", "old"), ("X-Set", "older"), ("X-Add", "some"), ("X-Gone", "1"), ("X-Other", "1")];
    let (request, response) = seen("/api/users?q=1", &fields);
    assert_eq!((request.target(), request.field("host")), ("/v1/users?q=1", Some("inner.example")));
    assert_eq!((request.field("x-set"), request.all("x-add")), (Some("new"), vec!["some", "more"]));
    assert_eq!((request.field("x-gone"), request.field("x-other")), (None, Some("1")));
    assert_eq!(request.field("x-forwarded-host"), Some("test"), "the host that the client sent");
    assert_eq!((response.field("x-proxy"), response.field("x-internal")), (Some("tollgate"), None));
    assert_eq!(response.field("x-kept"), Some("1"));

    for (target, rewritten) in [
        ("/api", "/v1"),
        ("/api/", "/v1/"),
        ("/one?x", "/two?x"),
        ("/u/ann/7/z?q", "/7/ann/z?q"),
        ("/u/7", "/u/7"),
        ("/else?y", "/root/else?y"),
    ] {
        let (request, response) = seen(target, &[]);
        assert_eq!(request.target(), rewritten, "{target}");
        assert_eq!(response.field("x-internal").is_some(), !target.starts_with("/api"), "{target}");
    }
    let entry = proxy.entry_for("/one?x");
    assert_eq!((&entry["upstream_path"], &entry["route"]), (&"/two?x".into(), &"all/1".into()));
}

#[test]
fn redirects_have_the_right_location() {
    let routes = "
        {match: {path: {prefix: /old}}, redirect: {prefix_rewrite: /new, status: 308}},
        {match: {path: {exact: /login}},
         redirect: {scheme: https, host: id.example, port: 8443, path: /start, status: 302, strip_query: true}},
        {redirect: {scheme: https}, response_headers: {set: {cache-control: no-store}}}";
    let upstream = Upstream::saying("unused");
    let proxy = one_host(routes, &upstream);
    let mut client = proxy.client();
    for (target, status, location) in [
        ("/old/x?q=1", 308, "http://test/new/x?q=1"),
        ("/login?secret", 302, "https://id.example:8443/start"),
        ("/a?b", 301, "https://test/a?b"),
        // Two leading slashes must not become another host.
        ("//evil.example/%2e%2e", 301, "https://test/"),
    ] {
        let response = client.get(target);
        assert_eq!((response.status(), response.field("location")), (status, Some(location)), "{target}");
    }
    assert_eq!(client.get("/").field("cache-control"), Some("no-store"));
    assert!(upstream.requests().is_empty());
    let entry = proxy.entry_for("/a?b");
    assert_eq!((&entry["details"], &entry["flags"], &entry["attempts"]), (&"redirect".into(), &"LR".into(), &0.into()));
}

#[test]
fn direct_responses_need_no_upstream() {
    let routes = "
        {match: {path: {exact: /robots.txt}}, respond: {status: 200, body: 'Disallow: /', headers: {x-a: b}}},
        {match: {path: {exact: /json}}, respond: {status: 200, body: '{}', headers: {content-type: application/json}}},
        {respond: {status: 410}}";
    let upstream = Upstream::saying("unused");
    let proxy = one_host(routes, &upstream);
    let mut client = proxy.client();
    let robots = client.get("/robots.txt");
    assert_eq!((robots.text(), robots.field("x-a")), ("Disallow: /", Some("b")));
    assert_eq!(robots.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(client.get("/json").field("content-type"), Some("application/json"));
    let gone = client.get("/gone");
    assert_eq!((gone.status(), gone.text(), gone.field("content-length")), (410, "", Some("0")));
    let head = client.request("HEAD", "/robots.txt", &[], b"");
    assert_eq!((head.status(), head.field("x-a")), (200, Some("b")));
    assert_eq!(client.request("POST", "/gone", &[], b"a body that is not read").status(), 410);
}

/// Without these headers (CORS) a browser reports an error response as a rejection.
#[test]
fn a_routes_response_headers_are_added_to_every_response() {
    let headers = "response_headers: {set: {access-control-allow-origin: 'https://a.test', content-type: text/html}, add: {vary: Origin}}";
    let routes = format!(
        "config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [
            {{match: {{path: {{prefix: /dead}}}}, cluster: dead, {headers}}},
            {{match: {{path: {{prefix: /slow}}}}, cluster: slow, timeout: 300ms, {headers}}},
            {{match: {{path: {{prefix: /moved}}}}, redirect: {{path: /}}, {headers}}},
            {{match: {{path: {{prefix: /sound}}}}, cluster: sound, {headers}}}]}}]}}"
    );
    let slow = Upstream::silent();
    let sound = Upstream::replying(|request| {
        let status = if request.target() == "/sound/failing" { 503 } else { 200 };
        crate::harness::answer(status, &["Vary: Accept", "Access-Control-Allow-Origin: *"], "ok")
    });
    let config = Config::new()
        .listener("limits: {request_body: 100}")
        .filter("routes", "builtin:router", &routes)
        .cluster("dead", &[Upstream::refusing()], "")
        .cluster("slow", &[&slow], "")
        .cluster("sound", &[&sound], "");
    let proxy = Proxy::start(config);
    let (long, origin) = ([b'x'; 200], Some("https://a.test"));
    for (path, body, status, vary) in [
        ("/dead", &b""[..], 503, &["Origin"][..]),
        ("/slow", b"", 504, &["Origin"]),
        ("/sound", &long, 413, &["Origin"]),
        ("/moved", b"", 301, &["Origin"]),
        ("/sound", b"", 200, &["Accept", "Origin"]),
        ("/sound/failing", b"", 503, &["Accept", "Origin"]),
        // No route matched, so no route's headers are added.
        ("/nowhere", b"", 404, &[]),
    ] {
        let response = proxy.request("POST", path, &[], body);
        let routed = path != "/nowhere";
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(
            (response.all("vary"), response.field("access-control-allow-origin")),
            (vary.to_vec(), origin.filter(|_| routed)),
            "{path}"
        );
    }
    let call = proxy.request("POST", "/dead/C", &[("Content-Type", "application/grpc")], b"");
    assert_eq!((call.field("grpc-status"), call.field("content-type")), (Some("14"), Some("application/grpc")));
    assert_eq!(call.field("access-control-allow-origin"), origin);
}

#[test]
fn a_routes_timeout_overrides_the_clusters() {
    let upstream = Upstream::silent();
    let proxy = one_host("{name: fast, cluster: web, timeout: 300ms}", &upstream);
    assert_eq!(proxy.get("/").status(), 504);
    let entry = proxy.entry_for("/");
    assert_eq!((&entry["flags"], &entry["route"]), (&"UT".into(), &"all/fast".into()));
}

/// Without a router, and with a router without a matching route.
#[test]
fn requests_without_a_route_get_404() {
    let proxy = Proxy::start(Config::new());
    assert_eq!(proxy.get("/none").status(), 404);
    proxy.entry_for("/none").flagged("NR").because("route_not_found");
}

#[test]
fn configuration_errors_have_a_location() {
    let routes = "config:
  virtual_hosts:
    - name: all
      domains: ['*']
      routes:
        - match: {path: {regex: '(('}}
          respond: {status: 200}
        - redirect: {status: 200}";
    let output = Proxy::try_start(Config::new().filter("routes", "builtin:router", routes), &[]).err();
    let output = output.expect("the proxy does not start");
    for expected in ["config.yaml:", "regex: '(('", "must be 301, 302, 303, 307 or 308, not 200"] {
        assert!(output.contains(expected), "{expected:?} in {output}");
    }
}

/// A TLS-terminating proxy in front reports its clients' scheme, and is believed if it is trusted.
#[test]
fn redirects_keep_the_scheme_of_a_trusted_tls_proxy() {
    let config = "config: {routes: [{redirect: {path: /there}}]}";
    let proxy =
        |listener: &str| Proxy::start(Config::new().listener(listener).filter("routes", "builtin:router", config));
    for (hops, said, location) in [
        (0, &["https"][..], "http://shop.test/there"),
        (1, &[], "http://shop.test/there"),
        (1, &["https"], "https://shop.test/there"),
        (1, &["HTTPS"], "https://shop.test/there"),
        (1, &["http"], "http://shop.test/there"),
        (1, &["wss"], "http://shop.test/there"),
        // The client's own value stands left of the proxy's.
        (1, &["https, http"], "http://shop.test/there"),
        (1, &["http", "https"], "https://shop.test/there"),
        (2, &["https, http"], "https://shop.test/there"),
    ] {
        let proxy = proxy(&format!("trusted_hops: {hops}"));
        let mut fields = vec![("Host", "shop.test")];
        fields.extend(said.iter().map(|said| ("X-Forwarded-Proto", *said)));
        let response = proxy.request("GET", "/", &fields, b"");
        assert_eq!((response.status(), response.field("location")), (301, Some(location)), "{hops} {said:?}");
    }
}

/// `OPTIONS *` has no path to rewrite.
#[test]
fn the_asterisk_is_not_rewritten() {
    let upstream = Upstream::saying("ok");
    let proxy = one_host("{cluster: web, regex_rewrite: {pattern: '^', substitution: '/v1'}}", &upstream);
    let mut client = proxy.client();
    assert_eq!(client.request("OPTIONS", "*", &[], b"").status(), 200);
    assert_eq!(client.request("OPTIONS", "/a", &[], b"").status(), 200);
    let targets: Vec<_> = upstream.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(targets, ["*", "/v1/a"]);
}
