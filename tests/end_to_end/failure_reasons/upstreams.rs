//! Upstreams that each fail in one way.

use std::net::SocketAddr;

use rustls::version::TLS12;

use super::{
    assert_told, endpoint,
    pair::{self, Server},
};
use crate::harness::{
    Config, H2, Proxy, Upstream, answer,
    frames::{Frame, code, kind},
};

/// A proxy in front of one endpoint, with options of the cluster, and PEM files next to the configuration.
fn proxy(endpoint: impl std::fmt::Display, options: &str, files: &[(&str, String)]) -> Proxy {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    Proxy::start_with(Config::to_with(endpoint, options), &files)
}

/// Sends one request and asserts that its failure reason contains these parts everywhere, and that the client sees none
/// of them.
fn assert_reason(name: &str, proxy: &Proxy, details: &str, kind: &str, parts: &[&str]) {
    let response = proxy.get("/fails");
    assert!(response.status() >= 502, "{name}: {response:?}");
    let entry = proxy.entry_for("/fails");
    assert_eq!(entry["details"], details, "{name}: {entry}");
    assert_told(name, proxy, &entry, kind, parts);
    let told = format!("{:?} {}", response.fields, response.text());
    parts.iter().for_each(|part| assert!(!told.contains(part), "{name}: the client sees {part}"));
}

#[test]
fn a_rejected_certificate_is_described() {
    let (ours, theirs) = (pair::issuer("ours"), pair::issuer("theirs"));
    let (right, strange) = (pair::signed(&ours, "w"), pair::signed(&theirs, "w"));
    let old = pair::expired(&ours, "w");
    let ca = [("ca.pem", ours.pem())];
    let tls = "tls: {ca: [ca.pem], sni: localhost}";
    for (name, pair, options, parts) in [
        ("unknown issuer", &strange, tls, &["TLS handshake: unknown issuer \"CN=theirs\"", "`tls.ca`"][..]),
        (
            "another name",
            &right,
            "tls: {ca: [ca.pem], sni: other.test}",
            &["certificate not valid for name \"other.test\" (it is for localhost, 127.0.0.1, spiffe://t/w)", "`sni`"],
        ),
        ("other sans", &right, "tls: {ca: [ca.pem], sans: [a.test]}", &["none of `sans`", "localhost"]),
        ("expired", &old, tls, &["the certificate \"CN=w\" expired on 2020-01-01T00:00:00Z"]),
    ] {
        let upstream = Server::new(pair).start();
        assert_reason(name, &proxy(&upstream, options, &ca), "connect_failure", "tls", parts);
    }
}

#[test]
fn a_certificate_without_a_subject_is_named_by_its_san() {
    let (ours, theirs) = (pair::issuer("ours"), pair::issuer("theirs"));
    let strange = pair::without_subject(&theirs, false, &[pair::spiffe()]);
    let old = pair::without_subject(&ours, true, &[pair::spiffe()]);
    let nameless = pair::without_subject(&theirs, false, &[]);
    let tls = "tls: {ca: [ca.pem], sans: ['spiffe://t/w']}";
    for (name, pair, part) in [
        ("unknown issuer", &strange, "\"CN=theirs\" of the certificate \"spiffe://t/w\": it is not among `tls.ca`"),
        ("expired", &old, "the certificate \"spiffe://t/w\" expired on 2020-01-01T00:00:00Z"),
        ("nameless", &nameless, "of the certificate (its subject is empty): it is not among `tls.ca`"),
    ] {
        let upstream = Server::new(pair).start();
        let proxy = proxy(&upstream, tls, &[("ca.pem", ours.pem())]);
        assert_reason(name, &proxy, "connect_failure", "tls", &[part]);
    }
}

#[test]
fn an_unknown_issuer_without_tls_ca_has_a_hint() {
    let (system, theirs) = (pair::issuer("system"), pair::issuer("theirs"));
    let upstream = Server::new(&pair::signed(&theirs, "w")).start();
    let proxy = proxy(&upstream, "tls: {sni: localhost}", &[("system.pem", system.pem())]);
    let parts = ["\"CN=theirs\"", "it is not among the system's authorities; name its authority in `tls.ca`"];
    assert_reason("the system's", &proxy, "connect_failure", "tls", &parts);
}

