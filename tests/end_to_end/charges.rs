//! Memory that the host holds for guests: hostile filters ask for more of each resource than their budget allows. They
//! get errors, the host's memory for them stays within the budget, and a second filter is still served.

use crate::{
    guest::{self, pairs, until_not},
    harness::{Client, Config, Message, Proxy, Upstream, answer, wait_until},
    queues::{reader, writer},
};

const MIB: f64 = 1_048_576.0;

/// A proxy with a hostile filter on the listener `main`, with a budget of 4 MiB, and a well-behaved filter on the
/// listener `plain`. Its cluster `calls` is unreachable.
struct Beside {
    proxy: Proxy,
    upstream: Upstream,
}

impl Beside {
    fn of(hostile: &[u8]) -> Beside {
        Beside::before(Upstream::saying("hello"), hostile)
    }

    fn before(upstream: Upstream, hostile: &[u8]) -> Beside {
        let config = Config::to(&upstream)
            .top("workers: 1")
            .module("hostile", hostile, "limits: {host_memory: 4MiB, call_time: 60s}")
            .unchained("good", "good.wasm", "")
            .beside("plain", "cluster: web\nchain: [good]")
            .cluster("calls", &[Upstream::refusing()], "protocol: h2");
        let proxy = Proxy::start_with(config, &[("good.wasm", &guest::version("good"))]);
        Beside { proxy, upstream }
    }

    /// With a hostile filter that runs this code for each request.
    fn doing(code: &str) -> Beside {
        Beside::of(&guest::saying(code))
    }

    /// Sends a request that the hostile filter must let pass.
    fn passes(&self) {
        assert_eq!(self.proxy.get("/").status(), 200);
    }

    /// Sends a request and returns the statuses that the hostile filter's calls returned.
    fn said(&self) -> Vec<i64> {
        let before = self.upstream.requests().len();
        self.passes();
        numbers(&self.upstream.wait_for_requests(before + 1)[before])
    }

    /// The bytes held for a filter.
    fn kept(&self, filter: &str) -> f64 {
        let shown = self.proxy.filter(filter)["host_memory_bytes"].as_f64();
        assert!(shown.is_some(), "it is shown next to `memory_bytes`");
        self.proxy.metrics().sum("tollgate_filter_host_memory_bytes", &[("filter", filter)])
    }

    /// Asserts that the other filter is served, and that the hostile one neither failed nor exceeded its budget.
    fn is_well(&self) {
        let kept = self.kept("hostile");
        assert!((0.0..=4.0 * MIB).contains(&kept), "{kept}");
        for _ in 0..10 {
            let response = Client::connect(self.proxy.address("plain")).get("/");
            assert_eq!((response.status(), response.field("x-version")), (200, Some("good")));
        }
        assert_eq!(self.proxy.filter("hostile")["traps"], 0, "{}", self.proxy.output());
        assert!(self.proxy.resident_kib() < 512 << 10, "{} KiB", self.proxy.resident_kib());
    }

    /// Waits until everything but the defined names is released.
    fn forgets(&self) {
        wait_until("everything to be released", || self.kept("hostile") < 1024.0);
    }
}

/// The statuses that a filter made by [`guest::saying`] wrote into this request.
fn numbers(request: &Message) -> Vec<i64> {
    let said = request.field("x-said").expect("the results");
    said.split(' ').map(|number| number.parse().expect("a number")).collect()
}

#[test]
fn a_header_read_many_times_is_joined_once() {
    // The same id 64 times, of a header with a hundred values.
    let code = r#"
        (drop (call $intern %"x-many"))
        (global.set $n (i32.const 0))
        (loop $more
            (drop (call $header_add (i32.const 0) (i32.const 0) %"0123456789"))
            (global.set $n (i32.add (global.get $n) (i32.const 1)))
            (br_if $more (i32.lt_u (global.get $n) (i32.const 100))))
        (memory.fill (i32.const 65536) (i32.const 0) (i32.const 256))
        (call $answer (call $get_many
            (i32.const 0) (i32.const 65536) (i32.const 64) (i32.const 131072) (i32.const 65536) (i32.const 66048)))
        ;; The first and the last span: offsets and lengths.
        (call $answer (i32.load (i32.const 66048)))
        (call $answer (i32.load (i32.const 66052)))
        (call $answer (i32.load (i32.const 66552)))
        (call $answer (i32.load (i32.const 66556)))"#;
    let beside = Beside::doing(code);
    assert_eq!(beside.said(), [1198, 0, 1198, 0, 1198]);
    beside.is_well();
}

