//! Why a handshake failed, in words that say what to change: the TLS library's errors name neither the issuer that nobody knows,
//! nor the names that a certificate is for.
//!
//! What is known of a refused certificate is gone when the library reports its error, and the error has no room for it (of the
//! kinds of error that have room, another alert would be sent). So the verifiers note what they refuse, for their thread; a
//! handshake on a stream reports its error in the same call, and takes the note.

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

/// Names of a certificate that are listed, at most, and bytes of each.
const MOST_NAMES: usize = 8;
const LONGEST_NAME: usize = 200;

/// Characters of a reason, at most.
const LONGEST: usize = 2000;

thread_local! {
    /// What a verifier of this thread has refused last.
    static REFUSED: Cell<Option<String>> = const { Cell::new(None) };
}

/// Why a handshake failed, by which failures are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeError {
    /// The client has shown no certificate, and must.
    NoCertificate,
    /// Nobody who is trusted has signed the certificate.
    UnknownIssuer,
    /// The certificate is over, or has not begun.
    Expired,
    /// The certificate was revoked, or nobody can tell.
    Revoked,
    /// Something else is wrong with the certificate.
    Certificate,
    /// There is no version of TLS that both sides speak.
    Version,
    /// There is no cipher suite, group or signature that both sides know.
    Cipher,
    /// There is no protocol that both sides speak (ALPN).
    Alpn,
    /// The peer speaks HTTP without TLS.
    PlainHttp,
    /// The peer speaks something else that is no TLS.
    NotTls,
    /// The peer has ended the handshake with an alert: it does not want us.
    Alert,
    /// The peer has closed the connection in the middle.
    Closed,
    /// It took too long.
    Timeout,
    /// Something else.
    Other,
}

impl HandshakeError {
    /// How many there are.
    pub const COUNT: usize = 14;
    /// All, with their names in metrics.
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

/// The TLS library's error in an error of a stream, if it is one.
pub fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What a handshake on a stream, or a stream under TLS, has failed for.
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
            (HandshakeError::NoCertificate, format!("the {} showed no certificate, which is required", peer.name()))
        }
        Error::AlertReceived(alert) => (HandshakeError::Alert, describe_alert(*alert, peer)),
        Error::NoApplicationProtocol => {
            (HandshakeError::Alpn, format!("the {} offers no protocol that is spoken here (ALPN)", peer.name()))
        }
        Error::PeerIncompatible(why) => match why {
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => (
                HandshakeError::Version,
                format!("the {} speaks no version of TLS that `min_version` allows", peer.name()),
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

/// What a peer's alert means, by its number.
pub fn explain_alert(alert: u8, peer: Peer) -> String {
    describe_alert(alert.into(), peer)
}

/// What an alert means, as far as that is known, and what can be done.
fn describe_alert(alert: AlertDescription, peer: Peer) -> String {
    use AlertDescription as A;
    let meaning = match (alert, peer) {
        (A::CertificateRequired, Peer::Server) => "it demands a client certificate: give the cluster `tls.certificate`",
        (A::HandshakeFailure, Peer::Server) => {
            "no version or cipher suite in common, or it demands a client certificate (`tls.certificate`)"
        }
        (A::NoApplicationProtocol, Peer::Server) => "it does not speak the cluster's `protocol` (ALPN)",
        (A::UnrecognisedName, Peer::Server) => "it knows no server of this name: is `tls.sni` right?",
        (A::ProtocolVersion, _) => "no version of TLS in common",
        (A::UnknownCA, Peer::Server) => "it does not trust the issuer of the cluster's `tls.certificate`",
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
            Peer::Server => "it refuses the cluster's `tls.certificate`, or wants one",
            Peer::Client => "it refuses the listener's certificate",
        },
        _ => "",
    };
    let (peer, alert) = (peer.name(), snake(&format!("{alert:?}")));
    match meaning {
        "" => format!("the {peer} sent the alert {alert}"),
        meaning => format!("the {peer} sent the alert {alert}: {meaning}"),
    }
}

/// `UnknownCA` as the RFCs spell it: `unknown_ca`.
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

/// How the alert with which a handshake was ended is counted, where nothing else is known: in QUIC.
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

/// Notes why a certificate was refused.
fn note(error: &Error, trusted: &str, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) {
    if let Error::InvalidCertificate(why) = error {
        // Names are a peer's own words, which must not forge a line of the log.
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
                format!("the certificate {subject} is that of a certificate authority: use one that it has signed")
            }
            _ => format!("the certificate {subject} cannot be used: {other}"),
        },
        why => format!("the certificate {subject} cannot be used: {why}"),
    }
}

/// Who has signed the last certificate of a chain.
fn last_issuer(leaf: &X509Certificate<'_>, intermediates: &[CertificateDer<'_>]) -> String {
    let parsed: Vec<_> = intermediates.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
    let mut last = leaf;
    // As often as there are certificates at most, whoever has signed whom.
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

/// What to call a certificate: its subject, or else the first of its names, as workloads' certificates often have no subject.
fn called(certificate: &X509Certificate<'_>) -> String {
    let subject = Some(name::rfc2253(certificate.subject())).filter(|subject| !subject.is_empty());
    match subject.or_else(|| known_names(certificate).into_iter().next()) {
        Some(name) => Quoted(name).to_string(),
        None => "(its subject is empty)".to_owned(),
    }
}

/// Its names other than its subject.
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

/// What a certificate is for.
fn names(certificate: &X509Certificate<'_>) -> String {
    let known = known_names(certificate);
    match known.len() {
        0 => "it has no names but its subject, which does not count".to_owned(),
        count if count > MOST_NAMES => {
            format!("it is for {} and {} more", known[..MOST_NAMES].join(", "), count - MOST_NAMES)
        }
        _ => format!("it is for {}", known.join(", ")),
    }
}

/// A peer's own words, no longer than is of use.
fn clip(mut text: String) -> String {
    if text.len() > LONGEST_NAME {
        text.truncate(text.floor_char_boundary(LONGEST_NAME));
        text.push('…');
    }
    text
}

/// A name between quotation marks.
struct Quoted(String);

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", clip(self.0.clone()))
    }
}

/// A verifier that notes what it refuses.
#[derive(Debug)]
pub(super) struct RecordingVerifier<V: ?Sized> {
    pub(super) verifier: Arc<V>,
    /// Which authorities it trusts: what an unknown issuer is not among.
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
    fn alerts_are_spelt_as_the_rfcs_do() {
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
