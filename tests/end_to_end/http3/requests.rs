//! Requests and tunnels over HTTP/3.

use std::{io::ErrorKind, sync::mpsc};

use serde_json::{Value, json};

use super::{
    Site,
    client::field,
    code,
    raw::{End, Raw, frame, section},
};
use crate::{
    bodies::length,
    cut_off,
    harness::{
        Config, Proxy, Secure, Upstream, answer,
        peer::needs,
        pki::{SelfSigned, TLS},
        wait_until,
    },
    hot_swap::Gate,
};

#[test]
fn a_request_is_forwarded_like_any_other() {
    needs!("aioquic");
    let upstream = Upstream::replying(|_| answer(201, &["x-upstream: a", "connection: x-gone", "x-gone: 1"], "hello"));
    let site = Site::to(&upstream, "");
    let mut client = site.connect();
    let fields = json!([["x-client", "b"], ["cookie", "a=1"], ["cookie", "b=2"]]);
    let response = client.request("a", json!({ "method": "PUT", "path": "/x/../a?q", "fields": fields, "body": "up" }));
    assert_eq!((&response["status"], &response["body"]), (&json!(201), &json!("hello")), "{response}");
    assert_eq!((field(&response, "x-upstream"), field(&response, "via")), (Some("a"), Some("1.1 tollgate")));
    assert_eq!((field(&response, "x-gone"), field(&response, "connection")), (None, None));
    assert!(field(&response, "date").is_some_and(|date| date.ends_with("GMT")), "{response}");
    assert_eq!(field(&response, "alt-svc"), None);
    let request = upstream.only_request();
    assert_eq!((request.method(), request.target(), request.text()), ("PUT", "/a?q", "up"));
    assert_eq!((request.field("host"), request.field("via")), (Some("web.test"), Some("3 tollgate")));
    assert_eq!((request.field("x-client"), request.field("cookie")), (Some("b"), Some("a=1; b=2")));
    assert_eq!(
        (request.field("x-forwarded-proto"), request.field("x-forwarded-for")),
        (Some("https"), Some("127.0.0.1"))
    );
    assert_eq!(site.proxy.entry_for("/x/../a?q").expect(201, "")["protocol"], "HTTP/3");
    for (method, length) in [("HEAD", 0), ("GET", 5), ("DELETE", 5)] {
        let response = client.request(method, json!({ "method": method, "path": "/b" }));
        assert_eq!((&response["status"], &response["length"]), (&json!(201), &json!(length)), "{response}");
        assert_eq!(field(&response, "content-length"), Some("5"));
    }
    let metrics = site.proxy.metrics();
    assert_eq!(metrics.sum("tollgate_connections_total", &[("listener", "main")]), 1.0);
    assert_eq!(metrics.sum("tollgate_requests_total", &[("class", "2xx")]), 4.0);
}

#[test]
fn a_head_response_omits_a_length_that_a_filter_might_change() {
    needs!("aioquic");
    let upstream = length::upstream();
    let config = Config::to(&upstream).filter("body", "body.wasm", "");
    let site = Site::start_with(config, &[("body.wasm", &length::longer())]);
    let mut client = site.connect();
    for (method, path) in [("HEAD", "/"), ("GET", "/304")] {
        let response = client.request(path, json!({ "method": method, "path": path }));
        assert_eq!(field(&response, "content-length"), None, "{method} {path}: {response}");
    }
    assert_eq!(client.request("whole", json!({ "path": "/" }))["body"], "more hello");
}

#[test]
fn many_concurrent_requests_share_a_connection() {
    needs!("aioquic");
    let upstream = Upstream::replying(|request| answer(200, &[], request.target()));
    let site = Site::to(&upstream, "http2: {max_concurrent_streams: 20}");
    let mut client = site.connect();
    // More than the limit: the others wait at the client.
    let names: Vec<String> = (0..200).map(|n| format!("/{n}")).collect();
    names.iter().for_each(|name| client.send(name, json!({ "path": name })));
    for name in &names {
        let response = client.end(name);
        assert_eq!((&response["status"], &response["body"]), (&json!(200), &json!(name)), "{response}");
    }
    assert_eq!(site.proxy.metrics().sum("tollgate_connections_total", &[]), 1.0);
}

