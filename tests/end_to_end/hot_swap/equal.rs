//! Filters that differ only in their names share an instance. They join and leave it without new instances, and each keeps
//! what belongs to its name.

use serde_json::json;

use super::{Gate, telling};
use crate::{
    guest,
    harness::{Client, Config, Proxy, Upstream, answer, wait_until},
};

/// A filter that puts its name, and the number of requests that the instance has seen as a letter from `A`, into `x-version`. A
/// request with the header `x-trap` makes it trap; `also` is code at the top level.
fn counting(also: &str) -> Vec<u8> {
    guest::filter(&format!(
        r#"(global $count (mut i32) (i32.const 64))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $len i32)
            (if (call $has (i32.const 0) %"x-trap") (then unreachable))
            (global.set $count (i32.add (global.get $count) (i32.const 1)))
            (drop (call $get_property %"plugin_name" (global.get $out) (global.get $out_len)))
            (local.set $len (i32.load (global.get $out_len)))
            (memory.copy (i32.const 8192) (i32.load (global.get $out)) (local.get $len))
            (i32.store8 (i32.add (i32.const 8192) (local.get $len)) (global.get $count))
            (drop (call $add_header
                (i32.const 0) %"x-version" (i32.const 8192) (i32.add (local.get $len) (i32.const 1))))
            (i32.const 0))
        {also}"#
    ))
}

/// One worker, and a listener with an equal filter for each of these names.
fn config(upstream: &Upstream, names: &[&str], module: &str, options: &str) -> Config {
    let base = Config::to(upstream).top("workers: 1");
    names.iter().fold(base, |config, name| {
        let config = config.unchained(name, module, options);
        config.beside(&format!("by-{name}"), &format!("cluster: web\nchain: [{name}]"))
    })
}

/// The answer to a request through the listener of a filter.
fn through(proxy: &Proxy, name: &str) -> String {
    ask(proxy, name, &[]).1
}

fn ask(proxy: &Proxy, name: &str, fields: &[(&str, &str)]) -> (u16, String) {
    let response = Client::connect(proxy.address(&format!("by-{name}"))).request("GET", "/", fields, b"");
    (response.status(), response.text().to_owned())
}

/// A metric of a filter; of all filters if the name is empty.
fn metric(proxy: &Proxy, metric: &str, filter: &str) -> f64 {
    let labels = [("filter", filter)];
    proxy.metrics().sum(&format!("tollgate_filter_{metric}"), if filter.is_empty() { &[] } else { &labels })
}

#[test]
fn equal_filters_share_an_instance_and_come_and_go_without_new_ones() {
    let upstream = telling();
    let of = |names: &[&str]| config(&upstream, names, "count.wasm", "");
    let mut proxy = Proxy::start_with(of(&["one", "two"]), &[("count.wasm", &counting(""))]);
    assert_eq!((through(&proxy, "one"), through(&proxy, "two")), ("oneA".into(), "twoB".into()));
    // One for the worker, and a spare.
    let created = |proxy: &Proxy| metric(proxy, "instances_created_total", "");
    assert_eq!(created(&proxy), 2.0);
    assert_eq!(proxy.filter("two")["shares_vm_with"], json!(["one"]));
    let calls = |name| metric(&proxy, "calls_total", name);
    assert!(calls("one") > 0.0 && calls("one") == calls("two"), "calls are counted by name");
    let memory = metric(&proxy, "memory_bytes", "one");
    assert_eq!((memory > 0.0, metric(&proxy, "memory_bytes", "two")), (true, 0.0), "memory is counted once");
    assert_eq!((metric(&proxy, "instances", "one"), metric(&proxy, "instances", "two")), (1.0, 1.0));

    let names: Vec<_> = (0..20).map(|n| format!("more{n}")).collect();
    let many: Vec<_> = ["one", "two"].into_iter().chain(names.iter().map(String::as_str)).collect();
    proxy.change_config(of(&many));
    assert_eq!((through(&proxy, "more7"), through(&proxy, "one")), ("more7C".into(), "oneD".into()));
    assert_eq!(created(&proxy), 2.0);

    // The first one leaves, to which the memory was charged.
    proxy.change_config(of(&["two", "last"]));
    assert_eq!((through(&proxy, "two"), through(&proxy, "last")), ("twoE".into(), "lastF".into()));
    assert_eq!(metric(&proxy, "memory_bytes", ""), memory);
    assert_eq!(metric(&proxy, "memory_bytes", "two"), memory);
    assert_eq!(metric(&proxy, "instances", ""), 2.0);

    // All are other ones, and a name comes back.
    proxy.change_config(of(&["last", "one"]));
    proxy.change_config(of(&["one", "new"]));
    assert_eq!((through(&proxy, "one"), through(&proxy, "new")), ("oneG".into(), "newH".into()));
    assert_eq!(created(&proxy), 0.0, "the counts of filters that are gone are gone");

    // The first one is changed, and leaves the other alone. The memory of each is its own.
    proxy.change_config(
        of(&["new"]).unchained("one", "count.wasm", "config: x").beside("by-one", "cluster: web\nchain: [one]"),
    );
    assert_eq!((through(&proxy, "one"), through(&proxy, "new")), ("oneA".into(), "newI".into()));
    assert_eq!((metric(&proxy, "memory_bytes", "one"), metric(&proxy, "memory_bytes", "new")), (memory, memory));
}

