//! Clients that a listener rejects: each leaves an access log line, a count, and a warning.

use std::{
    fmt::Display,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, Stream, SupportedProtocolVersion,
    pki_types::PrivateKeyDer,
    version::{TLS12, TLS13},
};

use super::pair::{self, Issuer, Pair};
use crate::harness::{Config, DEADLINE, Entry, Proxy, Upstream};

/// A TLS client.
struct Client<'a> {
    trusts: &'a Issuer,
    shows: Option<&'a Pair>,
    versions: &'a [&'static SupportedProtocolVersion],
    alpn: &'a [&'a str],
}

impl<'a> Client<'a> {
    fn new(trusts: &'a Issuer) -> Client<'a> {
        Client { trusts, shows: None, versions: &pair::VERSIONS, alpn: &[] }
    }

    /// Sends a request, as far as it gets, and returns the response.
    fn ask(self, proxy: &Proxy) -> String {
        let mut roots = RootCertStore::empty();
        roots.add(self.trusts.der().clone()).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(self.versions).expect("versions").with_root_certificates(roots);
        let mut config = match self.shows {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).expect("a key");
                builder.with_client_auth_cert(vec![pair.cert.der().clone()], key).expect("a pair")
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = "localhost".try_into().expect("a name");
        let mut tls = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut socket = TcpStream::connect(proxy.address("main")).expect("the proxy accepts connections");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        let mut stream = Stream::new(&mut tls, &mut socket);
        let mut all = Vec::new();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// A listener with TLS and these options; its upstream is unreachable.
fn proxy(issuer: &Issuer, options: &str) -> Proxy {
    behind(Upstream::refusing(), issuer, options, "")
}

/// The same with an upstream, and more options of the listener.
fn behind(upstream: impl Display, issuer: &Issuer, options: &str, listener: &str) -> Proxy {
    let server = pair::signed(issuer, "server");
    let tls = format!("tls: {{certificates: [{{certificate: s.pem, key: s.key}}], {options}}}\n{listener}");
    let files = [("s.pem", server.cert.pem()), ("s.key", server.signing_key.serialize_pem()), ("ca.pem", issuer.pem())];
    Proxy::start_with(
        Config::to(upstream).listener(&tls),
        &files.each_ref().map(|(name, text)| (*name, text.as_bytes())),
    )
}

/// Asserts that one client was rejected: its access log line, with the reason, and the warning.
fn assert_turned_away(name: &str, proxy: &Proxy, details: &str, parts: &[&str]) -> Entry {
    let entry = proxy.entry(|entry| entry["details"] == details);
    let why = entry["downstream_failure"].as_str().unwrap_or_else(|| panic!("{name}: no reason in {entry}"));
    parts.iter().for_each(|part| assert!(why.contains(part), "{name}: no {part:?} in {why:?}"));
    proxy.wait_for_output(&format!("client rejected: {why}"));
    entry
}

/// Asserts that one handshake failed: the same, and the counters.
fn assert_failed(name: &str, proxy: &Proxy, reason: &str, parts: &[&str]) {
    let entry = assert_turned_away(name, proxy, "tls_handshake_failed", parts);
    assert_eq!((&entry["protocol"], &entry["flags"]), (&"TLS".into(), &"DPE".into()), "{name}: {entry}");
    let sum = |metric: &str, labels: &[(&str, &str)]| proxy.metrics().sum(metric, labels);
    let metric = "tollgate_tls_handshake_failures_total";
    assert_eq!(sum(metric, &[("listener", "main"), ("reason", reason)]), 1.0, "{name}");
    assert_eq!(sum(metric, &[]), 1.0, "{name}");
    assert_eq!(sum("tollgate_connections_refused_total", &[("reason", "handshake")]), 1.0, "{name}");
}

#[test]
fn missing_and_invalid_certificates_are_reported() {
    let (ours, theirs) = (pair::issuer("ours"), pair::issuer("theirs"));
    let (stranger, old) = (pair::signed(&theirs, "c"), pair::expired(&ours, "c"));
    for (name, shows, reason, parts) in [
        ("none", None, "no_certificate", &["the client presented no certificate, which is required"][..]),
        ("a stranger's", Some(&stranger), "unknown_issuer", &["unknown issuer \"CN=theirs\"", "`tls.client_ca`"]),
        ("expired", Some(&old), "expired", &["the certificate \"CN=c\" expired on 2020-01-01T00:00:00Z"]),
    ] {
        for version in [&[&TLS13][..], &[&TLS12]] {
            let proxy = proxy(&ours, "client_certificates: require, client_ca: [ca.pem]");
            assert_eq!(Client { shows, versions: version, ..Client::new(&ours) }.ask(&proxy), "", "{name}");
            assert_failed(name, &proxy, reason, parts);
        }
    }
}

#[test]
fn a_certificate_without_a_subject_is_named_by_its_san() {
    let (ours, theirs) = (pair::issuer("ours"), pair::issuer("theirs"));
    let stranger = pair::without_subject(&theirs, false, &[pair::spiffe()]);
    let old = pair::without_subject(&ours, true, &[pair::spiffe()]);
    let nameless = pair::without_subject(&ours, true, &[]);
    for (name, shows, reason, part) in [
        ("a stranger's", &stranger, "unknown_issuer", "\"CN=theirs\" of the certificate \"spiffe://t/w\": it is not"),
        ("expired", &old, "expired", "the certificate \"spiffe://t/w\" expired on 2020-01-01T00:00:00Z"),
        ("nameless", &nameless, "expired", "the certificate (its subject is empty) expired on 2020-01-01T00:00:00Z"),
    ] {
        let proxy = proxy(&ours, "client_certificates: require, client_ca: [ca.pem]");
        assert_eq!(Client { shows: Some(shows), ..Client::new(&ours) }.ask(&proxy), "", "{name}");
        assert_failed(name, &proxy, reason, &[part]);
    }
}

#[test]
fn an_unknown_issuer_in_a_trust_domain_is_reported() {
    let (ours, theirs) = (pair::issuer("ours"), pair::issuer("theirs"));
    let stranger = pair::signed(&theirs, "c");
    let proxy = proxy(&ours, "client_certificates: require, trust_domains: {t: [ca.pem]}");
    Client { shows: Some(&stranger), ..Client::new(&ours) }.ask(&proxy);
    let parts = ["it is not among the authorities of its trust domain in `tls.trust_domains`"];
    assert_failed("a stranger's", &proxy, "unknown_issuer", &parts);
}

#[test]
fn an_old_tls_version_is_reported() {
    let ours = pair::issuer("ours");
    // TLS 1.1 has no signature algorithms: a version, a random number, no session, one cipher suite, no compression.
    for (version, name) in [(2, "at most TLS 1.1"), (1, "at most TLS 1.0")] {
        let mut body = vec![3, version];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0xc0, 0x13, 1, 0]);
        let hello = [&[1, 0, 0, body.len() as u8][..], &body].concat();
        let proxy = proxy(&ours, "");
        let mut client = proxy.client();
        client.send([&[22, 3, 1, 0, hello.len() as u8][..], &hello].concat());
        client.wire.read_to_end();
        assert_failed(name, &proxy, "version", &["`min_version`", name]);
    }
}

#[test]
fn an_alpn_mismatch_is_reported() {
    let ours = pair::issuer("ours");
    let versions = proxy(&ours, "min_version: '1.3'");
    Client { versions: &[&TLS12], ..Client::new(&ours) }.ask(&versions);
    assert_failed("versions", &versions, "version", &["`min_version`"]);
    let alpn = proxy(&ours, "");
    Client { alpn: &["acme-tls/1", "imap"], ..Client::new(&ours) }.ask(&alpn);
    let parts = ["no common protocol (ALPN): the client offers acme-tls/1, imap, the listener supports h2, http/1.1"];
    assert_failed("ALPN", &alpn, "alpn", &parts);
}

#[test]
fn an_alert_from_the_client_is_reported() {
    let (ours, theirs) = (pair::issuer("ours"), pair::issuer("theirs"));
    let proxy = proxy(&ours, "");
    Client::new(&theirs).ask(&proxy);
    let parts = ["alert unknown_ca: it does not trust the issuer of the listener's certificate"];
    assert_failed("an alert", &proxy, "alert", &parts);
}

#[test]
fn plain_bytes_on_a_tls_port_are_reported() {
    let ours = pair::issuer("ours");
    for (sent, reason, parts) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "plain_http", ["speaks HTTP without TLS", "first bytes 47 45 54 20"]),
        ("EHLO mail.example\r\n", "not_tls", ["does not speak TLS", "(\"EHLO mail.exampl\")"]),
    ] {
        let proxy = proxy(&ours, "");
        let mut client = proxy.client();
        client.send(sent);
        client.wire.read_to_end();
        assert_failed(sent, &proxy, reason, &parts);
    }
}

