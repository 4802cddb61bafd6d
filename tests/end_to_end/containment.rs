//! Filters that fail: a failure affects only the requests inside the instance, and the next instance works.

mod beside;
mod crowd;
mod pointers;
mod poison;
mod quarantine;
mod start;

use std::thread;

use tollgate_abi::{Function, Ty, fast, proxy_wasm};

use crate::{
    guest,
    harness::{Client, Config, Proxy, Upstream, wait_until},
};

/// The callbacks in which filters can fail, and what a client gets in each case if its request is denied.
const CALLBACKS: &[(&str, Outcome)] = &[
    ("proxy_on_context_create", Outcome::Status(503)),
    ("proxy_on_request_headers", Outcome::Status(503)),
    ("proxy_on_request_body", Outcome::Status(503)),
    ("proxy_on_request_trailers", Outcome::Status(503)),
    ("proxy_on_http_call_response", Outcome::Status(503)),
    ("tollgate_on_timer", Outcome::Status(503)),
    ("proxy_on_response_headers", Outcome::Status(503)),
    // The head has been sent.
    ("proxy_on_response_body", Outcome::Broken),
    ("proxy_on_response_trailers", Outcome::Broken),
    // The response has been sent, or these callbacks do not affect it.
    ("proxy_on_done", Outcome::Status(200)),
    ("proxy_on_log", Outcome::Status(200)),
    ("proxy_on_delete", Outcome::Status(200)),
    ("proxy_on_tick", Outcome::Status(200)),
];

/// The client's view of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// A complete response.
    Status(u16),
    /// A response that is aborted.
    Broken,
}

/// A filter that runs this code in a callback if the request has `x-boom`.
fn failing_in(callback: &str, what: &str) -> Vec<u8> {
    let mut known = proxy_wasm::CALLBACKS.iter().chain(fast::CALLBACKS);
    let Function { params, result, .. } = known.find(|f| f.name == callback).expect("a callback");
    let ty = |ty: &Ty| if *ty == Ty::I32 { "i32" } else { "i64" };
    let params: String = params.iter().map(|(_, t)| format!(" {}", ty(t))).collect();
    let (result, go_on) = if result.is_some() { ("(result i32)", "(i32.const 0)") } else { ("", "") };
    let asked = guest::pairs(&[(":method", "GET"), (":path", "/asked"), (":authority", "web")]);
    // Some callbacks must be triggered first.
    let (when, bring_about) = match callback {
        "proxy_on_tick" => ("(i32.const 1)", "(drop (call $tick (i32.const 1)))".into()),
        "tollgate_on_timer" => {
            ("(i32.const 1)", "(drop (call $timer (i64.const 1000) (i64.const 0))) (return (i32.const 1))".into())
        }
        "proxy_on_http_call_response" => {
            let nothing = "(i32.const 0) (i32.const 0)";
            let call =
                format!("(call $call %\"web\" %\"{asked}\" {nothing} {nothing} (i32.const 60000) (i32.const 24))");
            ("(i32.const 1)", format!("(drop {call}) (return (i32.const 1))"))
        }
        _ => ("(call $boom)", String::new()),
    };
    let head = match callback {
        "proxy_on_request_headers" => String::new(),
        _ => format!(
            r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (if (call $boom) (then {bring_about}))
                (i32.const 0))"#
        ),
    };
    guest::filter(&format!(
        r#"(table 1 funcref)
        (func $boom (result i32) (call $has (i32.const 0) %"x-boom"))
        (func $recurse (param i32) (result i32)
            (i32.add (i32.const 1) (call $recurse (i32.add (i32.const 1) (local.get 0)))))
        {head}
        (func (export "{callback}") (param{params}) {result}
            (if {when} (then {what}))
            {go_on})"#
    ))
}

/// Sends a request with a body and trailers, and reads the response, which also has both if it comes from the upstream.
fn ask(client: &mut Client, path: &str, boom: bool) -> Outcome {
    let boom = if boom { "x-boom: 1\r\n" } else { "" };
    let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\nte: trailers\r\ntrailer: x-end\r\n{boom}");
    client.send(head + "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-end: yes\r\n\r\n");
    match client.wire.whole_response("POST") {
        None => Outcome::Broken,
        Some(response) => {
            if response.status() == 200 {
                assert_eq!(response.text(), "welcome", "a complete response has the whole body");
            }
            Outcome::Status(response.status())
        }
    }
}

fn upstream() -> Upstream {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n";
    Upstream::replying(move |_| format!("{head}7\r\nwelcome\r\n0\r\nx-end: yes\r\n\r\n").into())
}

