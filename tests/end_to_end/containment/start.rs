//! Filters that fail before there is a request: the proxy does not start with them, and says why.

use crate::{
    guest,
    harness::{Config, Proxy, Upstream, wasm},
};

/// What a proxy says that does not start with this filter.
fn refused(module: &[u8], options: &str, reason: &str) {
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).filter("bad", "bad.wasm", options);
    match Proxy::try_start(config, &[("bad.wasm", module)]) {
        Ok(_) => panic!("it has started"),
        Err(said) => {
            assert!(said.contains(reason), "{said}");
            assert!(said.contains("config.yaml:1"), "it says where: {said}");
            assert!(!said.contains("panicked"), "{said}");
        }
    }
}

fn configuring(code: &str) -> Vec<u8> {
    guest::filter(&format!(
        r#"(func $recurse (param i32) (result i32) (i32.add (i32.const 1) (call $recurse (local.get 0))))
        (func (export "proxy_on_configure") (param i32 i32) (result i32) {code} (i32.const 1))"#
    ))
}

#[test]
fn a_trap_while_it_is_configured() {
    refused(
        &configuring("unreachable"),
        "config: {some: thing}",
        "filter `bad` cannot be set up: it failed in `proxy_on_configure`: wasm trap: wasm `unreachable`",
    );
}

#[test]
fn configuring_without_end() {
    let module = configuring("(loop $forever (br $forever))");
    refused(
        &module,
        "limits: {call_time: 5ms}",
        "it failed in `proxy_on_configure`: it took longer than 20 times its `call_time`",
    );
}

#[test]
fn recursion_without_end() {
    let module = configuring("(drop (call $recurse (i32.const 0)))");
    refused(&module, "", "it failed in `proxy_on_configure`: it used up its stack");
}

#[test]
fn a_trap_at_every_other_beginning() {
    let export = |name: &str, params: &str, result: &str| {
        guest::filter(&format!("(func (export \"{name}\") {params} {result} unreachable)"))
    };
    let ask = ("(param i32 i32)", "(result i32)");
    refused(&export("_initialize", "", ""), "", "it failed in `_initialize`: wasm trap");
    refused(&export("_start", "", ""), "", "it failed in `_start`: wasm trap");
    refused(&export("proxy_on_vm_start", ask.0, ask.1), "", "it failed in `proxy_on_vm_start`: wasm trap");
    refused(&export("proxy_on_context_create", ask.0, ""), "", "it failed in `proxy_on_context_create`: wasm trap");
    refused(&guest::filter("(func $s unreachable) (start $s)"), "", "it failed in `start`: wasm trap");
}

#[test]
fn a_start_without_end() {
    let module = guest::filter("(func $s (loop $forever (br $forever))) (start $s)");
    refused(&module, "limits: {call_time: 5ms}", "it failed in `start`: it took longer than 20 times its `call_time`");
}

#[test]
fn more_memory_than_it_may_have() {
    let module = guest::filter("");
    refused(&module, "limits: {memory: 64KiB}", "memory");
}

#[test]
fn a_table_larger_than_any() {
    refused(&guest::filter("(table 1000000000 funcref)"), "", "table");
}

#[test]
fn data_outside_of_its_memory() {
    refused(&guest::filter("(data (i32.const -1) \"x\")"), "", "out of bounds");
}

#[test]
fn callbacks_of_wrong_types() {
    let module = guest::filter(r#"(func (export "proxy_on_log") (param i64))"#);
    refused(&module, "", "exports `proxy_on_log` with a wrong type; it must be `proxy_on_log(context: i32)`");
}

#[test]
fn an_allocator_of_a_wrong_type() {
    let module = guest::filter(r#"(func (export "malloc") (param i64) (result i32) (i32.const 0))"#);
    refused(&module, "", "malloc");
}

#[test]
fn a_memory_that_is_imported() {
    let module = wasm::from_text(
        r#"(module (import "env" "memory" (memory 1)) (export "memory" (memory 0))
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) (i32.const 0)))"#,
    );
    refused(&module, "", "`env.memory`");
}

#[test]
fn no_memory_and_no_allocator() {
    let module = |code: &str| wasm::from_text(&format!("(module (func (export \"proxy_abi_version_0_2_1\")) {code})"));
    let allocator = r#"(func (export "malloc") (param i32) (result i32) (i32.const 0))"#;
    refused(&module(allocator), "", "bad.wasm exports no `memory`");
    refused(&module("(memory (export \"memory\") 1)"), "", "bad.wasm exports neither `malloc` nor");
}
