//! Restricts authorities to their SPIFFE trust domains: a partner's authority must not issue certificates for our
//! workloads (SPIFFE Trust Domain and Bundle, section 4).

use std::{collections::BTreeMap, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::EndEntityCert;

/// Verifies clients with the authorities of the trust domain in their SPIFFE ID.
#[derive(Debug)]
pub(super) struct TrustDomainVerifier {
    domains: BTreeMap<String, Arc<dyn ClientCertVerifier>>,
    /// For certificates without a SPIFFE ID.
    others: Option<Arc<dyn ClientCertVerifier>>,
    hints: Vec<DistinguishedName>,
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl TrustDomainVerifier {
    pub(super) fn new(
        domains: BTreeMap<String, Arc<dyn ClientCertVerifier>>,
        others: Option<Arc<dyn ClientCertVerifier>>,
        mandatory: bool,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> TrustDomainVerifier {
        let hints =
            domains.values().chain(&others).flat_map(|verifier| verifier.root_hint_subjects()).cloned().collect();
        TrustDomainVerifier { domains, others, hints, mandatory, algorithms }
    }

    /// Returns the verifier for a certificate; `None` if no authority may sign it.
    fn verifier(&self, certificate: &EndEntityCert<'_>) -> Option<&Arc<dyn ClientCertVerifier>> {
        let mut ids = certificate.valid_uri_names().filter_map(trust_domain);
        match (ids.next(), ids.next()) {
            (None, _) => self.others.as_ref(),
            (Some(domain), None) => self.domains.get(domain),
            // Otherwise the certificate's owner could choose.
            (Some(_), Some(_)) => None,
        }
    }
}

/// Returns the trust domain of a SPIFFE ID.
fn trust_domain(uri: &str) -> Option<&str> {
    let (scheme, rest) = uri.split_once("://")?;
    scheme.eq_ignore_ascii_case("spiffe").then(|| rest.split('/').next().unwrap_or_default())
}

impl ClientCertVerifier for TrustDomainVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let certificate = EndEntityCert::try_from(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let verifier = self.verifier(&certificate).ok_or(CertificateError::UnknownIssuer)?;
        verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
