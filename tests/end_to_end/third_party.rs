//! The shipped example filters: those written with the crates.io crate `proxy-wasm`, which is independent of Tollgate,
//! and the introductory one, written with the SDK.

mod audit;
mod body;
mod variants;

use std::{fmt::Display, thread};

use crate::harness::{Client, Config, Gate, Message, Proxy, Upstream, answer, wait_until, wasm};

/// With a timeout of one minute for the verifier.
fn verified(upstream: &Upstream, verifier: &Upstream) -> Proxy {
    start(upstream, verifier, 60_000)
}

/// The verifier is called for requests with `x-token`.
fn start(upstream: &Upstream, verifier: impl Display, timeout_ms: u32) -> Proxy {
    let verify = format!("{{header: x-token, cluster: verifier, path: /verify, timeout_ms: {timeout_ms}}}");
    let options = format!("config: {{tag: third, verify: {verify}}}");
    let config = Config::to(upstream).module("third", &wasm::example("third-party"), &options);
    Proxy::start(config.cluster("verifier", &[verifier], ""))
}

/// A verifier that accepts only tokens that begin with `good`.
fn verifier() -> Upstream {
    Upstream::replying(|question| {
        let good = question.field("x-token").is_some_and(|token| token.starts_with("good"));
        answer(if good { 204 } else { 401 }, &[], "")
    })
}

fn ask(proxy: &Proxy, token: &str) -> Message {
    proxy.request("GET", "/asked", &[("x-token", token), ("x-verified", "forged")], b"")
}

#[test]
fn the_filter_reads_and_marks_requests() {
    let (upstream, verifier) = (Upstream::saying("hello"), verifier());
    let proxy = verified(&upstream, &verifier);
    let response = proxy.request("POST", "/a?b=c", &[("user-agent", "test/1"), ("x-verified", "forged")], b"body");
    assert_eq!((response.status(), response.text()), (200, "hello"));
    assert_eq!(response.field("x-third-party"), Some("third"));
    let request = upstream.only_request();
    assert_eq!(request.field("x-seen"), Some("POST /a?b=c by test/1"));
    assert_eq!((request.field("x-verified"), &*request.body), (None, &b"body"[..]));
    assert!(verifier.requests().is_empty(), "requests without a token are not verified");
    let metrics = proxy.metrics();
    let (name, _) = metrics.names().find(|(name, _)| name.contains("third_party")).expect("its metric");
    assert_eq!((name, metrics.sum(name, &[])), ("wasmcustom_third_party_requests", 1.0));
    assert_eq!(metrics.types[name], "counter");
    assert_eq!(proxy.filter("third")["abi"], "0.2.1");
}

#[test]
fn the_filter_gets_non_text_values() {
    let (upstream, verifier) = (Upstream::saying("hello"), verifier());
    let proxy = verified(&upstream, &verifier);
    let mut client = proxy.client();
    client.send(b"GET / HTTP/1.1\r\nhost: test\r\nuser-agent: caf\xe9\r\n\r\n");
    assert_eq!(client.read().status(), 200);
    assert_eq!(upstream.only_request().field("x-seen"), Some("GET / by caf\u{e9}"));
    client.send(b"GET / HTTP/1.1\r\nhost: test\r\nx-token: caf\xe9\r\n\r\n");
    assert_eq!(client.read().status(), 400);
    assert_eq!(proxy.filter("third")["traps"], 0);
}

#[test]
fn the_filter_asks_the_verifier() {
    let (upstream, verifier) = (Upstream::saying("hello"), verifier());
    let proxy = verified(&upstream, &verifier);
    let response = ask(&proxy, "good-1");
    assert_eq!((response.status(), response.field("x-third-party")), (200, Some("third")));
    assert_eq!(upstream.only_request().field("x-verified"), Some("yes"));
    let question = verifier.only_request();
    assert_eq!((question.method(), question.target()), ("GET", "/verify"));
    assert_eq!((question.field("host"), question.field("x-token")), (Some("verifier"), Some("good-1")));
    assert_eq!(question.body, b"");

    let response = ask(&proxy, "bad-1");
    assert_eq!((response.status(), response.text()), (403, "denied by the service\n"));
    assert_eq!(response.field("x-third-party"), Some("third"), "its own replies pass through it, too");
    assert_eq!(upstream.requests().len(), 1);
    assert_eq!(proxy.entry(|entry| entry["status"] == 403)["flags"], "LR");
}

#[test]
fn a_request_with_a_body_waits_for_the_answer() {
    let gate = Gate::default();
    let verifier = Upstream::held(&gate, "/", |_| answer(200, &["x-trace: 1"], "yes"));
    let upstream = Upstream::saying("hello");
    let proxy = verified(&upstream, &verifier);
    let body = vec![b'x'; 300_000];
    let mut client = proxy.client();
    client.send_request("POST", "/asked", &[("x-token", "good")], &body);
    verifier.wait_for_requests(1);
    assert!(upstream.requests().is_empty(), "nothing is forwarded before the verifier responds");
    gate.open();
    assert_eq!(client.read().status(), 200);
    assert_eq!(upstream.only_request().body, body);
}

