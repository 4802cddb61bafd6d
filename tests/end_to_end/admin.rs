//! The admin listener: health, metrics, the running configuration, and runtime changes.

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

use flate2::read::GzDecoder;

use crate::harness::{Config, Metrics, Proxy, Signal, Upstream};

#[test]
fn health_endpoints_answer() {
    let proxy = Proxy::start(Config::new());
    let live = proxy.admin("GET", "/live", "");
    assert_eq!((live.status(), live.text()), (200, "live\n"));
    let ready = proxy.admin("GET", "/ready", "");
    assert_eq!((ready.status(), ready.text()), (200, "ready\n"));
    assert_eq!(proxy.admin("HEAD", "/ready", "").status(), 200);
}

#[test]
fn a_unix_socket_is_private_to_its_user_by_default() {
    for (mode, expected) in [("", 0o600), (", mode: '660'", 0o660)] {
        let config =
            format!("admin: {{address: 'unix:admin.sock'{mode}}}\nlisteners: [{{name: main, address: '@main@'}}]");
        let mut proxy = Proxy::begin(config, &[]);
        proxy.wait_for_ready_line();
        let path = proxy.dir().join("admin.sock");
        assert_eq!(std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, expected);
        assert!(proxy.output().contains("admin=\"unix:admin.sock\""), "{}", proxy.output());
        let mut stream = UnixStream::connect(&path).expect("the proxy listens");
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("the proxy reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ready\n"), "{answer}");
        proxy.signal(Signal::TERM);
        assert!(proxy.wait_exit().success());
        assert!(!path.exists());
    }
}

#[test]
fn an_address_in_use_is_reported_with_its_config_location() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let config = format!("admin:\n  address: {address}\nlisteners: [{{name: main, address: '@main@'}}]");
    let mut proxy = Proxy::begin(config, &[]);
    assert_eq!(proxy.wait_exit().code(), Some(1));
    let words = proxy.last_words();
    assert!(words.contains(&format!("cannot listen on {address} (the admin listener)")), "{words}");
    assert!(words.contains("config.yaml:3:12"), "{words}");
    assert!(words.contains("`admin.address`") && words.contains("`admin.enabled: false`"), "{words}");
}

#[test]
fn unknown_paths_get_404_and_wrong_methods_405() {
    let proxy = Proxy::start(Config::new());
    let unknown = proxy.admin("GET", "/nothing", "");
    assert_eq!(unknown.status(), 404);
    assert!(unknown.text().contains("/metrics"), "it lists the paths: {}", unknown.text());
    assert_eq!(proxy.admin("GET", "/", "").status(), 200);
    for (method, path, allowed) in [
        ("POST", "/ready", "GET"),
        ("DELETE", "/config", "GET"),
        ("GET", "/reload", "POST"),
        ("PUT", "/metrics", "GET"),
    ] {
        let response = proxy.admin(method, path, "");
        assert_eq!((response.status(), response.field("allow")), (405, Some(allowed)), "{method} {path}");
    }
}

