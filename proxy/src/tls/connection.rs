//! The facts about a client's connection after its TLS handshake.

use std::{cell::OnceCell, sync::Arc, time::SystemTime};

use http::HeaderValue;
use rustls::{CipherSuite, ProtocolVersion, ServerConnection, pki_types::CertificateDer};

use super::{
    error::date,
    identity::{Identity, IdentityError},
    material::unix,
    xfcc,
};

/// Why a client is rejected after a successful handshake.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The session was resumed, which does not verify the certificate again.
    #[error("the client certificate of the resumed session expired on {}", date(*.0))]
    Expired(i64),
    /// The same for another certificate of the client's chain.
    #[error("a certificate in the client's chain of the resumed session has expired or cannot be read")]
    Chain,
    /// The same for a revocation list that the chain was verified with.
    #[error("a revocation list used to verify the resumed session expired on {}", date(*.0))]
    List(i64),
    /// The certificate claims several identities, which X509-SVID section 2 forbids.
    #[error("the client's certificate has a SPIFFE ID and another URI: it must have exactly one URI")]
    SeveralIds,
    /// The certificate cannot be parsed.
    #[error("the client's certificate cannot be read: {0}")]
    Unreadable(#[from] IdentityError),
}

/// The facts about a TLS connection.
#[derive(Debug)]
pub struct ConnectionTls {
    /// `TLSv1.2`, `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, by its name in the IANA registry.
    pub cipher: &'static str,
    /// The server name that the client requested (SNI), in lower case.
    pub server_name: Option<Box<str>>,
    /// The negotiated protocol (ALPN).
    pub alpn: Option<Box<[u8]>>,
    /// The client's identity, if it presented a certificate; always verified.
    pub peer: Option<Identity>,
    /// The certificate that we presented.
    pub local: Option<Arc<Identity>>,
    forwarded: OnceCell<HeaderValue>,
}

impl ConnectionTls {
    /// Reads the facts from a connection after its handshake. `local` is the certificate that we presented.
    pub fn of_server(connection: &ServerConnection, local: Option<Arc<Identity>>) -> Result<ConnectionTls, PeerError> {
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "",
        };
        let suite = connection.negotiated_cipher_suite().map_or("", |suite| suite_name(suite.suite()));
        let alpn = connection.alpn_protocol().map(Box::from);
        let chain = connection.peer_certificates().unwrap_or_default();
        ConnectionTls::new((version, suite), connection.server_name(), alpn, chain, local)
    }

    /// Creates it from parts: version and cipher suite, SNI, ALPN, the client's verified chain (empty if it presented
    /// none), and our own certificate. For QUIC, whose connections have another type.
    pub fn new(
        (version, cipher): (&'static str, &'static str),
        server_name: Option<&str>,
        alpn: Option<Box<[u8]>>,
        chain: &[CertificateDer<'_>],
        local: Option<Arc<Identity>>,
    ) -> Result<ConnectionTls, PeerError> {
        let peer = chain.first().map(Identity::parse).transpose()?;
        if let Some(peer) = peer.as_ref().filter(|peer| peer.not_after < unix(SystemTime::now())) {
            return Err(PeerError::Expired(peer.not_after));
        }
        if peer.as_ref().is_some_and(|peer| peer.spiffe_id().is_some() && peer.uri_sans.len() > 1) {
            return Err(PeerError::SeveralIds);
        }
        let server_name = server_name.map(Box::from);
        Ok(ConnectionTls { version, cipher, server_name, alpn, peer, local, forwarded: OnceCell::new() })
    }

    /// Returns whether both sides presented certificates; the client's was verified.
    pub fn is_mutual(&self) -> bool {
        self.peer.is_some()
    }

    /// Returns the client's element of `X-Forwarded-Client-Cert`. It is the same for all requests, so it is built
    /// once.
    pub(super) fn forwarded(&self) -> Option<&HeaderValue> {
        let peer = self.peer.as_ref()?;
        Some(self.forwarded.get_or_init(|| xfcc::element(peer, self.local.as_deref())))
    }
}

/// Returns the suite's name in the IANA registry. rustls uses its own names for the TLS 1.3 suites.
fn suite_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        suite => suite.as_str().unwrap_or(""),
    }
}
