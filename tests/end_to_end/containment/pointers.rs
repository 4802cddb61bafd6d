//! Host functions that are called with garbage: each call gets a status, and none does any harm.

use tollgate_abi::{Function, Ty, proxy_wasm::Status};

use super::{Outcome, ask, upstream};
use crate::{
    guest,
    harness::{Config, Proxy, Upstream, wait_until, wasm},
};

/// The end of the module's memory: 16 pages.
const END: i32 = 16 << 16;

/// Addresses that do not have room for a few bytes, and lengths that are always too large.
const BAD_ADDRESSES: [i32; 7] = [-1, -4, END, END - 1, END + 1, i32::MAX, i32::MIN];
const BAD_LENGTHS: [i32; 5] = [-1, i32::MIN, i32::MAX, END, END + 1];

/// A call: the index of the imported function, and its arguments.
type Call = (usize, Vec<i32>);

fn functions() -> Vec<(&'static str, &'static Function)> {
    guest::hostcalls().collect()
}

fn is_address(name: &str) -> bool {
    name.ends_with("_ptr") || name.ends_with("_out")
}

fn is_length(name: &str) -> bool {
    name.ends_with("_len") || name.ends_with("_cap")
}

/// Valid arguments: addresses that do not overlap, short lengths, the first value of each enumeration.
fn harmless(function: &Function) -> Vec<i32> {
    let argument = |(nth, (name, _)): (usize, &(&str, Ty))| match *name {
        name if is_address(name) => 256 + 64 * nth as i32,
        name if is_length(name) => 4,
        "count" => 1,
        _ => 0,
    };
    function.params.iter().enumerate().map(argument).collect()
}

/// Each function, with one bad address or length at a time.
fn one_bad_argument() -> Vec<Call> {
    let mut calls = Vec::new();
    for (index, (_, function)) in functions().iter().enumerate() {
        for (nth, (name, _)) in function.params.iter().enumerate() {
            let bad: &[i32] = match name {
                name if is_address(name) => &BAD_ADDRESSES,
                name if is_length(name) => &BAD_LENGTHS,
                _ => &[],
            };
            calls.extend(bad.iter().map(|value| {
                let mut arguments = harmless(function);
                arguments[nth] = *value;
                (index, arguments)
            }));
        }
    }
    calls
}

/// Each function, with the same garbage in all arguments; for addresses that means that they all overlap.
fn all_the_same() -> Vec<Call> {
    let values = [0, 1, 8, 256, END - 8, END, i32::MAX, i32::MIN, -1];
    let of = |index: usize| {
        let count = functions()[index].1.params.len();
        values.map(|value| (index, vec![value; count]))
    };
    (0..functions().len()).flat_map(of).collect()
}

/// A filter that makes these calls while it is configured, at a tick, and for a request, and then responds with the
/// results: one byte per call (the status, or its negation if negative), for each of the three occasions.
fn calling(calls: &[Call]) -> Vec<u8> {
    let ty = |ty: &Ty| if *ty == Ty::I32 { "i32" } else { "i64" };
    let imports = functions().into_iter().enumerate();
    let imports: String = imports.map(|(index, (module, f))| guest::import(module, f, &format!("f{index}"))).collect();
    let calls = calls.iter().enumerate().map(|(at, (index, arguments))| {
        let f = functions()[*index].1;
        let typed = f.params.iter().zip(arguments).map(|((_, t), value)| format!("({}.const {value})", ty(t)));
        let call = format!("(call $f{index} {})", typed.collect::<String>());
        let call = if f.result == Some(Ty::I64) { format!("(i32.wrap_i64 {call})") } else { call };
        format!("(call $note (local.get 0) (i32.const {at}) {call})\n")
    });
    let count = calls.len();
    let calls: String = calls.collect();
    // Statuses are written to addresses that no valid call writes to.
    wasm::from_text(
        &format!(
            r#"(module {imports}
        (memory (export "memory") 16)
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "malloc") (param i32) (result i32) (i32.const 262144))
        (func $note (param $base i32) (param $at i32) (param $status i32)
            (if (i32.lt_s (local.get $status) (i32.const 0))
                (then (local.set $status (i32.sub (i32.const 0) (local.get $status)))))
            (i32.store8 (i32.add (local.get $base) (local.get $at)) (local.get $status)))
        (func $all (param i32) {calls})
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (call $all (i32.const 131072))
            (drop (call $ftick (i32.const 1)))
            (i32.const 1))
        (global $ticked (mut i32) (i32.const 0))
        (func (export "proxy_on_tick") (param i32)
            (drop (call $ftick (i32.const 0)))
            (call $all (i32.add (i32.const 131072) (i32.const {count})))
            (global.set $ticked (i32.const 1)))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (i32.eqz (global.get $ticked)) (then (return (i32.const 0))))
            (call $all (i32.add (i32.const 131072) (i32.const {twice})))
            (drop (call $freply (i32.const 200) (i32.const 0) (i32.const 0)
                (i32.const 131072) (i32.const {thrice}) (i32.const 0) (i32.const 0) (i32.const -1)))
            (i32.const 1)))"#,
            twice = 2 * count,
            thrice = 3 * count,
        )
        .replace("$ftick", &format!("$f{}", number("proxy_set_tick_period_milliseconds")))
        .replace("$freply", &format!("$f{}", number("proxy_send_local_response"))),
    )
}