#[test]
fn a_ca_certificate_presented_by_a_server_is_reported() {
    let ours = pair::issuer("ours");
    let key = rcgen::KeyPair::from_pem(&ours.key().serialize_pem()).expect("a key");
    let certificate = rcgen::CertifiedKey { cert: as_certificate(&ours), signing_key: key };
    let upstream = Server::new(&certificate).start();
    let proxy = proxy(&upstream, "tls: {ca: [ca.pem], sni: localhost}", &[("ca.pem", ours.pem())]);
    let parts = ["the certificate \"CN=ours\" is a CA certificate: use a certificate signed by it"];
    assert_reason("a CA's certificate", &proxy, "connect_failure", "tls", &parts);
}

fn as_certificate(issuer: &pair::Issuer) -> rcgen::Certificate {
    let certificate: &rcgen::Certificate = issuer.as_ref();
    certificate.clone()
}

#[test]
fn an_upstream_that_requires_a_client_certificate_is_reported() {
    let (ours, theirs) = (pair::issuer("ours"), pair::issuer("theirs"));
    let (server, strange) = (pair::signed(&ours, "w"), pair::signed(&theirs, "c"));
    let files = [("ca.pem", ours.pem()), ("c.pem", strange.cert.pem()), ("c.key", strange.signing_key.serialize_pem())];
    let none = "tls: {ca: [ca.pem], sni: localhost}";
    let other = "tls: {ca: [ca.pem], sni: localhost, certificate: {certificate: c.pem, key: c.key}}";
    // With TLS 1.3 the client's handshake completes before the server has seen the client's certificate.
    let upstream = Server { clients: Some(&ours), ..Server::new(&server) }.start();
    let parts = ["certificate_required: it requires a client certificate: set `tls.certificate`"];
    assert_reason("none, 1.3", &proxy(&upstream, none, &files), "upstream_reset", "tls", &parts);
    let parts = ["unknown_ca: it does not trust the issuer of `tls.certificate`"];
    assert_reason("another one, 1.3", &proxy(&upstream, other, &files), "upstream_reset", "tls", &parts);
    let upstream = Server { clients: Some(&ours), versions: &[&TLS12], ..Server::new(&server) }.start();
    let parts = ["TLS handshake: the endpoint sent the alert", "`tls.certificate`"];
    assert_reason("none, 1.2", &proxy(&upstream, none, &files), "connect_failure", "tls", &parts);
}

#[test]
fn version_and_alpn_mismatches_are_reported() {
    let ours = pair::issuer("ours");
    let (server, ca) = (pair::signed(&ours, "w"), [("ca.pem", ours.pem())]);
    let upstream = Server { versions: &[&TLS12], ..Server::new(&server) }.start();
    let options = "tls: {ca: [ca.pem], sni: localhost, min_version: '1.3'}";
    let parts = ["alert protocol_version: no TLS version in common"];
    assert_reason("versions", &proxy(&upstream, options, &ca), "connect_failure", "tls", &parts);
    let upstream = Server { alpn: &["http/1.1"], ..Server::new(&server) }.start();
    let options = "protocol: h2\ntls: {ca: [ca.pem], sni: localhost}";
    let parts = ["alert no_application_protocol: it does not speak the cluster's `protocol` (ALPN)"];
    assert_reason("ALPN", &proxy(&upstream, options, &ca), "connect_failure", "tls", &parts);
}

#[test]
fn a_failed_http2_connection_without_alpn_hints_at_http1() {
    let ours = pair::issuer("ours");
    let server = pair::signed(&ours, "w");
    let options = "protocol: h2\ntls: {ca: [ca.pem], sni: localhost}";
    let parts =
        ["(the endpoint chose no protocol by ALPN: if it speaks HTTP/1.1, set `protocol: h1`), before a response"];
    let closing = Server { hangs_up: true, ..Server::new(&server) }.start();
    let proxy = proxy(&closing, options, &[("ca.pem", ours.pem())]);
    assert_reason("closed", &proxy, "upstream_reset", "reset", &parts);
}