#[test]
fn metrics_are_valid_and_change_with_traffic() {
    let upstream = Upstream::saying("ok");
    let proxy = Proxy::start(Config::to(&upstream).filter("access", "builtin:authz", "config: {policies: []}"));
    let response = proxy.admin("GET", "/metrics", "");
    assert!(response.field("content-type").is_some_and(|v| v.starts_with("text/plain; version=0.0.4")));
    let before = Metrics::parse(response.text());
    let family = |name: &str| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        base.filter(|base| before.types.get(*base).is_some_and(|kind| kind == "histogram")).unwrap_or(name).to_owned()
    };
    for (name, labels) in before.names() {
        assert!(before.types.contains_key(&family(name)), "{name} has no type");
        assert!(
            name.starts_with("tollgate_") || name.starts_with("wasmcustom_") || name.starts_with("process_"),
            "{name}"
        );
        assert_eq!(labels.contains_key("le"), name.ends_with("_bucket"), "{name} {labels:?}");
        let counts = before.types.get(name).is_some_and(|kind| kind == "counter");
        assert!(!counts || name.ends_with("_total"), "{name}");
    }
    proxy.request("POST", "/", &[], b"12345");
    proxy.wait_for_metric("tollgate_requests_total", &[("listener", "main"), ("class", "2xx")], 1.0);
    let after = proxy.metrics();
    for (name, labels, more) in [
        ("tollgate_requests_total", &[("class", "2xx")][..], 1.0),
        ("tollgate_request_duration_seconds_count", &[("listener", "main")], 1.0),
        ("tollgate_request_duration_seconds_bucket", &[("le", "+Inf")], 1.0),
        ("tollgate_body_bytes_total", &[("direction", "request")], 5.0),
        ("tollgate_body_bytes_total", &[("direction", "response")], 2.0),
        ("tollgate_upstream_responses_total", &[("cluster", "web"), ("class", "2xx")], 1.0),
        ("tollgate_upstream_response_seconds_count", &[("cluster", "web")], 1.0),
        ("tollgate_cluster_connects_total", &[("cluster", "web")], 1.0),
        ("wasmcustom_authz_allowed_total", &[], 1.0),
        ("tollgate_requests_active", &[], 0.0),
    ] {
        assert_eq!(after.sum(name, labels) - before.sum(name, labels), more, "{name} {labels:?}");
    }
    assert_eq!(after.sum("tollgate_filter_instances", &[("filter", "access")]), 2.0, "one per worker");
}

#[test]
fn metrics_are_compressed_when_accepted() {
    let proxy = Proxy::start(Config::new().top("admin: {address: '@admin@', probes: {address: '@probes@'}}"));
    for listener in ["admin", "probes"] {
        let ask = |encoding| {
            let fields = [("Host", "localhost"), ("Accept-Encoding", encoding)];
            proxy.ask_admin(listener, "GET", "/metrics", &fields, "")
        };
        let (plain, packed) = (ask("identity"), ask("deflate, gzip;q=0.5"));
        assert_eq!((plain.field("content-encoding"), packed.field("content-encoding")), (None, Some("gzip")));
        assert_eq!(packed.field("content-type"), plain.field("content-type"));
        assert_eq!(packed.field("vary"), Some("accept-encoding"));
        assert!(packed.body.len() * 3 < plain.body.len(), "{} of {}", packed.body.len(), plain.body.len());
        let mut text = String::new();
        GzDecoder::new(&*packed.body).read_to_string(&mut text).expect("gzip");
        assert!(text.contains("tollgate_requests_total"));
    }
}

#[test]
fn unusual_names_make_valid_metrics() {
    let name = "a \\\"quoted\\\" \\\\ name";
    let proxy = Proxy::start(format!(
        "listeners: [{{name: \"{name}\", address: '@main@', cluster: \"{name}\"}}]\nclusters: [{{name: \"{name}\"}}]"
    ));
    assert_eq!(proxy.get("/").status(), 503);
    let read = "a \"quoted\" \\ name";
    proxy.wait_for_metric("tollgate_requests_total", &[("listener", read), ("class", "5xx")], 1.0);
    assert_eq!(proxy.config()["config"]["clusters"][0]["name"], read);
}

#[test]
fn in_flight_requests_are_counted() {
    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to(&upstream));
    let mut clients: Vec<_> = (0..3).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(|client| client.send_request("GET", "/", &[], b""));
    upstream.wait_for_requests(3);
    let active = |proxy: &Proxy| proxy.metrics().sum("tollgate_requests_active", &[("listener", "main")]);
    assert_eq!(active(&proxy), 3.0);
    clients.clear();
    proxy.wait_for_zero("tollgate_requests_active", &[("listener", "main")]);
}

