//! Rejected configurations change nothing, are explained, and do not block later changes.

use serde_json::Value;

use super::{marked, telling, version, with_marker};
use crate::{
    guest,
    harness::{Config, Proxy, Upstream, wasm},
};

/// A proxy that gets an invalid change, and then a valid one.
fn refused(reason: &str, spoil: impl FnOnce(&mut Proxy, &Upstream)) {
    let upstream = telling();
    let mut proxy = marked(&upstream, &guest::version("v1"));
    spoil(&mut proxy, &upstream);

    let (status, said) = proxy.reload();
    assert_eq!((status, &said["result"], &said["version"]), (422, &"refused".into(), &Value::Null), "{said:#}");
    let messages: Vec<&str> = said["errors"].as_array().unwrap().iter().filter_map(|e| e["message"].as_str()).collect();
    assert!(messages.iter().any(|message| message.contains(reason)), "{messages:#?}");
    proxy.wait_for_output("the running configuration is unchanged");
    proxy.wait_for_output(reason);
    let config = proxy.config();
    assert_eq!((&config["version"], &config["last_attempt"]["result"]), (&1.into(), &"refused".into()));
    assert_eq!(config["last_attempt"]["errors"], said["errors"]);
    let metrics = proxy.metrics();
    assert!(metrics.sum("tollgate_config_reloads_total", &[("result", "refused")]) >= 1.0);
    assert_eq!(metrics.sum("tollgate_config_last_reload_successful", &[]), 0.0);
    assert_eq!(metrics.sum("tollgate_config_version", &[]), 1.0);
    assert!(proxy.is_ready());
    assert_eq!(version(&proxy.get("/")), "v1");

    proxy.put("marker.wasm", guest::version("v2"));
    proxy.change_config(with_marker(&upstream));
    assert_eq!(version(&proxy.get("/")), "v2");
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("tollgate_config_last_reload_successful", &[]), 1.0);
    assert_eq!(proxy.config()["last_attempt"]["errors"], Value::Null);
    assert_eq!(metrics.sum("tollgate_requests_total", &[("class", "2xx")]), 2.0);
    assert_eq!(metrics.sum("tollgate_requests_total", &[]), 2.0);
}

#[test]
fn a_misplaced_variable_is_named_without_its_value() {
    const SECRET: &str = env!("CARGO_MANIFEST_DIR");
    let policy = |when: &str| format!("config: {{policies: [{{name: p, action: deny, rules: [{{when: [{when}]}}]}}]}}");
    let upstream = telling();
    let mut proxy = marked(&upstream, &guest::version("v1"));
    for config in [
        Config::new().listener("cluster: '${CARGO_MANIFEST_DIR}'"),
        with_marker(&upstream).filter("more", "'${CARGO_MANIFEST_DIR}/none.wasm'", ""),
        with_marker(&upstream).filter(
            "access",
            "builtin:authz",
            &policy("{key: '${CARGO_MANIFEST_DIR}', values: [a]}"),
        ),
    ] {
        proxy.put_config(config);
        let (status, response) = proxy.reload();
        assert_eq!(status, 422, "{response:#}");
        let message = response["errors"][0]["message"].as_str().unwrap_or_default();
        assert!(message.contains("${CARGO_MANIFEST_DIR}"), "{response:#}");
        proxy.wait_for_output(message);
        for told in [response.to_string(), proxy.config().to_string(), proxy.output()] {
            assert!(!told.contains(SECRET), "{told}");
        }
    }
}

#[test]
fn invalid_configurations_are_rejected() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let too_few = "config: {limits: [{name: few, requests: 0, per: 1h}]}";
    type Change<'a> = &'a dyn Fn(Config) -> String;
    let cases: &[(&str, Change)] = &[
        ("flow", &|_| "listeners: [{name: main, address: '@main@'\n".to_owned()),
        ("`inof` is not a log level", &|good| good.top("log: {level: inof}").into()),
        ("there is no file `missing.wasm`", &|good| good.filter("more", "missing.wasm", "").into()),
        ("`makrer`", &|good| String::from(good).replace("chain: [marker]", "chain: [marker, makrer]")),
        (&format!("cannot listen on {address}"), &|good| {
            good.beside("more", &format!("address: '{address}'\ncluster: web")).into()
        }),
        ("0 is out of range: write 1 to 2147483647", &|good| good.filter("few", "builtin:ratelimit", too_few).into()),
    ];
    for (reason, change) in cases {
        refused(reason, |proxy, upstream| proxy.put_config(change(with_marker(upstream))));
    }
}

