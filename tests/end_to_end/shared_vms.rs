//! Filters that share a VM because of their `vm_id`: one instance per worker, with a root context per filter. For those that
//! share a root context, see `hot_swap/equal.rs`.

use crate::{
    guest,
    harness::{Config, Message, Proxy, Upstream, answer, wait_until, wasm},
};

/// A filter that marks each request with its name, the root context of its stream, and the number of the instance's
/// calls for requests: `NAME/ROOT/CALLS`. A request with the header named in its configuration makes it trap.
fn counter() -> Vec<u8> {
    guest::filter(
        r#"(global $calls (mut i32) (i32.const 0))
        (func (export "proxy_on_context_create") (param $context i32) (param $parent i32)
            (i32.store8 (i32.add (i32.const 4096) (i32.and (local.get $context) (i32.const 255))) (local.get $parent)))
        (func $digit (param $at i32) (param $n i32)
            (i32.store8 (local.get $at) (i32.const 47))
            (i32.store8 (i32.add (local.get $at) (i32.const 1)) (i32.add (local.get $n) (i32.const 48))))
        (func (export "proxy_on_request_headers") (param $context i32) (param i32 i32) (result i32)
            (local $len i32)
            (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
            (drop (call $get_buffer (i32.const 7) (i32.const 0) (i32.const 100) (global.get $out) (global.get $out_len)))
            (if (call $has (i32.const 0) (i32.load (global.get $out)) (i32.load (global.get $out_len)))
                (then unreachable))
            (drop (call $get_property %"plugin_name" (global.get $out) (global.get $out_len)))
            (local.set $len (i32.load (global.get $out_len)))
            (memory.copy (i32.const 8192) (i32.load (global.get $out)) (local.get $len))
            (call $digit (i32.add (i32.const 8192) (local.get $len))
                (i32.load8_u (i32.add (i32.const 4096) (i32.and (local.get $context) (i32.const 255)))))
            (call $digit (i32.add (i32.const 8194) (local.get $len)) (global.get $calls))
            (drop (call $add_header (i32.const 0) %"x-seen" (i32.const 8192) (i32.add (local.get $len) (i32.const 4))))
            (i32.const 0))"#,
    )
}

/// Two filters with the same module, with options for each, and one worker.
fn two(upstream: &Upstream, module: &[u8], one: &str, other: &str) -> Proxy {
    try_two(Config::to(upstream), module, one, other).unwrap_or_else(|said| panic!("{said}"))
}

/// The same with this base configuration; returns the output if the proxy does not start.
fn try_two(config: Config, module: &[u8], one: &str, other: &str) -> Result<Proxy, String> {
    let config = config.top("workers: 1").filter("one", "module.wasm", one).filter("two", "module.wasm", other);
    Proxy::try_start(config, &[("module.wasm", module)])
}

/// The marks that the filters of [`counter`] put on a request.
fn seen(upstream: &Upstream, proxy: &Proxy) -> Vec<String> {
    let before = upstream.requests().len();
    assert_eq!(proxy.get("/").status(), 200);
    let request = upstream.wait_for_requests(before + 1).pop().expect("a request");
    request.all("x-seen").iter().map(ToString::to_string).collect()
}

#[test]
fn equal_vm_id_code_and_configuration_share_a_vm() {
    let upstream = Upstream::saying("hello");
    let shared = "vm_id: together\nvm_config: {a: 1}";
    let proxy = two(&upstream, &counter(), &format!("{shared}\nconfig: x-a"), &format!("{shared}\nconfig: x-b"));
    assert_eq!(seen(&upstream, &proxy), ["one/1/1", "two/2/2"]);
    assert_eq!(seen(&upstream, &proxy), ["one/1/3", "two/2/4"]);
    // An empty `vm_id` is one like any other.
    let proxy = two(&upstream, &counter(), "vm_id: ''", "vm_id: ''");
    assert_eq!(seen(&upstream, &proxy), ["one/1/1", "two/2/2"]);
}

#[test]
fn any_difference_makes_separate_vms() {
    let upstream = Upstream::saying("hello");
    let alone = [
        ("config: 1", ""),
        ("vm_id: one", ""),
        ("vm_id: together", ""),
        ("vm_id: together", "vm_id: apart"),
        ("vm_id: together\nvm_config: 1", "vm_id: together\nvm_config: 2"),
        ("vm_id: together\nenv: {A: b}", "vm_id: together"),
        ("vm_id: together\nlimits: {memory: 32MiB}", "vm_id: together"),
    ];
    for (one, other) in alone {
        let proxy = two(&upstream, &counter(), one, other);
        assert_eq!(seen(&upstream, &proxy), ["one/1/1", "two/1/1"], "{one} {other}");
    }
    // Different code.
    let module = [counter(), b"\x00\x05\x04note".to_vec()].concat();
    let config = Config::to(&upstream).top("workers: 1");
    let config = config.module("one", &counter(), "vm_id: together").module("two", &module, "vm_id: together");
    let proxy = Proxy::start(config);
    assert_eq!(seen(&upstream, &proxy), ["one/1/1", "two/1/1"]);
}

#[test]
fn a_failure_affects_all_sharing_filters_by_their_own_policy() {
    let upstream = Upstream::saying("hello");
    let trap = |one: &str, other: &str, header: &str| -> (Message, Proxy) {
        let one = format!("vm_id: together\nconfig: x-one\n{one}");
        let proxy = two(&upstream, &counter(), &one, &format!("vm_id: together\nconfig: x-two\n{other}"));
        let response = proxy.request("GET", "/", &[(header, "yes")], b"");
        (response, proxy)
    };
    // The second filter fails and is bypassed; the first one had seen the request, and takes no part in the rest of it.
    let (response, proxy) = trap("", "on_failure: bypass", "x-two");
    assert_eq!(response.status(), 200, "the failed instance takes no part in the response");
    assert_eq!(seen(&upstream, &proxy), ["one/1/1", "two/2/2"], "both use the spare instance");
    assert_eq!((&proxy.filter("one")["traps"], &proxy.filter("two")["traps"]), (&0.into(), &1.into()));
    assert_eq!((&proxy.filter("one")["rebuilds"], &proxy.filter("two")["rebuilds"]), (&1.into(), &1.into()));
    let error = proxy.filter("one")["last_error"].to_string();
    assert!(error.contains("filter `two`, which shares the VM, failed: trap"), "{error}");
    assert_eq!(proxy.filter("one")["shares_vm_with"], serde_json::json!(["two"]));

    let (response, proxy) = trap("on_failure: bypass", "", "x-two");
    assert_eq!(response.status(), 503);
    assert_eq!(seen(&upstream, &proxy), ["one/1/1", "two/2/2"]);
    // The first filter fails and is bypassed; the second one handles the request in the new instance.
    let (response, _) = trap("on_failure: bypass", "", "x-one");
    assert_eq!(response.status(), 200);
    assert_eq!(
        upstream.requests().last().and_then(|r| r.field("x-seen").map(str::to_owned)).as_deref(),
        Some("two/2/1")
    );
}

#[test]
fn events_reach_the_root_context_that_requested_them() {
    // Both set a tick, read their own queue and make a call; each event names the root context.
    let module = guest::filter(
        r#"(func $say (param $text i32) (param $len i32) (param $root i32)
            (memory.copy (i32.const 8192) (local.get $text) (local.get $len))
            (i32.store8 (i32.add (i32.const 8192) (local.get $len)) (i32.add (local.get $root) (i32.const 48)))
            (drop (call $log (i32.const 2) (i32.const 8192) (i32.add (local.get $len) (i32.const 1)))))
        (func (export "proxy_on_vm_start") (param $root i32) (param i32) (result i32)
            (call $say %"started " (local.get $root))
            (drop (call $tick (i32.const 20)))
            (i32.const 1))
        (func (export "proxy_on_configure") (param $root i32) (param i32) (result i32)
            (drop (call $get_buffer (i32.const 7) (i32.const 0) (i32.const 100) (global.get $out) (global.get $out_len)))
            (drop (call $register_queue
                (i32.load (global.get $out)) (i32.load (global.get $out_len)) (i32.const 24)))
            (i32.const 1))
        (func (export "proxy_on_tick") (param $root i32)
            (call $say %"ticked " (local.get $root))
            (drop (call $tick (i32.const 0)))
            (drop (call $resolve_queue (i32.const 0) (i32.const 0) %"q2" (i32.const 24)))
            (if (i32.eq (local.get $root) (i32.const 1))
                (then (drop (call $enqueue (i32.load (i32.const 24)) %"message"))))
            (drop (call $call %"web" %"<ASKED>" %"" %"" (i32.const 0) (i32.const 24))))
        (func (export "proxy_on_queue_ready") (param $root i32) (param i32) (call $say %"queue of " (local.get $root)))
        (func (export "proxy_on_http_call_response") (param $root i32) (param i32 i32 i32 i32)
            (call $say %"answered " (local.get $root)))"#
            .replace("<ASKED>", &guest::pairs(&[(":method", "GET"), (":path", "/"), (":authority", "web")]))
            .as_str(),
    );
    let upstream = Upstream::saying("hello");
    let proxy = two(&upstream, &module, "vm_id: together\nconfig: q1", "vm_id: together\nconfig: q2");
    for text in ["started ", "ticked ", "answered "] {
        proxy.wait_for_output(&format!("{text}1"));
        proxy.wait_for_output(&format!("{text}2"));
    }
    proxy.wait_for_output("queue of 2");
    let output = proxy.output();
    assert!(!output.contains("queue of 1"), "{output}");
    let of_two = output.lines().filter(|line| line.contains("ticked 2")).collect::<Vec<_>>();
    assert!(of_two.len() == 1 && of_two[0].contains("two"), "it is the second filter that speaks: {of_two:?}");
}