#[test]
fn requests_of_a_filter_that_leaves_end_with_it() {
    // The filter names itself in the response as well.
    let module = counting(
        r#"(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $get_property %"plugin_name" (global.get $out) (global.get $out_len)))
            (drop (call $add_header
                (i32.const 2) %"x-by" (i32.load (global.get $out)) (i32.load (global.get $out_len))))
            (i32.const 0))"#,
    );
    let gate = Gate::default();
    let upstream = Upstream::held(&gate, "/held", |_| answer(200, &[], "ok"));
    let of = |names: &[&str]| config(&upstream, names, "count.wasm", "");
    let mut proxy = Proxy::start_with(of(&["one", "two"]), &[("count.wasm", &module)]);
    let mut held = Client::connect(proxy.address("by-one"));
    held.send_request("GET", "/held", &[], b"");
    upstream.wait_for_requests(1);
    proxy.change_config(of(&["two", "three"]));
    let by = |name| Client::connect(proxy.address(&format!("by-{name}"))).get("/").all("x-by").concat();
    assert_eq!((by("three"), by("two")), ("three".into(), "two".into()));
    gate.open();
    let response = held.read();
    assert_eq!((response.status(), response.all("x-by").concat().as_str()), (200, "one"));
    assert_eq!((by("three"), by("two")), ("three".into(), "two".into()));
}

#[test]
fn a_failure_affects_all_equal_filters_and_is_counted_for_one() {
    let upstream = telling();
    let of = |names: &[&str]| config(&upstream, names, "count.wasm", "");
    let mut proxy = Proxy::start_with(of(&["one", "two"]), &[("count.wasm", &counting(""))]);
    assert_eq!((through(&proxy, "one"), through(&proxy, "two")), ("oneA".into(), "twoB".into()));
    assert_eq!(ask(&proxy, "two", &[("x-trap", "yes")]).0, 503);
    // In the new instance, or in that for suspected clients, which they share as well.
    let (one, two) = (through(&proxy, "one"), through(&proxy, "two"));
    assert!(one == "oneA" && (two == "twoA" || two == "twoB"), "{one} {two}");
    let traps = |name| (proxy.filter(name)["traps"].clone(), proxy.filter(name)["failed_streams"].clone());
    assert_eq!((traps("one"), traps("two")), ((json!(0), json!(0)), (json!(1), json!(1))));
    assert!(proxy.filter("one")["last_error"].is_null());
    assert!(proxy.filter("two")["last_error"].as_str().is_some_and(|said| said.starts_with("trap")));
    wait_until("the instances", || metric(&proxy, "instances", "one") == metric(&proxy, "instances", "two"));

    // An instance that is created after the first filter has left is configured for another one.
    proxy.change_config(of(&["two", "three"]));
    let before = metric(&proxy, "instances_created_total", "two");
    wait_until("a new instance", || {
        assert_eq!(ask(&proxy, "three", &[("x-trap", "yes")]).0, 503);
        metric(&proxy, "instances_created_total", "two") > before
    });
    wait_until("its answer", || ask(&proxy, "three", &[]).0 == 200);
    assert!(through(&proxy, "two").starts_with("two"));
    assert!(metric(&proxy, "traps_total", "three") >= 1.0 && metric(&proxy, "traps_total", "two") == 1.0);
}

#[test]
fn each_name_has_its_own_buckets_and_settings() {
    let upstream = Upstream::saying("ok");
    let few = "config: {limits: [{name: few, requests: 1, per: 24h}]}";
    let of = |names: &[&str]| config(&upstream, names, "builtin:ratelimit", few);
    let mut proxy = Proxy::start(of(&["one", "two"]));
    let status = |proxy: &Proxy, name: &str| ask(proxy, name, &[]).0;
    assert_eq!(metric(&proxy, "instances_created_total", ""), 2.0);
    assert_eq!((status(&proxy, "one"), status(&proxy, "one"), status(&proxy, "two")), (200, 429, 200));
    assert_eq!((status(&proxy, "two"), status(&proxy, "one")), (429, 429));
    proxy.change_config(of(&["two", "three"]));
    assert_eq!((status(&proxy, "three"), status(&proxy, "two"), status(&proxy, "three")), (200, 429, 429));
    assert_eq!(metric(&proxy, "instances_created_total", "three"), 0.0);

    // `on_failure` is not part of what the instances are made of.
    let config = |one: &str, two: &str| {
        let one = Config::to(&upstream)
            .top("workers: 1")
            .unchained("one", "count.wasm", one)
            .beside("by-one", "cluster: web\nchain: [one]");
        one.unchained("two", "count.wasm", two).beside("by-two", "cluster: web\nchain: [two]")
    };
    let mut proxy = Proxy::start_with(config("", "on_failure: bypass"), &[("count.wasm", &counting(""))]);
    let trapped =
        |proxy: &Proxy| (ask(proxy, "one", &[("x-trap", "yes")]).0, ask(proxy, "two", &[("x-trap", "yes")]).0);
    assert_eq!(trapped(&proxy), (503, 200));
    proxy.change_config(config("on_failure: bypass", ""));
    assert_eq!(trapped(&proxy), (200, 503));
}

