//! WebSockets, by the Python library `websockets`, and over HTTP/2 by `h2`.

use super::needs;
use crate::harness::{
    Config, Proxy, Signal,
    peer::{Peer, script},
    pki::Authority,
};

const CASES: [&str; 5] = ["echo", "handshake", "pings", "closes", "breaks"];

fn proxy(server: &Peer, listener: &str, cluster: &str) -> Proxy {
    Proxy::start(Config::to_with(server.address, cluster).listener(listener))
}

fn url(proxy: &Proxy, scheme: &str) -> String {
    format!("{scheme}://{}/chat?room=1", proxy.address("main"))
}

#[test]
fn over_http_1() {
    let python = needs!("python");
    let server = Peer::server(&python, "websocket_server", &[]);
    let proxy = proxy(&server, "", "");
    script(&python, "websocket_client", &[&[&*url(&proxy, "ws")], &CASES[..]].concat()).well();
    let entry = proxy.entry(|entry| entry["path"] == "/chat?room=1");
    assert_eq!((&entry["status"], &entry["cluster"]), (&101.into(), &"web".into()), "{entry}");
    proxy.wait_for_zero("tollgate_requests_active", &[("listener", "main")]);
    proxy.wait_for_zero("tollgate_tunnels_active", &[("listener", "main")]);
}

#[test]
fn over_tls() {
    let python = needs!("python");
    let (server, authority) = (Peer::server(&python, "websocket_server", &[]), Authority::with(&["web.test"]));
    let proxy = proxy(&server, &authority.tls(&["web.test"], ""), "");
    let (url, ca) = (url(&proxy, "wss"), authority.path("ca.pem"));
    let args = [&[&*url, "--ca", &ca], &CASES[..]].concat();
    script(&python, "websocket_client", &args).well();
}

/// RFC 8441 on the client's side, HTTP/1.1 on the upstream's.
#[test]
fn over_http_2() {
    let python = needs!("python");
    let server = Peer::server(&python, "websocket_server", &[]);
    let proxy = proxy(&server, "", "");
    script(&python, "websocket_over_h2", &[&proxy.address("main").to_string()]).well();
}

/// RFC 8441 between two proxies, and with the client.
#[test]
fn over_http_2_to_the_upstream() {
    let python = needs!("python");
    let server = Peer::server(&python, "websocket_server", &[]);
    let inner = proxy(&server, "", "");
    let outer = Proxy::start(Config::to_with(inner.address("main"), "protocol: h2"));
    script(&python, "websocket_client", &[&[&*url(&outer, "ws")], &CASES[..]].concat()).well();
    script(&python, "websocket_over_h2", &[&outer.address("main").to_string()]).well();
    assert_eq!(inner.entry(|e| e["path"] == "/chat?room=1")["protocol"], "HTTP/2");
}

#[test]
fn an_idle_one_is_ended() {
    let python = needs!("python");
    let server = Peer::server(&python, "websocket_server", &[]);
    let proxy = proxy(&server, "timeouts: {idle: 1s}", "");
    script(&python, "websocket_client", &[&url(&proxy, "ws"), "idle"]).well();
    assert_eq!(proxy.entry(|e| e["status"] == 101)["flags"], "SI");
}

#[test]
fn filters_decide_about_it() {
    let python = needs!("python");
    let server = Peer::server(&python, "websocket_server", &[]);
    let proxy = Proxy::start(Config::to_with(server.address, "").filter(
        "access",
        "builtin:authz",
        "config: {policies: [{name: no-chat, action: deny, rules: [{to: [{operation: {paths: [/chat]}}]}]}]}",
    ));
    script(&python, "websocket_client", &[&url(&proxy, "ws"), "refused"]).well();
}

/// Ending, the proxy waits for it as for any request.
#[test]
fn it_goes_on_while_the_proxy_drains() {
    let python = needs!("python");
    let server = Peer::server(&python, "websocket_server", &[]);
    let mut proxy = proxy(&server, "", "");
    let mut client = Peer::script(&python, "websocket_client", &[&url(&proxy, "ws"), "stays"]);
    client.wait_for("begun");
    proxy.signal(Signal::TERM);
    proxy.wait_for_output("stopping");
    client.finish();
    assert_eq!(proxy.wait_exit().code(), Some(0));
}
