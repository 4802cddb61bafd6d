//! Hot reload: filters and configurations are swapped while requests are in flight. No request fails, and none sees two
//! versions.

mod addresses;
mod certificates;
mod equal;
mod files;
mod history;
mod includes;
mod kept;
mod parts;
mod refused;
mod told;
mod ways;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

pub use crate::harness::Gate;
use crate::{
    guest,
    harness::{Client, Config, Message, Proxy, Signal, Upstream, answer, wait_until, wasm},
};

/// Clients that send requests one after the other until they are stopped.
pub struct Load {
    over: Arc<AtomicBool>,
    /// Per client, how often it has seen each version.
    seen: Arc<Mutex<Vec<BTreeMap<String, usize>>>>,
    clients: Vec<JoinHandle<()>>,
}

const CLIENTS: usize = 4;

/// The version recorded by [`Load::connecting`].
pub const ANY: &str = "an answer";

impl Load {
    /// Starts clients with one connection each. `version` returns a response's version, and panics if the response is
    /// invalid.
    fn start(proxy: &Proxy, version: fn(&Message) -> String) -> Load {
        Load::by(&[proxy.address("main"); CLIENTS], |address| {
            let mut client = Client::connect(address);
            move || {
                let response = client.get("/");
                assert_eq!(response.status(), 200, "{response:?}");
                version(&response)
            }
        })
    }

    /// Starts a client per address, which opens a new connection for each request.
    pub fn connecting(addresses: &[SocketAddr]) -> Load {
        Load::by(addresses, |address| {
            move || {
                let response = Client::connect(address).request("GET", "/", &[("Connection", "close")], b"");
                assert_eq!(response.status(), 200, "{response:?}");
                ANY.to_owned()
            }
        })
    }

    pub fn by<A: FnMut() -> String + Send + 'static>(addresses: &[SocketAddr], ask: impl Fn(SocketAddr) -> A) -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(vec![BTreeMap::new(); addresses.len()]));
        let client = |(nth, address): (usize, &SocketAddr)| {
            let (over, seen, mut ask) = (over.clone(), seen.clone(), ask(*address));
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let version = ask();
                    *seen.lock().unwrap()[nth].entry(version).or_insert(0) += 1;
                }
            })
        };
        let clients = addresses.iter().enumerate().map(client).collect();
        Load { over, seen, clients }
    }

    /// Waits until every client has seen a version several more times.
    pub fn meet(&self, version: &str) {
        let met = || self.seen.lock().unwrap().iter().map(|seen| seen.get(version).copied().unwrap_or(0)).collect();
        let before: Vec<usize> = met();
        wait_until(&format!("all clients to see {version}"), || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a request has failed");
            met().iter().zip(&before).all(|(now, before)| *now >= before + 10)
        });
    }

    /// Stops the clients, and returns the versions that any of them has seen.
    pub fn end(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("no request fails"));
        let seen = self.seen.lock().unwrap();
        let all: BTreeMap<_, _> = seen.iter().flatten().collect();
        all.into_keys().cloned().collect()
    }
}

/// All requests pass a filter `marker`.
fn with_marker(upstream: &Upstream) -> Config {
    Config::to(upstream).filter("marker", "marker.wasm", "")
}

/// A proxy whose filter `marker` has this module.
fn marked(upstream: &Upstream, module: &[u8]) -> Proxy {
    Proxy::start_with(with_marker(upstream), &[("marker.wasm", module)])
}

/// An upstream that responds with the filter version that its request has passed.
pub fn telling() -> Upstream {
    Upstream::replying(|request| answer(200, &[], request.field("x-version").unwrap_or("none")))
}

/// The version that both the response and its request have passed.
fn version(response: &Message) -> String {
    let version = response.field("x-version").expect("exactly one version of the filter has seen the response");
    assert_eq!(version, response.text(), "request and response saw different versions");
    version.to_owned()
}

