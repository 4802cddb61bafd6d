//! Filters written with the AssemblyScript SDK (`@solo-io/proxy-runtime`, from npm), which is independent of Tollgate.
//! Their sources are in `tests/conformance/assemblyscript`; its `setup.sh` compiles them.

use crate::harness::{Config, Gate, Message, Proxy, Upstream, answer, peer};

/// Starts a proxy with one of the filters; `lines` are its configuration.
fn start(upstream: &Upstream, filter: &str, lines: &[&str], more: impl FnOnce(Config) -> Config) -> Option<Proxy> {
    let module = peer::module(&format!("assemblyscript/{filter}"))?;
    Some(Proxy::start_with(more(config(upstream, filter, lines)), &[("filter.wasm", &module)]))
}

fn config(upstream: &Upstream, filter: &str, lines: &[&str]) -> Config {
    let text = serde_json::to_string(&lines.join("\n")).expect("a text");
    // The SDK looks up the root context by name.
    Config::to(upstream).filter(filter, "filter.wasm", &format!("root_id: {filter}\nconfig: {text}"))
}

const GATE: [&str; 4] = ["header: x-api-key", "prefix: /api", "key s3cret: alice", "key other: bob"];

#[test]
fn gate_admits_clients_with_a_key() {
    let upstream = Upstream::replying(|_| answer(200, &["server: old/1", "x-internal-host: a7", "x-kept: yes"], "in"));
    let Some(proxy) = start(&upstream, "gate", &GATE, |c| c) else { return };
    let fields = [("x-api-key", "other"), ("x-user", "forged"), ("x-more", "1")];
    let response = proxy.request("POST", "/api/a?b=c", &fields, b"body");
    assert_eq!((response.status(), response.text()), (200, "in"));
    assert_eq!((response.field("x-gate"), response.field("x-kept")), (Some("passed"), Some("yes")));
    assert_eq!((response.field("server"), response.field("x-internal-host")), (None, None));
    let request = upstream.only_request();
    assert_eq!((request.method(), request.target(), &*request.body), ("POST", "/a?b=c", &b"body"[..]));
    assert_eq!((request.field("x-user"), request.field("x-api-key")), (Some("bob"), None));
    assert_eq!((request.field("x-original-path"), request.field("x-more")), (Some("/api/a?b=c"), Some("1")));
    assert_eq!(proxy.filter("gate")["abi"], "0.2.0");
    assert_eq!(proxy.filter("gate")["traps"], 0);
}

#[test]
fn gate_rejects_clients_without_a_key() {
    let upstream = Upstream::saying("in");
    let Some(proxy) = start(&upstream, "gate", &GATE, |c| c) else { return };
    for (fields, said) in [(vec![], "missing key\n"), (vec![("x-api-key", "s3cre")], "unknown key\n")] {
        let response = proxy.request("GET", "/api/", &fields, b"");
        assert_eq!((response.status(), response.text()), (401, said));
        assert_eq!((response.field("www-authenticate"), response.field("x-gate")), (Some("Key"), Some("shut")));
    }
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let response = proxy.request("POST", "/test.Echo/Once", &fields, b"");
    assert_eq!((response.status(), response.field("grpc-status")), (200, Some("16")));
    assert!(upstream.requests().is_empty());
    let entry = proxy.entry(|entry| entry["status"] == 401);
    assert!(entry.to_string().contains("no_key"), "{entry}");
    assert_eq!(proxy.filter("gate")["traps"], 0);
}

#[test]
fn gate_reads_a_missing_configuration_as_empty() {
    let Some(module) = peer::module("assemblyscript/gate") else { return };
    let upstream = Upstream::saying("in");
    let files: [(&str, &[u8]); 1] = [("filter.wasm", &module)];
    let Err(output) = Proxy::try_start(config(&upstream, "gate", &[]), &files) else { panic!("it must not start") };
    assert!(output.contains("it logged: no keys are configured"), "{output}");
}

#[test]
fn an_unknown_root_id_prevents_the_start() {
    let Some(module) = peer::module("assemblyscript/gate") else { return };
    let upstream = Upstream::saying("in");
    let config = Config::to(&upstream).filter("gate", "filter.wasm", "root_id: other");
    let Err(output) = Proxy::try_start(config, &[("filter.wasm", &module)]) else { panic!("it must not start") };
    assert!(output.contains("Missing root context factory for root id: other"), "{output}");
}

const VERIFY: [&str; 3] = ["cluster: decisions", "path: /check", "timeout: 60000"];

/// Admits tokens that begin with `good`; the rest of the token is the scope.
fn decide(question: &Message) -> Vec<u8> {
    match question.field("authorization").map(|token| token.split_once(' ').unwrap_or((token, ""))) {
        Some(("good", scope)) => answer(200, &["x-ttl: 60"], scope),
        None | Some(("", _)) => answer(401, &[], ""),
        Some(_) => answer(401, &[], "expired"),
    }
}

