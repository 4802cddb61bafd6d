//! Explains failed handshakes, with hints on what to change: the TLS library's errors name neither the unknown issuer
//! nor the names that a certificate is for.
//!
//! When the library reports its error, the rejected certificate is gone, and the error has no room for the details
//! (error kinds that have room would send a different alert). So the verifiers record what they reject, per thread; a
//! handshake on a stream reports its error in the same call, which takes the record.

use std::{cell::Cell, fmt, io, net::IpAddr, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{date, name};

/// The limits on the listed names of a certificate: their number, and the bytes of each.
const MOST_NAMES: usize = 8;
const LONGEST_NAME: usize = 200;

/// The limit on an explanation, in characters.
const LONGEST: usize = 2000;

thread_local! {
    /// What a verifier on this thread rejected last.
    static REFUSED: Cell<Option<String>> = const { Cell::new(None) };
}

/// Why a handshake failed; the label of the failure metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeError {
    /// The client presented no certificate, but one is required.
    NoCertificate,
    /// The certificate was not signed by a trusted authority.
    UnknownIssuer,
    /// The certificate has expired or is not valid yet.
    Expired,
    /// The certificate was revoked, or its revocation status is unknown.
    Revoked,
    /// The certificate has another error.
    Certificate,
    /// The sides have no TLS version in common.
    Version,
    /// The sides have no cipher suite, group or signature scheme in common.
    Cipher,
    /// The sides have no protocol in common (ALPN).
    Alpn,
    /// The peer speaks HTTP without TLS.
    PlainHttp,
    /// The peer speaks some other protocol than TLS.
    NotTls,
    /// The peer ended the handshake with an alert.
    Alert,
    /// The peer closed the connection during the handshake.
    Closed,
    /// The handshake timed out.
    Timeout,
    /// Any other reason.
    Other,
}

impl HandshakeError {
    /// The number of variants.
    pub const COUNT: usize = 14;
    /// All variants, with their names in metrics.
    pub const ALL: [(HandshakeError, &'static str); HandshakeError::COUNT] = [
        (HandshakeError::NoCertificate, "no_certificate"),
        (HandshakeError::UnknownIssuer, "unknown_issuer"),
        (HandshakeError::Expired, "expired"),
        (HandshakeError::Revoked, "revoked"),
        (HandshakeError::Certificate, "certificate"),
        (HandshakeError::Version, "version"),
        (HandshakeError::Cipher, "cipher"),
        (HandshakeError::Alpn, "alpn"),
        (HandshakeError::PlainHttp, "plain_http"),
        (HandshakeError::NotTls, "not_tls"),
        (HandshakeError::Alert, "alert"),
        (HandshakeError::Closed, "closed"),
        (HandshakeError::Timeout, "timeout"),
        (HandshakeError::Other, "other"),
    ];
}

/// The other side of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// We are the server.
    Client,
    /// We are the client.
    Server,
}

/// Returns the TLS library's error inside a stream's error, if it is one.
pub fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Explains why a handshake on a stream, or a TLS stream, failed.
pub fn explain(error: &io::Error, peer: Peer) -> (HandshakeError, String) {
    match tls_error(error) {
        Some(error) => explain_tls(error, peer),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            (HandshakeError::Closed, format!("the {} closed the connection before its end", peer.name()))
        }
        None => (HandshakeError::Closed, error.to_string()),
    }
}

fn explain_tls(error: &Error, peer: Peer) -> (HandshakeError, String) {
    match error {
        Error::InvalidCertificate(why) => (cause_of(why), REFUSED.take().unwrap_or_else(|| why.to_string())),
        Error::NoCertificatesPresented => {
            (HandshakeError::NoCertificate, format!("the {} presented no certificate, which is required", peer.name()))
        }
        Error::AlertReceived(alert) => (HandshakeError::Alert, describe_alert(*alert, peer)),
        Error::NoApplicationProtocol => {
            (HandshakeError::Alpn, format!("the {} offers no supported protocol (ALPN)", peer.name()))
        }
        Error::PeerIncompatible(why) => match why {
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => (
                HandshakeError::Version,
                format!("the {} supports no TLS version that `min_version` allows", peer.name()),
            ),
            why => (HandshakeError::Cipher, format!("nothing in common with the {}: {why:?}", peer.name())),
        },
        error => (HandshakeError::Other, error.to_string()),
    }
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Client => "client",
            Peer::Server => "endpoint",
        }
    }
}