fn no_failures(proxy: &Proxy) {
    let metrics = proxy.metrics();
    for class in ["none", "1xx", "3xx", "4xx", "5xx"] {
        assert_eq!(metrics.sum("tollgate_requests_total", &[("class", class)]), 0.0, "{class}");
    }
    assert_eq!(metrics.sum("tollgate_filter_traps_total", &[]), 0.0);
}

#[test]
fn a_module_is_swapped_under_load() {
    let upstream = telling();
    let proxy = marked(&upstream, &guest::version("v1"));
    let load = Load::start(&proxy, version);
    load.meet("v1");
    let before = proxy.filter("marker");
    proxy.put("marker.wasm", guest::version("v2"));
    load.meet("v2");
    assert_eq!(load.end(), ["v1", "v2"]);
    no_failures(&proxy);
    let after = proxy.filter("marker");
    assert_ne!(before["hash"], after["hash"]);
    assert_eq!((proxy.version(), &after["instances"]), (2, &2.into()));
}

#[test]
fn a_module_is_swapped_back_and_forth() {
    let upstream = telling();
    let versions = [guest::version("v0"), guest::version("v1")];
    let proxy = marked(&upstream, &versions[0]);
    let load = Load::start(&proxy, version);
    for round in 1..=10 {
        proxy.put("marker.wasm", &versions[round % 2]);
        load.meet(&format!("v{}", round % 2));
    }
    assert_eq!(load.end(), ["v0", "v1"]);
    no_failures(&proxy);
    assert_eq!(proxy.version(), 11);
    assert_eq!(proxy.metrics().sum("tollgate_config_reloads_total", &[("result", "applied")]), 11.0);
    assert_eq!(proxy.metrics().sum("tollgate_filter_instances", &[("filter", "marker")]), 2.0);
}

/// A configuration with a standard filter, so that only the configuration can be swapped.
fn said(upstream: &Upstream, version: &str) -> Config {
    let routes = format!(
        "config:
           virtual_hosts:
             - name: all
               domains: ['*']
               routes:
                 - cluster: web
                   request_headers: {{set: {{x-version: {version}}}}}
                   response_headers: {{set: {{x-version: {version}}}}}"
    );
    Config::new().cluster("web", &[upstream], "").filter("routes", "builtin:router", &routes)
}

#[test]
fn the_configuration_is_swapped_under_load() {
    let upstream = telling();
    let mut proxy = Proxy::start(said(&upstream, "v1"));
    let load = Load::start(&proxy, version);
    load.meet("v1");
    let cause = |proxy: &Proxy| proxy.config()["last_attempt"]["cause"].as_str().map(str::to_owned);

    proxy.put_config(said(&upstream, "v2"));
    load.meet("v2");
    assert_eq!(cause(&proxy).as_deref(), Some("file"));

    proxy.put_config(said(&upstream, "v3"));
    proxy.signal(Signal::HUP);
    load.meet("v3");
    wait_until("the signal to be handled", || cause(&proxy).as_deref() == Some("SIGHUP"));

    proxy.put_config(said(&upstream, "v4"));
    let (status, said) = proxy.reload();
    assert_eq!((status, &said["cause"]), (200, &"admin".into()), "{said}");
    // The reload was answered, so requests from now on see the new version.
    assert_eq!(version(&proxy.get("/")), "v4");
    load.meet("v4");

    assert_eq!(load.end(), ["v1", "v2", "v3", "v4"]);
    assert_eq!(proxy.version(), 4);
    no_failures(&proxy);
}