/// Makes filters fail with this code in each callback, under each policy. `reason` is the label in the metrics; `said`
/// is part of the last error.
fn fail_everywhere(what: &str, limits: &str, reason: &str, said: &str) {
    let upstream = upstream();
    let policies = ["deny", "bypass"];
    let all = || CALLBACKS.iter().flat_map(|(callback, denied)| policies.map(|policy| (*callback, policy, *denied)));
    let mut config = Config::to(&upstream);
    for (callback, policy, _) in all() {
        let name = format!("{callback}-{policy}");
        // Equal filters fail together.
        let options = format!("vm_id: {name}\non_failure: {policy}\nlimits: {{{limits}}}");
        config = config.unchained(&name, &format!("{callback}.wasm"), &options);
        config = config.beside(&name, &format!("chain: [{name}]\ncluster: web\naccess_log: {{to: access.log}}"));
    }
    let modules: Vec<_> =
        CALLBACKS.iter().map(|(callback, _)| (format!("{callback}.wasm"), failing_in(callback, what))).collect();
    let files: Vec<_> = modules.iter().map(|(name, module)| (name.as_str(), module.as_slice())).collect();
    let mut proxy = Proxy::start_with(config, &files);
    let mut plain = proxy.client();

    for (callback, policy, denied) in all() {
        let name = format!("{callback}-{policy}");
        let (before, failing) = (format!("/{name}/before"), format!("/{name}/failing"));
        assert_eq!(ask(&mut Client::connect(proxy.address(&name)), &before, false), Outcome::Status(200), "{name}");
        let denied = if policy == "deny" { denied } else { Outcome::Status(200) };
        assert_eq!(ask(&mut Client::connect(proxy.address(&name)), &failing, true), denied, "{name}");
        assert_eq!(ask(&mut plain, "/plain", true), Outcome::Status(200), "other requests succeed after {name}");

        // One failure, one new instance, which works.
        wait_until(&format!("another instance of {name}"), || {
            let info = proxy.filter(&name);
            info["rebuilds"] == 1 && info["instances"] == 2
        });
        let info = proxy.filter(&name);
        assert_eq!((&info["traps"], &info["state"]), (&1.into(), &"ready".into()), "{info}");
        let last = info["last_error"].as_str().unwrap_or_default();
        assert!(last.starts_with(&format!("{reason}: ")) && last.contains(said), "{name}: {last}");
        let of_stream = !matches!(callback, "proxy_on_done" | "proxy_on_log" | "proxy_on_delete" | "proxy_on_tick");
        if of_stream {
            assert_eq!(info["failed_streams"], 1, "{name}");
        }
        for _ in 0..2 {
            assert_eq!(ask(&mut Client::connect(proxy.address(&name)), "/", false), Outcome::Status(200), "{name}");
        }
        let flags = (of_stream && policy == "deny").then_some("FF");
        assert_eq!(proxy.entry_for(&failing)["flags"].as_str(), flags, "{name}");
    }
    let metrics = proxy.metrics();
    let failures = (CALLBACKS.len() * policies.len()) as f64;
    assert_eq!(metrics.sum("tollgate_filter_traps_total", &[]), failures);
    assert_eq!(metrics.sum("tollgate_filter_traps_total", &[("reason", reason)]), failures);
    assert_eq!(metrics.sum("tollgate_filter_rebuilds_total", &[]), failures);
    assert!(!proxy.has_ended());
}

#[test]
fn filters_that_trap() {
    fail_everywhere("unreachable", "", "trap", "unreachable");
}

#[test]
fn filters_that_divide_by_zero() {
    fail_everywhere("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "", "trap", "divide by zero");
}

#[test]
fn filters_that_read_out_of_bounds() {
    fail_everywhere("(drop (i32.load (i32.const -8)))", "", "trap", "out of bounds memory access");
}

#[test]
fn filters_that_call_an_undefined_element() {
    fail_everywhere("(call_indirect (i32.const 1000))", "", "trap", "undefined element");
}

#[test]
fn filters_that_never_return() {
    fail_everywhere("(loop $forever (br $forever))", "call_time: 20ms", "timeout", "longer than its `call_time`");
}

#[test]
fn filters_that_recurse_endlessly() {
    fail_everywhere("(drop (call $recurse (i32.const 0)))", "call_time: 5s", "stack", "used up its stack");
}

#[test]
fn filters_that_exhaust_their_memory() {
    let eat = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 8)) (i32.const -1)))) unreachable";
    fail_everywhere(eat, "memory: 4MiB", "memory", "unreachable");
}

#[test]
fn a_filter_that_only_logs_works() {
    let upstream = upstream();
    let module = guest::filter(
        r#"(func (export "proxy_on_log") (param i32) (drop (call $log (i32.const 3) %"there was a request")))"#,
    );
    let proxy = Proxy::start(Config::to(&upstream).module("logger", &module, ""));
    assert_eq!(ask(&mut proxy.client(), "/", false), Outcome::Status(200));
    proxy.wait_for_output("there was a request");
}

#[test]
fn an_ended_stream_is_not_counted_as_failed() {
    for callback in ["proxy_on_done", "proxy_on_log", "proxy_on_delete"] {
        let upstream = upstream();
        let proxy = Proxy::start(Config::to(&upstream).module("boom", &failing_in(callback, "unreachable"), ""));
        assert_eq!(ask(&mut proxy.client(), "/", true), Outcome::Status(200));
        proxy.wait_for_metric("tollgate_filter_traps_total", &[("filter", "boom")], 1.0);
        assert_eq!(proxy.filter("boom")["failed_streams"], 0, "{callback}");
    }
}

#[test]
fn failing_and_healthy_requests_run_concurrently() {
    // Several clients send requests that fail and requests that do not through the same filter.
    let upstream = upstream();
    let module = failing_in("proxy_on_request_headers", "unreachable");
    let mut proxy = Proxy::start(Config::to(&upstream).module("boom", &module, "on_failure: bypass"));
    thread::scope(|scope| {
        for nth in 0..4 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut client = proxy.client();
                for round in 0..100 {
                    assert_eq!(ask(&mut client, "/", (nth + round) % 7 == 0), Outcome::Status(200));
                }
            });
        }
    });
    assert!(!proxy.has_ended());
    wait_until("one new instance per failure", || {
        let info = proxy.filter("boom");
        info["instances"] == 2 && info["traps"] == info["rebuilds"]
    });
    assert!(proxy.filter("boom")["traps"].as_u64() >= Some(1));
    assert_eq!(proxy.metrics().sum("tollgate_requests_total", &[("class", "2xx")]), 400.0);
}
