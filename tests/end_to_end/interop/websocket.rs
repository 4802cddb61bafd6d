//! WebSockets, with the Python library `websockets`, and over HTTP/2 with `h2`.

use std::path::PathBuf;

use crate::harness::{
    Config, Proxy, Signal,
    peer::{Peer, script, tool},
    pki::Authority,
};

const CASES: [&str; 5] = ["echo", "handshake", "pings", "closes", "breaks"];

/// Python for the client, a server, and a proxy in front of it with these options of its listener. `None` if Python is
/// missing.
fn start(listener: &str) -> Option<(PathBuf, Peer, Proxy)> {
    let python = tool("python")?;
    let server = Peer::server(&python, "websocket_server", &[]);
    let proxy = Proxy::start(Config::to(server.address).listener(listener));
    Some((python, server, proxy))
}

fn url(proxy: &Proxy, scheme: &str) -> String {
    format!("{scheme}://{}/chat?room=1", proxy.address("main"))
}

#[test]
fn websockets_over_http1() {
    let Some((python, _server, proxy)) = start("") else { return };
    script(&python, "websocket_client", &[&[&*url(&proxy, "ws")], &CASES[..]].concat()).well();
    assert_eq!(proxy.entry_for("/chat?room=1")["cluster"], "web");
    assert_eq!(proxy.entry_for("/chat?room=1")["status"], 101);
    proxy.wait_for_zero("tollgate_requests_active", &[("listener", "main")]);
    proxy.wait_for_zero("tollgate_tunnels_active", &[("listener", "main")]);
}

#[test]
fn websockets_over_tls() {
    let authority = Authority::with(&["web.test"]);
    let Some((python, _server, proxy)) = start(&authority.tls(&["web.test"], "")) else { return };
    let (url, ca) = (url(&proxy, "wss"), authority.path("ca.pem"));
    let args = [&[&*url, "--ca", &ca], &CASES[..]].concat();
    script(&python, "websocket_client", &args).well();
}

/// RFC 8441 on the client's side, HTTP/1.1 on the upstream's.
#[test]
fn websockets_over_http2() {
    let Some((python, _server, proxy)) = start("") else { return };
    script(&python, "websocket_over_h2", &[&proxy.address("main").to_string()]).well();
}

/// RFC 8441 between two proxies, and with the client.
#[test]
fn websockets_over_http2_to_the_upstream() {
    let Some((python, _server, inner)) = start("") else { return };
    let outer = Proxy::start(Config::to_with(inner.address("main"), "protocol: h2"));
    script(&python, "websocket_client", &[&[&*url(&outer, "ws")], &CASES[..]].concat()).well();
    script(&python, "websocket_over_h2", &[&outer.address("main").to_string()]).well();
    assert_eq!(inner.entry_for("/chat?room=1")["protocol"], "HTTP/2");
}

#[test]
fn an_idle_websocket_is_closed() {
    let Some((python, _server, proxy)) = start("timeouts: {idle: 1s}") else { return };
    script(&python, "websocket_client", &[&url(&proxy, "ws"), "idle"]).well();
    assert_eq!(proxy.entry(|e| e["status"] == 101)["flags"], "SI");
}

#[test]
fn filters_can_reject_a_websocket() {
    let Some((python, server, _)) = start("") else { return };
    let deny = "config: {policies: [{name: no-chat, action: deny, rules: [{to: [{operation: {paths: [/chat]}}]}]}]}";
    let proxy = Proxy::start(Config::to(server.address).filter("access", "builtin:authz", deny));
    script(&python, "websocket_client", &[&url(&proxy, "ws"), "refused"]).well();
}

/// On shutdown, the proxy waits for it as for any request.
#[test]
fn a_websocket_continues_while_the_proxy_drains() {
    let Some((python, _server, mut proxy)) = start("") else { return };
    let mut client = Peer::script(&python, "websocket_client", &[&url(&proxy, "ws"), "stays"]);
    client.wait_for("begun");
    proxy.signal(Signal::TERM);
    proxy.wait_for_output("stopping");
    client.finish();
    assert_eq!(proxy.wait_exit().code(), Some(0));
}