#[test]
fn in_flight_requests_keep_their_version() {
    let gate = Gate::default();
    let shut = gate.clone();
    let upstream = Upstream::replying(move |request| {
        if request.target() == "/slow" {
            shut.wait();
        }
        answer(200, &[], request.field("x-version").unwrap_or("none"))
    });
    let proxy = marked(&upstream, &guest::version("v1"));
    let mut slow = proxy.client();
    slow.send_request("GET", "/slow", &[], b"");
    upstream.wait_for_requests(1);
    proxy.put("marker.wasm", guest::version("v2"));
    wait_until("the new version", || version(&proxy.get("/fast")) == "v2");
    gate.open();
    assert_eq!(version(&slow.read()), "v1");
    // The same connection, another request.
    assert_eq!(version(&slow.get("/fast")), "v2");
    no_failures(&proxy);
}

/// A filter that appends its version to responses.
fn signing(version: &str) -> Vec<u8> {
    guest::filter(&format!(
        r#"(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (drop (call $remove_header %response_headers %"content-length"))
            %continue)
        (func (export "proxy_on_response_body") (param $context i32) (param $size i32) (param $end i32) (result i32)
            (if (local.get $end)
                (then (drop (call $set_buffer %response_body (local.get $size) (i32.const 0) %"{version}"))))
            %continue)"#
    ))
}

#[test]
fn in_flight_bodies_keep_their_filter_version() {
    let gate = Gate::default();
    let shut = gate.clone();
    let upstream = Upstream::scripted(move |mut connection| {
        while let Some(request) = connection.request() {
            connection.send("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nfirst ");
            if request.target() == "/slow" {
                shut.wait();
            }
            connection.send("second");
        }
    });
    let proxy = marked(&upstream, &signing(" v1"));
    let mut slow = proxy.client();
    slow.send_request("GET", "/slow", &[], b"");
    let mut response = slow.wire.read_head().expect("a head");
    assert_eq!(response.status(), 200);
    proxy.put("marker.wasm", signing(" v2"));
    wait_until("the new version", || proxy.get("/fast").text() == "first second v2");
    gate.open();
    slow.wire.read_body(&mut response, true).expect("a body");
    assert_eq!(response.text(), "first second v1");
    assert_eq!(slow.get("/fast").text(), "first second v2");
    no_failures(&proxy);
}

#[test]
fn held_requests_are_released_by_the_same_filter_version() {
    let gate = Gate::default();
    let shut = gate.clone();
    let verifier = Upstream::replying(move |question| {
        if question.field("x-token") == Some("slow") {
            shut.wait();
        }
        answer(200, &[], "")
    });
    let upstream = Upstream::saying("hello");
    let config = |tag: &str| {
        let verify = "verify: {header: x-token, cluster: verifier, path: /, timeout_ms: 60000}";
        let options = format!("config: {{tag: {tag}, {verify}}}");
        Config::to(&upstream).filter("third", "third.wasm", &options).cluster("verifier", &[&verifier], "")
    };
    let mut proxy = Proxy::start_with(config("v1"), &[("third.wasm", &wasm::example("third-party"))]);
    let mut held: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    held.iter_mut().for_each(|client| client.send_request("GET", "/", &[("x-token", "slow")], b""));
    verifier.wait_for_requests(4);
    proxy.change_config(config("v2"));
    let tag = |response: &Message| (response.status(), response.field("x-third-party").map(str::to_owned));
    let fast = proxy.request("GET", "/", &[("x-token", "fast")], b"");
    assert_eq!(tag(&fast), (200, Some("v2".into())));
    gate.open();
    for client in &mut held {
        assert_eq!(tag(&client.read()), (200, Some("v1".into())));
    }
    wait_until("the old instances to be gone", || proxy.filter("third")["instances"] == 2);
    no_failures(&proxy);
}