fn number(name: &str) -> usize {
    functions().iter().position(|(_, f)| f.name == name).expect("a function")
}

/// The results of the calls on each of the three occasions.
fn statuses(calls: &[Call]) -> [Vec<u8>; 3] {
    let upstream = Upstream::saying("not yet");
    let mut proxy = Proxy::start(Config::to(&upstream).module("garbage", &calling(calls), "limits: {call_time: 10s}"));
    let mut body = Vec::new();
    wait_until("the filter to be through", || {
        let response = proxy.get("/");
        assert_eq!(response.status(), 200, "{response:?}");
        body = response.body;
        body != b"not yet"
    });
    assert_eq!(proxy.filter("garbage")["traps"], 0);
    assert!(!proxy.has_ended());
    assert_eq!(body.len(), 3 * calls.len());
    let mut times = body.chunks(calls.len()).map(<[u8]>::to_vec);
    [(); 3].map(|()| times.next().expect("three times"))
}

/// Functions that reject these arguments for another reason first, and the statuses they may return.
const REFUSED_ANYHOW: [(Status, &[&str]); 3] = [
    (
        Status::NotFound,
        &[
            "metadata_get",
            "proxy_call_foreign_function",
            "proxy_get_buffer_bytes",
            "proxy_get_buffer_status",
            "proxy_get_header_map_value",
            "proxy_get_metric",
            "proxy_get_property",
            "proxy_get_shared_data",
            "proxy_resolve_shared_queue",
            "shared_get",
            "source_address",
            "state_get",
        ],
    ),
    (Status::BadArgument, &["bucket_take", "header_add", "header_get", "header_set", "proxy_http_call"]),
    (Status::ParseFailure, &["proxy_grpc_call", "proxy_grpc_stream"]),
];

