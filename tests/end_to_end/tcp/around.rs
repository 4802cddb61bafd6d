//! TCP listeners with TLS (terminated, originated or passed through), the PROXY protocol, and HTTP on the same port.

use std::{fs, io::Write, sync::Arc, thread};

use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::{connect, echo, echoes, logged, to_three};
use crate::{
    guest,
    harness::{
        Client, Config, Entry, Proxy, Upstream,
        pki::{SelfSigned, TLS},
        wait_for,
    },
};

/// The first bytes of a client that requests this server name.
fn client_hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client =
        ClientConnection::new(Arc::new(config), name.to_owned().try_into().expect("a name")).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a ClientHello");
    hello
}

#[test]
fn tls_is_passed_through_by_sni() {
    let upstreams = [echo(), echo(), echo()];
    let names = "tcp: {sni: [{names: [one.example], cluster: a}, {names: ['*.example'], cluster: b}]}";
    let proxy = Proxy::start(to_three(&upstreams, names).listener("cluster: c"));
    for (name, cluster) in [("one.example", "a"), ("Two.Example", "b"), ("x.y.example", "b"), ("other.test", "c")] {
        let hello = client_hello(name);
        let mut wire = connect(&proxy);
        // In pieces, as a network may deliver it.
        for piece in hello.chunks(100) {
            wire.send(piece).expect("the proxy reads");
        }
        assert_eq!(wire.read_exact(hello.len()).expect("an echo"), hello, "{name}");
        wire.finish();
        let name = name.to_lowercase();
        let entry = proxy.entry(|entry| entry["authority"] == name);
        assert_eq!((&entry["cluster"], &entry["request_bytes"]), (&cluster.into(), &hello.len().into()));
    }
    // Bytes other than TLS have no server name.
    echoes(&mut connect(&proxy), "hello");
    assert_eq!(upstreams.map(|u| u.connections()), [1, 2, 2]);
}

/// Requests go to one cluster, and everything else to another.
fn auto(web: &Upstream, raw: &Upstream) -> Config {
    Config::to(web).listener("protocol: auto\ntcp: {clusters: [{cluster: raw}]}").cluster("raw", &[raw], "")
}

#[test]
fn one_port_accepts_http_and_other_protocols() {
    let (web, raw) = (Upstream::saying("a page"), echo());
    let proxy = Proxy::start(auto(&web, &raw));
    assert_eq!(proxy.get("/").text(), "a page");
    let mut wire = connect(&proxy);
    echoes(&mut wire, "\0\x01binary");
    echoes(&mut wire, "GET / HTTP/1.1\r\n\r\n");
    assert_eq!((web.connections(), raw.connections()), (1, 1));
    assert_eq!(proxy.metrics().sum("tollgate_tcp_connections_total", &[]), 1.0);
}

/// Bytes that a server might parse as a request must not bypass the filters for requests.
#[test]
fn request_like_bytes_are_handled_as_http() {
    let (web, raw) = (Upstream::saying("a page"), echo());
    let deny = "config: {policies: [{name: p, action: deny, rules: [{to: [{operation: {paths: [/admin*]}}]}]}]}";
    let proxy = Proxy::start(auto(&web, &raw).filter("access", "builtin:authz", deny));
    for (line, status) in [
        ("GET /admin HTTP/1.1", 403),
        ("\r\nGET /admin HTTP/1.1", 403),
        (&format!("{} /admin HTTP/1.1", "M".repeat(40)), 403),
        (&format!("{} /admin HTTP/1.1", "M".repeat(300)), 403),
        ("GET  /admin HTTP/1.1", 400),
        ("GET\t/admin HTTP/1.1", 400),
        ("GET /admin http/1.1", 400),
        ("GET /admin x HTTP/1.1", 400),
        ("\nGET /admin HTTP/1.1", 400),
    ] {
        let mut client = proxy.client();
        client.send(format!("{line}\r\nHost: test\r\n\r\n"));
        assert_eq!(client.read().status(), status, "{line:?}");
    }
    assert_eq!((web.requests().len(), raw.connections()), (0, 0));
    echoes(&mut connect(&proxy), "GET key\r\n");
}