#[test]
fn tls_on_a_plain_port_is_recognized() {
    let ours = pair::issuer("ours");
    let proxy = Proxy::start(Config::to(Upstream::refusing()));
    Client::new(&ours).ask(&proxy);
    let why = "the client speaks TLS, and the listener has no `tls` section";
    let entry = assert_turned_away("TLS", &proxy, "tls_on_plain_port", &[why]).expect(400, "DPE");
    assert_eq!(entry["downstream_failure"], why);
    // An HTTP/2-only listener has no response to that.
    let proxy = Proxy::start(Config::to(Upstream::refusing()).listener("protocol: http2"));
    Client::new(&ours).ask(&proxy);
    proxy.wait_for_output(&format!("client rejected: {why}"));
    proxy.refused_one("http2");
}

#[test]
fn a_stalled_handshake_is_reported_but_an_empty_connection_is_not() {
    let ours = pair::issuer("ours");
    let upstream = Upstream::saying("ok");
    let site = behind(&upstream, &ours, "", "");
    // A port probe.
    (0..3).for_each(|_| drop(site.client()));
    assert!(Client::new(&ours).ask(&site).starts_with("HTTP/1.1 200 "));
    site.entry_for("/");
    assert_eq!(site.entries().len(), 1, "{:?}", site.entries());
    assert_eq!(site.metrics().sum("tollgate_tls_handshake_failures_total", &[]), 0.0);
    assert!(!site.output().contains("client rejected"), "{}", site.output());
    let proxy = behind(&upstream, &ours, "", "timeouts: {handshake: 300ms}");
    let mut client = proxy.client();
    client.send([0x16, 3, 1]);
    client.wire.read_to_end();
    let parts = ["the TLS handshake did not complete within 300ms (`timeouts.handshake`)"];
    let entry = assert_turned_away("silence", &proxy, "handshake_timeout", &parts);
    assert_eq!(entry["flags"], "DT");
}

#[test]
fn a_missing_proxy_protocol_header_is_reported() {
    let required = "proxy_protocol: {trusted: [127.0.0.1/32], required: true}";
    let proxy = Proxy::start(Config::to(Upstream::refusing()).listener(required));
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.wire.read_to_end();
    let parts = ["no PROXY protocol header, which is `required`", "first bytes 47 45 54"];
    assert_turned_away("missing", &proxy, "proxy_protocol_error", &parts);
}

#[test]
fn a_truncated_request_body_is_reported() {
    let upstream = Upstream::silent();
    let proxy = Proxy::start(Config::to(&upstream));
    let mut client = proxy.client();
    client.send("POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    assert_eq!(client.read().status(), 400);
    let entry = proxy.entry_for("/body").because("bad_request_body");
    assert_eq!(entry["downstream_failure"], "the request's body: a chunk size is invalid");
}