#[test]
fn bad_addresses_and_lengths_are_rejected() {
    let calls = one_bad_argument();
    assert!(calls.len() > 400, "{}", calls.len());
    let times = statuses(&calls);
    let mut wrong = Vec::new();
    for (when, got) in ["configuring", "a tick", "a request"].into_iter().zip(&times) {
        for ((index, arguments), status) in calls.iter().zip(got) {
            let name = functions()[*index].1.name;
            let anyhow = REFUSED_ANYHOW.iter().find(|(_, names)| names.contains(&name)).map(|(status, _)| *status);
            if ![Some(Status::InvalidMemoryAccess), anyhow].map(|s| s.map(|s| s as u8)).contains(&Some(*status)) {
                wrong.push(format!("{when}: {name}{arguments:?}: {status}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn garbage_in_all_arguments_is_rejected() {
    // Functions that end streams or switch contexts are excluded: no argument of theirs is garbage.
    let leave_out = [
        "proxy_send_local_response",
        "proxy_close_stream",
        "proxy_set_tick_period_milliseconds",
        "subscribe",
        "config_error",
        "proxy_set_effective_context",
    ];
    let mut calls = all_the_same();
    calls.retain(|(index, _)| !leave_out.contains(&functions()[*index].1.name));
    calls.retain(|(index, _)| !["now", "random"].contains(&functions()[*index].1.name));
    let times = statuses(&calls);
    let known = |status: u8| Status::ALL.iter().any(|(known, _)| *known as u8 == status);
    let unknown = calls.iter().cycle().zip(times.iter().flatten()).filter(|(_, status)| !known(**status));
    let unknown: Vec<_> = unknown.map(|((index, arguments), _)| (functions()[*index].1.name, arguments)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // All of them contain an invalid address in one way or another; at least a quarter of the calls report it.
    let invalid = times.iter().flatten().filter(|status| **status == Status::InvalidMemoryAccess as u8).count();
    assert!(4 * invalid > 3 * calls.len(), "{invalid} of {}", 3 * calls.len());
}

/// Runs a filter that misbehaves for one request. The request may get an error; the proxy must not be affected.
fn odd(code: &str, options: &str) -> (Proxy, Outcome) {
    let upstream = upstream();
    let mut proxy = Proxy::start(Config::to(&upstream).module("odd", &guest::filter(code), options));
    let outcome = ask(&mut proxy.client(), "/odd", true);
    assert!(!proxy.has_ended());
    // Whatever happened, both workers continue.
    wait_until("all instances", || proxy.filter("odd")["instances"] == 2);
    for _ in 0..8 {
        assert_eq!(ask(&mut proxy.client(), "/", false), Outcome::Status(200));
    }
    (proxy, outcome)
}

/// A filter with this allocator, which is called for a request with `x-boom`; the response's status is 500 plus the
/// host function's status.
fn with_allocator(allocator: &str) -> Outcome {
    let code = format!(
        r#"(func $malloc (export "malloc") (param i32) (result i32) {allocator})
        (func $ask (result i32) (call $get_header (i32.const 0) %"x-boom" (global.get $out) (global.get $out_len)))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $status i32)
            (local.set $status (call $ask))
            ;; Not found: the allocator was not needed.
            (if (i32.gt_u (local.get $status) (i32.const 1)) (then
                (drop (call $reply (i32.add (i32.const 500) (local.get $status)) (i32.const 0) (i32.const 0)
                    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))))
            (i32.const 0))"#
    );
    odd(&code, "limits: {call_time: 200ms}").1
}

#[test]
fn failing_allocators_are_handled() {
    let [internal, invalid] = [510, 506].map(Outcome::Status);
    assert_eq!(with_allocator("(i32.const 0)"), internal);
    assert_eq!(with_allocator("(i32.const -1)"), invalid);
    assert_eq!(with_allocator("(i32.const 0x100000)"), invalid, "the first byte after its memory");
    let failed = Outcome::Status(503);
    assert_eq!(with_allocator("unreachable"), failed);
    assert_eq!(with_allocator("(loop $forever (br $forever)) (i32.const 0)"), failed);
    // The allocator's own host call needs the allocator, which is not re-entered; it takes the error status for an address.
    assert_eq!(with_allocator("(call $ask)"), Outcome::Status(200));
    // An unusual but valid one: memory that did not exist when the host function was called.
    assert_eq!(with_allocator("(i32.shl (memory.grow (i32.const 1)) (i32.const 16))"), Outcome::Status(200));
}

#[test]
fn malformed_maps_are_rejected() {
    // The count, the lengths, the bytes, and the NULs between them, each of them wrong.
    let garbage = [
        "\u{7f}\u{7f}\u{7f}\u{7f}",
        "\u{7f}\u{7f}\u{7f}\u{7f}\u{1}\0\0\0\u{1}\0\0\0a\0b\0",
        "\u{1}\0\0\0",
        "\u{1}\0\0\0\u{1}\0\0\0",
        "\u{1}\0\0\0\u{1}\0\0\0\u{1}\0\0\0",
        "\u{1}\0\0\0\u{1}\0\0\0\u{1}\0\0\0a0b0",
        "\u{2}\0\0\0\u{1}\0\0\0\u{1}\0\0\0a\0b\0",
        "\u{1}\0",
        "text",
        "\u{1}\0\0\0\u{1}\0\0\0\u{7f}\u{7f}\u{7f}\u{7f}a\0b\0",
    ];
    let nothing = "(i32.const 0) (i32.const 0)";
    for map in garbage {
        let calls = [
            format!("(call $reply (i32.const 204) {nothing} {nothing} %\"{map}\" (i32.const -1))"),
            format!("(call $call %\"web\" %\"{map}\" {nothing} {nothing} (i32.const 1000) (i32.const 24))"),
        ];
        for call in calls {
            // The response's status is 500 plus the call's status.
            let code = format!(
                r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                    (local $status i32)
                    (if (i32.eqz (call $has (i32.const 0) %"x-boom")) (then (return (i32.const 0))))
                    (local.set $status {call})
                    (drop (call $reply (i32.add (i32.const 500) (local.get $status)) {nothing} {nothing} {nothing}
                        (i32.const -1)))
                    (i32.const 0))"#
            );
            let (proxy, outcome) = odd(&code, "");
            assert_eq!(outcome, Outcome::Status(502), "{map:?}: {call}");
            assert_eq!(proxy.filter("odd")["traps"], 0);
        }
    }
}

/// Calls a function for 40,000 headers with different names, in one callback.
fn headers(callback: &str, map: u8, function: &str) -> String {
    format!(
        r#"(func (export "{callback}") (param i32 i32 i32) (result i32)
            (local $n i32)
            (if (i32.eqz (call $has (i32.const 0) %"x-boom")) (then (return (i32.const 0))))
            (loop $more
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (i32.store8 (i32.const 40) (i32.add (i32.const 97) (i32.rem_u (local.get $n) (i32.const 26))))
                (i32.store8 (i32.const 41) (i32.add (i32.const 97)
                    (i32.rem_u (i32.div_u (local.get $n) (i32.const 26)) (i32.const 26))))
                (i32.store8 (i32.const 42) (i32.add (i32.const 97)
                    (i32.rem_u (i32.div_u (local.get $n) (i32.const 676)) (i32.const 26))))
                (i32.store8 (i32.const 43) (i32.add (i32.const 97)
                    (i32.rem_u (i32.div_u (local.get $n) (i32.const 17576)) (i32.const 26))))
                (drop (call {function} (i32.const {map}) (i32.const 40) (i32.const 4) (i32.const 40) (i32.const 4)))
                (br_if $more (i32.lt_u (local.get $n) (i32.const 40000))))
            (i32.const 0))"#
    )
}

#[test]
fn headers_beyond_a_maps_capacity_are_rejected() {
    for function in ["$add_header", "$set_header"] {
        for (callback, map) in [("proxy_on_request_headers", 0), ("proxy_on_response_headers", 2)] {
            let (proxy, outcome) = odd(&headers(callback, map, function), "limits: {call_time: 20s}");
            assert_ne!(outcome, Outcome::Broken, "{function} {callback}");
            assert_eq!(proxy.filter("odd")["traps"], 0);
        }
    }
}

#[test]
fn calls_beyond_the_limit_are_rejected() {
    let head = guest::pairs(&[(":method", "GET"), (":path", "/"), (":authority", "web")]);
    let (proxy, outcome) = odd(
        &format!(
            r#"(global $count (mut i32) (i32.const 0))
            (global $answers (mut i32) (i32.const 0))
            (global $context (mut i32) (i32.const 0))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (if (i32.eqz (call $has (i32.const 0) %"x-boom")) (then (return (i32.const 0))))
                (global.set $context (local.get 0))
                (loop $more (if (i32.eqz (call $call %"web" %"{head}" (i32.const 0) (i32.const 0)
                        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 24)))
                    (then (global.set $count (i32.add (i32.const 1) (global.get $count))) (br $more))))
                (i32.const 1))
            (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
                (global.set $answers (i32.add (i32.const 1) (global.get $answers)))
                (if (i32.eq (global.get $answers) (global.get $count))
                    (then (drop (call $become (global.get $context))) (drop (call $resume (i32.const 0))))))"#
        ),
        "limits: {call_time: 20s}",
    );
    assert_eq!(outcome, Outcome::Status(200), "there is a limit, and each call below it gets a response");
    assert_eq!(proxy.filter("odd")["traps"], 0);
}