#[test]
fn the_standard_filters_work_as_with_other_versions() {
    needs!("aioquic");
    let upstream = Upstream::saying("ok");
    let config = Config::new()
        .filter(
            "faults",
            "builtin:fault",
            "config: {headers: {delay: {max: 10s, percent: 100}, abort: {percent: 100}}}",
        )
        .filter(
            "access",
            "builtin:authz",
            "config: {policies: [{name: none, action: deny, rules: [{to: [{operation: {paths: [/secret]}}]}]}]}",
        )
        .filter("limits", "builtin:ratelimit", "config: {limits: [{name: few, requests: 1, per: 24h, burst: 2}]}")
        .filter(
            "routes",
            "builtin:router",
            "config: {virtual_hosts: [{name: all, domains: [web.test], routes: [
                {match: {path: {prefix: /old}}, redirect: {prefix_rewrite: /new}},
                {cluster: web}]}]}",
        )
        .cluster("web", &[&upstream], "");
    let site = Site::start(config);
    let mut client = site.connect();
    let faulty = json!([["x-envoy-fault-abort-request", "418"]]);
    let none = json!([]);
    for (n, (path, fields, status)) in
        [("/a", &faulty, 418), ("/secret", &none, 403), ("/a", &none, 200), ("/old/b", &none, 301), ("/a", &none, 429)]
            .into_iter()
            .enumerate()
    {
        let response = client.request(&n.to_string(), json!({ "path": path, "fields": fields }));
        assert_eq!(response["status"], status, "{path}: {response}");
    }
    assert_eq!(upstream.only_request().target(), "/a");
}

#[test]
fn a_cancelled_request_is_abandoned() {
    needs!("aioquic");
    let upstream = Upstream::silent();
    let site = Site::to(&upstream, "");
    let mut client = site.connect();
    // The request is complete; only the response can still be cancelled.
    client.send("a", json!({ "path": "/a" }));
    upstream.wait_for_requests(1);
    client.tell(json!({ "do": "cancel", "id": "a", "reset": false }));
    site.proxy.entry_for("/a").expect((), "DC");
    // In the middle of a body.
    client.send("b", json!({ "method": "POST", "path": "/b", "body": "some", "open": true }));
    site.proxy.wait_for_metric("tollgate_requests_active", &[], 1.0);
    client.tell(json!({ "do": "cancel", "id": "b" }));
    site.proxy.entry_for("/b").expect((), "DC");
    assert_eq!(client.request("c", json!({ "head": [[":method", "GET"]] }))["reset"], code::MESSAGE_ERROR);
}

/// RFC 9114 section 4.4.
#[test]
fn a_tunnel_abort_aborts_the_other_side() {
    let (seen, saw) = mpsc::channel();
    let upstream = Upstream::scripted(move |mut connection| {
        let Ok(word) = connection.wire.read_exact(4) else { return };
        if word == b"bang" {
            return connection.wire.reset();
        }
        connection.send("pong");
        let mut some = [0; 100];
        let end = loop {
            match connection.wire.read_some(&mut some) {
                Ok(0) => break None,
                Ok(_) => {}
                Err(error) => break Some(error.kind()),
            }
        };
        seen.send(end).unwrap();
    });
    let site = Site::to(&upstream, "connect: true");
    let head = frame(1, &section(&[(":method", "CONNECT"), (":authority", "web.test:443")]));
    let raw = Raw::connect(&site);
    let (mut send, recv) = raw.open(&head);
    raw.write(&mut send, &frame(0, b"bang"));
    assert_eq!(raw.end(recv), End::Reset(code::CONNECT_ERROR));
    // The client resets both directions, or only its own.
    for stops in [true, false] {
        let (mut send, mut recv) = raw.open(&head);
        raw.write(&mut send, &frame(0, b"ping"));
        // A head in its own frame, then the data frame: the last bytes are the upstream's.
        let mut read = Vec::new();
        while !read.ends_with(b"pong") {
            read.extend(raw.read(&mut recv, 1));
        }
        match stops {
            true => raw.cancel(&mut send, &mut recv),
            false => _ = send.reset(0x10c_u32.into()),
        }
        assert_eq!(saw.recv().unwrap(), Some(ErrorKind::ConnectionReset), "{stops}");
    }
}

