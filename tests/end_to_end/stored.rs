//! Data that filters store: with a stream, for other filters of its chain, and in shared data.

use crate::{
    guest,
    harness::{Config, Message, Proxy, Upstream, answer, wait_until, wasm},
};

/// The results of two filters for one request, the second one after the first.
fn said(first: &str, second: &str) -> (Proxy, Message) {
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).top("workers: 1");
    let config = config.module("first", &guest::saying(first), "").module("second", &guest::saying(second), "");
    let proxy = Proxy::start(config);
    assert_eq!(proxy.get("/asked?x").status(), 200);
    (proxy, upstream.only_request())
}

#[test]
fn state_passes_between_filters() {
    let (_, request) = said(
        r#"(call $answer (call $state_set %"user" %"ann"))
           (call $answer (call $state_set %"gone" %"soon"))
           (call $answer (call $state_delete %"gone"))
           (call $answer (call $state_delete %"gone"))"#,
        r#"(call $answer (call $state_get %"user" (i32.const 4096) (i32.const 100)))
           (call $say (i32.const 4096) (i32.const 3))
           (call $say %" ")
           (call $answer (call $state_get %"user" (i32.const 4096) (i32.const 2)))
           (call $answer (call $state_get %"gone" (i32.const 4096) (i32.const 100)))
           (call $answer (call $state_get %"user" (i32.const -1) (i32.const 100)))
           (call $property %"filter_state\00user")
           (call $property %"filter_state\00nobody")"#,
    );
    assert_eq!(request.all("x-said"), ["0 0 0 1", "3 ann 3 -1 -6 0 ann 1"]);
}

#[test]
fn metadata_is_typed_and_can_be_read_as_properties() {
    let (_, request) = said(
        r#"(call $answer (call $metadata_set %"auth" %"user" (i32.const 0) %"ann"))
           (call $answer (call $metadata_set %"auth" %"level" (i32.const 2) %"ABCDEFGH"))
           (call $answer (call $metadata_set %"auth" %"level" (i32.const 2) %"short"))
           (call $answer (call $metadata_set %"auth" %"level" (i32.const 9) %""))
           (call $answer (call $metadata_set %"other" %"gone" (i32.const 1) %"soon"))
           (call $answer (call $metadata_delete %"other" %"gone"))
           (call $answer (call $metadata_delete %"other" %"gone"))"#,
        r#"(call $answer (call $metadata_get %"auth" %"level" (i32.const 4096) (i32.const 4100) (i32.const 100)))
           (call $answer (i32.load (i32.const 4096)))
           (call $say (i32.const 4100) (i32.const 8))
           (call $say %" ")
           (call $answer (call $metadata_get %"auth" %"none" (i32.const 4096) (i32.const 4100) (i32.const 100)))
           (call $property %"metadata\00filter_metadata\00auth\00user")
           (call $property %"metadata\00filter_metadata\00auth\00level")
           (call $answer (call $get_property %"metadata\00filter_metadata\00auth"
               (global.get $out) (global.get $out_len)))
           (call $answer (i32.load (i32.load (global.get $out))))
           (call $answer (call $get_property %"metadata\00filter_metadata\00other"
               (global.get $out) (global.get $out_len)))"#,
    );
    assert_eq!(request.all("x-said"), ["0 0 2 2 0 0 1", "8 2 ABCDEFGH -1 0 ann 0 ABCDEFGH 0 2 1"]);
}