#[test]
fn tls_to_a_plain_port_reports_the_received_bytes() {
    let ca = [("ca.pem", pair::issuer("ours").pem())];
    let tls = "tls: {ca: [ca.pem], sni: localhost}";
    // Responds with an error to bytes that are not a request, as servers do.
    let plain = Upstream::scripted(|mut connection| {
        let _ = connection.wire.read_some(&mut [0; 100]);
        connection.send(answer(400, &[], "no"));
        connection.wire.finish();
        connection.wait_for_end();
    });
    let parts = ["peer does not speak TLS: first bytes 48 54 54 50", "remove `tls` from the cluster"];
    assert_reason("HTTP", &proxy(&plain, tls, &ca), "connect_failure", "tls", &parts);
    let closing = Upstream::scripted(|mut connection| {
        let _ = connection.wire.read_some(&mut [0; 4096]);
    });
    let parts = ["TLS handshake: ", "does it speak TLS?"];
    let closing = proxy(&closing, tls, &ca);
    let response = closing.get("/fails");
    assert_eq!(response.status(), 503);
    let said = closing.entry_for("/fails")["upstream_failure"].as_str().expect("a reason").to_owned();
    // Closing a connection with unread bytes resets it.
    assert!(said.starts_with(parts[0]) && (said.contains(parts[1]) || said.contains("reset")), "{said}");
    let silent = Upstream::scripted(|connection| connection.wait_for_end());
    let parts = ["TLS handshake: no answer within 300ms (`connect_timeout`)", "accepted the connection"];
    let options = format!("{tls}\nconnect_timeout: 300ms");
    assert_reason("silence", &proxy(&silent, &options, &ca), "connect_timeout", "timeout", &parts);
}

#[test]
fn plain_http_to_a_tls_port_is_recognized_by_the_response() {
    let server = pair::signed(&pair::issuer("ours"), "w");
    for (options, expected) in [("", "expected HTTP/1.1"), ("protocol: h2", "expected HTTP/2")] {
        let upstream = Server::new(&server).start();
        let parts = [expected, "first bytes 15 03", "it speaks TLS; give the cluster a `tls` section"];
        assert_reason(options, &proxy(&upstream, options, &[]), "upstream_protocol_error", "protocol", &parts);
    }
}

