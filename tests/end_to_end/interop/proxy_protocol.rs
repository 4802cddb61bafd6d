//! HAProxy and nginx in front, which report the client's address by the PROXY protocol.

use tempfile::TempDir;

use super::{needs, servers};
use crate::harness::{Config, H2, Proxy, Upstream, Wire, answer, peer::Peer, reserve};

fn upstream() -> Upstream {
    Upstream::replying(|request| answer(200, &[], request.field("x-forwarded-for").unwrap_or("nobody")))
}

fn proxy(upstream: &Upstream) -> Proxy {
    Proxy::start(Config::to(upstream).listener("proxy_protocol: {trusted: [127.0.0.0/8]}"))
}

/// Sends a request from an address that differs from the intermediary's.
fn asks_from_elsewhere(address: std::net::SocketAddr) -> String {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let from: std::net::SocketAddr = "127.0.0.9:0".parse().unwrap();
    socket.bind(&from.into()).expect("an address of the loopback");
    socket.connect(&address.into()).expect("it accepts connections");
    let mut wire = Wire::new(socket.into());
    wire.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").expect("it reads");
    wire.read_response("GET").expect("a response").text().to_owned()
}

#[test]
fn haproxy_sends_both_versions_of_the_header() {
    let haproxy = needs!("haproxy");
    let upstream = upstream();
    for option in ["send-proxy", "send-proxy-v2", "send-proxy-v2 check inter 100ms"] {
        let proxy = proxy(&upstream);
        let dir = TempDir::new().expect("a folder");
        let file = dir.path().join("haproxy.cfg");
        let address = reserve();
        let config = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
             listen main\n bind {address}\n server tollgate {} {option}\n",
            proxy.address("main")
        );
        std::fs::write(&file, config).expect("a file can be written");
        let front = Peer::serve_at(address, &haproxy, &["-db", "-f", file.to_str().expect("a path")]);
        assert_eq!(asks_from_elsewhere(front.address), "127.0.0.9", "{option}");
        let entry = proxy.entry(|entry| entry["status"] == 200);
        assert_eq!(entry["client"].as_str().map(|c| c.starts_with("127.0.0.9")), Some(true), "{entry}");
        // Also with HTTP/2 behind it.
        let mut client = H2::connect(front.address);
        assert_eq!(client.get("/").text(), "127.0.0.1", "{option}");
    }
    // Without the header, connections that must have it are rejected.
    let proxy = proxy(&upstream);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(client.wire.is_closed());
    proxy.refused_one("proxy_protocol");
}

#[test]
fn nginx_sends_the_header_from_its_stream_module() {
    let program = needs!("nginx");
    let upstream = upstream();
    let (proxy, dir) = (proxy(&upstream), TempDir::new().expect("a folder"));
    let stream = format!(
        "stream {{ server {{ listen {{address}}; proxy_pass {}; proxy_protocol on; }} }}",
        proxy.address("main")
    );
    let Some(front) = servers::nginx_stream(&program, dir.path(), &stream) else { return };
    assert_eq!(asks_from_elsewhere(front.address), "127.0.0.9");
}

/// The reverse: the proxy sends the header to nginx.
#[test]
fn nginx_reads_the_proxys_header() {
    let program = needs!("nginx");
    for version in ["v1", "v2"] {
        let dir = TempDir::new().expect("a folder");
        let server = "listen {address} proxy_protocol; location / { return 200 $proxy_protocol_addr; }";
        // nginx must not be probed before: a connection without the header is an error to it.
        let back = servers::nginx(&program, dir.path(), "", server);
        let proxy = Proxy::start(Config::to_with(back.address, &format!("proxy_protocol: {version}")));
        assert_eq!(asks_from_elsewhere(proxy.address("main")), "127.0.0.9", "{version}");
    }
}