#[test]
fn filters_of_released_sdks_share_a_vm() {
    let upstream = Upstream::replying(|_| answer(200, &[], "hello"));
    let (one, two_) = ("vm_id: together\nconfig: {tag: one}", "vm_id: together\nconfig: {tag: two}");
    let proxy = two(&upstream, &wasm::example("third-party"), one, two_);
    let response = proxy.get("/");
    assert_eq!(response.all("x-third-party"), ["two", "one"]);
    assert_eq!(proxy.filter("one")["memory_bytes"].as_u64().map(|b| b > 0), Some(true));
    assert_eq!(proxy.filter("two")["memory_bytes"], 0, "memory is counted once");

    let (one, two_) = ("vm_id: together\nconfig: {greeting: one}", "vm_id: together\nconfig: {greeting: two}");
    let proxy = two(&upstream, &wasm::example("hello"), one, two_);
    assert_eq!(proxy.get("/").field("x-hello"), Some("one"), "the first filter of the chain sees the response last");
    assert_eq!(proxy.filter("two")["shares_vm_with"], serde_json::json!(["one"]));
}

#[test]
fn the_filter_that_rejects_its_configuration_is_named() {
    let upstream = Upstream::saying("hello");
    let (one, other) = ("vm_id: together\nconfig: {greeting: one}", "vm_id: together\nconfig: {greting: two}");
    let Err(output) = try_two(Config::to(&upstream), &wasm::example("hello"), one, other) else {
        panic!("it must not start")
    };
    assert!(output.contains("config: {greting: two}") && output.contains("unknown field `greting`"), "{output}");
}

