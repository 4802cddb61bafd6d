//! Listeners are renamed, swap addresses, and get wider and narrower addresses, while clients connect to them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
};

use super::{ANY, Load};
use crate::harness::{Client, Proxy, Upstream, not_run, reserve, wait_until};

fn config(listeners: &str, one: &Upstream, two: &Upstream) -> String {
    let clusters = format!(
        "clusters: [{{name: a, endpoints: [{{address: \"{one}\"}}]}}, {{name: b, endpoints: [{{address: \"{two}\"}}]}}]"
    );
    format!("listeners: [{listeners}]\n{clusters}\n")
}

#[test]
fn listeners_are_renamed_and_swapped_without_errors() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let with = |listeners: &str| config(listeners, &a, &b);
    let one = "{name: one, address: '@main@', cluster: a}, {name: two, address: '@other@', cluster: b}";
    let mut proxy = Proxy::start(with(one));
    let load = Load::connecting(&[proxy.address("main"), proxy.address("other")]);
    let mut idle = proxy.client();
    assert_eq!(idle.get("/").text(), "a");
    load.meet(ANY);
    // Other names.
    proxy.change_config(with(&one.replace("name: one", "name: uno").replace("name: two", "name: due")));
    load.meet(ANY);
    assert_eq!(proxy.get("/").text(), "a");
    // Swapped addresses.
    let swapped = "{name: uno, address: '@other@', cluster: a}, {name: due, address: '@main@', cluster: b}";
    proxy.change_config(with(swapped));
    load.meet(ANY);
    wait_until("the other listener to answer", || proxy.get("/").text() == "b");
    load.end();
    assert_eq!(proxy.metrics().sum("tollgate_connections_refused_total", &[]), 0.0);
    drop(idle);
}

#[test]
fn a_listeners_address_is_widened_and_narrowed_without_errors() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let narrow = config("{name: one, address: '@main@', cluster: a}", &a, &b);
    let mut proxy = Proxy::start(narrow.clone());
    let port = proxy.address("main").port();
    let wide = config(&format!("{{name: one, address: '0.0.0.0:{port}', cluster: b}}"), &a, &b);
    let load = Load::connecting(&[proxy.address("main"); 2]);
    for _ in 0..10 {
        load.meet(ANY);
        proxy.change_config(wide.clone());
        wait_until("the wide one to answer", || proxy.get("/").text() == "b");
        load.meet(ANY);
        proxy.change_config(narrow.clone());
        wait_until("the narrow one to answer", || proxy.get("/").text() == "a");
    }
    load.end();
}

/// Removed sockets wait for handshakes that have begun; the new configuration must not conflict with them.
#[test]
fn a_removed_address_can_be_added_again_immediately() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let one = "{name: one, address: '@main@', cluster: a}";
    let two = "{name: two, address: '@other@', addresses: ['unix:two.sock'], cluster: b}";
    let (alone, both) = (config(one, &a, &b), config(&format!("{one}, {two}"), &a, &b));
    let mut proxy = Proxy::start(both.clone());
    let other = proxy.address("other");
    for _ in 0..3 {
        proxy.change_config(alone.clone());
        let refused = TcpStream::connect(other).expect_err("the address is closed");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        proxy.change_config(both.clone());
        assert_eq!(Client::connect(other).get("/").text(), "b");
    }
}

#[test]
fn a_unix_socket_moves_between_listeners() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let listener = |name: &str| config(&format!("{{name: {name}, address: 'unix:one.sock', cluster: a}}"), &a, &b);
    let mut proxy = Proxy::start(listener("one"));
    proxy.change_config(listener("two"));
    let path = proxy.dir().join("one.sock");
    let mut stream = UnixStream::connect(path).expect("a listener");
    stream.write_all(b"GET / HTTP/1.0\r\nHost: test\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    assert!(text.starts_with("HTTP/1.0 200"), "{text}");
}

/// Listeners on all IPv4 addresses and on all IPv6 addresses of one port, from the start and after a reload: each gets
/// its own connections, and `[::]` gets both while it is alone.
#[test]
fn wildcard_listeners_of_both_families_coexist() {
    let (a, b) = (Upstream::saying("a"), Upstream::saying("b"));
    let reserved = reserve();
    let port = reserved.port();
    let four = format!("{{name: four, address: '0.0.0.0:{port}', cluster: a}}");
    let six = format!("{{name: six, address: '[::]:{port}', cluster: b}}");
    let both = config(&format!("{four}, {six}"), &a, &b);
    let (alone, swapped) = (config(&six, &a, &b), config(&format!("{six}, {four}"), &a, &b));
    let [v4, v6] = ["127.0.0.1", "::1"].map(|ip| SocketAddr::new(ip.parse().expect("an address"), port));
    if TcpListener::bind("[::1]:0").is_err() {
        return not_run::for_want_of("IPv6", "::1 cannot be listened on");
    }
    let get = |address| Client::connect(address).get("/").text().to_owned();
    let mut proxy = Proxy::start(both.clone());
    assert_eq!((get(v4), get(v6)), ("a".to_owned(), "b".to_owned()));
    let load = Load::connecting(&[v4, v4, v6]);
    for next in [alone, swapped, both] {
        load.meet(ANY);
        let is_alone = !next.contains("name: four");
        proxy.change_config(next);
        wait_until("IPv4 connections to reach their listener", || get(v4) == if is_alone { "b" } else { "a" });
        assert_eq!(get(v6), "b");
    }
    load.meet(ANY);
    load.end();
}