#[test]
fn log_lines_about_long_arguments_are_truncated() {
    let long = "(i32.const 65536) (i32.const 900000)";
    let code = format!(
        r#"(drop (call $add_header (i32.const 0) {long} %"v"))
        (drop (call $add_header (i32.const 0) %":path" {long}))
        (drop (call $set_property {long} %"v"))
        (drop (call $define_metric (i32.const 0) {long} (i32.const 24)))
        (drop (call $call {long} %"" %"" %"" (i32.const 1) (i32.const 24)))
        (drop (call $grpc_call {long} %"a" %"b" %"" %"" (i32.const 1) (i32.const 24)))
        (drop (call $foreign %"set_envoy_filter_state" {long} (i32.const 0) (i32.const 0)))
        (call $answer (i32.const 0))"#
    );
    let beside = Beside::doing(&code);
    (0..20).for_each(|_| assert_eq!(beside.said(), [0]));
    beside.proxy.wait_for_output("not changed");
    let output = beside.proxy.output();
    let warnings = || output.lines().filter(|line| line.contains("filter=\"hostile\""));
    assert!(warnings().count() >= 60, "{output}");
    let longest = warnings().map(str::len).max();
    assert!(longest < Some(2000), "{longest:?}");
    beside.is_well();
}

#[test]
fn an_oversized_local_reply_still_ends_the_request() {
    let reply = |details: &str, body: &str| {
        guest::filter(&format!(
            r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (memory.fill (i32.const 65536) (i32.const 100) (i32.const 983040))
                (if (i32.lt_u (memory.size) (i32.const 128)) (then (drop (memory.grow (i32.const 112)))))
                (drop (call $reply (i32.const 403) {details} {body} %"" (i32.const -1)))
                ;; Another one does not count, and nothing of it is kept.
                (drop (call $reply (i32.const 200) %"" %"other" %"" (i32.const -1)))
                (i32.const 0))"#
        ))
    };
    let long = "(i32.const 65536) (i32.const 900000)";
    let beside = Beside::of(&reply(long, long));
    let response = beside.proxy.get("/whole");
    assert_eq!((response.status(), response.body.len()), (403, 900_000));
    let details = beside.proxy.entry_for("/whole")["details"].as_str().expect("details").to_owned();
    assert_eq!(details, "d".repeat(256));
    beside.forgets();
    beside.is_well();

    let beside = Beside::of(&reply(r#"%"no""#, "(i32.const 65536) (i32.const 6000000)"));
    let response = beside.proxy.get("/large");
    assert_eq!((response.status(), response.text()), (500, ""));
    assert_eq!(beside.proxy.entry_for("/large")["details"], "filter_reply_too_large");
    beside.is_well();
    let passed = beside.upstream.requests().iter().any(|request| request.target() == "/large");
    assert!(!passed, "the request did not reach the upstream");
}

#[test]
fn timers_cannot_be_set_after_the_stream_ended() {
    // The filter traps if a timer can be set.
    let set = "(if (i32.ne (call $timer (i64.const 86400000000) (i64.const 0)) (i32.const 1)) (then unreachable))";
    let hostile = guest::filter(&format!(
        r#"(func (export "proxy_on_done") (param i32) (result i32) {set} (i32.const 1))
        (func (export "proxy_on_log") (param i32) {set})
        (func (export "proxy_on_delete") (param i32) {set})"#
    ));
    let beside = Beside::of(&hostile);
    let mut client = beside.proxy.client();
    (0..200).for_each(|_| assert_eq!(client.get("/").status(), 200));
    beside.forgets();
    beside.is_well();
}

#[test]
fn timers_are_bounded_per_stream_and_released_with_it() {
    let set = until_not(0, 1000, "(call $timer (i64.const 86400000000) (i64.const 0))");
    let beside = Beside::doing(&set);
    (0..50).for_each(|_| assert_eq!(beside.said(), [16, 10]));
    beside.forgets();
    beside.is_well();
}

#[test]
fn empty_grpc_messages_are_charged_too() {
    let stream = r#"(call $grpc_stream %"calls" %"a" %"b" %"" (i32.const 24))"#;
    let one = format!("(drop {stream})");
    // All of them within one callback; they are queued until it returns.
    let empty = until_not(0, 1_000_000, r#"(call $grpc_send (i32.load (i32.const 24)) %"" (i32.const 0))"#);
    let cancelled =
        until_not(0, 1_000_000, &format!("{stream} (call $grpc_cancel (i32.load (i32.const 24))) (i32.or)"));
    let closed = until_not(0, 1_000_000, "(call $grpc_close (i32.load (i32.const 24)))");
    for (code, least, most, answer) in [
        (format!("{one}{empty}"), 10_000, 32_768, 2),
        // The two results are joined by `or`; one of them means that there is no such call.
        (cancelled, 900, 1024, 10 | 1),
        (format!("{one}{closed}"), 1_000_000, 1_000_000, 0),
    ] {
        let beside = Beside::doing(&code);
        for _ in 0..3 {
            let said = beside.said();
            assert!((least..=most).contains(&said[0]) && said[1] == answer, "{said:?}");
        }
        beside.is_well();
        beside.forgets();
    }
}

#[test]
fn buckets_are_bounded_before_they_are_allocated() {
    // The text format has no escapes for quotes, so the documents are data segments.
    let document = |name: usize, keys: u32| {
        let doc =
            format!(r#"{{"name":"{}","capacity":1,"fill":1,"interval_ms":1000,"max_keys":{keys}}}"#, "n".repeat(name));
        let data: String = doc.bytes().map(|byte| format!("\\{byte:02x}")).collect();
        (data, doc.len())
    };
    let documents = [document(1, 1 << 27), document(5000, 0), document(1, 1 << 25), document(2, 1 << 25)];
    let (mut data, mut calls) = (String::new(), String::new());
    for (nth, (text, len)) in documents.iter().enumerate() {
        let at = 131_072 + nth * 8192;
        data += &format!("(data (i32.const {at}) \"{text}\")");
        calls += &format!("(call $answer (call $define_bucket (i32.const {at}) (i32.const {len})))");
    }
    let hostile = guest::filter(&format!(
        r#"(global $told (mut i32) (i32.const 8192))
        (func $answer (param $n i32)
            (i32.store8 (global.get $told) (i32.add (i32.const 77) (local.get $n)))
            (global.set $told (i32.add (global.get $told) (i32.const 1))))
        (func (export "proxy_on_configure") (param i32 i32) (result i32) {calls} (i32.const 1))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $add_header (i32.const 0) %"x-said" (i32.const 8192) (i32.const 4)))
            (i32.const 0))
        {data}"#
    ));
    let beside = Beside::of(&hostile);
    beside.passes();
    // The bytes are offset by 77: too many keys in total, a name that is too long, one that fits, then no room.
    let said: Vec<i64> =
        beside.upstream.only_request().field("x-said").expect("answers").bytes().map(|b| i64::from(b) - 77).collect();
    assert_eq!(said, [-10, -2, 0, -10]);
    beside.is_well();
}

