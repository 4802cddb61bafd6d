//! gRPC with Python's `grpcio`, which uses the C++ library, on both sides.

use std::path::{Path, PathBuf};

use super::{four_filters, needs};
use crate::harness::{
    Config, Proxy, Upstream,
    peer::{Peer, script, tool},
    pki::Authority,
    wait_until,
};

/// The calls that must work over any path.
const CASES: [&str; 9] = ["unary", "streams", "bidi", "metadata", "errors", "deadline", "large", "many", "keepalive"];

/// Python for the client, and a server. `None` if Python is missing.
fn server() -> Option<(PathBuf, Peer)> {
    let python = tool("python")?;
    let server = Peer::server(&python, "grpc_server", &[]);
    Some((python, server))
}

fn run(python: &Path, proxy: &Proxy, cases: &[&str]) {
    let address = proxy.address("main").to_string();
    script(python, "grpc_client", &[&[&*address], cases].concat()).well();
}

#[test]
fn calls_of_all_kinds_pass() {
    let Some((python, server)) = server() else { return };
    let proxy = Proxy::start(Config::to_with(server.address, "protocol: h2"));
    run(&python, &proxy, &CASES);
    assert_eq!(proxy.entry_for("/test.Echo/Unary").expect(200, "")["protocol"], "HTTP/2");
}

#[test]
fn a_cancellation_reaches_the_server() {
    let Some((python, server)) = server() else { return };
    let proxy = Proxy::start(Config::to_with(server.address, "protocol: h2"));
    run(&python, &proxy, &["deadline", "cancel"]);
    for call in ["deadline", "unary", "stream", "gone"] {
        server.wait_for(&format!("over {call}"));
    }
}

#[test]
fn calls_pass_over_tls_on_both_sides() {
    let python = needs!("python");
    let authority = Authority::with(&["web.test"]);
    let (ca, pair) = (authority.path("ca.pem"), [authority.path("web.test.pem"), authority.path("web.test.key")]);
    let server = Peer::server(&python, "grpc_server", &[&pair[0], &pair[1]]);
    for protocol in ["h2", "auto"] {
        let cluster = format!("protocol: {protocol}\ntls: {{sni: web.test, ca: [{ca}]}}");
        let config = Config::to_with(server.address, &cluster).listener(&authority.tls(&["web.test"], ""));
        let proxy = Proxy::start(config);
        let address = proxy.address("main").to_string();
        script(&python, "grpc_client", &[&[&*address, "--ca", &ca], &CASES[..]].concat()).well();
    }
}

#[test]
fn calls_pass_through_four_filters() {
    let Some((python, server)) = server() else { return };
    let proxy = Proxy::start(four_filters(Config::new().cluster("web", &[server.address], "protocol: h2")));
    run(&python, &proxy, &CASES);
}

#[test]
fn a_missing_server_is_unavailable() {
    let python = needs!("python");
    let proxy = Proxy::start(Config::to_with(Upstream::refusing(), "protocol: h2"));
    run(&python, &proxy, &["unavailable"]);
}

#[test]
fn a_status_can_be_retried() {
    let Some((python, server)) = server() else { return };
    let retry = "protocol: h2\nretry: {on: [grpc_unavailable], attempts: 2}";
    let proxy = Proxy::start(Config::to_with(server.address, retry));
    run(&python, &proxy, &["retried"]);
    assert_eq!(proxy.entry_for("/test.Echo/FailOnce")["attempts"], 2);
}

#[test]
fn health_checks_use_the_grpc_protocol() {
    let python = needs!("python");
    let mut servers = [Peer::server(&python, "grpc_server", &[]), Peer::server(&python, "grpc_server", &[])];
    let check = "
        protocol: h2
        health_check:
          check: {grpc: {}}
          interval: 100ms
          unhealthy_threshold: 1
          healthy_threshold: 1
        balancer: {panic_threshold: 0}";
    let addresses = [servers[0].address, servers[1].address];
    let config = Config::new().listener("cluster: web").cluster("web", &addresses, check);
    let proxy = Proxy::start(config);
    let healthy = || proxy.metrics().sum("tollgate_cluster_endpoints_healthy", &[("cluster", "web")]);
    wait_until("both to be healthy", || healthy() == 2.0);
    servers[0].tell("NOT_SERVING\n");
    servers[0].wait_for("health NOT_SERVING");
    wait_until("one to be found unhealthy", || healthy() == 1.0);
    let before = proxy.entries().len();
    run(&python, &proxy, &["unary", "unary", "unary"]);
    wait_until("nine lines", || proxy.entries().len() == before + 9);
    let other = servers[1].address.to_string();
    assert!(proxy.entries()[before..].iter().all(|entry| entry["endpoint"] == *other));
    servers[0].tell("SERVING\n");
    wait_until("both to be healthy", || healthy() == 2.0);
}

/// Filters and the configuration change during streams; all of them continue.
#[test]
fn streams_survive_filter_changes() {
    let Some((python, server)) = server() else { return };
    let config = |via: &str| {
        let config = Config::new().listener(&format!("via: '{via}'"));
        four_filters(config.cluster("web", &[server.address], "protocol: h2"))
    };
    let mut proxy = Proxy::start(config("first"));
    let mut client = Peer::script(&python, "grpc_client", &[&proxy.address("main").to_string(), "load"]);
    client.wait_for("begun");
    for n in 0..6 {
        let done = proxy.entries().len();
        proxy.change_config(config(&format!("number-{n}")));
        wait_until("further calls", || proxy.entries().len() > done + 10);
    }
    client.finish();
    let failed =
        ["4xx", "5xx", "none"].map(|class| proxy.metrics().sum("tollgate_requests_total", &[("class", class)]));
    assert_eq!(failed, [0.0; 3]);
}