/// Both pause requests for a call's response; the second one then replies itself. Whatever one of them does in a
/// callback triggers a callback of the other, which must wait until the first has returned.
#[test]
fn a_guest_is_never_reentered() {
    let callback = |name: &str, params: &str, result: &str, code: &str| {
        format!(
            r#"(func (export "{name}") {params} {result}
                (if (global.get $inside) (then unreachable))
                (global.set $inside (i32.const 1))
                {code}
                (global.set $inside (i32.const 0)))"#
        )
    };
    let asked = guest::pairs(&[(":method", "GET"), (":path", "/question"), (":authority", "web")]);
    let code = [
        r#"(global $inside (mut i32) (i32.const 0))
        ;; The stream's context of each root, and the number of its root's call.
        (global $streams i32 (i32.const 4096))
        (func $place (param $root i32) (result i32)
            (i32.add (global.get $streams) (i32.mul (local.get $root) (i32.const 8))))"#
            .to_owned(),
        callback(
            "proxy_on_context_create",
            "(param $context i32) (param $parent i32)",
            "",
            "(i32.store (call $place (local.get $parent)) (local.get $context))",
        ),
        callback(
            "proxy_on_request_headers",
            "(param $context i32) (param i32 i32)",
            "(result i32)",
            &format!(
                r#"(drop (call $call %"questions" %"{asked}" %"" %"" (i32.const 0) (i32.const 24)))
                (i32.const 1)"#
            ),
        ),
        callback(
            "proxy_on_http_call_response",
            "(param $root i32) (param i32 i32 i32 i32)",
            "",
            r#"(drop (call $become (i32.load (call $place (local.get $root)))))
            (if (i32.eq (local.get $root) (i32.const 1))
                (then (drop (call $resume (i32.const 0))))
                (else (drop (call $reply (i32.const 200) %"own" %"" %"answered" (i32.const -1)))))
            (drop (call $log (i32.const 2) %"still in the call"))"#,
        ),
        callback(
            "proxy_on_response_headers",
            "(param i32 i32 i32)",
            "(result i32)",
            r#"(drop (call $add_header (i32.const 2) %"x-passed" %"yes")) (i32.const 0)"#,
        ),
        callback("proxy_on_log", "(param i32)", "", ""),
    ];
    // A body's text comes before its headers.
    let module = guest::filter(&code.concat().replace(r#"%"" %"answered""#, r#"%"answered" %"""#));
    let (upstream, questions) = (Upstream::saying("hello"), Upstream::saying("yes"));
    let config = Config::to(&upstream).cluster("questions", &[&questions], "");
    let proxy = try_two(config, &module, "vm_id: together", "vm_id: together").expect("the proxy starts");
    let response = proxy.get("/");
    assert_eq!((response.status(), response.text()), (200, "answered"));
    assert_eq!(response.all("x-passed"), ["yes", "yes"], "the second filter's reply passes both");
    assert!(upstream.requests().is_empty());
    assert_eq!(questions.requests().len(), 2);
    assert_eq!((&proxy.filter("one")["traps"], &proxy.filter("two")["traps"]), (&0.into(), &0.into()));
    let of = |name: &str| {
        let filter = format!("filter=\"{name}\"");
        proxy.output().lines().filter(|line| line.contains("still in the call") && line.contains(&filter)).count()
    };
    wait_until("a line of each", || (of("one"), of("two")) == (1, 1));
}

#[test]
fn a_call_can_act_for_another_filter() {
    let module = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param $context i32) (param i32 i32) (result i32)
            (drop (call $log (i32.const 2) %"as itself"))
            (drop (call $become (i32.const 1)))
            (drop (call $log (i32.const 2) %"as the first"))
            (drop (call $become (local.get $context)))
            (drop (call $log (i32.const 2) %"as itself again"))
            (drop (call $add_header (i32.const 0) %"x-seen" %"yes"))
            (if (i32.ne (call $become (i32.const 77777)) (i32.const 2)) (then unreachable))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("hello");
    let proxy = two(&upstream, &module, "vm_id: together", "vm_id: together");
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(upstream.only_request().all("x-seen"), ["yes", "yes"]);
    let output = proxy.output();
    let of = |text: &str| {
        let lines = output.lines().filter(|line| line.contains(text));
        lines.map(|line| line.contains("filter=\"two\"")).collect::<Vec<_>>()
    };
    assert_eq!((of("as the first"), of("as itself again")), (vec![false, false], vec![false, true]), "{output}");
}
