//! Connections: their ends, their certificates, and reloads during their lifetime.

use std::net::{SocketAddr, UdpSocket};

use serde_json::json;

use super::{Site, client::H3, code, tls};
use crate::harness::{
    Config, Proxy, Secure, Signal, Upstream, answer, peer::needs, pki::SelfSigned, reserve, turnstile, wait_until,
};

#[test]
fn reloads_under_load_lose_no_request() {
    needs!("aioquic");
    let upstream = Upstream::replying(|request| answer(200, &[], request.target()));
    let config = |n: usize| Config::to(&upstream).listener(&format!("via: 'proxy-{n}'"));
    let mut site = Site::start(config(0));
    let mut clients: Vec<H3> = (0..3).map(|_| site.connect()).collect();
    for client in &mut clients {
        (0..4).for_each(|n| client.tell(json!({ "do": "load", "id": n.to_string(), "path": "/a" })));
    }
    for n in 1..8 {
        let before = upstream.requests().len();
        upstream.wait_for_requests(before + 20);
        site.proxy.change_config(config(n).listener(&tls()));
    }
    clients.iter_mut().for_each(|client| client.tell(json!({ "do": "stop" })));
    let mut answered = 0;
    for client in &mut clients {
        for n in 0..4 {
            let end = client.end(&n.to_string());
            assert_eq!(end["others"], json!([]));
            answered += end["answered"].as_u64().expect("a number");
        }
    }
    assert_eq!(answered, upstream.requests().len() as u64);
    assert_eq!(site.proxy.metrics().sum("tollgate_connections_total", &[]), 3.0, "no connection was reopened");
}

#[test]
fn sigterm_lets_requests_finish() {
    needs!("aioquic");
    let (go, wait) = turnstile();
    let upstream = Upstream::replying(move |request| {
        if request.target() == "/slow" {
            wait();
        }
        answer(200, &[], "done")
    });
    let mut site = Site::to(&upstream, "");
    let (mut busy, mut idle) = (site.connect(), site.connect());
    assert_eq!(idle.request("a", json!({}))["status"], 200);
    busy.send("slow", json!({ "path": "/slow" }));
    upstream.wait_for_requests(2);
    site.proxy.signal(Signal::TERM);
    for client in [&mut busy, &mut idle] {
        client.wait(|said| said["goaway"].as_u64().is_some_and(|id| id > 1 << 60));
    }
    // It may have been sent before.
    assert_eq!(idle.request("b", json!({ "path": "/late" }))["status"], 200);
    assert_eq!(idle.wait(|said| said["goaway"].as_u64().is_some_and(|id| id < 1 << 60))["goaway"], 8);
    assert_eq!(idle.closed(), code::NO_ERROR);
    go.send(()).expect("the upstream is waiting");
    assert_eq!(busy.end("slow")["body"], "done");
    assert_eq!(busy.closed(), code::NO_ERROR);
    assert_eq!(site.proxy.wait_exit().code(), Some(0));
}

#[test]
fn idle_connections_and_those_at_their_request_limit_end() {
    needs!("aioquic");
    let upstream = Upstream::saying("ok");
    let site = Site::to(&upstream, "timeouts: {keep_alive: 1s}");
    let mut client = site.connect();
    assert_eq!(client.request("a", json!({}))["status"], 200);
    assert_eq!(client.closed(), code::NO_ERROR);
    // Also a connection without any request.
    assert_eq!(site.connect().closed(), code::NO_ERROR);

    let site = Site::to(&upstream, "limits: {requests_per_connection: 3, connections: 1}");
    let mut client = site.connect();
    assert!(H3::try_connect(site.proxy.address("main"), &site.proxy.dir().join("server.pem"), None).is_none());
    assert_eq!(site.proxy.metrics().sum("tollgate_connections_refused_total", &[("reason", "limit")]), 1.0);
    ["a", "b", "c"].iter().for_each(|id| assert_eq!(client.request(id, json!({}))["status"], 200));
    client.wait(|said| said["goaway"] == 12);
    assert_eq!(client.closed(), code::NO_ERROR);
}

#[test]
fn a_new_certificate_is_used_for_new_connections() {
    needs!("aioquic");
    let upstream = Upstream::saying("ok");
    let site = Site::to(&upstream, "");
    let mut old = site.connect();
    assert_eq!(old.request("a", json!({}))["status"], 200);
    let new = SelfSigned::new();
    site.proxy.put("server.key", new.key);
    site.proxy.put("server.pem", new.pem);
    wait_until("the new certificate", || site.proxy.version() > 1);
    let mut latest = site.connect();
    assert_ne!(latest.shown, old.shown);
    assert_eq!(latest.request("a", json!({}))["status"], 200);
    assert_eq!(old.request("b", json!({}))["status"], 200);
}