#[test]
fn config_shows_the_running_configuration() {
    let upstream = Upstream::saying("ok");
    let mut proxy = Proxy::start(Config::to(&upstream));
    let first = proxy.config();
    assert_eq!((&first["version"], &first["last_attempt"]["result"]), (&1.into(), &"applied".into()));
    assert_eq!(first["config"]["listeners"][0]["name"], "main");
    assert_eq!(first["config"]["listeners"][0]["limits"]["headers"], 200, "defaults are filled in");
    proxy.change_config(Config::to(&upstream).listener("via: other"));
    let second = proxy.config();
    assert_eq!(second["version"], 2);
    assert_ne!(second["hash"], first["hash"]);
    assert_eq!(second["config"]["listeners"][0]["via"], "other");
    proxy.change_config(Config::to(&upstream));
    assert_eq!(proxy.config()["hash"], first["hash"], "the same configuration has the same hash");
    assert_eq!(proxy.metrics().sum("tollgate_config_version", &[]), 3.0);
}

#[test]
fn filters_lists_the_running_filters() {
    let proxy = Proxy::start(Config::new().filter("access", "builtin:authz", "config: {policies: []}"));
    proxy.get("/");
    let filter = proxy.filter("access");
    assert_eq!((&filter["state"], &filter["instances"]), (&"ready".into(), &2.into()));
    assert_eq!((&filter["wasm"], &filter["traps"]), (&"builtin:authz".into(), &0.into()));
    assert!(filter["memory_bytes"].as_u64() > Some(0) && filter["calls"].as_u64() > Some(0), "{filter}");
    let module = tollgate::builtins::module("authz").expect("a built-in filter");
    assert_eq!(filter["hash"], tollgate::digest::sha256_hex(module));
}

#[test]
fn reload_applies_or_reports_the_errors() {
    let upstream = Upstream::saying("ok");
    let mut proxy = Proxy::start(Config::to(&upstream));
    let (status, response) = proxy.reload();
    assert_eq!((status, &response["result"]), (200, &"unchanged".into()));

    proxy.put_config(Config::to(&upstream).listener("no_such_option: 1"));
    let (status, response) = proxy.reload();
    assert_eq!((status, &response["result"]), (422, &"refused".into()));
    assert!(response["errors"].to_string().contains("no_such_option"), "{response}");
    assert_eq!((proxy.version(), proxy.get("/").status()), (1, 200), "the old configuration keeps running");
    assert_eq!(proxy.config()["last_attempt"]["result"], "refused");
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("tollgate_config_last_reload_successful", &[]), 0.0);
    assert!(metrics.sum("tollgate_config_reloads_total", &[("result", "refused")]) >= 1.0);
    proxy.wait_for_output("no_such_option");

    proxy.change_config(Config::to(&upstream).listener("via: new"));
    assert_eq!(proxy.get("/").field("via"), Some("1.1 new"));
    assert_eq!(proxy.metrics().sum("tollgate_config_last_reload_successful", &[]), 1.0);
}

#[test]
fn the_log_level_can_be_changed() {
    let proxy = Proxy::start(Config::to(Upstream::refusing()));
    assert_eq!(proxy.admin("GET", "/log", "").text(), "info\n");
    proxy.get("/quiet");
    assert!(!proxy.output().contains("no response"), "{}", proxy.output());
    assert_eq!(proxy.admin("POST", "/log", "debug").status(), 200);
    assert_eq!(proxy.admin("GET", "/log", "").text(), "debug\n");
    proxy.get("/loud");
    proxy.wait_for_output("no response");
    let wrong = proxy.admin("POST", "/log", "infro");
    assert_eq!(wrong.status(), 400);
    assert!(wrong.text().contains("info"), "it suggests the nearest level: {}", wrong.text());
    assert_eq!(proxy.admin("GET", "/log", "").text(), "debug\n");
}

#[test]
fn fields_that_need_a_restart_are_logged() {
    let mut proxy = Proxy::start(Config::new());
    proxy.change_config(Config::new().top("workers: 3\nadmin: {address: '@elsewhere@'}"));
    proxy.wait_for_output("`workers` has changed; the change takes effect after a restart");
    proxy.wait_for_output("`admin` has changed; the change takes effect after a restart");
    assert!(proxy.is_ready(), "the admin listener keeps its address");
}

