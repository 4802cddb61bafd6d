//! A certificate authority and its certificates, as files for programs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

/// A self-signed certificate for `web.test`.
pub struct SelfSigned {
    pub pem: String,
    pub key: String,
    der: CertificateDer<'static>,
}

impl SelfSigned {
    pub fn new() -> SelfSigned {
        let pair = rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate");
        SelfSigned { pem: pair.cert.pem(), key: pair.signing_key.serialize_pem(), der: pair.cert.der().clone() }
    }

    /// The trust anchor for clients.
    pub fn der(&self) -> CertificateDer<'static> {
        self.der.clone()
    }

    /// The files that [`TLS`] names.
    pub fn files(&self) -> [(&str, &[u8]); 2] {
        [("server.pem", self.pem.as_bytes()), ("server.key", self.key.as_bytes())]
    }
}

/// YAML for a listener with this certificate.
pub const TLS: &str = "tls: {certificates: [{certificate: server.pem, key: server.key}]}";

/// A certificate authority. Its directory contains `ca.pem`, and `NAME.pem` and `NAME.key` per certificate.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authority {
    /// Creates an authority with certificates for these names, whose serial numbers are 1, 2 and so on.
    pub fn with(names: &[&str]) -> Authority {
        let mut own = params("authority.test");
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(own, KeyPair::generate().expect("a key")).expect("an authority");
        let authority = Authority { issuer, dir: TempDir::new().expect("a folder") };
        authority.write("ca.pem", &authority.issuer.pem());
        (1..).zip(names).for_each(|(serial, name)| authority.sign(name, serial));
        authority
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("a file can be written");
    }

    /// Writes a certificate and key for a name, replacing the previous ones.
    pub fn sign(&self, name: &str, serial: u64) {
        let (mut params, key) = (params(name), KeyPair::generate().expect("a key"));
        params.serial_number = Some(SerialNumber::from(serial));
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// A revocation list with one certificate.
    pub fn crl(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).and_then(|list| list.pem()).expect("a list")
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> String {
        self.file(name).to_str().expect("a path of text").to_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// YAML for a listener or a cluster: a certificate and its key.
    pub fn pair(&self, name: &str) -> String {
        format!("{{certificate: {}, key: {}}}", self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")))
    }

    /// YAML for a listener: a `tls` section with certificates for these names, and further options.
    pub fn tls(&self, names: &[&str], options: &str) -> String {
        let pairs: Vec<String> = names.iter().map(|name| self.pair(name)).collect();
        format!("tls: {{certificates: [{}]{}{options}}}", pairs.join(", "), if options.is_empty() { "" } else { ", " })
    }
}
