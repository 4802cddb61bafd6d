//! openssl's client: versions, names, client certificates, session resumption.

use std::path::PathBuf;

use super::upstream;
use crate::harness::{
    Config, Proxy, Upstream,
    peer::{Said, run_with, tool},
    pki::Authority,
};

/// openssl, and an authority for the certificates of the proxy.
struct Client {
    openssl: PathBuf,
    authority: Authority,
    upstream: Upstream,
}

impl Client {
    /// An authority with certificates for these names. `None` if openssl is missing.
    fn new(names: &[&str]) -> Option<Client> {
        Some(Client { openssl: tool("openssl")?, authority: Authority::with(names), upstream: upstream() })
    }

    /// A proxy with certificates for these names, and further options of `tls`.
    fn proxy(&self, names: &[&str], options: &str) -> Proxy {
        Proxy::start(Config::to(&self.upstream).listener(&self.authority.tls(names, options)))
    }

    /// Completes a handshake only.
    fn shake_hands(&self, proxy: &Proxy, args: &[&str]) -> Said {
        let address = proxy.address("main").to_string();
        run_with(&self.openssl, &[&["s_client", "-connect", &address][..], args].concat(), b"")
    }

    /// Also verifies the certificate, and sends a request.
    fn connect(&self, proxy: &Proxy, args: &[&str]) -> Said {
        let (address, ca) = (proxy.address("main").to_string(), self.authority.path("ca.pem"));
        let common = ["s_client", "-connect", &address, "-CAfile", &ca, "-verify_return_error", "-ign_eof"];
        let request = b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n";
        run_with(&self.openssl, &[&common[..], args].concat(), request)
    }
}

fn served(said: &Said) -> bool {
    said.out.contains("HTTP/1.1 200 OK")
}

#[test]
fn the_protocol_is_negotiated() {
    let Some(client) = Client::new(&["web.test"]) else { return };
    let proxy = client.proxy(&["web.test"], "");
    let alpn = |list: &str| client.shake_hands(&proxy, &["-alpn", list]).out;
    for (list, chosen) in [("h2,http/1.1", "h2"), ("http/1.1,h2", "h2"), ("http/1.1", "http/1.1"), ("other,h2", "h2")] {
        let said = alpn(list);
        assert!(said.contains(&format!("ALPN protocol: {chosen}")), "{list}: {said}");
    }
    // Without a common protocol the handshake fails (RFC 7301 section 3.2); without ALPN HTTP/1.1 is used.
    assert!(!alpn("other").contains("ALPN protocol"));
    proxy.refused_one("handshake");
    assert!(served(&client.connect(&proxy, &["-servername", "web.test"])));
}

#[test]
fn the_certificate_is_chosen_by_sni() {
    let names = ["first.test", "web.test", "*.wild.test", "exact.wild.test"];
    let Some(client) = Client::new(&names) else { return };
    let proxy = client.proxy(&names, "");
    let cases = [
        ("web.test", "web.test"),
        ("WEB.test", "web.test"),
        ("any.wild.test", "*.wild.test"),
        ("exact.wild.test", "exact.wild.test"),
        ("two.any.wild.test", "first.test"),
        ("unknown.test", "first.test"),
    ];
    for (asked, shown) in cases {
        let output = client.connect(&proxy, &["-servername", asked]);
        assert!(output.out.contains(&format!("subject=CN = {shown}\n")), "{asked}: {output:?}");
        assert!(served(&output));
    }
    let output = client.connect(&proxy, &["-noservername"]);
    assert!(output.out.contains("subject=CN = first.test\n"), "{output:?}");
}

#[test]
fn only_allowed_tls_versions_are_accepted() {
    let Some(client) = Client::new(&["web.test"]) else { return };
    let both = client.proxy(&["web.test"], "");
    for (option, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let output = client.connect(&both, &[option]);
        assert!(served(&output) && output.out.contains(name), "{output:?}");
    }
    // openssl must be told to allow old versions, too.
    let old = client.connect(&both, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(!served(&old), "{old:?}");
    both.refused_one("handshake");
    let new = client.proxy(&["web.test"], "min_version: '1.3'");
    assert!(!served(&client.connect(&new, &["-tls1_2"])));
    assert!(served(&client.connect(&new, &["-tls1_3"])));
    // All of them match the certificate; the first one is known to be chosen.
    for (suite, chosen) in [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("ECDHE-ECDSA-AES128-SHA", "(NONE)"),
        ("ECDHE-ECDSA-AES256-SHA384", "(NONE)"),
        ("ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0", "(NONE)"),
    ] {
        let output = client.shake_hands(&both, &["-tls1_2", "-cipher", suite]);
        assert!(output.out.contains(&format!("Cipher is {chosen}")), "{suite}: {output:?}");
    }
}

#[test]
fn sessions_are_resumed() {
    let Some(client) = Client::new(&["web.test"]) else { return };
    let proxy = client.proxy(&["web.test"], "");
    let session = client.authority.path("session");
    for version in ["-tls1_2", "-tls1_3"] {
        let output = client.connect(&proxy, &[version, "-sess_out", &session]);
        assert!(served(&output) && output.out.contains("New, TLS"), "{output:?}");
        let output = client.connect(&proxy, &[version, "-sess_in", &session]);
        assert!(served(&output) && output.out.contains("Reused, TLS"), "{version}: {output:?}");
    }
    let output = client.shake_hands(&proxy, &["-tls1_2", "-reconnect"]);
    assert!(output.out.matches("Reused, TLSv1.2").count() == 5, "{output:?}");
}

#[test]
fn client_certificates_are_verified() {
    let Some(client) = Client::new(&["web.test", "client.test", "revoked.test"]) else { return };
    let (authority, stranger) = (&client.authority, Authority::with(&["client.test"]));
    std::fs::write(authority.dir().join("list.crl"), authority.crl(3)).expect("a file can be written");
    let ca = format!("client_ca: [{}], crl: [{}]", authority.path("ca.pem"), authority.path("list.crl"));
    let shown = |by: &Authority, name: &str| {
        ["-cert".to_owned(), by.path(&format!("{name}.pem")), "-key".to_owned(), by.path(&format!("{name}.key"))]
    };
    for (mode, nobody, known, revoked, unknown) in [
        ("none", true, true, true, true),
        ("request", true, true, false, false),
        ("require", false, true, false, false),
    ] {
        let options = match mode {
            "none" => String::new(),
            _ => format!("client_certificates: {mode}, {ca}"),
        };
        let proxy = client.proxy(&["web.test"], &options);
        for version in ["-tls1_2", "-tls1_3"] {
            let with = |pair: [String; 4]| {
                let pair = pair.each_ref().map(String::as_str);
                served(&client.connect(&proxy, &[&[version], &pair[..]].concat()))
            };
            assert_eq!(served(&client.connect(&proxy, &[version])), nobody, "{mode} {version}: nobody");
            assert_eq!(with(shown(authority, "client.test")), known, "{mode} {version}: known");
            assert_eq!(with(shown(authority, "revoked.test")), revoked, "{mode} {version}: revoked");
            assert_eq!(with(shown(&stranger, "client.test")), unknown, "{mode} {version}: unknown");
        }
        let failed = [nobody, known, revoked, unknown].iter().filter(|served| !**served).count() * 2;
        proxy.wait_for_metric("tollgate_connections_refused_total", &[("reason", "handshake")], failed as f64);
    }
}
