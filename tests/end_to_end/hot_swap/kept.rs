//! What a change does not concern stays as it is: filters keep their instances with their memory.

use super::telling;
use crate::{
    guest,
    harness::{Config, Proxy, Upstream, answer},
};

/// A filter that counts the responses in its memory and writes the count into `x-count`, as letters from `A`.
fn counting() -> Vec<u8> {
    guest::filter(
        r#"(global $count (mut i32) (i32.const 64))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (global.set $count (i32.add (global.get $count) (i32.const 1)))
            (i32.store8 (i32.const 512) (global.get $count))
            (drop (call $add_header (i32.const 2) %"x-count" (i32.const 512) (i32.const 1)))
            (i32.const 0))"#,
    )
}

/// One worker, whose filter counts.
fn config(upstream: &Upstream, options: &str) -> Config {
    Config::to(upstream).top("workers: 1").filter("count", "count.wasm", options)
}

fn start(config: Config) -> Proxy {
    Proxy::start_with(config, &[("count.wasm", &counting())])
}

/// The filter's count after another request.
fn count(proxy: &Proxy) -> String {
    proxy.get("/").field("x-count").expect("the filter has seen the response").to_owned()
}

/// The number of instances that were ever created for a filter.
fn created(proxy: &Proxy, filter: &str) -> f64 {
    proxy.metrics().sum("tollgate_filter_instances_created_total", &[("filter", filter)])
}

#[test]
fn unchanged_filter_keeps_its_instances_over_changes_elsewhere() {
    let (upstream, other) = (telling(), telling());
    let one = || config(&upstream, "");
    let mut proxy = start(one());
    let before = created(&proxy, "count");
    assert_eq!(count(&proxy), "A");
    for (change, expected) in [
        (config(&other, ""), "B"),
        (one().cluster("more", &[&other], ""), "C"),
        (one().beside("more", "cluster: web"), "D"),
        (one().beside("more", "cluster: web\nchain: [count]"), "E"),
        (one().top("drain_timeout: 5s"), "F"),
        (one().listener("timeouts: {idle: 7s}"), "G"),
        (one().filter("more", "builtin:fault", ""), "H"),
        (one().filter("more", "builtin:fault", "config: {rules: []}"), "I"),
        (config(&upstream, "on_failure: bypass\nheaders_pause: hold_headers\nlimits: {call_time: 50ms}"), "J"),
        (one(), "K"),
    ] {
        let shown = String::from(change.clone());
        proxy.change_config(change);
        assert_eq!(count(&proxy), expected, "{shown}");
    }
    assert_eq!(created(&proxy, "count"), before);
}

#[test]
fn changed_filter_gets_new_instances_alone() {
    let upstream = telling();
    let two = |options: &str| config(&upstream, "").unchained("other", "count.wasm", options);
    let mut proxy = start(two("config: a"));
    assert_eq!(count(&proxy), "A");
    let kept = created(&proxy, "count");
    for change in [
        two("config: b"),
        two("config: b\nlimits: {memory: 8MiB}"),
        two("config: b\nlimits: {memory: 8MiB}\nenv: {KEY: value}"),
        two("config: b\nlimits: {memory: 8MiB}\nenv: {KEY: value}\nroot_id: r"),
        two("config: b\nlimits: {memory: 8MiB}\nenv: {KEY: value}\nroot_id: r\nvm_id: v"),
    ] {
        let before = created(&proxy, "other");
        proxy.change_config(change);
        // One for the worker, and a spare; more if the file watch has tried the change as well.
        assert!(created(&proxy, "other") >= before + 2.0);
        assert_eq!(created(&proxy, "count"), kept);
    }
    assert_eq!(count(&proxy), "B");
    // Another module for both.
    proxy.put("count.wasm", [counting(), b"\0\x02\x01x".into()].concat());
    proxy.change_config(two("config: c"));
    assert!(created(&proxy, "count") >= kept + 2.0);
    assert_eq!(count(&proxy), "A");
}

#[test]
fn settings_of_a_kept_filter_take_effect() {
    let upstream = Upstream::replying(|_| answer(200, &[], "ok"));
    let module =
        guest::filter(r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable)"#);
    let failing = |options: &str| Config::to(&upstream).top("workers: 1").module("fails", &module, options);
    let mut proxy = Proxy::start(failing("on_failure: deny"));
    assert_eq!(proxy.get("/").status(), 503);
    proxy.change_config(failing("on_failure: bypass"));
    assert_eq!(proxy.get("/").status(), 200);
    proxy.change_config(failing("on_failure: deny"));
    assert_eq!(proxy.get("/").status(), 503);
}

#[test]
fn filter_that_names_a_removed_cluster_is_asked_again() {
    let (web, api) = (Upstream::saying("web"), Upstream::saying("api"));
    let config = || Config::new().routes("{cluster: api}").cluster("web", &[&web], "");
    let mut proxy = Proxy::start(config().cluster("api", &[&api], ""));
    assert_eq!(proxy.get("/").text(), "api");
    proxy.put_config(config());
    let (status, said) = proxy.reload();
    assert_eq!(status, 422, "{said:#}");
    let error = &said["errors"][0];
    assert!(error["message"].as_str().is_some_and(|message| message.contains("`api`")), "{said:#}");
    assert!(error["line"].is_number(), "{said:#}");
    assert_eq!(proxy.get("/").text(), "api", "the running configuration is unchanged");
    proxy.change_config(config().cluster("api", &[&web], ""));
    assert_eq!(proxy.get("/").text(), "web");
}
