//! Certificates are replaced like other files: the proxy notices by itself, and never uses a mismatched pair.

use std::{fs::File, io::Write, thread, time::Duration};

use super::no_failures;
use crate::harness::{
    Config, Proxy, Secure, Upstream,
    pki::{SelfSigned, TLS},
    wait_until,
};

#[test]
fn a_replaced_certificate_is_used_for_new_connections() {
    let upstream = Upstream::saying("");
    let (first, second) = (SelfSigned::new(), SelfSigned::new());
    let config = Config::to(&upstream).listener(&TLS.replace("tls: {", "tls: {mode: permissive, "));
    let proxy = Proxy::start_with(config, &first.files());
    let both = [first.der(), second.der()];
    let connect = || Secure::connect(proxy.address("main"), &both, None);
    let until = proxy.metrics().sum("tollgate_tls_certificate_not_after_timestamp_seconds", &[]);
    assert!(until > 1.0e9, "{until}");
    let (mut old, mut plain) = (connect(), proxy.client());
    assert_eq!(old.get("").expect("a response"), 200);
    assert_eq!(old.shown(), first.der());
    assert_eq!(plain.get("/").status(), 200);

    // The key is replaced later: until then nothing changes, and nothing is logged as an error.
    proxy.put("server.pem", &second.pem);
    proxy.wait_for_output("waiting for the other half of a change: the key in");
    assert_eq!(proxy.version(), 1);
    let mut between = connect();
    assert_eq!(between.get("").expect("a response"), 200);
    assert_eq!(between.shown(), first.der());

    proxy.put("server.key", &second.key);
    wait_until("the second certificate", || proxy.version() == 2);
    let mut new = connect();
    assert_eq!(new.get("").expect("a response"), 200);
    assert_eq!(new.shown(), second.der());
    // The existing connection is not affected.
    assert_eq!(proxy.metrics().sum("tollgate_config_reloads_total", &[("result", "refused")]), 0.0);
    assert_eq!(old.get("").expect("a response"), 200);
    assert_eq!(plain.get("/").status(), 200);
    no_failures(&proxy);
}

/// The halves of pairs arrive in both orders, each written slowly; a half without its counterpart is reported in the
/// end.
#[test]
fn a_pair_is_used_when_both_halves_match() {
    let upstream = Upstream::saying("");
    let pairs = [(); 4].map(|()| SelfSigned::new());
    let proxy = Proxy::start_with(Config::to(&upstream).listener(TLS), &pairs[0].files());
    let refused = || proxy.metrics().sum("tollgate_config_reloads_total", &[("result", "refused")]);
    for (nth, order) in [(1, ["server.pem", "server.key"]), (2, ["server.key", "server.pem"])] {
        for name in order {
            let text = if name == "server.key" { &pairs[nth].key } else { &pairs[nth].pem };
            let mut file = File::create(proxy.dir().join(name)).expect("a file");
            for part in [&text[..text.len() / 2], &text[text.len() / 2..]] {
                file.write_all(part.as_bytes()).expect("it can be written");
                // Longer than files must be quiet.
                thread::sleep(Duration::from_millis(400));
            }
        }
        wait_until("the pair", || proxy.version() == nth as u64 + 1);
        let mut secure = Secure::connect(proxy.address("main"), &[pairs[nth].der()], None);
        assert_eq!(secure.get("").expect("a response"), 200);
    }
    assert_eq!(refused(), 0.0);
    proxy.put("server.key", &pairs[3].key);
    proxy.wait_for_output("the running configuration is unchanged");
    // The counter changes after the log line.
    proxy.wait_for_metric("tollgate_config_reloads_total", &[("result", "refused")], 1.0);
    assert_eq!((refused(), proxy.version()), (1.0, 3));
    proxy.put("server.pem", &pairs[3].pem);
    wait_until("the pair", || proxy.version() == 4);
}