#[test]
fn a_filter_that_fills_its_queues_leaves_others_room() {
    // Fills two queues of its own and the other filter's queue.
    let fill = |name: &str, vm: &str| {
        let open = format!(r#"(drop (call $register_queue %"{name}" (i32.const 24)))"#);
        let find = format!(r#"(drop (call $resolve_queue %"{vm}" %"{name}" (i32.const 24)))"#);
        let send = "(call $enqueue (i32.load (i32.const 24)) (i32.const 65536) (i32.const 262144))";
        (if vm.is_empty() { open } else { find }) + &until_not(0, 1000, send)
    };
    let hostile = guest::saying(&(fill("a", "") + &fill("b", "") + &fill("q", "mail")));
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream)
        .top("workers: 1")
        .module("hostile", &hostile, "limits: {host_memory: 4MiB, call_time: 60s}")
        .unchained("good", "reader.wasm", "vm_id: mail")
        .unchained("writer", "writer.wasm", "")
        .beside("mailbox", "cluster: web\nchain: [writer]");
    let proxy = Proxy::start_with(config, &[("reader.wasm", &reader()), ("writer.wasm", &writer())]);
    for path in ["/first", "/second", "/third"] {
        assert_eq!(proxy.get("/").status(), 200);
        let mut writer = Client::connect(proxy.address("mailbox"));
        // The reader removes the hostile filter's messages.
        wait_until("room in the queue", || writer.get(path).status() == 200);
        proxy.wait_for_output(path);
    }
    // Of the 4 MiB budget: 15 messages of 256 KiB, then nothing for any other queue.
    assert_eq!(numbers(&upstream.requests()[0]), [15, 1, 0, 1, 0, 1]);
    let kept = proxy.filter("hostile")["host_memory_bytes"].as_f64().expect("a number");
    assert!(kept <= 4.0 * MIB, "{kept}");
}

#[test]
fn messages_of_another_vm_cannot_be_dequeued() {
    let thief = guest::saying(
        r#"(call $answer (call $resolve_queue %"mail" %"q" (i32.const 24)))
        (call $answer (call $enqueue (i32.load (i32.const 24)) %"letter"))
        (call $answer (call $dequeue (i32.load (i32.const 24)) (global.get $out) (global.get $out_len)))"#,
    );
    let owner = guest::filter(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $register_queue %"q" (i32.const 24))))"#,
    );
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).module("owner", &owner, "vm_id: mail").module("thief", &thief, "");
    let proxy = Proxy::start(config);
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(upstream.only_request().field("x-said"), Some("0 0 1"));
}

