//! Filters that fail before any request: the proxy does not start, and reports the reason.

use crate::{
    guest,
    harness::{Config, Proxy, Upstream, wasm},
};

/// Asserts that a proxy does not start with this filter, and reports the reason and the location.
fn refused(module: &[u8], options: &str, reason: &str) {
    let config = Config::to(Upstream::refusing()).module("bad", module, options);
    let Err(output) = Proxy::try_start(config, &[]) else { panic!("it must not start: {reason}") };
    assert!(output.contains(reason), "{output}");
    assert!(output.contains("config.yaml:1"), "it reports the location: {output}");
    assert!(!output.contains("panicked"), "{output}");
}

fn configuring(code: &str) -> Vec<u8> {
    guest::filter(&format!(
        r#"(func $recurse (param i32) (result i32) (i32.add (i32.const 1) (call $recurse (local.get 0))))
        (func (export "proxy_on_configure") (param i32 i32) (result i32) {code} (i32.const 1))"#
    ))
}

#[test]
fn failures_during_configuration_prevent_the_start() {
    let trap = "filter `bad` cannot be set up: it failed in `proxy_on_configure`: wasm trap: wasm `unreachable`";
    refused(&configuring("unreachable"), "config: {some: thing}", trap);
    let late = "it failed in `proxy_on_configure`: it took longer than 20 times its `call_time`";
    refused(&configuring("(loop $forever (br $forever))"), "limits: {call_time: 5ms}", late);
    let stack = "it failed in `proxy_on_configure`: it used up its stack";
    refused(&configuring("(drop (call $recurse (i32.const 0)))"), "", stack);
}

#[test]
fn traps_in_other_start_callbacks_prevent_the_start() {
    for (export, types) in [
        ("_initialize", ""),
        ("_start", ""),
        ("proxy_on_vm_start", "(param i32 i32) (result i32)"),
        ("proxy_on_context_create", "(param i32 i32)"),
    ] {
        let module = guest::filter(&format!("(func (export \"{export}\") {types} unreachable)"));
        refused(&module, "", &format!("it failed in `{export}`: wasm trap"));
    }
    refused(&guest::filter("(func $s unreachable) (start $s)"), "", "it failed in `start`: wasm trap");
    let endless = guest::filter("(func $s (loop $forever (br $forever))) (start $s)");
    let late = "it failed in `start`: it took longer than 20 times its `call_time`";
    refused(&endless, "limits: {call_time: 5ms}", late);
}

#[test]
fn modules_that_cannot_be_instantiated_are_rejected() {
    refused(&guest::filter(""), "limits: {memory: 64KiB}", "memory");
    refused(&guest::filter("(table 1000000000 funcref)"), "", "table");
    refused(&guest::filter("(data (i32.const -1) \"x\")"), "", "out of bounds");
}

#[test]
fn callbacks_of_wrong_types_are_rejected() {
    let log = guest::filter(r#"(func (export "proxy_on_log") (param i64))"#);
    refused(&log, "", "exports `proxy_on_log` with the wrong type; it must be `proxy_on_log(context: i32)`");
    let malloc = guest::filter(r#"(func (export "malloc") (param i64) (result i32) (i32.const 0))"#);
    refused(&malloc, "", "malloc");
}

#[test]
fn missing_memories_and_allocators_are_rejected() {
    const MEMORY: &str = r#"(memory (export "memory") 1)"#;
    const IMPORTED: &str = r#"(import "env" "memory" (memory 1)) (export "memory" (memory 0))"#;
    const ALLOCATOR: &str = r#"(func (export "malloc") (param i32) (result i32) (i32.const 0))"#;
    for (memory, allocator, reason) in [
        (IMPORTED, ALLOCATOR, "`env.memory`"),
        ("", ALLOCATOR, "bad.wasm exports no `memory`"),
        (MEMORY, "", "bad.wasm exports neither `malloc` nor"),
    ] {
        let marker = r#"(func (export "proxy_abi_version_0_2_1"))"#;
        refused(&wasm::from_text(&format!("(module {memory} {marker} {allocator})")), "", reason);
    }
}
