//! Certificates are replaced as other files are: the proxy notices by itself, and takes no half of a pair.

use rcgen::{CertifiedKey, KeyPair};

use super::no_failures;
use crate::harness::{Config, Proxy, Secure, Upstream, answer, wait_until};

fn pair() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate")
}

#[test]
fn another_certificate_is_for_new_connections() {
    let upstream = Upstream::replying(|_| answer(200, &[], ""));
    let (first, second) = (pair(), pair());
    let config = Config::to(&upstream)
        .listener("tls: {mode: permissive, certificates: [{certificate: server.pem, key: server.key}]}");
    let (certificate, key) = (first.cert.pem(), first.signing_key.serialize_pem());
    let proxy = Proxy::start_with(config, &[("server.pem", certificate.as_bytes()), ("server.key", key.as_bytes())]);
    let both = [first.cert.der().clone(), second.cert.der().clone()];
    let connect = || Secure::connect(proxy.address("main"), &both, None);
    let until = proxy.metrics().sum("tollgate_tls_certificate_not_after_timestamp_seconds", &[]);
    assert!(until > 1.0e9, "{until}");
    let (mut old, mut plain) = (connect(), proxy.client());
    assert_eq!(old.get("").expect("a response"), 200);
    assert_eq!(old.shown(), *first.cert.der());
    assert_eq!(plain.get("/").status(), 200);

    // The key comes later: until then nothing changes, and why is said.
    proxy.put("server.pem", second.cert.pem());
    proxy.wait_for_output("does not belong to the (first) certificate in");
    assert_eq!(proxy.version(), 1);
    let mut between = connect();
    assert_eq!(between.get("").expect("a response"), 200);
    assert_eq!(between.shown(), *first.cert.der());

    proxy.put("server.key", second.signing_key.serialize_pem());
    wait_until("the second certificate", || proxy.version() == 2);
    let mut new = connect();
    assert_eq!(new.get("").expect("a response"), 200);
    assert_eq!(new.shown(), *second.cert.der());
    // Nobody was disturbed.
    assert_eq!(old.get("").expect("a response"), 200);
    assert_eq!(plain.get("/").status(), 200);
    no_failures(&proxy);
}
