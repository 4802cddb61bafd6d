//! A workload's certificate signing request (PKCS #10, RFC 2986). Only the key and the identity are read from it;
//! everything else, such as requested CA rights, is ignored.

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use super::certificate::alternative_names;
use crate::config::spiffe::SpiffeId;

/// A signing request whose sender has proven possession of the key.
#[derive(Debug)]
pub struct SigningRequest {
    /// The requested identity.
    pub spiffe: SpiffeId,
    /// The public key to certify.
    pub key: SubjectPublicKeyInfo,
}

/// Parses a signing request (PEM). The error describes what is invalid.
pub fn read(pem: &[u8]) -> Result<SigningRequest, String> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|e| format!("it is not PEM: {e}"))?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|e| format!("it is not PKCS #10: {e}"))?;
    if !rest.is_empty() {
        return Err("it has trailing data".to_owned());
    }
    let unsupported = || "its key must be ECDSA P-256, ECDSA P-384 or Ed25519".to_owned();
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw);
    let key = key.map_err(|_| unsupported())?;
    if ![&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519].contains(&key.algorithm()) {
        return Err(unsupported());
    }
    request.verify_signature().map_err(|_| "its signature is invalid".to_owned())?;
    let names: Vec<String> = request.requested_extensions().into_iter().flatten().flat_map(alternative_names).collect();
    match &names[..] {
        [only] => {
            let uri = only.strip_prefix("URI:").ok_or_else(|| format!("`{only}` is not a URI"))?;
            let spiffe = uri.parse().map_err(|e| format!("`{uri}` is not a valid SPIFFE ID: {e}"))?;
            Ok(SigningRequest { spiffe, key })
        }
        _ => Err(format!("it has {} names; exactly one is allowed, a SPIFFE ID", names.len())),
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use rcgen::{CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P521_SHA512, PKCS_RSA_SHA256, SanType};

    use super::*;

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn request(key: &KeyPair, names: Vec<SanType>) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_request_names_one_identity() {
        let key = KeyPair::generate().unwrap();
        let read_with = |names| read(request(&key, names).as_bytes());
        let good = read_with(vec![uri("spiffe://mesh.local/web")]).unwrap();
        assert_eq!(good.spiffe.as_str(), "spiffe://mesh.local/web");
        assert_eq!(good.key.subject_public_key_info(), key.subject_public_key_info());
        for (names, expected) in [
            (vec![], "0 names"),
            (vec![uri("spiffe://mesh.local/a"), uri("spiffe://mesh.local/b")], "2 names"),
            (vec![uri("spiffe://mesh.local/a"), SanType::DnsName("bank.example".try_into().unwrap())], "2 names"),
            (vec![SanType::DnsName("bank.example".try_into().unwrap())], "is not a URI"),
            (vec![uri("https://mesh.local/a")], "not a valid SPIFFE ID"),
            (vec![uri("spiffe://mesh.local/../a")], "not a valid SPIFFE ID"),
        ] {
            let error = read_with(names).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn requested_rights_are_ignored() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.subject_alt_names = vec![uri("spiffe://mesh.local/web")];
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        assert!(read(pem.as_bytes()).is_ok());
    }

    #[test]
    fn unsupported_keys_are_rejected() {
        for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert!(read(request(&key, vec![uri("spiffe://mesh.local/web")]).as_bytes()).is_ok());
        }
        for algorithm in [&PKCS_RSA_SHA256, &PKCS_ECDSA_P521_SHA512] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let error = read(request(&key, vec![uri("spiffe://mesh.local/web")]).as_bytes()).unwrap_err();
            assert!(error.contains("its key must be"), "{error}");
        }
    }

    #[test]
    fn every_changed_or_truncated_request_is_rejected() {
        let key = KeyPair::generate().unwrap();
        let pem = request(&key, vec![uri("spiffe://mesh.local/web")]);
        let inside: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = BASE64_STANDARD.decode(inside).unwrap();
        let wrapped = |der: &[u8]| {
            let text = BASE64_STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
        };
        assert!(read(wrapped(&der).as_bytes()).is_ok());
        let signed = X509CertificationRequest::from_der(&der).unwrap().1.certification_request_info.raw.len();
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            // After the signed part there is one byte without meaning.
            let noticed = read(wrapped(&changed).as_bytes()).is_err();
            assert!(noticed || at > signed, "a change of byte {at} goes unnoticed");
            assert!(read(wrapped(&der[..at]).as_bytes()).is_err());
        }
        assert!(read(wrapped(&[&der[..], b"x"].concat()).as_bytes()).unwrap_err().contains("trailing data"));
        assert!(read(b"").is_err() && read(&[0xff; 64]).is_err());
    }
}
