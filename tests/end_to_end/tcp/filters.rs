//! TCP filters: how they observe, hold, change and end connections, and what happens to connections when they fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread::sleep,
    time::Duration,
};

use super::{connect, echo, echoes, ended, logged, to};
use crate::{
    guest,
    harness::{DEADLINE, Proxy, Upstream, Wire, answer, in_time, wait_until},
};

/// The callback for new connections, which returns an action.
fn new_connection(code: &str) -> String {
    format!(r#"(func (export "proxy_on_new_connection") (param $context i32) (result i32) {code})"#)
}

/// A callback for the data of one side.
fn data(side: &str, code: &str) -> String {
    format!(
        r#"(func (export "proxy_on_{side}_data") (param $context i32) (param $size i32) (param $end i32) (result i32)
            {code})"#
    )
}

/// A callback that replaces the first bytes of each piece of a side's data with a word.
fn put(side: &str, count: u8, word: &str) -> String {
    let code = format!(
        r#"(if (local.get $size) (then
            (drop (call $set_buffer %{side}_data (i32.const 0) (i32.const {count}) %"{word}"))))
        %continue"#
    );
    data(side, &code)
}

fn start(upstream: &Upstream, code: &str, options: &str) -> Proxy {
    Proxy::start_with(to(upstream).filter("f", "f.wasm", options), &[("f.wasm", &guest::filter(code))])
}

/// Resumes a paused downstream side.
const RESUME: &str = "(drop (call $resume %downstream))";

/// Closes the connection.
const CLOSE: &str = "(drop (call $close %downstream)) %pause";

#[test]
fn a_filter_that_only_observes_changes_nothing() {
    let look =
        "(drop (call $get_buffer %downstream_data (i32.const 0) (local.get $size) (i32.const 16) (i32.const 20)))
        (i32.const 0)";
    let upstream = echo();
    let proxy =
        start(&upstream, &[new_connection("%continue"), data("downstream", look), data("upstream", look)].concat(), "");
    let mut wire = connect(&proxy);
    for size in [1, 1000, 60_000] {
        echoes(&mut wire, &"x".repeat(size));
    }
    wire.finish();
    assert_eq!(wire.read_to_end(), b"");
    logged(&proxy).expect((), "");
    assert_eq!(proxy.filter("f")["traps"], 0);
}

#[test]
fn a_filter_changes_both_directions() {
    let upstream = echo();
    let proxy = start(&upstream, &[put("downstream", 1, "<1>"), put("upstream", 1, "<2>")].concat(), "");
    let mut wire = connect(&proxy);
    wire.send("xyz").expect("the proxy reads");
    assert_eq!(wire.read_exact(7).expect("an answer"), b"<2>1>yz");
    wire.finish();
    let entry = logged(&proxy);
    assert_eq!((&entry["request_bytes"], &entry["response_bytes"]), (&3.into(), &7.into()));
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("tollgate_upstream_tcp_bytes_total", &[("direction", "sent")]), 5.0);
}

#[test]
fn two_filters_see_each_others_changes_in_order() {
    let mark = |mark| guest::filter(&[put("downstream", 0, mark), put("upstream", 0, mark)].concat());
    let upstream = echo();
    let config = to(&upstream).filter("one", "one.wasm", "").filter("two", "two.wasm", "");
    let proxy = Proxy::start_with(config, &[("one.wasm", &mark("1")), ("two.wasm", &mark("2"))]);
    let mut wire = connect(&proxy);
    wire.send("x").expect("the proxy reads");
    assert_eq!(wire.read_exact(5).expect("an answer"), b"1221x");
}