#[test]
fn a_silent_verifier_times_out() {
    let (upstream, verifier) = (Upstream::saying("hello"), Upstream::silent());
    let proxy = start(&upstream, &verifier, 100);
    let response = ask(&proxy, "good");
    assert_eq!((response.status(), response.text()), (503, "the request could not be verified\n"));
    proxy.wait_for_output("the service does not answer");
    assert!(upstream.requests().is_empty());
    assert_eq!(proxy.get("/").status(), 200);
    proxy.wait_for_zero("tollgate_cluster_requests_active", &[("cluster", "verifier")]);
}

#[test]
fn an_unreachable_or_failing_verifier_denies() {
    let upstream = Upstream::saying("hello");
    let resetting = Upstream::resetting();
    let broken = Upstream::canned("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    let babbling = Upstream::canned("what?\r\n\r\n");
    let refusing = Upstream::refusing();
    for address in [refusing, resetting.address, broken.address, babbling.address] {
        let proxy = start(&upstream, address, 60_000);
        let response = ask(&proxy, "good");
        assert_eq!((response.status(), response.text()), (503, "the request could not be verified\n"));
        assert_eq!(proxy.filter("third")["traps"], 0);
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_client_disconnect_during_verification_is_handled() {
    let gate = Gate::default();
    let verifier = Upstream::held(&gate, "/", |_| answer(200, &[], ""));
    let upstream = Upstream::saying("hello");
    let proxy = verified(&upstream, &verifier);
    let active = || proxy.metrics().sum("tollgate_requests_active", &[("listener", "main")]);
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(|client| client.send_request("GET", "/gone", &[("x-token", "good")], b""));
    verifier.wait_for_requests(4);
    wait_until("all requests to be in flight", || active() == 4.0);
    drop(clients.split_off(2));
    clients.drain(..).for_each(|client| client.wire.reset());
    wait_until("all requests to end", || active() == 0.0);
    // The responses arrive for requests that are gone.
    gate.open();
    assert_eq!(ask(&proxy, "good").status(), 200);
    proxy.wait_for_zero("tollgate_cluster_requests_active", &[("cluster", "verifier")]);
    assert_eq!(proxy.filter("third")["traps"], 0);
    assert_eq!(upstream.requests().len(), 1, "abandoned requests are not forwarded");
    assert_eq!(proxy.entry_for("/gone")["flags"], "DC");
}

#[test]
fn many_concurrent_verifications_find_their_requests() {
    // Responses arrive in another order than the calls, and each must find its own request.
    let verifier = Upstream::replying(|question| {
        let token = question.field("x-token").unwrap_or_default().to_owned();
        thread::sleep(std::time::Duration::from_millis(token.len() as u64 % 7));
        answer(if token.starts_with("good") { 200 } else { 403 }, &[], "")
    });
    let upstream = Upstream::replying(|request| answer(200, &[], request.field("x-token").unwrap_or_default()));
    let proxy = verified(&upstream, &verifier);
    thread::scope(|scope| {
        for nth in 0..32 {
            let proxy = &proxy;
            scope.spawn(move || {
                let mut client = proxy.client();
                for round in 0..20 {
                    let good = (nth + round) % 3 != 0;
                    let token = format!("{}-{}", if good { "good" } else { "bad" }, "x".repeat(nth + round));
                    let response = client.request("GET", "/", &[("x-token", &token)], b"");
                    let expected = if good { (200, token.as_str()) } else { (403, "denied by the service\n") };
                    assert_eq!((response.status(), response.text()), expected);
                }
            });
        }
    });
    assert_eq!(proxy.metrics().sum("wasmcustom_third_party_requests", &[]), 640.0);
    assert_eq!(proxy.filter("third")["traps"], 0);
}

#[test]
fn an_invalid_configuration_prevents_the_start() {
    let upstream = Upstream::saying("hello");
    let config = Config::to(&upstream).module("third", &wasm::example("third-party"), "config: {tga: x}");
    let Err(output) = Proxy::try_start(config, &[]) else { panic!("it must not start") };
    assert!(output.contains("it logged: invalid configuration: unknown field `tga`"), "{output}");
}

#[test]
fn an_unknown_cluster_denies() {
    let upstream = Upstream::saying("hello");
    let options = "config: {verify: {header: x-token, cluster: nowhere, path: /, timeout_ms: 100}}";
    let config = Config::to(&upstream).module("third", &wasm::example("third-party"), options);
    let proxy = Proxy::start(config);
    let response = ask(&proxy, "good");
    assert_eq!((response.status(), response.text()), (503, "the request could not be verified\n"));
    proxy.wait_for_output("cannot call cluster nowhere");
    assert_eq!(proxy.filter("third")["traps"], 0);
}

#[test]
fn the_introductory_filter_works() {
    let upstream = Upstream::saying("world");
    let hello = wasm::example("hello");
    let with = |options: &str| Config::to(&upstream).module("hello", &hello, options);
    let mut proxy = Proxy::start(with(""));
    let response = proxy.get("/");
    assert_eq!((response.field("x-hello"), response.text()), (Some("hello from a filter"), "world"));
    proxy.change_config(with("config: {greeting: good evening}"));
    assert_eq!(proxy.get("/").field("x-hello"), Some("good evening"));
    proxy.put_config(with("config: {greting: good night}"));
    let (status, report) = proxy.reload();
    assert_eq!(status, 422, "{report}");
    assert!(report["errors"][0]["message"].as_str().is_some_and(|m| m.contains("greting")), "{report}");
    assert_eq!(proxy.get("/").field("x-hello"), Some("good evening"));
}