/// Explains a peer's alert, given its number.
pub fn explain_alert(alert: u8, peer: Peer) -> String {
    describe_alert(alert.into(), peer)
}

/// Explains an alert and suggests a remedy, if known.
fn describe_alert(alert: AlertDescription, peer: Peer) -> String {
    use AlertDescription as A;
    let meaning = match (alert, peer) {
        (A::CertificateRequired, Peer::Server) => "it requires a client certificate: set `tls.certificate`",
        (A::HandshakeFailure, Peer::Server) => {
            "no version or cipher suite in common, or it requires a client certificate (`tls.certificate`)"
        }
        (A::NoApplicationProtocol, Peer::Server) => "it does not speak the cluster's `protocol` (ALPN)",
        (A::UnrecognisedName, Peer::Server) => "it has no server of this name: is `tls.sni` right?",
        (A::ProtocolVersion, _) => "no TLS version in common",
        (A::UnknownCA, Peer::Server) => "it does not trust the issuer of `tls.certificate`",
        (A::UnknownCA, Peer::Client) => "it does not trust the issuer of the listener's certificate",
        (
            A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::AccessDenied
            | A::DecryptError,
            _,
        ) => match peer {
            Peer::Server => "it rejects the cluster's `tls.certificate`, or requires one",
            Peer::Client => "it rejects the listener's certificate",
        },
        _ => "",
    };
    let (peer, alert) = (peer.name(), snake(&format!("{alert:?}")));
    match meaning {
        "" => format!("the {peer} sent the alert {alert}"),
        meaning => format!("the {peer} sent the alert {alert}: {meaning}"),
    }
}

/// Converts `UnknownCA` to the spelling of the RFCs, `unknown_ca`.
fn snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    let mut lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && lower {
            out.push('_');
        }
        lower = c.is_ascii_lowercase();
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// Returns the reason to count for a handshake that ended with this alert. For QUIC, where nothing else is known.
pub fn cause_of_alert(alert: u8) -> HandshakeError {
    match AlertDescription::from(alert) {
        AlertDescription::CertificateRequired => HandshakeError::NoCertificate,
        AlertDescription::UnknownCA => HandshakeError::UnknownIssuer,
        AlertDescription::CertificateExpired => HandshakeError::Expired,
        AlertDescription::CertificateRevoked => HandshakeError::Revoked,
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError => HandshakeError::Certificate,
        AlertDescription::ProtocolVersion => HandshakeError::Version,
        AlertDescription::HandshakeFailure => HandshakeError::Cipher,
        AlertDescription::NoApplicationProtocol => HandshakeError::Alpn,
        _ => HandshakeError::Other,
    }
}

fn cause_of(error: &CertificateError) -> HandshakeError {
    match error {
        CertificateError::UnknownIssuer => HandshakeError::UnknownIssuer,
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => HandshakeError::Expired,
        CertificateError::Revoked
        | CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => HandshakeError::Revoked,
        _ => HandshakeError::Certificate,
    }
}

/// Records why a certificate was rejected.
fn note(error: &Error, trusted: &str, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) {
    if let Error::InvalidCertificate(why) = error {
        // Names are under the peer's control and must not forge log lines.
        let text = describe(why, trusted, leaf, intermediates);
        REFUSED.set(Some(text.chars().map(|c| if c.is_control() { '?' } else { c }).take(LONGEST).collect()));
    }
}

fn describe(
    why: &CertificateError,
    trusted: &str,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
        return format!("its certificate cannot be read: {why}");
    };
    let subject = called(&certificate);
    let until = |time: &UnixTime| date(time.as_secs() as i64);
    match why {
        CertificateError::UnknownIssuer => {
            let issuer = last_issuer(&certificate, intermediates);
            match certificate.subject() == certificate.issuer() {
                true => format!("unknown issuer {issuer}: the certificate is self-signed and not among {trusted}"),
                false => format!("unknown issuer {issuer} of the certificate {subject}: it is not among {trusted}"),
            }
        }
        CertificateError::NotValidForNameContext { expected, .. } => {
            let expected = Quoted(expected.to_str().into_owned());
            let names = names(&certificate);
            format!("certificate not valid for name {expected} ({names}): is `sni` right, or are `sans` needed?")
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate {subject} expired on {}", until(not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the certificate {subject} is not valid before {}: is the clock right?", until(not_before))
        }
        CertificateError::Revoked => format!("the certificate {subject} was revoked"),
        CertificateError::ExpiredRevocationListContext { next_update, .. } => {
            format!("the revocation list for the certificate {subject} expired on {}", until(next_update))
        }
        CertificateError::UnknownRevocationStatus => format!("no revocation list covers the certificate {subject}"),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("the certificate {subject} is for another use (extended key usage)")
        }
        CertificateError::Other(OtherError(other)) => match other.downcast_ref() {
            Some(webpki::Error::CaUsedAsEndEntity) => {
                format!("the certificate {subject} is a CA certificate: use a certificate signed by it")
            }
            _ => format!("the certificate {subject} cannot be used: {other}"),
        },
        why => format!("the certificate {subject} cannot be used: {why}"),
    }
}