#[test]
fn invalid_modules_are_rejected() {
    let lacking = wasm::from_text(
        r#"(module
            (import "env" "proxy_launch" (func (param i32) (result i32)))
            (import "wasi_snapshot_preview1" "sock_open" (func (param i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) (i32.const 0)))"#,
    );
    let on = |callback: &str, code: &str| {
        guest::filter(&format!("(func (export \"{callback}\") (param i32 i32) (result i32) {code})"))
    };
    let cases = [
        ("is not a WebAssembly module", b"#!/bin/sh\necho hello\n".to_vec()),
        ("is not a WebAssembly module", Vec::new()),
        ("is not a Proxy-Wasm filter", wasm::from_text(r#"(module (memory (export "memory") 1))"#)),
        ("`env.proxy_launch`, `wasi_snapshot_preview1.sock_open`", lacking),
        (
            "filter `marker` cannot be set up: it returned false from `proxy_on_configure`; it logged: not on a Friday",
            on("proxy_on_configure", r#"(drop (call $log %error %"not on a Friday")) (i32.const 0)"#),
        ),
        ("it returned false from `proxy_on_vm_start`", on("proxy_on_vm_start", "(i32.const 0)")),
        ("it failed in `proxy_on_configure`: wasm trap: wasm `unreachable`", on("proxy_on_configure", "unreachable")),
        (
            "it failed in `proxy_on_configure`: it took longer than 20 times its `call_time`",
            on("proxy_on_configure", "(loop $forever (br $forever)) (i32.const 1)"),
        ),
    ];
    for (reason, module) in cases {
        refused(reason, |proxy, _| proxy.put("marker.wasm", module));
    }
    refused("there is no file `marker.wasm`", |proxy, _| {
        std::fs::remove_file(proxy.dir().join("marker.wasm")).expect("the module exists");
    });
}

/// A proxy whose new configuration is rejected because of another filter's module.
fn refused_with(before: Config, after: Config) -> Proxy {
    let mut proxy = Proxy::start_with(before, &[("bad.wasm", b"no module")]);
    proxy.put_config(after.filter("bad", "bad.wasm", ""));
    assert_eq!(proxy.reload().0, 422);
    proxy
}

#[test]
fn a_rejected_change_keeps_connection_limits() {
    let upstream = Upstream::saying("hello");
    let config = |bound: u32| Config::to(&upstream).listener(&format!("limits: {{connections: {bound}}}"));
    let proxy = refused_with(config(3), config(1));
    let mut clients = [(); 3].map(|()| proxy.client());
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 200);
    }
}

#[test]
fn a_rejected_change_keeps_filter_limits() {
    let upstream = Upstream::saying("hello");
    let config = |bound: u32| {
        let options = format!("config: {{delay: {{fixed: 1h, percent: 100}}, max_active: {bound}}}");
        Config::to(&upstream).filter("faults", "builtin:fault", &options)
    };
    let proxy = refused_with(config(1), config(100));
    let mut delayed = proxy.client();
    delayed.send_request("GET", "/delayed", &[], b"");
    proxy.wait_for_metric("tollgate_requests_active", &[("listener", "main")], 1.0);
    // Only one request is delayed at a time.
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn a_rejected_configuration_leaves_no_names_in_metrics() {
    let upstream = Upstream::saying("hello");
    let after = Config::to(&upstream).cluster("ghost", &[&upstream], "").filter("ghost", "builtin:fault", "config: {}");
    let proxy = refused_with(Config::to(&upstream), after);
    let metrics = proxy.metrics();
    let ghosts: Vec<_> = metrics.names().filter(|(_, labels)| labels.values().any(|value| value == "ghost")).collect();
    assert!(ghosts.is_empty(), "{ghosts:#?}");
}

#[test]
fn a_rejected_configuration_does_not_change_metrics() {
    // The filter increments a counter while it is configured, and rejects a configuration of three bytes.
    let module = guest::filter(
        r#"(func (export "proxy_on_configure") (param i32) (param $size i32) (result i32)
            (drop (call $define_metric (i32.const 0) %"configured" (i32.const 24)))
            (drop (call $increment_metric (i32.load (i32.const 24)) (i64.const 5)))
            (i32.ne (local.get $size) (i32.const 3)))"#,
    );
    let upstream = telling();
    let config = |config: &str| with_marker(&upstream).top("workers: 1").filter("counts", "counts.wasm", config);
    let files: [(&str, &[u8]); 2] = [("marker.wasm", &guest::version("v1")), ("counts.wasm", &module)];
    let mut proxy = Proxy::start_with(config("config: good"), &files);
    let before = proxy.metrics().sum("wasmcustom_configured", &[]);
    assert_eq!(before, 10.0, "the worker's instance, and the spare");
    proxy.put_config(config("config: bad"));
    assert_eq!(proxy.reload().0, 422);
    assert_eq!(proxy.metrics().sum("wasmcustom_configured", &[]), before);
    proxy.change_config(config("config: better"));
    assert_eq!(proxy.metrics().sum("wasmcustom_configured", &[]), 2.0 * before);
}