/// A web page that an operator has open can neither read from the admin listener nor change anything.
#[test]
fn requests_from_web_pages_are_rejected() {
    let proxy = Proxy::start(Config::new().top("admin: {address: '@admin@', hosts: [admin.example]}"));
    let ask = |method: &str, path: &str, fields: &[(&str, &str)], body: &str| {
        proxy.ask_admin("admin", method, path, fields, body).status()
    };
    let (ours, named) = (("Host", "127.0.0.1:9901"), ("Host", "admin.example"));
    for path in ["/", "/config", "/filters", "/clusters", "/metrics", "/live", "/ready", "/log"] {
        assert_eq!(ask("GET", path, &[("Host", "attacker.example")], ""), 403, "{path}");
        assert_eq!((ask("GET", path, &[ours], ""), ask("GET", path, &[named], "")), (200, 200), "{path}");
    }
    assert_eq!(ask("POST", "/log", &[("Host", "attacker.example")], "off"), 403);
    for foreign in [("Origin", "http://attacker.example"), ("Origin", "null"), ("Sec-Fetch-Site", "cross-site")] {
        assert_eq!(ask("POST", "/log", &[ours, foreign], "off"), 403, "{foreign:?}");
        assert_eq!(ask("POST", "/reload", &[ours, foreign], ""), 403, "{foreign:?}");
    }
    assert_eq!(proxy.admin("GET", "/log", "").text(), "info\n");
    assert_eq!(ask("POST", "/log", &[ours, ("Origin", "http://127.0.0.1:9901")], "info"), 200);
}

#[test]
fn values_of_environment_variables_are_not_shown() {
    // A variable that is set everywhere.
    let secret = std::env::var("PATH").expect("a path");
    let upstream = Upstream::saying("ok");
    let config = Config::to(&upstream).routes("{respond: {status: 200, headers: {x-secret: 'a ${PATH}'}}}");
    let proxy = Proxy::start(config.listener("via: ${NONE_SUCH:-edge}"));
    assert_eq!(proxy.get("/").field("x-secret"), Some(&*format!("a {secret}")));
    let shown = proxy.admin("GET", "/config", "");
    assert!(!shown.text().contains(&secret), "{}", shown.text());
    let config = &proxy.config()["config"];
    let route = &config["filters"][0]["config"]["routes"][0];
    assert_eq!(route["respond"]["headers"]["x-secret"], "a ${PATH}");
    assert_eq!(config["listeners"][0]["via"], "${NONE_SUCH:-edge}");
}

/// The docs recommend exposing this listener to the network.
#[test]
fn the_probes_listener_serves_probes_and_metrics_only() {
    let proxy = Proxy::start(Config::new().top("admin: {address: '@admin@', probes: {address: '@probes@'}}"));
    let ask = |method: &str, path: &str| proxy.ask_admin("probes", method, path, &[("Host", "10.0.0.7:9902")], "");
    assert_eq!((ask("GET", "/live").text(), ask("GET", "/ready").text()), ("live\n", "ready\n"));
    assert_eq!(ask("HEAD", "/ready").status(), 200);
    assert!(ask("GET", "/metrics").text().contains("tollgate_config_version 1"));
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/filters"),
        ("GET", "/clusters"),
        ("GET", "/log"),
        ("POST", "/log"),
        ("POST", "/reload"),
        ("GET", "/ca/root"),
        ("POST", "/ca/sign"),
        ("POST", "/live"),
    ] {
        assert_eq!(ask(method, path).status(), 404, "{method} {path}");
    }
    // Also without an admin listener.
    let proxy = Proxy::try_start(
        "admin: {address: '@admin@', enabled: false, probes: {address: '@admin@'}}\nlisteners: [{name: a, address: '@main@'}]",
        &[],
    );
    assert_eq!(proxy.expect("it runs").ask_admin("admin", "GET", "/ready", &[], "").status(), 200);
}

