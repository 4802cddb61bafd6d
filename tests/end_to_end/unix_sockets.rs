//! Listeners on Unix sockets.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use crate::harness::{Config, Proxy, Signal, Upstream, wait_until};

#[test]
fn a_unix_socket_file_exists_as_long_as_its_listener() {
    let upstream = Upstream::saying("ok");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.sock");
    let there = Config::to(&upstream).listener(&format!("addresses: [\"unix:{}\"]", path.display()));
    let mut proxy = Proxy::start(there.clone());
    let mut client = UnixStream::connect(&path).expect("the proxy listens");
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("the proxy reads");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    proxy.change_config(Config::to(&upstream));
    wait_until("the file to be removed", || !path.exists());
    proxy.change_config(there);
    wait_until("the file to exist", || path.exists());
    proxy.signal(Signal::TERM);
    assert!(proxy.wait_exit().success());
    assert!(!path.exists());
}

#[test]
fn a_sockets_permissions_are_changed_in_place() {
    use std::{fs, os::unix::fs::PermissionsExt};
    let upstream = Upstream::saying("ok");
    let config =
        |mode: &str| Config::to(&upstream).listener(&format!("addresses: ['unix:a.sock']\nsocket: {{mode: '{mode}'}}"));
    let mut proxy = Proxy::start(config("600"));
    let path = proxy.dir().join("a.sock");
    let mode = || fs::metadata(&path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    proxy.change_config(config("660"));
    assert_eq!(mode(), 0o660);
    proxy.wait_for_output("set to 660");
    assert!(!proxy.output().contains("takes effect after a restart"), "{}", proxy.output());
}