#[test]
fn a_filter_cannot_set_the_hosts_properties() {
    let (proxy, request) = said(
        r#"(call $answer (call $set_property %"color" %"blue"))
           (call $answer (call $set_property %"a\00b" %"two"))
           (call $answer (call $set_property %"request\00path" %"/forged"))
           (call $answer (call $set_property %"source\00address" %"10.0.0.1:1"))
           (call $answer (call $set_property %"plugin_name" %"other"))
           (call $answer (call $set_property %"filter_state\00user" %"other"))
           (call $answer (call $set_property %"metadata" %"other"))
           (call $answer (call $set_property %"requests" %"fine"))"#,
        r#"(call $property %"color")
           (call $property %"a\00b")
           (call $property %"filter_state\00wasm.color")
           (call $property %"request\00path")
           (call $property %"plugin_name")
           (call $property %"requests")
           (call $answer (call $state_get %"wasm.color" (i32.const 4096) (i32.const 100)))"#,
    );
    let expected = ["0 0 0 0 0 0 0 0", "0 blue 0 two 0 blue 0 /asked?x 0 second 0 fine 4"];
    assert_eq!(request.all("x-said"), expected);
    proxy.wait_for_output(r#"property "request.path" belongs to the host and was not set"#);
}

#[test]
fn envoys_functions_access_the_same_state() {
    let set = "\n\x05color\x12\x04blue\x18\x01";
    let (_, request) = said(
        &format!(
            r#"(call $answer (call $foreign %"set_envoy_filter_state" %"{set}" (i32.const 0) (i32.const 0)))
            (call $answer (call $foreign %"set_envoy_filter_state" %"?" (i32.const 0) (i32.const 0)))"#
        ),
        r#"(call $property %"filter_state\00color")
           (call $answer (call $state_get %"color" (i32.const 4096) (i32.const 100)))"#,
    );
    assert_eq!(request.all("x-said"), ["0 2", "0 blue 4"]);
}

#[test]
fn filters_of_the_sdk_access_the_same_state() {
    let upstream = Upstream::saying("hello");
    let keys = Upstream::replying(|_| answer(200, &["x-user: ann"], ""));
    let reader = guest::saying(r#"(call $property %"metadata\00filter_metadata\00api-key\00user")"#);
    let config = Config::to(&upstream).cluster("keys", &[&keys], "").filter(
        "api-key",
        "api-key.wasm",
        "config: {cluster: keys, timeout: 60s}",
    );
    let config = config.filter("reader", "reader.wasm", "");
    let modules: [(&str, &[u8]); 2] = [("api-key.wasm", &wasm::example("api-key")), ("reader.wasm", &reader)];
    let proxy = Proxy::start_with(config, &modules);
    assert_eq!(proxy.request("GET", "/", &[("x-api-key", "sesame")], b"").status(), 200);
    let request = upstream.only_request();
    assert_eq!((request.field("x-user"), request.field("x-said")), (Some("ann"), Some("0 ann")));
}

#[test]
fn the_access_log_shows_state_and_metadata() {
    let upstream = Upstream::saying("hello");
    let module = guest::saying(
        r#"(call $answer (call $metadata_set %"auth" %"user" (i32.const 0) %"ann"))
           (call $answer (call $set_property %"color" %"blue"))"#,
    );
    let format = "{to: access.log, format: \"%path% %metadata(auth:user)% %state(wasm.color)%\"}";
    let proxy = Proxy::start(Config::to(&upstream).module("f", &module, "").log(format));
    assert_eq!(proxy.get("/shown").status(), 200);
    let log = proxy.dir().join("access.log");
    wait_until("the line", || std::fs::read_to_string(&log).is_ok_and(|text| text == "/shown ann blue\n"));
}

#[test]
fn state_does_not_leak_into_the_next_stream() {
    let upstream = Upstream::saying("hello");
    let module = guest::saying(
        r#"(call $answer (call $state_get %"k" (i32.const 4096) (i32.const 0)))
           (call $answer (call $metadata_get %"s" %"k" (i32.const 4096) (i32.const 4100) (i32.const 0)))
           (call $answer (call $state_set %"k" %"v"))
           (call $answer (call $metadata_set %"s" %"k" (i32.const 0) %"v"))"#,
    );
    let proxy = Proxy::start(Config::to(&upstream).top("workers: 1").module("f", &module, ""));
    for _ in 0..2 {
        assert_eq!(proxy.get("/").status(), 200);
    }
    let requests = upstream.wait_for_requests(2);
    assert!(requests.iter().all(|request| request.field("x-said") == Some("-1 -1 0 0")));
}

#[test]
fn shared_data_supports_create_delete_and_ttl() {
    let shared = |code: &str| -> Vec<String> {
        let upstream = Upstream::saying("hello");
        let config = Config::to(&upstream).top("workers: 1").filter("f", "f.wasm", "");
        let proxy = Proxy::start_with(config, &[("f.wasm", &guest::saying(code))]);
        assert_eq!(proxy.get("/").status(), 200);
        upstream.only_request().all("x-said").iter().map(ToString::to_string).collect()
    };
    let created = shared(
        r#"(call $answer (call $shared_set %"k" %"one" (i64.const 0) (i64.const 0)))
           (call $answer (call $shared_set %"k" %"two" (i64.const 0) (i64.const 0)))
           (call $answer (call $shared_get %"k" (i32.const 4096) (i32.const 100) (i32.const 4092)))
           (call $say (i32.const 4096) (i32.const 3))
           (call $say %" ")
           (call $answer (call $shared_delete %"k" (i64.const 77)))
           (call $answer (call $shared_delete %"k" (i64.load32_u (i32.const 4092))))
           (call $answer (call $shared_delete %"k" (i64.const -1)))
           (call $answer (call $shared_get %"k" (i32.const 4096) (i32.const 100) (i32.const 0)))"#,
    );
    assert_eq!(created, ["0 8 3 one 8 0 1 -1"]);
    let timed = shared(
        r#"(call $answer (call $shared_set %"k" %"one" (i64.const -1) (i64.const 3600000)))
           (call $answer (call $get_shared %"k" (global.get $out) (global.get $out_len) (i32.const 4092)))
           (call $answer (call $shared_set %"k" %"two" (i64.const -1) (i64.const 1)))
           (loop $until_it_is_gone
               (br_if $until_it_is_gone (i32.ge_s
                   (call $shared_get %"k" (i32.const 4096) (i32.const 100) (i32.const 0)) (i32.const 0))))
           (call $answer (call $get_shared %"k" (global.get $out) (global.get $out_len) (i32.const 4092)))
           (call $answer (call $shared_set %"k" %"two" (i64.const -2) (i64.const 0)))
           (call $answer (call $shared_set %"k" %"two" (i64.const -1) (i64.const -1)))"#,
    );
    assert_eq!(timed, ["0 0 0 1 2 2"]);
}

#[test]
fn shared_data_is_shared_by_workers_and_loses_no_update() {
    // Adds one: creates the value if missing, changes it if it is unchanged since it was read, and otherwise retries.
    let counting = guest::saying(
        r#"(loop $again
            (i32.store (i32.const 4096) (i32.const 0))
            (i32.store (i32.const 4100) (i32.const 0))
            (drop (call $shared_get %"n" (i32.const 4096) (i32.const 4) (i32.const 4100)))
            (i32.store (i32.const 4096) (i32.add (i32.load (i32.const 4096)) (i32.const 1)))
            (br_if $again (call $shared_set
                %"n" (i32.const 4096) (i32.const 4) (i64.load32_u (i32.const 4100)) (i64.const 0))))
           (call $answer (i32.load (i32.const 4096)))"#,
    );
    let other = [counting.clone(), b"\x00\x05\x04note".to_vec()].concat();
    let upstream = Upstream::saying("hello");
    // Another filter with other code sees the same data if its `vm_id` is the same.
    let config = Config::to(&upstream).top("workers: 4").filter("one", "one.wasm", "vm_id: together");
    let config = config.filter("two", "two.wasm", "vm_id: together").filter("three", "one.wasm", "");
    let proxy = Proxy::start_with(config, &[("one.wasm", &counting), ("two.wasm", &other)]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10).for_each(|_| assert_eq!(proxy.get("/").status(), 200)));
        }
    });
    let requests = upstream.wait_for_requests(80);
    let numbers = |of: &[usize]| {
        let said = requests.iter().flat_map(|request| of.iter().map(|nth| request.all("x-said")[*nth].parse::<u32>()));
        let mut said: Vec<_> = said.map(|number| number.expect("a number")).collect();
        said.sort_unstable();
        said
    };
    assert_eq!(numbers(&[0, 1]), (1..=160).collect::<Vec<_>>());
    assert_eq!(numbers(&[2]), (1..=80).collect::<Vec<_>>(), "the third filter has its own data");
}