/// Returns the issuer of the last certificate in a chain.
fn last_issuer(leaf: &X509Certificate<'_>, intermediates: &[CertificateDer<'_>]) -> String {
    let parsed: Vec<_> = intermediates.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
    let mut last = leaf;
    // At most one step per certificate, so that a cycle ends.
    for _ in &parsed {
        match parsed.iter().find(|next| next.subject() == last.issuer()) {
            Some(next) => last = next,
            None => break,
        }
    }
    match name::rfc2253(last.issuer()) {
        none if none.is_empty() => "without a name".to_owned(),
        name => Quoted(name).to_string(),
    }
}

/// Returns a name for a certificate: its subject, or else its first alternative name, since workloads' certificates
/// often have no subject.
fn called(certificate: &X509Certificate<'_>) -> String {
    let subject = Some(name::rfc2253(certificate.subject())).filter(|subject| !subject.is_empty());
    match subject.or_else(|| known_names(certificate).into_iter().next()) {
        Some(name) => Quoted(name).to_string(),
        None => "(its subject is empty)".to_owned(),
    }
}

/// Returns the subject alternative names.
fn known_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let known = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let ip = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            ip.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string())
        }
        _ => None,
    });
    known.map(clip).collect()
}

/// Describes the names that a certificate is for.
fn names(certificate: &X509Certificate<'_>) -> String {
    let known = known_names(certificate);
    match known.len() {
        0 => "it has only a subject, which is ignored".to_owned(),
        count if count > MOST_NAMES => {
            format!("it is for {} and {} more", known[..MOST_NAMES].join(", "), count - MOST_NAMES)
        }
        _ => format!("it is for {}", known.join(", ")),
    }
}

/// Truncates text from a peer.
fn clip(mut text: String) -> String {
    if text.len() > LONGEST_NAME {
        text.truncate(text.floor_char_boundary(LONGEST_NAME));
        text.push('…');
    }
    text
}

/// A name in quotation marks.
struct Quoted(String);

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", clip(self.0.clone()))
    }
}

/// A verifier that records what it rejects.
#[derive(Debug)]
pub(super) struct RecordingVerifier<V: ?Sized> {
    pub(super) verifier: Arc<V>,
    /// Describes the trusted authorities, for errors about an unknown issuer.
    pub(super) trusted: &'static str,
}

impl ServerCertVerifier for RecordingVerifier<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.inspect_err(|error| note(error, self.trusted, end_entity, intermediates))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, cert, dss)
            .inspect_err(|error| note(error, self.trusted, cert, &[]))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, cert, dss)
            .inspect_err(|error| note(error, self.trusted, cert, &[]))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

impl ClientCertVerifier for RecordingVerifier<dyn ClientCertVerifier> {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now);
        verified.inspect_err(|error| note(error, self.trusted, end_entity, intermediates))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, cert, dss)
            .inspect_err(|error| note(error, self.trusted, cert, &[]))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, cert, dss)
            .inspect_err(|error| note(error, self.trusted, cert, &[]))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_spelled_as_in_the_rfcs() {
        for (alert, expected) in [
            (AlertDescription::UnknownCA, "unknown_ca"),
            (AlertDescription::CertificateRequired, "certificate_required"),
            (AlertDescription::NoApplicationProtocol, "no_application_protocol"),
        ] {
            assert_eq!(snake(&format!("{alert:?}")), expected);
        }
        let said = explain_alert(116, Peer::Server);
        assert!(said.contains("certificate_required") && said.contains("`tls.certificate`"), "{said}");
    }
}
