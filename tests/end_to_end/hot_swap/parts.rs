//! Listeners are added and removed, clusters change, chains are reordered, all while requests are in flight.

use std::net::TcpStream;

use super::{Gate, Load, no_failures, telling};
use crate::{
    guest,
    harness::{Client, Config, Proxy, Upstream, answer, wait_until},
};

#[test]
fn listeners_are_added_and_removed() {
    let upstream = Upstream::saying("hello");
    let one = || Config::to(&upstream);
    let two = || one().beside("more", "cluster: web");
    let mut proxy = Proxy::start(one());
    let load = Load::start(&proxy, |response| response.text().to_owned());
    for _ in 0..5 {
        load.meet("hello");
        proxy.change_config(two());
        let mut kept = Client::connect(proxy.address("more"));
        assert_eq!(kept.get("/").text(), "hello");
        proxy.change_config(one());
        // Its connections are closed as soon as they are idle; new ones are refused.
        assert!(kept.wire.is_closed());
        wait_until("the socket to be closed", || TcpStream::connect(proxy.address("more")).is_err());
    }
    load.meet("hello");
    load.end();
    no_failures(&proxy);
    assert_eq!(proxy.version(), 11);
}

#[test]
fn an_in_flight_request_outlives_its_listener() {
    let gate = Gate::default();
    let shut = gate.clone();
    let upstream = Upstream::replying(move |_| {
        shut.wait();
        answer(200, &[], "slow")
    });
    let main = Upstream::saying("main");
    let one = || Config::to(&main).cluster("slow", &[&upstream], "");
    let two = || one().beside("more", "cluster: slow");
    let mut proxy = Proxy::start(two());
    let mut client = Client::connect(proxy.address("more"));
    client.send_request("GET", "/", &[], b"");
    upstream.wait_for_requests(1);
    proxy.change_config(one());
    assert_eq!(proxy.get("/").text(), "main");
    gate.open();
    assert_eq!(client.read().text(), "slow");
    assert!(client.wire.is_closed(), "its connection takes no further requests");
}

#[test]
fn a_listener_changes_its_address() {
    let upstream = Upstream::saying("hello");
    let mut proxy = Proxy::start(Config::to(&upstream));
    assert_eq!(proxy.get("/").text(), "hello");
    let moved = String::from(Config::to(&upstream)).replace("@main@", "@elsewhere@");
    proxy.change_config(moved);
    assert_eq!(Client::connect(proxy.address("elsewhere")).get("/").text(), "hello");
    wait_until("the old address to be free", || TcpStream::connect(proxy.address("main")).is_err());
}

#[test]
fn clusters_change() {
    let upstreams = [Upstream::saying("a"), Upstream::saying("b")];
    let [a, b] = &upstreams;
    let mut proxy = Proxy::start(Config::to(a));
    let load = Load::start(&proxy, |response| response.text().to_owned());
    load.meet("a");
    // Another endpoint in the same cluster.
    proxy.change_config(Config::to(b));
    load.meet("b");
    // Another cluster.
    proxy.change_config(Config::new().listener("cluster: other").cluster("other", &[a], ""));
    load.meet("a");
    // Both clusters, one of which is used.
    proxy.change_config(Config::to(b).cluster("other", &[a], "balancer: random"));
    load.meet("b");
    let before = a.requests().len();
    load.meet("b");
    assert_eq!(load.end(), ["a", "b"]);
    assert_eq!(a.requests().len(), before, "a removed endpoint receives nothing");
    no_failures(&proxy);
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("tollgate_cluster_requests_active", &[]), 0.0);
    assert!(metrics.names().any(|(_, labels)| labels.get("cluster").is_some_and(|name| name == "other")));
    proxy.change_config(Config::to(b));
    assert!(!proxy.metrics().names().any(|(_, labels)| labels.get("cluster").is_some_and(|name| name == "other")));
}

/// A filter that appends a letter to the request's `x-version`, and prepends another to the response's.
fn letter(letter: &str) -> Vec<u8> {
    guest::filter(&format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $add_header (i32.const 0) %"x-version" %"{letter}"))
            (i32.const 0))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $add_header (i32.const 2) %"x-version" %"{letter}"))
            (i32.const 0))"#
    ))
}

#[test]
fn a_chain_is_reordered() {
    let upstream = Upstream::replying(|request| answer(200, &[], request.all("x-version").join("")));
    let config = |chain: &str| {
        let all = Config::to(&upstream).filter("a", "a.wasm", "").filter("b", "b.wasm", "").filter("c", "c.wasm", "");
        String::from(all).replace("chain: [a, b, c]", &format!("chain: [{chain}]"))
    };
    let modules = ["a", "b", "c"].map(letter);
    let files: &[(&str, &[u8])] = &[("a.wasm", &modules[0]), ("b.wasm", &modules[1]), ("c.wasm", &modules[2])];
    let mut proxy = Proxy::start_with(config("a, b, c"), files);
    let load = Load::start(&proxy, |response| {
        let back: Vec<_> = response.all("x-version").into_iter().rev().collect();
        assert_eq!(back.concat(), response.text(), "the response passes the filters in reverse");
        response.text().to_owned()
    });
    load.meet("abc");
    for (chain, order) in [("c, b, a", "cba"), ("b", "b"), ("b, c", "bc"), ("a, b, c", "abc")] {
        proxy.change_config(config(chain));
        load.meet(order);
    }
    assert_eq!(load.end(), ["abc", "b", "bc", "cba"]);
    no_failures(&proxy);
}

#[test]
fn filters_of_one_module_are_distinguished() {
    let upstream = telling();
    // One module, two filters: each has its own configuration, and one is removed.
    let module = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $get_buffer (i32.const 7) (i32.const 0) (i32.const 100) (global.get $out) (global.get $out_len)))
            (drop (call $add_header (i32.const 0) %"x-version" (i32.load (global.get $out)) (i32.load (global.get $out_len))))
            (i32.const 0))"#,
    );
    let one = || Config::to(&upstream).filter("first", "f.wasm", "config: one");
    let mut proxy = Proxy::start_with(one().filter("second", "f.wasm", "config: two"), &[("f.wasm", &module)]);
    proxy.get("/");
    proxy.change_config(one());
    proxy.get("/");
    let seen: Vec<_> = upstream.requests().iter().map(|r| r.all("x-version").join("")).collect();
    assert_eq!(seen, ["onetwo", "one"]);
}
