//! Alternatives to the standard verification of endpoints (a chain to a root, and the requested name): by a list of
//! accepted names, or none at all.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use webpki::{CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptionsBuilder};

/// A name that a certificate can have.
#[derive(Debug)]
pub(super) enum San {
    /// A DNS name or an IP address. Wildcards in certificates match it by the rules for host names.
    Host(ServerName<'static>),
    /// A URI, compared byte by byte.
    Uri(Box<str>),
}

impl San {
    /// Parses a name; everything but a host is a URI.
    pub(super) fn new(text: &str) -> San {
        ServerName::try_from(text).map_or_else(|_| San::Uri(text.into()), |name| San::Host(name.to_owned()))
    }

    fn is_of(&self, certificate: &EndEntityCert<'_>) -> bool {
        match self {
            San::Host(name) => certificate.verify_is_valid_for_subject_name(name).is_ok(),
            San::Uri(uri) => certificate.valid_uri_names().any(|name| name == &**uri),
        }
    }
}

/// Accepts certificates that chain to one of the roots and have one of the accepted names.
#[derive(Debug)]
pub(super) struct NameVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) lists: Vec<CertRevocationList<'static>>,
    pub(super) sans: Vec<San>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for NameVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = EndEntityCert::try_from(end_entity).map_err(refused)?;
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        // Without lists there are no options, and revocation is not checked.
        let revocation = RevocationOptionsBuilder::new(&lists).ok();
        let revocation = revocation.map(|r| r.with_expiration_policy(ExpirationPolicy::Enforce).build());
        let (algorithms, roots) = (self.algorithms.all, &self.roots.roots);
        certificate
            .verify_for_usage(algorithms, roots, intermediates, now, KeyUsage::server_auth(), revocation, None)
            .map_err(refused)?;
        if self.sans.iter().any(|san| san.is_of(&certificate)) {
            return Ok(ServerCertVerified::assertion());
        }
        let names = certificate.valid_dns_names().chain(certificate.valid_uri_names());
        let other = OtherError(Arc::new(OtherNames(names.map(str::to_owned).collect())));
        Err(CertificateError::Other(other).into())
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

/// Accepts every certificate. The handshake's signature is still verified, but proves nothing.
#[derive(Debug)]
pub(super) struct AcceptAny(pub(super) WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// The certificate has none of the accepted names.
#[derive(thiserror::Error)]
#[error("the certificate has none of `sans`; its names are: {}", .0.join(", "))]
struct OtherNames(Vec<String>);

// rustls formats foreign errors with `Debug`.
impl fmt::Debug for OtherNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Converts an error of the chain to the TLS library's error, which determines the alert.
fn refused(error: webpki::Error) -> Error {
    let error = match error {
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateError::BadEncoding,
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        webpki::Error::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        webpki::Error::CrlExpired { time, next_update } => {
            CertificateError::ExpiredRevocationListContext { time, next_update }
        }
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(error)
}