#[test]
fn calls_at_the_wrong_time_are_rejected() {
    // Everything that needs a request, when there is no request, or during another phase.
    let everything = r#"
        (drop (call $resume (i32.const 0))) (drop (call $resume (i32.const 1)))
        (drop (call $reply (i32.const 418) (i32.const 0) (i32.const 0)
            (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
        (drop (call $set_buffer (i32.const 0) (i32.const 0) (i32.const -1) %"text"))
        (drop (call $set_buffer (i32.const 1) (i32.const 0) (i32.const -1) %"text"))
        (drop (call $add_header (i32.const 0) %"x-a" %"b")) (drop (call $add_header (i32.const 1) %"x-a" %"b"))
        (drop (call $add_header (i32.const 2) %"x-a" %"b")) (drop (call $add_header (i32.const 3) %"x-a" %"b"))
        (drop (call $add_header (i32.const 6) %"x-a" %"b")) (drop (call $add_header (i32.const 7) %"x-a" %"b"))
        (drop (call $timer (i64.const 0) (i64.const 0)))
        (drop (call $become (i32.const 77777)))"#;
    let (proxy, outcome) = odd(
        &format!(
            r#"(func (export "proxy_on_done") (param i32) (result i32) {everything} (i32.const 0))
            (func (export "proxy_on_log") (param i32) {everything})
            (func (export "proxy_on_delete") (param i32) {everything})
            (func (export "proxy_on_tick") (param i32) {everything})
            (func (export "proxy_on_configure") (param i32 i32) (result i32)
                (drop (call $tick (i32.const 1)))
                {everything}
                (i32.const 1))"#
        ),
        "",
    );
    assert_eq!(outcome, Outcome::Status(200), "the response has already been sent");
    assert_eq!(proxy.filter("odd")["traps"], 0);
}
