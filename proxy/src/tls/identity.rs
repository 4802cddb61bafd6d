//! The identity in a certificate, a client's or our own.

use std::sync::OnceLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509CertificateParser, nom::Parser};

use super::name;
use crate::digest::{hex, sha256_hex};

/// Why a certificate cannot be parsed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The parser that verifies chains rejects it.
    #[error("{0}")]
    Unusable(webpki::Error),
    /// It is not a valid X.509 certificate.
    #[error("not a valid X.509 certificate")]
    Malformed,
}

/// The identity that a certificate states. Verifying the certificate is a separate step.
#[derive(Debug)]
pub struct Identity {
    /// The subject in the format of RFC 2253: `CN=a,O=b`. May be empty.
    pub subject: Box<str>,
    /// The issuer in the same format.
    pub issuer: Box<str>,
    /// The serial number, in lower-case hex.
    pub serial: Box<str>,
    /// The SHA-256 of the certificate, in lower-case hex.
    pub sha256: Box<str>,
    /// The URIs (RFC 5280 section 4.2.1.6).
    pub uri_sans: Box<[Box<str>]>,
    /// The DNS names, including wildcards.
    pub dns_sans: Box<[Box<str>]>,
    /// The start of the validity period, in seconds since 1970.
    pub not_before: i64,
    /// The end of the validity period, in seconds since 1970.
    pub not_after: i64,
    der: CertificateDer<'static>,
    url_encoded_pem: OnceLock<String>,
}

impl Identity {
    /// Parses a certificate.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
        // The names come from the parser that verified the chain: two parsers might disagree about a certificate.
        let verified = webpki::EndEntityCert::try_from(der).map_err(IdentityError::Unusable)?;
        let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
        let (rest, parsed) = parser.parse(der).map_err(|_| IdentityError::Malformed)?;
        if !rest.is_empty() {
            return Err(IdentityError::Malformed);
        }
        // A URI has no other characters (RFC 3986 section 2), and URIs end up quoted in header fields.
        let is_uri = |uri: &&str| uri.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\<>^`{|}".contains(&b));
        Ok(Identity {
            subject: name::rfc2253(parsed.subject()).into(),
            issuer: name::rfc2253(parsed.issuer()).into(),
            serial: hex(skip_zeros(verified.serial())).into(),
            sha256: sha256_hex(der).into(),
            uri_sans: verified.valid_uri_names().filter(is_uri).map(Box::from).collect(),
            dns_sans: verified.valid_dns_names().map(Box::from).collect(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            der: der.clone().into_owned(),
            url_encoded_pem: OnceLock::new(),
        })
    }

    /// Returns the SPIFFE ID: the first URI with the scheme `spiffe`.
    pub fn spiffe_id(&self) -> Option<&str> {
        let has_scheme = |uri: &&str| uri.get(..9).is_some_and(|s| s.eq_ignore_ascii_case("spiffe://"));
        self.uri_sans.iter().map(|uri| &**uri).find(has_scheme)
    }

    /// Returns the preferred name: the SPIFFE ID, else the first URI, else the first DNS name, else the subject.
    pub fn principal(&self) -> &str {
        let uri = || self.uri_sans.first().map(|uri| &**uri);
        let dns = || self.dns_sans.first().map(|name| &**name);
        self.spiffe_id().or_else(uri).or_else(dns).unwrap_or(&self.subject)
    }

    /// Returns the certificate (DER).
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Returns the certificate as PEM, percent-encoded as in Envoy: line ends, spaces, `+`, `/` and `=`. Encoded on
    /// first use.
    pub fn url_encoded_pem(&self) -> &str {
        self.url_encoded_pem.get_or_init(|| {
            let text = STANDARD.encode(&self.der);
            let mut out = String::with_capacity(text.len() * 11 / 10 + 128);
            out.push_str("-----BEGIN%20CERTIFICATE-----%0A");
            for (nth, c) in text.chars().enumerate() {
                if nth > 0 && nth.is_multiple_of(64) {
                    out.push_str("%0A");
                }
                match c {
                    '+' => out.push_str("%2B"),
                    '/' => out.push_str("%2F"),
                    '=' => out.push_str("%3D"),
                    c => out.push(c),
                }
            }
            out.push_str("%0A-----END%20CERTIFICATE-----%0A");
            out
        })
    }
}

/// Removes leading zeros from a serial number. DER has one when the first bit would be taken for a sign.
fn skip_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|b| **b == 0).count();
    &bytes[zeros.min(bytes.len().saturating_sub(1))..]
}

/// Returns the end of a certificate's validity period, in seconds since 1970.
pub(super) fn not_after(der: &CertificateDer<'_>) -> Option<i64> {
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    let (_, parsed) = parser.parse(der).ok()?;
    Some(parsed.validity().not_after.timestamp())
}