#[test]
fn a_worker_serves_others_between_queue_messages() {
    // Each delivered message enqueues another one, so the queue is never empty.
    let endless = guest::filter(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $register_queue %"q" (i32.const 24))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $enqueue (i32.load (i32.const 24)) %"again"))
        (func (export "proxy_on_queue_ready") (param $root i32) (param $queue i32)
            (drop (call $dequeue (local.get $queue) (global.get $out) (global.get $out_len)))
            (drop (call $enqueue (local.get $queue) %"again")))"#,
    );
    let beside = Beside::of(&endless);
    beside.passes();
    let calls = || beside.proxy.filter("hostile")["calls"].as_u64();
    wait_until("many deliveries", || calls() > Some(1000));
    beside.is_well();
    beside.passes();
}

#[test]
fn heads_that_a_filter_grows_are_bounded() {
    let add = |call: &str, times| {
        format!(
            r#"(drop (call $intern %"x-large"))
            (memory.fill (i32.const 65536) (i32.const 100) (i32.const 65536))
            {}"#,
            until_not(0, times, call)
        )
    };
    let forget = r#"(drop (call $remove_header (i32.const 0) %"x-large"))"#;
    for (call, times, least, most) in [
        ("(call $header_add (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 60000))", 1_000, 30, 35),
        ("(call $header_add (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 1))", 20_000, 9000, 10_000),
        ("(call $header_add (i32.const 100) (i32.const 0) (i32.const 65536) (i32.const 60000))", 1_000, 30, 35),
        // Replacing a value costs nothing more.
        ("(call $header_set (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 60000))", 1_000, 1_000, 1_000),
    ] {
        let beside = Beside::doing(&(add(call, times) + forget));
        let mut client = beside.proxy.client();
        client.send_request("GET", "/", &[], b"");
        let response = client.read();
        // Fields for local replies are added to the response, which is then too large.
        assert!(call.contains("i32.const 100)") || response.status() == 200);
        let said = numbers(&beside.upstream.wait_for_requests(1)[0]);
        assert!((least..=most).contains(&said[0]), "{call}: {said:?}");
        beside.is_well();
        beside.forgets();
    }
}

#[test]
fn pseudo_headers_are_bounded() {
    let code = r#"
        (memory.fill (i32.const 65536) (i32.const 47) (i32.const 70000))
        (drop (call $intern %":path"))
        (drop (call $intern %":authority"))
        (drop (call $intern %":method"))
        (call $answer (call $header_set (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 70000)))
        (memory.fill (i32.const 65536) (i32.const 65) (i32.const 70000))
        (call $answer (call $header_set (i32.const 0) (i32.const 1) (i32.const 65536) (i32.const 70000)))
        (call $answer (call $header_set (i32.const 0) (i32.const 2) (i32.const 65536) (i32.const 70000)))"#;
    let beside = Beside::doing(code);
    assert_eq!(beside.said(), [2, 2, 2]);
    beside.is_well();
}

