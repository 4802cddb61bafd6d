//! Certificates are replaced as other files are: the proxy notices by itself, and takes no half of a pair.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

use rcgen::{CertifiedKey, KeyPair};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::CertificateDer};

use super::no_failures;
use crate::harness::{Config, Proxy, Upstream, answer, wait_until};

fn pair() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate")
}

/// A connection under TLS that trusts these certificates.
struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    fn connect(proxy: &Proxy, trusted: &[&CertifiedKey<KeyPair>]) -> Secure {
        let mut roots = RootCertStore::empty();
        trusted.iter().for_each(|pair| roots.add(pair.cert.der().clone()).expect("a root"));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "web.test".try_into().expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        Secure(StreamOwned::new(connection, TcpStream::connect(proxy.address("main")).expect("a connection")))
    }

    /// Sends a request, and reads until its response is there: one without a body.
    fn get(&mut self) -> String {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").expect("a request can be sent");
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).expect("a response");
            response.extend(byte);
        }
        String::from_utf8(response).expect("text")
    }

    fn shown(&self) -> CertificateDer<'static> {
        self.0.conn.peer_certificates().expect("a certificate")[0].clone()
    }
}

#[test]
fn another_certificate_is_for_new_connections() {
    let upstream = Upstream::replying(|_| answer(200, &[], ""));
    let (first, second) = (pair(), pair());
    let both = [&first, &second];
    let config = Config::to(&upstream)
        .listener("tls: {mode: permissive, certificates: [{certificate: server.pem, key: server.key}]}");
    let (certificate, key) = (first.cert.pem(), first.signing_key.serialize_pem());
    let proxy = Proxy::start_with(config, &[("server.pem", certificate.as_bytes()), ("server.key", key.as_bytes())]);
    let until = proxy.metrics().sum("tollgate_tls_certificate_not_after_timestamp_seconds", &[]);
    assert!(until > 1.0e9, "{until}");
    let (mut old, mut plain) = (Secure::connect(&proxy, &both), proxy.client());
    assert!(old.get().starts_with("HTTP/1.1 200"));
    assert_eq!(old.shown(), *first.cert.der());
    assert_eq!(plain.get("/").status(), 200);

    // The key comes later: until then nothing changes, and why is said.
    proxy.put("server.pem", second.cert.pem());
    proxy.wait_for_output("does not belong to the (first) certificate in");
    assert_eq!(proxy.version(), 1);
    let mut between = Secure::connect(&proxy, &both);
    assert!(between.get().starts_with("HTTP/1.1 200"));
    assert_eq!(between.shown(), *first.cert.der());

    proxy.put("server.key", second.signing_key.serialize_pem());
    wait_until("the second certificate", || proxy.version() == 2);
    let mut new = Secure::connect(&proxy, &both);
    assert!(new.get().starts_with("HTTP/1.1 200"));
    assert_eq!(new.shown(), *second.cert.der());
    // Nobody was disturbed.
    assert!(old.get().starts_with("HTTP/1.1 200"));
    assert_eq!(plain.get("/").status(), 200);
    no_failures(&proxy);
}