#[test]
fn a_rejected_connection_reaches_no_upstream() {
    let upstream = echo();
    let proxy = start(&upstream, &new_connection(CLOSE), "");
    assert!(connect(&proxy).is_closed());
    assert!(ended(&proxy, "LR", "closed_by_filter")["cluster"].is_null());
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_filter_sends_bytes_before_closing() {
    let goodbye = format!(r#"(drop (call $set_buffer %upstream_data (i32.const 0) (i32.const 0) %"go away")) {CLOSE}"#);
    let upstream = echo();
    for code in [new_connection(&goodbye), data("downstream", &goodbye)] {
        let proxy = start(&upstream, &code, "");
        let mut wire = connect(&proxy);
        wire.send("may I?").expect("the proxy reads");
        assert_eq!(wire.read_to_end(), b"go away");
    }
}

/// If the proxy closed the connection while the client is sending, it would be reset, and unread bytes would be lost.
#[test]
fn a_slow_client_that_keeps_sending_gets_all_bytes_before_the_close() {
    const LENGTH: usize = 900_000;
    let goodbye = format!(
        "(drop (call $set_buffer %upstream_data (i32.const 0) (i32.const 0) (i32.const 0) (i32.const {LENGTH}))) {CLOSE}"
    );
    let upstream = echo();
    let proxy = start(&upstream, &data("downstream", &goodbye), "");
    let mut wire = connect(&proxy);
    wire.send("may I?").expect("the proxy reads");
    for _ in 0..100 {
        wire.read_exact(LENGTH / 100).expect("a part of it");
        wire.send("but").expect("the proxy reads");
        sleep(Duration::from_millis(40));
    }
    logged(&proxy).because("closed_by_filter");
}

#[test]
fn a_connection_waits_for_a_timer() {
    let code = [
        new_connection("(drop (call $timer (i64.const 50000) (i64.const 0))) %pause"),
        format!(r#"(func (export "tollgate_on_timer") (param i32 i64) {RESUME})"#),
        data("downstream", "%continue"),
    ];
    let upstream = echo();
    let proxy = start(&upstream, &code.concat(), "");
    echoes(&mut connect(&proxy), "bytes sent meanwhile wait, too");
}

#[test]
fn a_connection_waits_for_a_calls_response() {
    let question = guest::pairs(&[(":method", "GET"), (":path", "/may"), (":authority", "auth")]);
    let nothing = "(i32.const 0) (i32.const 0)";
    let code = [
        "(global $asking (mut i32) (i32.const 0))".to_owned(),
        new_connection(&format!(
            r#"(global.set $asking (local.get $context))
            (drop (call $call %"auth" %"{question}" {nothing} {nothing} (i32.const 60000) (i32.const 24))) %pause"#
        )),
        format!(
            r#"(func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
                (drop (call $become (global.get $asking)))
                (if (call $has %call_headers %"x-no") (then (drop (call $close %downstream))) (else {RESUME})))"#
        ),
    ];
    let (upstream, allowed) = (echo(), Arc::new(AtomicBool::new(true)));
    let may = allowed.clone();
    let auth = Upstream::replying(move |_| answer(200, if may.load(SeqCst) { &[] } else { &["x-no: 1"] }, ""));
    let config = to(&upstream).filter("f", "f.wasm", "").cluster("auth", &[&auth], "");
    let proxy = Proxy::start_with(config, &[("f.wasm", &guest::filter(&code.concat()))]);
    echoes(&mut connect(&proxy), "let in");
    assert_eq!((auth.requests().len(), upstream.connections()), (1, 1));
    allowed.store(false, SeqCst);
    assert!(connect(&proxy).is_closed());
    assert_eq!((auth.requests().len(), upstream.connections()), (2, 1));
}

#[test]
fn held_data_is_delivered_again_with_later_data() {
    for side in ["downstream", "upstream"] {
        let hold = "(i32.lt_u (local.get $size) (select (i32.const 0) (i32.const 5) (local.get $end)))";
        let upstream = echo();
        let proxy = start(&upstream, &data(side, hold), "");
        let mut wire = connect(&proxy);
        for (part, so_far) in [("ab", 2.0), ("c", 3.0), ("de", 5.0)] {
            wire.send(part).expect("the proxy reads");
            // So that they arrive one after the other.
            proxy.wait_for_metric("tollgate_tcp_bytes_total", &[("direction", "received")], so_far);
        }
        assert_eq!(wire.read_exact(5).expect("all of it"), b"abcde", "{side}");
    }
}

#[test]
fn a_filter_that_holds_data_causes_backpressure() {
    let upstream = echo();
    let filter = guest::filter(&data("downstream", "%pause"));
    in_time(|ms| {
        let options = format!("limits: {{buffered_body: 100KiB}}\ntimeouts: {{idle: {ms}ms}}");
        let config = to(&upstream).listener(&options).filter("f", "f.wasm", "");
        let proxy = Proxy::start_with(config, &[("f.wasm", &filter)]);
        let mut wire = connect(&proxy);
        let piece = vec![1; 1 << 20];
        let sent = (0..64).take_while(|_| wire.send(&piece).is_ok()).count();
        assert!(sent < 64, "it accepted everything");
        let entry = logged(&proxy);
        let taken = entry["request_bytes"].as_u64().expect("a number");
        assert!(taken <= 256 << 10, "{taken}");
        (taken >= 100 << 10).then(|| _ = entry.expect((), "SI").because("filter_stalled"))
    });
}

#[test]
fn a_filter_is_notified_of_each_end_once() {
    let say = |export: &str, params: &str, word: &str| {
        format!(r#"(func (export "{export}") (param {params}) (drop (call $log %info %"{word}")))"#)
    };
    // The text contains the closing side, as a digit.
    let says_who = |export: &str, word: &str| {
        format!(
            r#"(func (export "{export}") (param i32 i32)
                (i32.store8 (i32.const 512) (i32.add (i32.const 48) (local.get 1)))
                (drop (call $log %info %"{word}"))
                (drop (call $log %info (i32.const 512) (i32.const 1))))"#
        )
    };
    let code = [
        new_connection("%continue"),
        say("proxy_on_context_create", "i32 i32", "create"),
        says_who("proxy_on_upstream_connection_close", "upstream closed by"),
        says_who("proxy_on_downstream_connection_close", "client closed by"),
        r#"(func (export "proxy_on_done") (param i32) (result i32) (drop (call $log %info %"done")) (i32.const 1))"#
            .to_owned(),
        say("proxy_on_log", "i32", "log"),
        say("proxy_on_delete", "i32", "delete"),
    ]
    .concat();
    let upstream = echo();
    let proxy = start(&upstream, &code, "");
    let told = || {
        let output = proxy.output();
        let lines = output.lines().filter(|line| line.contains("tollgate::filter: ") && line.contains("filter=\"f\""));
        let words = lines.filter_map(|line| line.split("tollgate::filter: ").nth(1)?.split(" filter=").next());
        // The root context comes first, once per instance.
        let words: Vec<_> = words.map(str::to_owned).collect();
        let begin = words.iter().rposition(|word| word == "create").unwrap_or_default();
        words[begin..].to_vec()
    };
    let mut wire = connect(&proxy);
    echoes(&mut wire, "x");
    wire.finish();
    assert!(wire.is_closed());
    wait_until("the end", || told().last().is_some_and(|word| word == "delete"));
    let ends = ["create", "upstream closed by", "2", "client closed by", "2", "done", "log", "delete"];
    assert_eq!(told(), ends);
}

#[test]
fn existing_connections_keep_their_filter_after_a_reload() {
    let version = |version| guest::filter(&put("downstream", 0, version));
    let upstream = echo();
    let proxy = Proxy::start_with(to(&upstream).filter("f", "f.wasm", ""), &[("f.wasm", &version("1"))]);
    let say = |wire: &mut Wire| {
        wire.send("x").expect("the proxy reads");
        String::from_utf8(wire.read_exact(2).expect("an answer")).expect("text")
    };
    let mut old: Vec<_> = (0..10).map(|_| connect(&proxy)).collect();
    old.iter_mut().for_each(|wire| assert_eq!(say(wire), "1x"));
    proxy.put("f.wasm", version("2"));
    wait_until("the new filter", || say(&mut connect(&proxy)) == "2x");
    old.iter_mut().for_each(|wire| assert_eq!(say(wire), "1x"));
    assert_eq!(say(&mut connect(&proxy)), "2x");
    drop(old);
    // The old instance is dropped with its last connection.
    wait_until("the old instances to go", || {
        proxy.metrics().sum("tollgate_filter_instances", &[("filter", "f")]) <= 2.0
    });
}

#[test]
fn a_failing_filter_ends_the_connection_or_is_bypassed() {
    let trap = "(unreachable)";
    let failing = [
        ("connection", new_connection(trap)),
        ("downstream", data("downstream", trap)),
        ("upstream", data("upstream", trap)),
        (
            "create",
            r#"(func (export "proxy_on_context_create") (param $id i32) (param i32)
            (if (i32.gt_u (local.get $id) (i32.const 1)) (then (unreachable))))"#
                .to_owned()
                + &new_connection("%continue"),
        ),
        ("close", r#"(func (export "proxy_on_downstream_connection_close") (param i32 i32) (unreachable))"#.to_owned()),
        (
            "done",
            r#"(func (export "proxy_on_done") (param i32) (result i32) (unreachable))"#.to_owned()
                + &new_connection("%continue"),
        ),
    ];
    let upstream = echo();
    for (name, code) in failing {
        let harmless = matches!(name, "close" | "done");
        for policy in ["deny", "bypass"] {
            let proxy = start(&upstream, &code, &format!("on_failure: {policy}"));
            // The second connection uses another instance, or none.
            for _ in 0..2 {
                let mut wire = connect(&proxy);
                let _ = wire.send("hello");
                if policy == "bypass" || harmless {
                    assert_eq!(wire.read_exact(5).expect("an echo"), b"hello", "{name} {policy}");
                    wire.finish();
                    assert!(wire.is_closed());
                } else {
                    assert!(wire.is_closed(), "{name} {policy}");
                    ended(&proxy, "FF", "filter_failed");
                }
            }
            // The client may see the end before the filter is notified.
            let traps = || proxy.metrics().sum("tollgate_filter_traps_total", &[("filter", "f")]);
            wait_until(&format!("a trap of {name} to be counted"), || traps() >= 1.0);
        }
    }
}

#[test]
fn a_failure_affects_all_connections_of_the_instance() {
    // The connection that sends `!` fails; others are held.
    let code = data(
        "downstream",
        r#"(drop (call $get_buffer %downstream_data (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 20)))
        (if (i32.eq (i32.load8_u (i32.load (i32.const 16))) (i32.const 33)) (then (unreachable)))
        %pause"#,
    );
    let upstream = echo();
    for policy in ["deny", "bypass"] {
        let config = to(&upstream).top("workers: 1").filter("f", "f.wasm", &format!("on_failure: {policy}"));
        let proxy = Proxy::start_with(config, &[("f.wasm", &guest::filter(&code))]);
        let mut held: Vec<_> = (0..3).map(|_| connect(&proxy)).collect();
        for wire in &mut held {
            wire.send("held").expect("the proxy reads");
        }
        proxy.wait_for_metric("tollgate_tcp_bytes_total", &[("direction", "received")], 12.0);
        let mut boom = connect(&proxy);
        boom.send("!").expect("the proxy reads");
        for mut wire in held {
            match policy {
                "deny" => assert!(wire.is_closed()),
                _ => assert_eq!(wire.read_exact(4).expect("an echo"), b"held"),
            }
        }
        let failed = if policy == "deny" { 4 } else { 0 };
        wait_until("the failed ones to be logged", || {
            proxy.entries().iter().filter(|entry| entry["details"] == "filter_failed").count() == failed
        });
    }
}

#[test]
fn a_filter_can_inject_bytes_at_any_time() {
    let code = [
        new_connection("(drop (call $timer (i64.const 20000) (i64.const 0))) %continue"),
        r#"(func (export "tollgate_on_timer") (param i32 i64)
            (drop (call $set_buffer %upstream_data (i32.const 0) (i32.const 0) %"are you there?"))
            (drop (call $set_buffer %downstream_data (i32.const 0) (i32.const 0) %"he is")))"#
            .to_owned(),
    ];
    let (tell, told) = mpsc::channel();
    let upstream = Upstream::scripted(move |mut connection| {
        tell.send(connection.wire.read_exact(5).expect("some words")).expect("a listener");
        connection.wait_for_end();
    });
    let proxy = start(&upstream, &code.concat(), "");
    let mut wire = connect(&proxy);
    assert_eq!(wire.read_exact(14).expect("a question"), b"are you there?");
    assert_eq!(told.recv_timeout(DEADLINE).expect("words"), b"he is");
    // Bytes moved by the kernel arrive after that as before.
    wire.send("still").expect("the proxy reads");
    proxy.wait_for_metric("tollgate_upstream_tcp_bytes_total", &[("direction", "sent")], 10.0);
}

#[test]
fn a_filter_that_overruns_its_call_time_is_stopped() {
    let upstream = echo();
    let code = data("downstream", "(loop $for_ever (br $for_ever)) %continue");
    let proxy = start(&upstream, &code, "limits: {call_time: 20ms}");
    let mut wire = connect(&proxy);
    wire.send("x").expect("the proxy reads");
    assert!(wire.is_closed());
    assert_eq!(proxy.metrics().sum("tollgate_filter_traps_total", &[("reason", "timeout")]), 1.0);
    assert!(proxy.is_ready(), "other connections are not affected");
}