#[test]
fn responses_to_calls_are_charged() {
    // A hundred concurrent calls, each with a response of 1 MiB.
    let headers = pairs(&[(":method", "GET"), (":path", "/large"), (":authority", "web")]);
    let hostile = guest::filter(&format!(
        r#"(global $n (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (loop $more
                (drop (call $call %"web" %"{headers}" %"" %"" (i32.const 60000) (i32.const 24)))
                (global.set $n (i32.add (global.get $n) (i32.const 1)))
                (br_if $more (i32.lt_u (global.get $n) (i32.const 100))))
            (i32.const 0))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32) (param $size i32) (param i32)
            (drop (call $get_status (i32.const 32) (global.get $out) (global.get $out_len)))
            (if (i32.eq (i32.load (i32.const 32)) (i32.const 8)) (then (drop (call $log (i32.const 2) %"refused"))))
            (if (i32.eq (local.get $size) (i32.const 1048576)) (then (drop (call $log (i32.const 2) %"whole")))))"#
    ));
    let upstream = Upstream::replying(|request| match request.target() {
        "/large" => answer(200, &[], vec![b'x'; 1 << 20]),
        _ => answer(200, &[], "hello"),
    });
    let beside = Beside::before(upstream, &hostile);
    beside.passes();
    let said = |what: &str| beside.proxy.output().lines().filter(|line| line.contains(what)).count();
    wait_until("all answers", || {
        assert!(beside.kept("hostile") <= 4.0 * MIB);
        said("refused") + said("whole") == 100
    });
    assert!(said("refused") > 0, "the responses are not read one by one");
    beside.forgets();
    beside.is_well();
}

#[test]
fn permits_of_a_stream_are_bounded() {
    let hostile = guest::filter(
        r#"(global $n (mut i32) (i32.const 0))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $define_limit %"all" (i32.const 2147483647))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (global.set $n (i32.const 0))
            (loop $more
                (global.set $n (i32.add (global.get $n) (i32.const 1)))
                (br_if $more (i32.eq (call $acquire (i32.const 0)) (i32.const 1))))
            ;; It was refused at last, and 64 places were taken before.
            (if (i32.ne (global.get $n) (i32.const 65)) (then unreachable))
            (if (i32.ne (call $acquire (i32.const 0)) (i32.const -10)) (then unreachable))
            (i32.const 0))"#,
    );
    let beside = Beside::of(&hostile);
    (0..3).for_each(|_| beside.passes());
    beside.is_well();
}

#[test]
fn tables_are_charged() {
    // 16 bytes per element: 4 MiB hold 262 times 1000 elements.
    let tables: String = (0..8).map(|nth| format!("(table $t{nth} 0 funcref)")).collect();
    let grow = |nth| {
        format!(
            r#"(block $full (loop $more
                (br_if $full (i32.lt_s (table.grow $t{nth} (ref.null func) (i32.const 1000)) (i32.const 0)))
                (global.set $n (i32.add (global.get $n) (i32.const 1)))
                (br $more)))"#
        )
    };
    let grow: String = (0..8).map(grow).collect();
    let hostile = guest::filter(&format!(
        r#"{tables}
        (global $n (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            {grow}
            (if (i32.ne (global.get $n) (i32.const 262)) (then unreachable))
            (i32.const 0))"#
    ));
    let beside = Beside::of(&hostile);
    (0..3).for_each(|_| beside.passes());
    assert!(beside.kept("hostile") > 3.9 * MIB);
    beside.is_well();
}