#[test]
fn an_old_filter_that_fails_at_its_end_is_handled() {
    // The old root context is ended when it is no longer used, and traps then.
    let upstream = telling();
    let dying = guest::filter(
        r#"(func (export "proxy_on_done") (param i32) (result i32)
            (if (i32.eq (local.get 0) (i32.const 1)) (then unreachable))
            (i32.const 1))
        (func (export "proxy_on_delete") (param i32) (if (i32.eq (local.get 0) (i32.const 1)) (then unreachable)))"#,
    );
    let mut proxy = marked(&upstream, &dying);
    assert_eq!(proxy.get("/").text(), "none");
    proxy.put("marker.wasm", guest::version("v2"));
    assert_eq!(proxy.reload().0, 200);
    proxy.wait_for_metric("tollgate_filter_traps_total", &[("filter", "marker")], 2.0);
    for _ in 0..4 {
        assert_eq!(version(&proxy.get("/")), "v2");
    }
    let info = proxy.filter("marker");
    assert_eq!((&info["state"], &info["instances"]), (&"ready".into(), &2.into()), "{info}");
    assert!(!proxy.has_ended());
}

#[test]
fn rate_limits_outlive_configurations_and_modules() {
    let upstream = Upstream::saying("hello");
    let options = "config: {limits: [{name: few, requests: 3, per: 1h}]}";
    let config = |via: &str| Config::to(&upstream).listener(&format!("via: {via}")).filter("few", "few.wasm", options);
    let module = wasm::example("ratelimit");
    let mut proxy = Proxy::start_with(config("one"), &[("few.wasm", &module)]);
    assert_eq!(proxy.get("/").status(), 200);
    proxy.change_config(config("two"));
    let response = proxy.get("/");
    assert_eq!((response.status(), response.field("via")), (200, Some("1.1 two")));
    // The same code with another hash: an empty custom section at its end.
    proxy.put("few.wasm", [&module[..], &[0, 1, 0]].concat());
    assert_eq!(proxy.reload().0, 200);
    assert_eq!(proxy.version(), 3);
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(proxy.get("/").status(), 429, "three tokens, across all swaps");
    // Other numbers make another bucket.
    let more = "config: {limits: [{name: few, requests: 4, per: 1h}]}";
    proxy.change_config(Config::to(&upstream).filter("few", "few.wasm", more));
    assert_eq!(proxy.get("/").status(), 200);
}

/// A filter that counts requests, up to 9, in its shared data, and tells the upstream.
fn counting(name: &str) -> Vec<u8> {
    guest::filter(&format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (i32.store8 (i32.const 32) (i32.const 48))
            (if (i32.eqz (call $get_shared %"count" (global.get $out) (global.get $out_len) (i32.const 24)))
                (then (i32.store8 (i32.const 32) (i32.load8_u (i32.load (global.get $out))))))
            (i32.store8 (i32.const 32) (i32.add (i32.const 1) (i32.load8_u (i32.const 32))))
            (drop (call $set_shared %"count" (i32.const 32) (i32.const 1) (i32.const 0)))
            (drop (call $add_header (i32.const 0) %"{name}" (i32.const 32) (i32.const 1)))
            (i32.const 0))"#
    ))
}

#[test]
fn shared_data_outlives_modules() {
    let upstream = Upstream::saying("hello");
    let proxy = marked(&upstream, &counting("x-old"));
    proxy.get("/");
    proxy.get("/");
    proxy.put("marker.wasm", counting("x-new"));
    assert_eq!(proxy.reload().0, 200);
    proxy.get("/");
    let requests = upstream.requests();
    let counts: Vec<_> = requests.iter().map(|r| (r.field("x-old"), r.field("x-new"))).collect();
    assert_eq!(counts, [(Some("1"), None), (Some("2"), None), (None, Some("3"))]);
}

#[test]
fn a_touched_file_changes_nothing() {
    let upstream = telling();
    let module = guest::version("v1");
    let proxy = marked(&upstream, &module);
    proxy.put("marker.wasm", &module);
    let text = fs::read(proxy.dir().join("config.yaml")).expect("the configuration");
    proxy.put("config.yaml", text);
    let (status, response) = proxy.reload();
    assert_eq!((status, &response["result"], proxy.version()), (200, &"unchanged".into(), 1), "{response}");
    assert_eq!(version(&proxy.get("/")), "v1");
}
