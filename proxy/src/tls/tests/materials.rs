//! The messages about unusable files.

use std::time::{Duration, SystemTime};

use super::{
    pki::{Ca, Dir, params},
    *,
};
use crate::config::model::ClientCertificates;

/// Returns all errors with their places, without the directory.
fn complaints(dir: &Dir, section: &ListenerTls) -> String {
    let wrong = try_server(section, None).err().unwrap_or_default();
    let all: Vec<String> = wrong.iter().map(|p| format!("{}: {}", p.field, p.error)).collect();
    all.join("\n").replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn errors_name_the_file_and_the_reason() {
    let (dir, ca) = (Dir::new(), Ca::new("ca"));
    let good = ca.leaf(&["a.test"]);
    let key = good.key.serialize_pem();
    let says = |certificate: &str, key: &str| {
        let (certificate, key) = (dir.write("c.pem", certificate), dir.write("k.pem", key));
        complaints(&dir, &listener(vec![CertificateFiles { certificate, key }]))
    };
    assert_eq!(says(&good.pem, &key), "");
    assert_eq!(
        says("", &key),
        "certificates/0/certificate: there is no certificate in `c.pem`: it has no PEM section of this type"
    );
    assert_eq!(
        says(&key, &key),
        "certificates/0/certificate: there is no certificate in `c.pem`: it holds a private key"
    );
    let cut = good.pem.replace("-----END CERTIFICATE-----", "");
    assert!(says(&cut, &key).starts_with("certificates/0/certificate: `c.pem` is not well-formed PEM: "));
    let no_base64 = good.pem.replace("MII", "M!I");
    assert!(says(&no_base64, &key).starts_with("certificates/0/certificate: `c.pem` is not well-formed PEM: "));
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(
        says(no_certificate, &key).starts_with("certificates/0/certificate: certificate 1 in `c.pem` cannot be used: ")
    );
    assert_eq!(
        says(&good.pem, &good.pem),
        "certificates/0/key: there is no private key in `k.pem`: it holds a certificate"
    );
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert_eq!(
        says(&good.pem, encrypted),
        "certificates/0/key: there is no private key in `k.pem`: it holds a private key with a passphrase"
    );
    let unknown = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(says(&good.pem, unknown).starts_with("certificates/0/key: the private key in `k.pem` cannot be used: "));
    assert_eq!(
        says(&ca.leaf(&["a.test"]).pem, &key),
        "certificates/0/key: the key in `k.pem` does not belong to the (first) certificate in `c.pem`"
    );
    let expired = ca.expired(&["a.test"]);
    assert_eq!(
        says(&expired.pem, &expired.key.serialize_pem()),
        "certificates/0/certificate: the certificate in `c.pem` expired on 2002-01-01T00:00:00Z"
    );
    let mut later = params(&["a.test"]);
    later.not_before = rcgen::date_time_ymd(2090, 1, 1);
    let later = ca.sign(later);
    assert_eq!(
        says(&later.pem, &later.key.serialize_pem()),
        "certificates/0/certificate: the certificate in `c.pem` is not valid before 2090-01-01T00:00:00Z"
    );
}

#[test]
fn all_errors_are_reported_together() {
    let (dir, ca) = (Dir::new(), Ca::new("ca"));
    let gone = |name: &str| dir.path().join(name);
    let section = ListenerTls {
        client_certificates: ClientCertificates::Require,
        client_ca: vec![dir.write("ca.pem", &ca.pem()), dir.write("bad-ca.pem", "x")],
        crl: vec![dir.write("old.crl", &ca.crl(&[], 2021)), dir.write("no.crl", &ca.pem()), gone("gone.crl")],
        ..listener(vec![CertificateFiles { certificate: gone("gone.pem"), key: gone("gone.key") }])
    };
    assert_eq!(
        complaints(&dir, &section),
        "certificates/0/certificate: there is no file `gone.pem`\n\
         client_ca/1: there is no certificate in `bad-ca.pem`: it has no PEM section of this type\n\
         crl/0: a revocation list in `old.crl` expired on 2021-01-01T00:00:00Z\n\
         crl/1: there is no revocation list in `no.crl`: it holds a certificate\n\
         crl/2: there is no file `gone.crl`"
    );
}

#[test]
fn common_key_types_are_accepted() {
    let (dir, ca) = (Dir::new(), Ca::new("ca"));
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let leaf = ca.sign_with(params(&["a.test"]), rcgen::KeyPair::generate_for(algorithm).unwrap());
        assert_eq!(complaints(&dir, &listener(vec![dir.pair("x", &leaf)])), "");
    }
}

#[test]
fn near_expiry_is_a_warning() {
    let (dir, ca) = (Dir::new(), Ca::new("ca"));
    let mut params = params(&["a.test"]);
    params.not_after = rcgen::date_time_ymd(2090, 1, 15);
    let section = ListenerTls {
        client_certificates: ClientCertificates::Require,
        client_ca: vec![dir.write("ca.pem", &ca.pem())],
        crl: vec![dir.write("x.crl", &ca.crl(&[], 2090))],
        ..listener(vec![dir.pair("x", &ca.sign(params))])
    };
    let server = server(&section);
    let day = Duration::from_secs(24 * 60 * 60);
    // The list expires on 1 January 2090, the certificate two weeks later.
    let new_year = SystemTime::UNIX_EPOCH + Duration::from_secs(3_786_912_000);
    let said = |at: SystemTime| {
        let all = server.warnings(at).into_iter().filter(|(place, _)| !place.ends_with("key"));
        let all: Vec<_> = all.map(|(place, text)| format!("{place}: {text}")).collect();
        all.join("\n").replace(&format!("{}/", dir.path().display()), "")
    };
    assert_eq!(said(new_year - 2 * day), "");
    assert_eq!(said(new_year - day / 2), "crl/0: a revocation list in `x.crl` expires on 2090-01-01T00:00:00Z");
    assert_eq!(
        said(new_year + day),
        "certificates/0/certificate: the certificate in `x.pem` expires on 2090-01-15T00:00:00Z\n\
         crl/0: a revocation list in `x.crl` expired on 2090-01-01T00:00:00Z"
    );
}

#[test]
fn readable_keys_are_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, ca) = (Dir::new(), Ca::new("ca"));
    let pair = dir.pair("x", &ca.leaf(&["a.test"]));
    let said = |mode| {
        std::fs::set_permissions(&pair.key, std::fs::Permissions::from_mode(mode)).unwrap();
        server(&listener(vec![pair.clone()])).warnings(SystemTime::UNIX_EPOCH)
    };
    assert_eq!(said(0o640), []);
    let said = said(0o644);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].0, "certificates/0/key");
    assert!(said[0].1.starts_with("every user on this machine can read the private key in `"), "{said:?}");
}