#[test]
fn another_http_version_is_recognized_by_its_first_bytes() {
    let http1 = Upstream::canned(answer(400, &[], "no")).allow_malformed();
    let parts = ["expected HTTP/2 (`protocol`)", "48 54 54 50 2f 31", "it speaks HTTP/1.1; set `protocol: h1`"];
    assert_reason("HTTP/1.1", &proxy(&http1, "protocol: h2", &[]), "upstream_protocol_error", "protocol", &parts);
    let settings = Frame::bytes(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
    let http2 = Upstream::canned(settings);
    let parts = ["expected HTTP/1.1 (`protocol`)", "first bytes 00 00 06 04", "it speaks HTTP/2; set `protocol: h2`"];
    assert_reason("HTTP/2", &proxy(&http2, "", &[]), "upstream_protocol_error", "protocol", &parts);
    for options in ["", "protocol: h2"] {
        let junk = Upstream::canned("220 mail.example ESMTP\r\n".repeat(5)).allow_malformed();
        let parts = ["first bytes 32 32 30 20", "(\"220 mail.example"];
        assert_reason("SMTP", &proxy(&junk, options, &[]), "upstream_protocol_error", "protocol", &parts);
    }
    let broken = Upstream::canned("HTTP/1.1 200 OK\r\nX A: 1\r\n\r\n");
    let parts = ["the response is not valid: cannot read its head: a header name is missing or contains whitespace"];
    assert_reason("a field", &proxy(&broken, "", &[]), "upstream_protocol_error", "protocol", &parts);
}

#[test]
fn a_goaway_is_reported_with_its_debug_data() {
    for code in [code::ENHANCE_YOUR_CALM, code::PROTOCOL_ERROR] {
        let upstream = Upstream::scripted(move |connection| {
            let socket = connection.wire.socket().try_clone().expect("a socket");
            let Ok(mut h2) = H2::accept(connection.wire, &[]) else { return };
            let Ok((stream, _)) = h2.next_head() else { return };
            // The request counts as processed, so it is not retried.
            let payload = [&stream.to_be_bytes()[..], &code.to_be_bytes(), b"too_many_pings"].concat();
            h2.send(kind::GOAWAY, 0, 0, &payload);
            // Closing with unread bytes would reset the connection, and the GOAWAY might be lost.
            let _ = socket.shutdown(std::net::Shutdown::Write);
            h2.read_to_end();
        });
        let proxy = proxy(&upstream, "protocol: h2", &[]);
        let name = if code == code::PROTOCOL_ERROR { "PROTOCOL_ERROR" } else { "ENHANCE_YOUR_CALM" };
        let said = format!("the endpoint sent GOAWAY {name}: ");
        let parts = [&*said, "(b\"too_many_pings\"), before a response, after "];
        assert_reason("GOAWAY", &proxy, "upstream_reset", "reset", &parts);
    }
}

#[test]
fn failed_connections_report_the_system_error_and_the_step() {
    let refusing = Upstream::refusing();
    let parts = ["connecting: Connection refused (os error 111), after "];
    assert_reason("refused", &proxy(refusing, "", &[]), "connect_failure", "connect", &parts);
    let parts = ["connecting: No such file or directory (os error 2), after "];
    let missing = proxy("unix:/nowhere/at/all.sock", "", &[]);
    assert_reason("no socket", &missing, "connect_failure", "connect", &parts);
}

#[test]
fn an_early_close_is_reported_with_its_phase() {
    for (name, upstream, part) in [
        ("reset", Upstream::resetting(), "Connection reset by peer (os error 104), before a response, after "),
        ("closed", Upstream::canned(""), "the endpoint closed the connection, before a response, after "),
        (
            "in the head",
            Upstream::canned("HTTP/1.1 200 OK\r\nContent-"),
            "the endpoint closed the connection, in the middle of the response's head, after ",
        ),
    ] {
        assert_reason(name, &proxy(&upstream, "", &[]), "upstream_reset", "reset", &[part]);
    }
    let silent = Upstream::silent();
    let parts = ["no response within ", "(`request_timeout` or the route's `timeout`)"];
    let options = "request_timeout: 300ms";
    assert_reason("silent", &proxy(&silent, options, &[]), "response_timeout", "timeout", &parts);
}

#[test]
fn a_truncated_body_is_reported_with_its_length() {
    let upstream = Upstream::scripted(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
    });
    let proxy = proxy(&upstream, "", &[]);
    let mut client = proxy.client();
    client.send_request("GET", "/half", &[], b"");
    assert_eq!(client.wire.read_head().expect("a response").status(), 200);
    client.wire.read_to_end();
    let entry = proxy.entry_for("/half");
    assert_eq!(entry["flags"], "UC");
    assert_told("a body", &proxy, &entry, "reset", &["closed the connection", "after 5 bytes of the response's body"]);
}

