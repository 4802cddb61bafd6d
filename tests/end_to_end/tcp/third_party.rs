//! The shipped example filters for TCP connections.

use super::{connect, echo, echoes, logged, to};
use crate::harness::{Config, Proxy, Upstream, answer, wait_until, wasm};

/// All connections pass the example filter, with this configuration.
fn start(config: Config, options: &str) -> Proxy {
    let config = config.filter("third", "third.wasm", &format!("config: {{{options}}}"));
    Proxy::start_with(config, &[("third.wasm", &wasm::example("third-party-tcp"))])
}

#[test]
fn a_standard_filter_calls_holds_and_changes() {
    let upstream = Upstream::scripted(|mut connection| {
        let line = connection.wire.read_exact(11).expect("the beginning");
        connection.send(format!("i got {}", String::from_utf8_lossy(&line)));
        connection.wait_for_end();
    });
    let service = Upstream::replying(|question| {
        let local = question.target().starts_with("/may?127.0.0.1:");
        answer(if local { 200 } else { 403 }, &[], "")
    });
    let proxy = start(to(&upstream).cluster("service", &[&service], ""), "ask: service");
    let mut wire = connect(&proxy);
    wire.send("HEL").expect("the proxy reads");
    wire.send("LO\nrest").expect("the proxy reads");
    assert_eq!(wire.read_exact(17).expect("an answer"), b"I GOT HELLO FROM ");
    wire.finish();
    assert_eq!(service.requests().len(), 1);
    proxy.wait_for_output("the client's connection was closed: Remote");
    proxy.wait_for_output("the upstream's connection was closed: Remote");
    proxy.wait_for_output("the connection has ended");
    assert_eq!(proxy.filter("third")["traps"], 0);
}

#[test]
fn a_denying_or_silent_service_rejects_clients() {
    let (upstream, service) = (echo(), Upstream::replying(|_| answer(403, &[], "")));
    for ask in ["service", "nobody"] {
        let config = to(&upstream).cluster("service", &[&service], "").cluster("nobody", &[Upstream::refusing()], "");
        let proxy = start(config, &format!("ask: {ask}"));
        let mut wire = connect(&proxy);
        // Bytes sent early do not help the client.
        let _ = wire.send("let me in");
        assert!(wire.is_closed());
        logged(&proxy).expect((), "LR").because("closed_by_filter");
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_standard_filter_chooses_the_cluster() {
    let (listeners, chosen) = (echo(), echo());
    let proxy = start(to(&listeners).cluster("chosen", &[&chosen], ""), "cluster: chosen");
    let mut wire = connect(&proxy);
    wire.send("hello\n").expect("the proxy reads");
    assert_eq!(wire.read_exact(6).expect("an answer"), b"HELLO\n");
    wire.finish();
    assert!(wire.is_closed());
    assert_eq!(logged(&proxy)["cluster"], "chosen");
    assert_eq!((listeners.connections(), chosen.connections()), (0, 1));
}

#[test]
fn a_token_admits_the_connection() {
    let upstream = echo();
    let options = "config: {tokens: {ann: open-sesame}, per_minute: 2}";
    let config = to(&upstream).filter("token", "token.wasm", options);
    let proxy = Proxy::start_with(config, &[("token.wasm", &wasm::example("tcp-token"))]);
    let mut wire = connect(&proxy);
    wire.send("TOKEN open-").expect("the proxy reads");
    assert_eq!(upstream.connections(), 0);
    wire.send("sesame\r\n").expect("the proxy reads");
    echoes(&mut wire, "hello");
    wire.finish();
    assert!(wire.is_closed());
    let entry = logged(&proxy).expect((), "");
    assert_eq!(entry["fields"]["user"], "ann");
    assert_eq!(entry["request_bytes"], "TOKEN open-sesame\r\nhello".len());

    let mut wire = connect(&proxy);
    wire.send("TOKEN guess\n").expect("the proxy reads");
    assert_eq!(wire.read_to_end(), b"ERROR unknown token\r\n");
    wait_until("its line", || proxy.entries().iter().any(|entry| entry["flags"] == "UAEX,LR"));
    assert_eq!(upstream.connections(), 1);

    // Two connections a minute, across workers.
    let mut wire = connect(&proxy);
    wire.send("TOKEN open-sesame\n").expect("the proxy reads");
    echoes(&mut wire, "second");
    let mut wire = connect(&proxy);
    wire.send("TOKEN open-sesame\n").expect("the proxy reads");
    assert_eq!(wire.read_to_end(), b"ERROR too many connections\r\n");
    assert_eq!(proxy.metrics().sum("wasmcustom_tcp_token_refused", &[]), 2.0);
}