#[test]
fn verify_asks_the_service_and_forwards_the_scope() {
    let (upstream, service) = (Upstream::saying("in"), Upstream::replying(decide));
    let Some(proxy) = start(&upstream, "verify", &VERIFY, |c| c.cluster("decisions", &[&service], "")) else { return };
    let fields = [("authorization", "good read"), ("x-scope", "forged")];
    let response = proxy.request("PUT", "/a?b", &fields, &vec![b'x'; 200_000]);
    assert_eq!((response.status(), response.text()), (200, "in"));
    let question = service.only_request();
    assert_eq!((question.method(), question.target(), question.text()), ("POST", "/check", "PUT /a?b"));
    assert_eq!((question.field("host"), question.field("authorization")), (Some("decisions"), Some("good read")));
    let request = upstream.only_request();
    assert_eq!((request.field("x-scope"), request.field("x-scope-ttl")), (Some("read"), Some("60")));
    assert_eq!(request.body.len(), 200_000);

    let response = proxy.request("GET", "/", &[("authorization", "bad")], b"");
    assert_eq!((response.status(), response.text()), (403, "expired\n"));
    let response = proxy.get("/");
    assert_eq!((response.status(), response.text()), (403, "refused\n"));
    assert_eq!(upstream.requests().len(), 1);
    assert_eq!(proxy.filter("verify")["traps"], 0);
}

#[test]
fn verify_without_an_answer_fails_open_or_closed() {
    let (upstream, service) = (Upstream::saying("in"), Upstream::refusing());
    for (fail, status) in [("fail: closed", 503), ("fail: open", 200)] {
        let lines = [&VERIFY[..], &[fail]].concat();
        let with = |config: Config| config.cluster("decisions", &[service], "");
        let Some(proxy) = start(&upstream, "verify", &lines, with) else { return };
        assert_eq!(proxy.get("/").status(), status);
        proxy.wait_for_output("the service does not answer");
        assert_eq!(proxy.filter("verify")["traps"], 0);
    }
    // A cluster that does not exist.
    let Some(proxy) = start(&upstream, "verify", &VERIFY, |c| c) else { return };
    assert_eq!(proxy.get("/").status(), 500);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn verify_survives_a_client_that_leaves_while_it_waits() {
    let gate = Gate::default();
    let service = Upstream::held(&gate, "/", decide);
    let upstream = Upstream::saying("in");
    let Some(proxy) = start(&upstream, "verify", &VERIFY, |c| c.cluster("decisions", &[&service], "")) else { return };
    let mut client = proxy.client();
    client.send_request("GET", "/gone", &[("authorization", "good")], b"");
    service.wait_for_requests(1);
    client.wire.reset();
    proxy.entry_for("/gone");
    gate.open();
    proxy.wait_for_zero("tollgate_cluster_requests_active", &[("cluster", "decisions")]);
    assert_eq!(proxy.request("GET", "/", &[("authorization", "good all")], b"").status(), 200);
    assert_eq!(proxy.filter("verify")["traps"], 0);
    assert_eq!(upstream.requests().len(), 1);
}

const METER: [&str; 2] = ["refuse: attack", "period: 20"];

#[test]
fn meter_counts_across_workers() {
    let upstream = Upstream::saying("in");
    let Some(proxy) = start(&upstream, "meter", &METER, |c| c) else { return };
    for size in 1..=20 {
        assert_eq!(proxy.request("POST", "/counted", &[], &vec![b'x'; size * 1000]).status(), 200);
    }
    assert_eq!(proxy.get("/nothing").status(), 200);
    proxy.wait_for_output("/nothing was answered with 200");
    // A tick publishes the sum over all workers.
    proxy.wait_for_metric("wasmcustom_meter_bytes", &[], 210_000.0);
    proxy.wait_for_zero("wasmcustom_meter_active", &[]);
    let metrics = proxy.metrics();
    assert_eq!(metrics.sum("wasmcustom_meter_bytes", &[]), 210_000.0);
    assert_eq!(metrics.sum("wasmcustom_meter_requests", &[]), 21.0);
    assert_eq!(metrics.sum("wasmcustom_meter_body_size_count", &[]), 21.0);
    assert_eq!(metrics.sum("wasmcustom_meter_body_size_sum", &[]), 210_000.0);
    assert_eq!(proxy.filter("meter")["traps"], 0);
}

#[test]
fn meter_rejects_bodies_with_the_forbidden_word() {
    let upstream = Upstream::saying("in");
    let Some(proxy) = start(&upstream, "meter", &METER, |c| c) else { return };
    let head = "POST / HTTP/1.1\r\nhost: test\r\ntrailer: x-end, x-metered\r\ntransfer-encoding: chunked\r\n\r\n";
    // The word arrives in two parts; the other cases have another word, or trailers.
    for (rest, trailers, status) in
        [("ack", "", 422), ("ic", "", 200), ("ack", "x-end: 1\r\n", 422), ("ic", "x-end: 1\r\n", 200)]
    {
        let mut client = proxy.client();
        client.send(head);
        client.send("3\r\natt\r\n");
        client.send(format!("{:x}\r\n{rest}\r\n0\r\n{trailers}\r\n", rest.len()));
        assert_eq!(client.read().status(), status, "{rest} {trailers}");
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.body == b"attic"), "{requests:?}");
    assert_eq!(proxy.filter("meter")["traps"], 0);
}