#[test]
fn client_certificates_are_verified() {
    needs!("aioquic");
    let upstream = Upstream::saying("ok");
    let config = Config::to(&upstream).listener(
        "
http3: true
forwarded_client_cert: set
tls:
  certificates: [{certificate: server.pem, key: server.key}]
  client_certificates: require
  client_ca: [client.pem]",
    );
    let [server, friend, stranger] = [(); 3].map(|()| SelfSigned::new());
    let mut files = server.files().to_vec();
    files.extend([("client.pem", friend.pem.as_bytes()), ("client.key", friend.key.as_bytes())]);
    files.extend([("stranger.pem", stranger.pem.as_bytes()), ("stranger.key", stranger.key.as_bytes())]);
    let proxy = Proxy::start_with(config, &files);
    let connect = |shown: Option<&str>| {
        let file = |name: &str| proxy.dir().join(name);
        let shown = shown.map(|name| (file(&format!("{name}.pem")), file(&format!("{name}.key"))));
        let shown = shown.as_ref().map(|(certificate, key)| (&**certificate, &**key));
        H3::try_connect(proxy.address("main"), &file("server.pem"), shown)
    };
    let mut client = connect(Some("client")).expect("a connection");
    assert_eq!(client.request("a", json!({}))["status"], 200);
    let told = upstream.only_request().field("x-forwarded-client-cert").expect("the field").to_owned();
    assert!(told.starts_with("Hash=") && told.ends_with(";DNS=web.test"), "{told}");
    for shown in [None, Some("stranger")] {
        // For the client, the handshake completes before the proxy has seen the client's certificate.
        if let Some(mut client) = connect(shown) {
            assert!((0x100..0x200).contains(&client.closed()), "an alert of TLS");
        }
    }
    proxy.wait_for_metric("tollgate_connections_refused_total", &[("reason", "handshake")], 2.0);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn http3_is_disabled_and_enabled_independently() {
    needs!("aioquic");
    let upstream = Upstream::saying("");
    let with = |http3: bool| Config::to(&upstream).listener(&tls().replace("true", &http3.to_string()));
    let mut site = Site::to(&upstream, "");
    let address = site.proxy.address("main");
    let is_free = || UdpSocket::bind(address).is_ok();
    let mut tcp = Secure::connect(address, &[site.pair.der()], None);
    let mut udp = site.connect();
    assert!(!is_free());
    assert_eq!((udp.request("a", json!({}))["status"].as_u64(), tcp.get("").ok()), (Some(200), Some(200)));
    site.proxy.change_config(with(false));
    assert_eq!(udp.closed(), code::NO_ERROR);
    wait_until("the socket to be closed", is_free);
    assert_eq!(tcp.get("").ok(), Some(200));
    site.proxy.change_config(with(true));
    assert!(!is_free());
    assert_eq!(site.connect().request("a", json!({}))["status"], 200);
    assert_eq!(tcp.get("").ok(), Some(200));
    assert_eq!(site.proxy.metrics().sum("tollgate_connections_total", &[]), 3.0);
}

/// Datagrams find their listener like connections do. A reload that would take them away from connections is rejected.
#[test]
fn wildcard_listeners_of_both_families_coexist() {
    needs!("aioquic");
    let (a, b) = (Upstream::saying("four"), Upstream::saying("six"));
    let reserved = reserve();
    let port = reserved.port();
    let six = format!("address: '[::]:{port}'\ncluster: six\n{}", tls());
    let four = format!("address: '0.0.0.0:{port}'\ncluster: four\n{}", tls());
    let alone = Config::new().beside("six", &six).cluster("four", &[&a], "").cluster("six", &[&b], "");
    let both = alone.clone().beside("four", &four);
    let pair = SelfSigned::new();
    let proxy = Proxy::start_with(both.clone(), &pair.files());
    let text = |proxy: &Proxy, ip: &str| {
        let address = SocketAddr::new(ip.parse().expect("an address"), port);
        let answer = H3::connect(address, &proxy.dir().join("server.pem")).request("a", json!({}));
        answer["body"].as_str().map(str::to_owned)
    };
    for _ in 0..4 {
        assert_eq!(text(&proxy, "127.0.0.1").as_deref(), Some("four"));
        assert_eq!(text(&proxy, "::1").as_deref(), Some("six"));
    }
    drop(proxy);
    let mut proxy = Proxy::start_with(alone, &pair.files());
    assert_eq!(text(&proxy, "127.0.0.1").as_deref(), Some("six"), "it gets both while it is alone");
    proxy.put_config(both);
    let (status, response) = proxy.reload();
    assert_eq!(status, 422);
    assert!(response.to_string().contains("clients' connections there would be lost"), "{response}");
}