#[test]
fn filters_that_act_under_their_names_while_they_are_configured_do_not_share() {
    let upstream = telling();
    for effect in [
        "(drop (call $tick (i32.const 60000)))",
        r#"(drop (call $get_property %"plugin_name" (global.get $out) (global.get $out_len)))"#,
        r#"(drop (call $register_queue %"queue" (i32.const 24)))"#,
        r#"(drop (call $set_shared %"key" %"value" (i32.const 0)))"#,
    ] {
        let module = counting(&format!(
            r#"(func (export "proxy_on_configure") (param i32 i32) (result i32) {effect} (i32.const 1))"#
        ));
        let of = |names: &[&str]| config(&upstream, names, "count.wasm", "");
        let mut proxy = Proxy::start_with(of(&["one", "two"]), &[("count.wasm", &module)]);
        assert_eq!((through(&proxy, "one"), through(&proxy, "two")), ("oneA".into(), "twoA".into()), "{effect}");
        assert_eq!(proxy.filter("two")["shares_vm_with"], json!([]), "{effect}");
        // They keep their instances nevertheless.
        proxy.change_config(of(&["two", "one", "three"]));
        let after = (through(&proxy, "one"), through(&proxy, "two"), through(&proxy, "three"));
        assert_eq!(after, ("oneB".into(), "twoB".into(), "threeA".into()), "{effect}");
    }
}

#[test]
fn a_filter_with_a_vm_id_of_its_own_is_alone() {
    let upstream = telling();
    let config = Config::to(&upstream).top("workers: 1");
    let config = ["one", "two", "three"].iter().fold(config, |config, name| {
        let options = if *name == "three" { "vm_id: three" } else { "" };
        let config = config.unchained(name, "count.wasm", options);
        config.beside(&format!("by-{name}"), &format!("cluster: web\nchain: [{name}]"))
    });
    let proxy = Proxy::start_with(config, &[("count.wasm", &counting(""))]);
    let all = ["one", "two", "three"].map(|name| through(&proxy, name));
    assert_eq!(all, ["oneA", "twoB", "threeA"]);
}

#[test]
fn configuration_with_converted_text_is_converted_for_all() {
    let module = counting(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $get_buffer
                %configuration (i32.const 0) (i32.const 100) (global.get $out) (global.get $out_len)))
            ;; After `{"n":`.
            (if (i32.ne (i32.load8_u offset=5 (i32.load (global.get $out))) (i32.const 34))
                (then (return (i32.const 1))))
            (drop (call $config_error %"n" %"invalid type: string"))
            (i32.const 0))"#,
    );
    let upstream = telling();
    let of = |names: &[&str]| config(&upstream, names, "count.wasm", "config: {n: '${NOT_SET_ANYWHERE:-1}'}");
    let mut proxy = Proxy::start_with(of(&["one", "two"]), &[("count.wasm", &module)]);
    assert_eq!((through(&proxy, "one"), through(&proxy, "two")), ("oneA".into(), "twoB".into()));
    proxy.change_config(of(&["three"]));
    assert_eq!(through(&proxy, "three"), "threeC");
    // Further instances are configured for the one that joined.
    wait_until("a new instance", || {
        ask(&proxy, "three", &[("x-trap", "yes")]);
        metric(&proxy, "instances_created_total", "three") > 0.0
    });
    wait_until("its answer", || ask(&proxy, "three", &[]).0 == 200);
    let errors = proxy.output().lines().filter(|line| line.contains("set up")).count();
    assert_eq!(errors, 0, "{}", proxy.output());
}

#[test]
fn each_of_equal_filters_reports_an_invalid_configuration() {
    let upstream = telling();
    let config = config(&upstream, &["one", "two"], "builtin:ratelimit", "config: {limits: [{nam: x}]}");
    let Err(output) = Proxy::try_start(config, &[]) else { panic!("it must not start") };
    assert_eq!(output.matches("unknown field `nam`").count(), 2, "{output}");
}
