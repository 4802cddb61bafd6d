//! TLS on a listener: which clients are accepted, and what the upstream learns about them.

use rcgen::{CertificateParams, CertifiedKey, KeyPair, SanType};
use rustls::pki_types::PrivateKeyDer;

use crate::harness::{Client, Config, H2, Proxy, Secure, Upstream, answer, frames, in_time};

/// Self-signed certificates, so that each is its own authority.
struct Pairs {
    server: CertifiedKey<KeyPair>,
    client: CertifiedKey<KeyPair>,
    stranger: CertifiedKey<KeyPair>,
}

fn pair(name: &str) -> CertifiedKey<KeyPair> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.subject_alt_names.push(SanType::URI(format!("spiffe://mesh/{name}").try_into().expect("a URI")));
    CertifiedKey { cert: params.self_signed(&key).expect("a certificate"), signing_key: key }
}

impl Pairs {
    fn new() -> Pairs {
        Pairs { server: pair("web.test"), client: pair("client.test"), stranger: pair("stranger.test") }
    }

    fn proxy(&self, upstream: &Upstream, clients: &str, forwarded: &str) -> Proxy {
        let config = Config::to(upstream).listener(&format!(
            "
             forwarded_client_cert: {forwarded}
             tls:
               certificates: [{{certificate: server.pem, key: server.key}}]
               client_certificates: {clients}
               client_ca: [clients.pem]"
        ));
        let files = [
            ("server.pem", self.server.cert.pem()),
            ("server.key", self.server.signing_key.serialize_pem()),
            ("clients.pem", self.client.cert.pem()),
        ];
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        Proxy::start_with(config, &files)
    }

    /// A listener with mutual TLS and further options.
    fn mutual(&self, listener: &str, upstream: &Upstream) -> Proxy {
        self.proxy(upstream, "require", &format!("strip\n             {listener}"))
    }

    fn connect(&self, proxy: &Proxy, shown: Option<&CertifiedKey<KeyPair>>) -> Secure {
        let shown = shown.map(|pair| {
            let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).expect("a key");
            (pair.cert.der().clone(), key)
        });
        Secure::connect(proxy.address("main"), &[self.server.cert.der().clone()], shown)
    }
}

const FORGED: &str = "X-Forwarded-Client-Cert: By=x;URI=spiffe://mesh/admin\r\n";

#[test]
fn the_upstream_gets_the_client_certificates_details() {
    let (upstream, pairs) = (Upstream::replying(|_| answer(200, &[], "")), Pairs::new());
    let proxy = pairs.proxy(&upstream, "request", "set");
    let mut known = pairs.connect(&proxy, Some(&pairs.client));
    assert_eq!(known.get(FORGED).expect("a response"), 200);
    let told = upstream.only_request().field("x-forwarded-client-cert").expect("the field").to_owned();
    assert!(told.starts_with("By=spiffe://mesh/web.test;Hash="), "{told}");
    assert!(told.ends_with(";URI=spiffe://mesh/client.test;DNS=client.test"), "{told}");
    assert_eq!(upstream.only_request().field("x-forwarded-proto"), Some("https"));
    let mut unknown = pairs.connect(&proxy, None);
    assert_eq!(unknown.get(FORGED).expect("a response"), 200);
    assert_eq!(upstream.requests()[1].field("x-forwarded-client-cert"), None);
}

#[test]
fn only_clients_with_a_valid_certificate_are_accepted() {
    let (upstream, pairs) = (Upstream::replying(|_| answer(200, &[], "")), Pairs::new());
    let proxy = pairs.proxy(&upstream, "require", "append");
    for shown in [None, Some(&pairs.stranger)] {
        pairs.connect(&proxy, shown).get("").expect_err("no response");
    }
    // Because of their certificate, and not because the handshake was incomplete.
    proxy.wait_for_metric("tollgate_connections_refused_total", &[("reason", "handshake")], 2.0);
    assert_eq!(pairs.connect(&proxy, Some(&pairs.client)).get(FORGED).expect("a response"), 200);
    let told = upstream.only_request().field("x-forwarded-client-cert").expect("the field").to_owned();
    assert!(told.starts_with("By=x;URI=spiffe://mesh/admin,By=spiffe://mesh/web.test;Hash="), "{told}");
}

/// If a client could leave out TLS, it could leave out the certificate, too.
#[test]
fn a_strict_listener_rejects_plaintext() {
    let (upstream, pairs) = (Upstream::replying(|_| answer(200, &[], "secret")), Pairs::new());
    for protocol in ["http", "http1", "http2", "tcp", "auto"] {
        let proxy = pairs.mutual(&format!("protocol: {protocol}"), &upstream);
        for first in [&b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"[..], frames::PREFACE, b"\0\x01binary", b"\r\n"] {
            let mut wire = Client::connect(proxy.address("main")).wire;
            // The connection may be closed before all of it is sent.
            let _ = wire.send([first, &[0; 64]].concat());
            let answer = wire.read_to_end();
            assert!(!answer.windows(6).any(|part| part == b"secret" || part == b"HTTP/1"), "{protocol}: {answer:?}");
        }
        proxy.wait_for_metric("tollgate_connections_refused_total", &[("reason", "handshake")], 4.0);
        if protocol == "auto" {
            assert_eq!(pairs.connect(&proxy, Some(&pairs.client)).get("").expect("a response"), 200);
        }
    }
    assert_eq!(upstream.requests().len(), 1, "only the request of the client with a certificate");
}

#[test]
fn a_permissive_listener_accepts_tls_and_plaintext() {
    let (upstream, pairs) = (Upstream::replying(|_| answer(200, &[], "")), Pairs::new());
    for protocol in ["http", "auto"] {
        let proxy = pairs.proxy(
            &upstream,
            "request\n               mode: permissive",
            &format!("strip\n             protocol: {protocol}"),
        );
        let (name, value) = FORGED.trim_end().split_once(": ").expect("a field");
        assert_eq!(proxy.request("GET", "/", &[(name, value)], b"").status(), 200);
        assert_eq!(upstream.requests().pop().expect("a request").field(name), None, "whatever the client sent");
        assert_eq!(H2::connect(proxy.address("main")).get("/").status(), 200);
        assert_eq!(pairs.connect(&proxy, None).get("").expect("a response"), 200);
    }
}

/// Browsers open connections before they have requests. With or without ALPN, the handshake timeout ends with the
/// handshake.
#[test]
fn the_handshake_timeout_ends_with_the_handshake_without_alpn() {
    let (upstream, pairs) = (Upstream::replying(|_| answer(200, &[], "")), Pairs::new());
    in_time(|ms| {
        let proxy = pairs.mutual(&format!("timeouts: {{handshake: {ms}ms}}"), &upstream);
        let mut client = pairs.connect(&proxy, Some(&pairs.client));
        client.shake_hands().ok()?;
        // Longer than the handshake timeout.
        std::thread::sleep(std::time::Duration::from_millis(ms.into()) * 3 / 2);
        assert_eq!(client.get("").expect("a response"), 200);
        Some(())
    });
}