#[test]
fn connect_opens_a_tunnel_if_enabled() {
    needs!("aioquic");
    let upstream = Upstream::scripted(|mut connection| {
        // In upper case, line by line.
        while let Ok(line) = connection.wire.read_exact(6) {
            connection.send(line.to_ascii_uppercase());
        }
    });
    let head = json!([[":method", "CONNECT"], [":authority", "web.test:443"]]);
    let site = Site::to(&upstream, "connect: true");
    let mut client = site.connect();
    client.send("a", json!({ "head": head, "open": true }));
    client.wait(|said| said["id"] == "a" && said["began"] == 200);
    client.tell(json!({ "do": "data", "id": "a", "body": "hello\nworld\n" }));
    wait_until("bytes through the tunnel", || site.proxy.metrics().sum("tollgate_tunnels_active", &[]) == 1.0);
    client.tell(json!({ "do": "data", "id": "a", "body": "again\n", "end": true }));
    let response = client.end("a");
    assert_eq!(response["body"], "HELLO\nWORLD\nAGAIN\n", "{response}");

    let site = Site::to(&upstream, "");
    let mut client = site.connect();
    assert_eq!(client.request("a", json!({ "head": head, "open": true }))["status"], 405);
    let protocol = |name: &str| {
        let head = json!([
            [":method", "CONNECT"],
            [":protocol", name],
            [":scheme", "https"],
            [":authority", "web.test"],
            [":path", "/"]
        ]);
        json!({ "head": head, "open": true })
    };
    assert_eq!(client.request("b", protocol("connect-udp"))["status"], 501);
    // A protocol unknown to h3, and not announced.
    assert_eq!(client.request("c", protocol("websocket"))["reset"], code::MESSAGE_ERROR);
}

#[test]
fn alt_svc_announces_http3() {
    let own = Upstream::replying(|request| match request.target() {
        "/own" => answer(200, &["alt-svc: clear"], ""),
        _ => answer(200, &[], ""),
    });
    let site = Site::to(&own, "");
    let address = site.proxy.address("main");
    let alt_svc = |head: String| head.lines().find_map(|line| line.strip_prefix("alt-svc: ").map(str::to_owned));
    let mut client = Secure::connect(address, &[site.pair.der()], None);
    let wanted = format!("h3=\":{}\"; ma=86400", address.port());
    assert_eq!(alt_svc(client.ask("/").expect("a response")), Some(wanted));
    assert_eq!(alt_svc(client.ask("/own").expect("a response")).as_deref(), Some("clear"));
    // Plaintext listeners have nothing to announce.
    let config = Config::to(&own).listener("http3: true").listener(&TLS.replace("tls: {", "tls: {mode: permissive, "));
    let plain = Proxy::start_with(config, &SelfSigned::new().files());
    assert_eq!(plain.get("/").field("alt-svc"), None);
}

#[test]
fn an_oversized_head_gets_431() {
    needs!("aioquic");
    let upstream = Upstream::saying("ok");
    let site = Site::to(&upstream, "limits: {header_bytes: 4KiB, headers: 20}");
    let mut client = site.connect();
    // Over the limit in its counted size, in its encoded size, and by far.
    for (id, count) in [("/a", 1), ("/b", 2), ("/c", 50)] {
        let value: String = (0..4000).map(|n: u32| char::from(b'!' + (n * 7 % 90) as u8)).collect();
        let fields: Vec<Value> = (0..count).map(|n| json!([format!("x-{n}"), value])).collect();
        let response = client.request(id, json!({ "path": id, "fields": fields }));
        assert_eq!(response["status"], 431, "{count}: {response}");
    }
    let many: Vec<Value> = (0..40).map(|n| json!([format!("x-{n}"), "1"])).collect();
    assert_eq!(client.request("d", json!({ "fields": many }))["status"], 431);
    assert_eq!(client.request("e", json!({}))["status"], 200);
    assert_eq!(upstream.requests().len(), 1);
    assert_eq!(site.proxy.metrics().sum("tollgate_requests_total", &[("class", "4xx")]), 4.0);
}

#[test]
fn a_response_aborted_by_a_filter_is_reset() {
    needs!("aioquic");
    for end in cut_off::ENDS {
        let gate = Gate::default();
        let (upstream, calls) = (cut_off::endless(), Upstream::held(&gate, "/", |_| answer(200, &[], "")));
        let config = cut_off::config(&upstream, &calls);
        let site = Site::start_with(config, &[("ending.wasm", &cut_off::ending(end))]);
        let mut client = site.connect();
        client.send("a", json!({ "path": "/" }));
        client.wait(|said| said["id"] == "a" && said["began"] == 200);
        gate.open();
        assert!(client.end("a")["reset"].is_number(), "{end}");
        site.proxy.entry_for("/").expect(200, "LR").because("closed_by_filter");
    }
}