#[test]
fn metrics_are_bounded_per_filter_and_removed_with_it() {
    let define = until_not(0, 20_000, "(call $define_metric (i32.const 0) (name) (i32.const 24))");
    let hostile = guest::saying(&define);
    let modest = guest::filter(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $define_metric (i32.const 0) %"modest" (i32.const 24)) (then unreachable))
            (if (call $increment_metric (i32.load (i32.const 24)) (i64.const 1)) (then unreachable))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).top("workers: 1");
    let both = config.clone().module("hostile", &hostile, "limits: {call_time: 60s}").module("modest", &modest, "");
    let mut proxy = Proxy::start(both);
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(upstream.only_request().field("x-said"), Some("5000 10"));
    let custom = proxy.metrics().names().filter(|(name, _)| name.starts_with("wasmcustom_")).count();
    assert_eq!(custom, 5001);
    proxy.change_config(config.module("modest", &modest, ""));
    wait_until("the metrics to be gone", || {
        let metrics = proxy.metrics();
        let mut names = metrics.names().map(|(name, _)| name).filter(|name| name.starts_with("wasmcustom_"));
        names.next() == Some("wasmcustom_modest") && names.next().is_none()
    });
    assert_eq!(proxy.metrics().sum("wasmcustom_modest", &[]), 1.0, "remaining metrics keep their values");
}

#[test]
fn shared_stores_of_a_vm_id_are_removed_with_its_last_filter() {
    let keeper = guest::saying(
        r#"(call $answer (call $get_shared %"key" (global.get $out) (global.get $out_len) (i32.const 24)))
        (call $answer (call $resolve_queue %"" %"q" (i32.const 24)))
        (drop (call $set_shared %"key" %"value" (i32.const 0)))
        (drop (call $register_queue %"q" (i32.const 24)))"#,
    );
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).top("workers: 1");
    let with = || config.clone().module("keeper", &keeper, "vm_id: shared");
    let mut proxy = Proxy::start(with());
    (0..2).for_each(|_| assert_eq!(proxy.get("/").status(), 200));
    // A reload keeps it as long as the filter stays.
    proxy.change_config(with().filter("another", "keeper.wasm", ""));
    assert_eq!(proxy.get("/").status(), 200);
    proxy.change_config(config.clone());
    // The old instance is dropped when it is no longer used.
    wait_until("the filter to be gone", || !proxy.metrics().types.contains_key("tollgate_filter_instances"));
    proxy.change_config(with());
    assert_eq!(proxy.get("/").status(), 200);
    let requests = upstream.requests();
    let said: Vec<_> = requests.iter().filter_map(|request| request.all("x-said").first().copied()).collect();
    assert_eq!(said, ["1 1", "0 0", "0 0", "1 1"]);
}

#[test]
fn a_rejected_configuration_leaves_no_writes() {
    // The filter writes to every store, and then rejects its configuration if it has one.
    let module = guest::filter(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (if (i32.eqz (local.get 1)) (then (return (i32.const 1))))
            (drop (call $set_shared %"key" %"refused" (i32.const 0)))
            (drop (call $set_shared %"new" %"refused" (i32.const 0)))
            (drop (call $define_metric (i32.const 0) %"refused" (i32.const 24)))
            (drop (call $register_queue %"refused" (i32.const 24)))
            (drop (call $resolve_queue %"" %"mail" (i32.const 24)))
            (drop (call $enqueue (i32.load (i32.const 24)) %"refused"))
            (i32.const 0))
        (func $tell (param $status i32)
            (if (local.get $status) (then (drop (call $add_header (i32.const 0) %"x-said" %"none")))
                (else (drop (call $add_header (i32.const 0) %"x-said"
                    (i32.load (global.get $out)) (i32.load (global.get $out_len)))))))
        (global $began (mut i32) (i32.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (i32.eqz (global.get $began)) (then
                (global.set $began (i32.const 1))
                (drop (call $register_queue %"mail" (i32.const 24)))
                (drop (call $set_shared %"key" %"first" (i32.const 0)))))
            (call $tell (call $get_shared %"key" (global.get $out) (global.get $out_len) (i32.const 24)))
            (call $tell (call $get_shared %"new" (global.get $out) (global.get $out_len) (i32.const 24)))
            (drop (call $resolve_queue %"" %"mail" (i32.const 24)))
            (call $tell (call $dequeue (i32.load (i32.const 24)) (global.get $out) (global.get $out_len)))
            (call $tell (call $resolve_queue %"" %"refused" (i32.const 24)))
            (i32.const 0))"#,
    );
    let upstream = Upstream::saying("hello");
    let config = |options: &str| {
        Config::to(&upstream).top("workers: 1").module("writer", &module, &format!("vm_id: shared\n{options}"))
    };
    let mut proxy = Proxy::start(config(""));
    assert_eq!(proxy.get("/").status(), 200);
    proxy.put_config(config("config: refuse"));
    let (status, said) = proxy.reload();
    assert!(status != 200, "{said}");
    assert_eq!(proxy.get("/").status(), 200);
    for request in upstream.requests() {
        let said = request.all("x-said");
        assert_eq!(said, ["first", "none", "none", "none"]);
    }
    assert_eq!(proxy.metrics().sum("wasmcustom_refused", &[]), 0.0);
    assert!(!proxy.metrics().types.contains_key("wasmcustom_refused"));
}

