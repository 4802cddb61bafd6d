//! Certificates are replaced as other files are: the proxy notices by itself, and takes no half of a pair.

use rcgen::{CertifiedKey, KeyPair};

use super::no_failures;
use crate::harness::{Config, Proxy, Upstream, answer, wait_until};

fn pair() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate")
}

/// Clients may do without TLS, so that requests show that nobody is disturbed.
const TLS: &str = "tls: {mode: permissive, certificates: [{certificate: server.pem, key: server.key}]}";

#[test]
fn another_certificate_is_noticed() {
    let upstream = Upstream::replying(|_| answer(200, &[], ""));
    let first = pair();
    let config = Config::to(&upstream).listener(TLS);
    let (certificate, key) = (first.cert.pem(), first.signing_key.serialize_pem());
    let proxy = Proxy::start_with(config, &[("server.pem", certificate.as_bytes()), ("server.key", key.as_bytes())]);
    let until = proxy.metrics().sum("tollgate_tls_certificate_not_after_timestamp_seconds", &[]);
    assert!(until > 1.0e9, "{until}");
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(proxy.version(), 1);

    // The key comes later: until then nothing changes, and why is said.
    let second = pair();
    proxy.put("server.pem", second.cert.pem());
    proxy.wait_for_output("does not belong to the (first) certificate in");
    assert_eq!(proxy.version(), 1);
    assert_eq!(client.get("/").status(), 200);
    proxy.put("server.key", second.signing_key.serialize_pem());
    wait_until("the second certificate", || proxy.version() == 2);
    assert_eq!(client.get("/").status(), 200);
    no_failures(&proxy);
}
