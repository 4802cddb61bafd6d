//! The fields of a certificate, for display and to check whether it can still be used.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    parse_x509_certificate,
    time::ASN1Time,
    x509::X509Name,
};

use crate::{
    digest::{hex, sha256_hex},
    observe::access_log::timestamp,
};

/// The relevant fields of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    pub subject: String,
    pub issuer: String,
    /// Hexadecimal digits.
    pub serial: String,
    /// Subject alternative names: `URI:...`, `DNS:...`, `IP:...`.
    pub names: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Whether it is a CA certificate.
    pub is_ca: bool,
    /// SHA-256 of the whole certificate, in hexadecimal digits.
    pub fingerprint: String,
    /// The public key, encoded as in the certificate (DER, `SubjectPublicKeyInfo`).
    pub public_key: Vec<u8>,
}

/// Parses the certificates in a PEM text, in order. The error describes what is invalid.
pub fn all_in(pem: &str) -> Result<Vec<CertificateInfo>, String> {
    let ders = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let ders = ders.map_err(|e| format!("is not PEM: {e}"))?;
    if ders.is_empty() {
        return Err("holds no certificate (PEM)".to_owned());
    }
    ders.iter().map(|der| CertificateInfo::of(der)).collect()
}

/// Returns whether the first certificate of `leaf` was signed by one in `roots` (both PEM).
pub fn is_signed_by(leaf: &str, roots: &str) -> bool {
    let Ok(leaf) = CertificateDer::from_pem_slice(leaf.as_bytes()) else { return false };
    let Ok(leaf) = parse(&leaf) else { return false };
    let signed = |root: CertificateDer<'_>| match parse(&root) {
        Ok(root) => leaf.issuer() == root.subject() && leaf.verify_signature(Some(root.public_key())).is_ok(),
        Err(_) => false,
    };
    CertificateDer::pem_slice_iter(roots.as_bytes()).flatten().any(signed)
}

/// Returns whether two PEM texts share a certificate.
pub fn have_one_in_common(one: &str, other: &str) -> bool {
    let of = |pem| all_in(pem).unwrap_or_default();
    let other = of(other);
    of(one).iter().any(|facts| other.iter().any(|o| o.fingerprint == facts.fingerprint))
}

impl CertificateInfo {
    /// Parses a certificate (DER).
    pub fn of(der: &[u8]) -> Result<CertificateInfo, String> {
        let read = parse(der)?;
        let names = read.subject_alternative_name().map_err(|e| format!("holds no valid certificate: {e}"))?;
        let names = names.into_iter().flat_map(|names| &names.value.general_names).map(name).collect();
        let is_ca = read.basic_constraints().ok().flatten().is_some_and(|basic| basic.value.ca);
        Ok(CertificateInfo {
            subject: distinguished(read.subject()),
            issuer: distinguished(read.issuer()),
            serial: hex(&read.serial.to_bytes_be()),
            names,
            not_before: time(read.validity().not_before),
            not_after: time(read.validity().not_after),
            is_ca,
            fingerprint: sha256_hex(der),
            public_key: read.public_key().raw.to_vec(),
        })
    }

    /// Returns the only URI among the names: a workload's SPIFFE ID (X509-SVID, section 2). `None` if there are
    /// several.
    pub fn uri(&self) -> Option<&str> {
        let mut uris = self.names.iter().filter_map(|name| name.strip_prefix("URI:"));
        uris.next().filter(|_| uris.next().is_none())
    }

    /// Returns whether `now` is within the validity period.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.not_before..self.not_after).contains(&now)
    }

    /// Returns the fields as a JSON object.
    pub fn to_json(&self) -> Value {
        json!({
            "subject": self.subject,
            "issuer": self.issuer,
            "serial": self.serial,
            "names": self.names,
            "not_before": timestamp::text(self.not_before),
            "not_after": timestamp::text(self.not_after),
            "ca": self.is_ca,
            "sha256": self.fingerprint,
        })
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("holds a certificate with trailing data".to_owned()),
        Err(e) => Err(format!("holds no valid certificate: {e}")),
    }
}

/// Formats a distinguished name. It may be empty: a certificate with other names needs none.
fn distinguished(name: &X509Name<'_>) -> String {
    name.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn time(time: ASN1Time) -> SystemTime {
    let seconds = Duration::from_secs(time.timestamp().unsigned_abs());
    match time.timestamp() >= 0 {
        true => SystemTime::UNIX_EPOCH + seconds,
        false => SystemTime::UNIX_EPOCH - seconds,
    }
}

/// Formats a name for display. Text from the certificate is escaped.
fn name(name: &GeneralName<'_>) -> String {
    let plain = |text: &str| text.escape_default().to_string();
    match name {
        GeneralName::URI(uri) => format!("URI:{}", plain(uri)),
        GeneralName::DNSName(dns) => format!("DNS:{}", plain(dns)),
        GeneralName::RFC822Name(mail) => format!("email:{}", plain(mail)),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => format!("IP:{}", IpAddr::from(v4)),
            (_, Ok(v6)) => format!("IP:{}", IpAddr::from(v6)),
            _ => format!("IP:{}", hex(bytes)),
        },
        other => format!("other:{}", plain(&other.to_string())),
    }
}

/// Returns the subject alternative names in an extension; empty for every other extension.
pub fn alternative_names<'e>(extension: &'e ParsedExtension<'e>) -> Vec<String> {
    match extension {
        ParsedExtension::SubjectAlternativeName(names) => names.general_names.iter().map(name).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, Issuer, KeyPair, date_time_ymd};

    use super::*;

    /// Returns the parameters of a root with this name.
    fn named(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(1969, 12, 31);
        params
    }

    #[test]
    fn the_signer_must_match_in_name_and_key() {
        let [one, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let leaf = CertificateParams::default().signed_by(&other, &Issuer::new(named("root"), &one)).unwrap().pem();
        for (name, key, expected) in [("root", &one, true), ("root", &other, false), ("another", &one, false)] {
            let root = named(name).self_signed(key).unwrap().pem();
            assert_eq!(is_signed_by(&leaf, &root), expected, "{name}");
        }
    }

    #[test]
    fn control_characters_and_early_dates_are_handled() {
        let root = named("a\nb").self_signed(&KeyPair::generate().unwrap()).unwrap();
        let facts = CertificateInfo::of(root.der()).unwrap();
        assert_eq!(facts.subject, "CN=a?b");
        assert_eq!(facts.not_before + Duration::from_secs(86_400), SystemTime::UNIX_EPOCH);
    }
}