/// The latency of a client of the well-behaved filter, before and while the hostile filter gets ten requests a second.
#[test]
#[ignore = "a measurement"]
fn latency_next_to_a_hostile_filter() {
    use std::{
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        thread,
        time::{Duration, Instant},
    };
    let headers = pairs(&[(":method", "GET"), (":path", "/"), (":authority", "web")]);
    let call = format!(
        r#"(call $call %"web" %"{headers}" (i32.const 65536) (i32.const 65536) %"" (i32.const 10) (i32.const 24))"#
    );
    let stream = r#"(call $grpc_stream %"calls" %"a" %"b" %"" (i32.const 24))"#;
    let add = "(call $header_add (i32.const 0) (i32.const 0) (i32.const 65536) (i32.const 60000))";
    let rows = [
        ("nothing", String::new()),
        (
            "header_get_many",
            r#"(drop (call $intern %"x-many"))"#.to_owned()
                + &until_not(
                    0,
                    1000,
                    "(i32.lt_s (call $get_many (i32.const 0) (i32.const 65536) (i32.const 64) (i32.const 131072) (i32.const 65536) (i32.const 66048)) (i32.const 0))",
                ),
        ),
        (
            "long warnings",
            until_not(0, 100, r#"(call $add_header (i32.const 0) (i32.const 65536) (i32.const 900000) %"v")"#),
        ),
        ("timers", until_not(0, 1000, "(call $timer (i64.const 86400000000) (i64.const 0))")),
        (
            "gRPC open and cancel",
            until_not(0, 2000, &format!("{stream} (call $grpc_cancel (i32.load (i32.const 24))) (i32.or)")),
        ),
        ("HTTP calls", until_not(0, 1000, &call)),
        (
            "messages",
            r#"(drop (call $register_queue %"a" (i32.const 24)))"#.to_owned()
                + &until_not(0, 1000, "(call $enqueue (i32.load (i32.const 24)) (i32.const 65536) (i32.const 65536))"),
        ),
        (
            "headers",
            r#"(memory.fill (i32.const 65536) (i32.const 100) (i32.const 65536)) (drop (call $intern %"x-large"))"#
                .to_owned()
                + &until_not(0, 1000, add)
                + r#"(drop (call $remove_header (i32.const 0) %"x-large"))"#,
        ),
        (
            "state",
            until_not(
                0,
                1000,
                r#"(call $state_set (i32.const 65536) (i32.const 4) (i32.const 65536) (i32.const 65536))"#,
            ),
        ),
    ];
    let wait = |client: &mut Client| {
        let mut times: Vec<Duration> = (0..2000)
            .map(|_| {
                let start = Instant::now();
                assert_eq!(client.get("/").status(), 200);
                start.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() * 99 / 100]
    };
    for (what, code) in rows {
        let beside = Beside::doing(&format!("{code} (call $answer (i32.const 0))"));
        let mut client = Client::connect(beside.proxy.address("plain"));
        let (before, over) = (wait(&mut client), AtomicBool::new(false));
        let during = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    beside.proxy.get("/");
                    thread::sleep(Duration::from_millis(100));
                }
            });
            let during = wait(&mut client);
            over.store(true, Relaxed);
            during
        });
        println!("{what}: p99 {before:?} before, {during:?} during; {} bytes kept", beside.kept("hostile"));
    }
}