#[test]
fn auto_protocol_with_request_filters_requires_explicit_tcp_clusters() {
    let upstream = Upstream::saying("");
    let authz = |config: Config| config.filter("access", "builtin:authz", "config: {policies: []}");
    let error = Proxy::try_start(authz(Config::to(&upstream).listener("protocol: auto")), &[]).err().expect("refused");
    assert!(error.contains("with `protocol: auto`, TCP connections bypass it and go to cluster `web`"), "{error}");
    assert!(error.contains("name clusters for TCP connections under `tcp.clusters`"), "{error}");
    // Without a TCP destination, or with an explicit one.
    let nowhere = Config::new().listener("protocol: auto").cluster("web", &[&upstream], "");
    let own = Config::to(&upstream).listener("protocol: auto\ntcp: {clusters: [{cluster: web}]}");
    for config in [nowhere, own] {
        Proxy::start(authz(config));
    }
}

#[test]
fn auto_protocol_with_only_tcp_filters_is_rejected() {
    let upstream = Upstream::saying("");
    let module =
        guest::filter(r#"(func (export "proxy_on_new_connection") (param $context i32) (result i32) (i32.const 0))"#);
    let to =
        |protocol: &str| Config::to(&upstream).listener(&format!("protocol: {protocol}")).filter("f", "f.wasm", "");
    let error = Proxy::try_start(to("auto"), &[("f.wasm", &module)]).err().expect("refused");
    assert!(
        error.contains("filter `f` sees TCP connections only; with `protocol: auto`, requests bypass it"),
        "{error}"
    );
    Proxy::start_with(to("tcp"), &[("f.wasm", &module)]);
    let routed = to("auto").listener("tcp: {clusters: [{cluster: web}]}");
    let routed = routed.filter("access", "builtin:authz", "config: {policies: []}");
    Proxy::start_with(routed, &[("f.wasm", &module)]);
}

#[test]
fn an_endpoint_gets_the_client_address() {
    let upstream = echo();
    let proxy = Proxy::start(Config::to_with(&upstream, "proxy_protocol: v1").listener("protocol: tcp"));
    let mut wire = connect(&proxy);
    let (client, front) = (wire.socket().local_addr().expect("an address"), proxy.address("main"));
    let sent = format!("PROXY TCP4 {} {} {} {}\r\nx", client.ip(), front.ip(), client.port(), front.port());
    wire.send("x").expect("the proxy reads");
    assert_eq!(wire.read_exact(sent.len()).expect("an echo of all that was sent"), sent.as_bytes());
    wire.finish();
    assert_eq!(logged(&proxy)["request_bytes"], 1);
}

#[test]
fn tls_is_terminated_and_originated() {
    let (pair, upstream) = (SelfSigned::new(), echo());
    let config = Config::new()
        .listener("protocol: tcp\ncluster: inner")
        .beside("inner", &format!("protocol: tcp\ncluster: web\naccess_log: {{to: inner.log}}\n{TLS}"))
        .cluster("inner", &["@inner@"], "tls: {sni: web.test, ca: [server.pem]}")
        .cluster("web", &[&upstream], "");
    let proxy = Proxy::start_with(config, &pair.files());
    let mut wire = connect(&proxy);
    for size in [5, 50_000, 300_000] {
        let mut writing = wire.socket().try_clone().expect("a second handle");
        let text = "x".repeat(size);
        thread::scope(|scope| {
            scope.spawn(|| writing.write_all(text.as_bytes()).expect("the proxy reads"));
            assert_eq!(wire.read_exact(size).expect("an echo"), text.as_bytes());
        });
    }
    // An end is forwarded under TLS as well, and the other direction stays open.
    wire.finish();
    assert_eq!(wire.read_to_end(), b"");
    let entry = logged(&proxy).expect((), "");
    assert_eq!((&entry["cluster"], &entry["response_bytes"]), (&"inner".into(), &350_005.into()));
    let inner = wait_for("the other line", || {
        let text = fs::read_to_string(proxy.dir().join("inner.log")).ok()?;
        text.ends_with('\n').then(|| Entry(serde_json::from_str(&text).expect("JSON")).expect((), ""))
    });
    assert_eq!(inner["authority"], "web.test");
    assert_eq!((&entry["request_bytes"], &inner["request_bytes"]), (&350_005.into(), &350_005.into()));

    // A client that does not use TLS gets no connection.
    let mut plain = Client::connect(proxy.address("inner")).wire;
    let _ = plain.send("hello, is this TLS? it does not look like it at all");
    assert!(!plain.read_to_end().starts_with(b"hello"));
}