#[test]
fn a_failure_stays_logged_after_a_successful_retry() {
    let (good, other, refusing) = (Upstream::saying("ok"), Upstream::saying("ok"), Upstream::refusing());
    let endpoints = [good.address, other.address, refusing];
    let options = "retry: {on: [connect_failure], attempts: 3, backoff: 1ms}\nretry_budget: {percent: 100}";
    let proxy = Proxy::start(Config::new().listener("cluster: web").cluster("web", &endpoints, options));
    let (mut once, mut twice) = (false, false);
    for n in 0..100 {
        assert_eq!(proxy.get(&format!("/{n}")).text(), "ok");
        let entry = proxy.entry_for(&format!("/{n}"));
        let again = entry["attempts"].as_u64() > Some(1);
        let why = entry["upstream_failure"].as_str();
        assert_eq!(why.is_some_and(|why| why.contains("Connection refused")), again, "{entry}");
        assert_eq!(entry["downstream_failure"], serde_json::Value::Null);
        (once, twice) = (once || !again, twice || again);
        if once && twice {
            return;
        }
    }
    panic!("either all or none of the requests were retried");
}

#[test]
fn an_outage_is_logged_once_not_per_request() {
    let proxy = proxy(Upstream::refusing(), "", &[]);
    let mut client = proxy.client();
    for n in 0..50 {
        assert_eq!(client.get(&format!("/{n}")).status(), 503);
    }
    proxy.entry_for("/49");
    proxy.wait_for_output("an endpoint failed");
    assert_eq!(proxy.output().matches("an endpoint failed").count(), 1, "{}", proxy.output());
}

#[test]
fn closing_an_idle_connection_is_not_a_failure() {
    let upstream = Upstream::scripted(|mut connection| {
        if connection.request().is_some() {
            connection.send(answer(200, &[], "ok"));
        }
    });
    let proxy = proxy(&upstream, "", &[]);
    let mut client = proxy.client();
    for n in 0..20 {
        assert_eq!(client.get(&format!("/{n}")).status(), 200);
    }
    assert_eq!(proxy.entry_for("/19")["upstream_failure"], serde_json::Value::Null);
    assert_eq!(endpoint(&proxy, "web")["last_error"], serde_json::Value::Null);
}

#[test]
fn tcp_connections_report_failure_reasons() {
    let config = |endpoint: SocketAddr, options: &str| Config::to_with(endpoint, options).listener("protocol: tcp");
    let proxy = Proxy::start(config(Upstream::refusing(), ""));
    assert!(proxy.client().wire.is_closed());
    let entry = proxy.entry(|entry| entry["details"] == "connect_failure");
    assert_told("TCP", &proxy, &entry, "connect", &["connecting: Connection refused (os error 111), after "]);
    let resetting = Upstream::scripted(|mut connection| {
        let _ = connection.wire.read_some(&mut [0; 1]);
        connection.wire.reset();
    });
    let proxy = Proxy::start(config(resetting.address, ""));
    let mut client = proxy.client();
    client.send("x");
    assert!(client.wire.is_closed());
    let entry = proxy.entry(|entry| entry["details"] == "upstream_reset");
    assert_told("TCP", &proxy, &entry, "reset", &["Connection reset by peer (os error 104)"]);
}

#[test]
fn reasons_do_not_depend_on_the_downstream_protocol() {
    let proxy = proxy(Upstream::refusing(), "", &[]);
    let mut client = proxy.h2();
    assert_eq!(client.get("/h2").status(), 503);
    let why = proxy.entry_for("/h2")["upstream_failure"].clone();
    assert!(why.as_str().is_some_and(|why| why.contains("Connection refused")), "{why}");
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let stream = client.request("POST", "/a.B/C", &fields, true);
    let response = client.response(stream);
    assert_eq!(
        (response.field("grpc-status"), response.field("grpc-message")),
        (Some("14"), Some("Service Unavailable (connect_failure)"))
    );
}

#[test]
fn a_grpc_server_addressed_by_http1_gets_a_hint() {
    let closing = Upstream::canned("");
    let proxy = proxy(&closing, "", &[]);
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let mut client = proxy.h2();
    let stream = client.request("POST", "/a.B/C", &fields, true);
    assert_eq!(client.response(stream).field("grpc-message"), Some("Bad Gateway (upstream_reset)"));
    let entry = proxy.entry_for("/a.B/C");
    assert_told("gRPC", &proxy, &entry, "reset", &["a gRPC server speaks HTTP/2: set `protocol: h2`"]);
}
