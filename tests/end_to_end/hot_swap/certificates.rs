//! Certificates are replaced as other files are: the proxy notices by itself, and takes no half of a pair.

use std::{fs::File, io::Write, thread, time::Duration};

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

    // The key comes later: until then nothing changes, and nobody is alarmed.
    proxy.put("server.pem", second.cert.pem());
    proxy.wait_for_output("the other half of a change is waited for: the key in");
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
    assert_eq!(proxy.metrics().sum("tollgate_config_reloads_total", &[("result", "refused")]), 0.0);
    assert_eq!(old.get("").expect("a response"), 200);
    assert_eq!(plain.get("/").status(), 200);
    no_failures(&proxy);
}

/// The halves of pairs come in both orders, each of them written slowly; a half that stays alone is told of in the end.
#[test]
fn a_pair_is_taken_when_it_is_whole() {
    let upstream = Upstream::replying(|_| answer(200, &[], ""));
    let pairs: Vec<_> = (0..4).map(|_| pair()).collect();
    let texts = |nth: usize| [pairs[nth].cert.pem(), pairs[nth].signing_key.serialize_pem()];
    let config = Config::to(&upstream).listener("tls: {certificates: [{certificate: server.pem, key: server.key}]}");
    let [certificate, key] = texts(0);
    let proxy = Proxy::start_with(config, &[("server.pem", certificate.as_bytes()), ("server.key", key.as_bytes())]);
    let refused = || proxy.metrics().sum("tollgate_config_reloads_total", &[("result", "refused")]);
    for (nth, order) in [(1, ["server.pem", "server.key"]), (2, ["server.key", "server.pem"])] {
        for name in order {
            let text = &texts(nth)[usize::from(name == "server.key")];
            let mut file = File::create(proxy.dir().join(name)).expect("a file");
            for part in [&text[..text.len() / 2], &text[text.len() / 2..]] {
                file.write_all(part.as_bytes()).expect("it can be written");
                // Longer than files have to be quiet.
                thread::sleep(Duration::from_millis(400));
            }
        }
        wait_until("the pair", || proxy.version() == nth as u64 + 1);
        let mut secure = Secure::connect(proxy.address("main"), &[pairs[nth].cert.der().clone()], None);
        assert_eq!(secure.get("").expect("a response"), 200);
    }
    assert_eq!(refused(), 0.0);
    proxy.put("server.key", &texts(3)[1]);
    proxy.wait_for_output("was refused, and nothing has changed");
    // It is counted after that is said.
    proxy.wait_for_metric("tollgate_config_reloads_total", &[("result", "refused")], 1.0);
    assert_eq!((refused(), proxy.version()), (1.0, 3));
    proxy.put("server.pem", &texts(3)[0]);
    wait_until("the pair", || proxy.version() == 4);
}