/// Web pages and other local users do not have the token; the probes listener needs none.
#[test]
fn a_token_is_required_and_a_new_one_applies_immediately() {
    let admin = "admin: {address: '@admin@', token_file: token, probes: {address: '@probes@'}}\nworkers: 1\n";
    let config = format!("{admin}listeners: [{{name: main, address: '@main@'}}]\n");
    let (first, second) = ("a-token-that-is-long", "another-one-that-is-long");
    let mut proxy = Proxy::begin(config, &[("token", first.as_bytes())]);
    let asked = |proxy: &Proxy, token: Option<&str>, method: &str, path: &str| {
        let value = token.map(|token| format!("Bearer {token}"));
        let fields: Vec<_> = value.iter().map(|value| ("Authorization", value.as_str())).collect();
        proxy.ask_admin("admin", method, path, &[&[("Host", "localhost")][..], &fields].concat(), "")
    };
    proxy.wait_for_ready_line();
    let paths = ["/", "/live", "/ready", "/metrics", "/config", "/filters", "/clusters", "/log", "/none"];
    let changes = ["/reload", "/log", "/yield"].map(|path| ("POST", path));
    for (method, path) in paths.map(|path| ("GET", path)).into_iter().chain(changes) {
        for wrong in [None, Some(""), Some(second), Some("a-token-that-is-lon")] {
            let answer = asked(&proxy, wrong, method, path);
            assert_eq!((answer.status(), answer.field("www-authenticate")), (401, Some("Bearer")), "{path} {wrong:?}");
        }
    }
    assert_eq!(asked(&proxy, None, "GET", "/ca/root").status(), 404, "the CA has its own tokens");
    assert_eq!(asked(&proxy, Some(first), "GET", "/config").status(), 200);
    assert!(!asked(&proxy, Some(first), "GET", "/config").text().contains(first));
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(proxy.ask_admin("probes", "GET", path, &[("Host", "localhost")], "").status(), 200);
    }
    proxy.put("token", second);
    assert_eq!(asked(&proxy, Some(first), "GET", "/live").status(), 401);
    assert_eq!(asked(&proxy, Some(second), "GET", "/live").status(), 200);
    proxy.put("token", "");
    assert_eq!(asked(&proxy, Some(second), "GET", "/live").status(), 503);
    proxy.wait_for_output("cannot use the admin listener's token");
    // A successor presents the token to take over the address.
    proxy.put("token", second);
    let successor = proxy.beside(&["--replace", &proxy.pid().to_string()]);
    successor.wait_for_output("admin listener on");
    assert_eq!(asked(&successor, Some(second), "GET", "/live").status(), 200);
    proxy.wait_exit();
}

#[test]
fn a_missing_or_weak_token_prevents_the_start() {
    let config = "admin: {address: '@admin@', token_file: token}\nlisteners: [{name: main, address: '@main@'}]";
    for (files, why) in [(&[][..], "cannot be read"), (&[("token", &b"short"[..])][..], "can be guessed")] {
        let output = Proxy::try_start(config, files).map(|_| ()).expect_err("it does not start");
        assert!(output.contains("no usable token for the admin listener") && output.contains(why), "{output}");
    }
}

#[test]
fn listeners_of_a_rejected_config_leave_no_metrics() {
    let upstream = Upstream::saying("ok");
    let mut proxy = Proxy::start(Config::to(&upstream));
    let more = "\nlisteners: [{name: main, address: '@main@'}, {name: ghost, address: '@ghost@', access_log: {to: /no/such/place}}]\n\
                clusters: [{name: phantom, endpoints: [{address: '127.0.0.1:1'}]}]\n";
    proxy.put_config(more);
    assert_eq!(proxy.reload().0, 422);
    let shown = proxy.admin("GET", "/metrics", "");
    assert!(!shown.text().contains("ghost") && !shown.text().contains("phantom"), "{}", shown.text());
}
