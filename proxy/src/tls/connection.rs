//! What one connection of a client knows when its TLS handshake is over.

use std::{cell::OnceCell, sync::Arc, time::SystemTime};

use http::HeaderValue;
use rustls::{CipherSuite, ProtocolVersion, ServerConnection, pki_types::CertificateDer};

use super::{
    error::date,
    identity::{Identity, IdentityError},
    material::unix,
    xfcc,
};

/// Why a client is turned away although its handshake went well.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The session was resumed, which verifies nothing again.
    #[error("the client's certificate, shown when the resumed session began, expired on {}", date(*.0))]
    Expired(i64),
    /// The same of another certificate of its chain.
    #[error("a certificate of the client's chain, shown when the resumed session began, has expired or cannot be read")]
    Chain,
    /// The same of a revocation list by which it was verified.
    #[error("the session was resumed, and a revocation list that it was verified by expired on {}", date(*.0))]
    List(i64),
    /// It says that it is several workloads (X509-SVID section 2: it must not).
    #[error("the client's certificate has a SPIFFE ID and another URI: it must have one")]
    SeveralIds,
    /// Nobody can say who it is.
    #[error("the client's certificate cannot be read: {0}")]
    Unreadable(#[from] IdentityError),
}

/// What is known of a TLS connection.
#[derive(Debug)]
pub struct ConnectionTls {
    /// `TLSv1.2`, `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, by its name in the registry of IANA.
    pub cipher: &'static str,
    /// The name that the client has asked for (SNI), in lower case.
    pub server_name: Option<Box<str>>,
    /// The protocol that was agreed on (ALPN).
    pub alpn: Option<Box<[u8]>>,
    /// Who the client is, if it has shown a certificate; if so, it was verified.
    pub peer: Option<Identity>,
    /// Who we are to it.
    pub local: Option<Arc<Identity>>,
    forwarded: OnceCell<HeaderValue>,
}

impl ConnectionTls {
    /// Of a connection whose handshake is over. `local` is the certificate that it was shown.
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

    /// Of parts: version and cipher suite, SNI, ALPN, the client's chain (empty if it has shown none, else verified), our own
    /// certificate. For TLS inside of QUIC, whose connections are of another type.
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

    /// Whether both sides have shown certificates, and the client's was verified.
    pub fn is_mutual(&self) -> bool {
        self.peer.is_some()
    }

    /// The element of `X-Forwarded-Client-Cert` for the client. The same for all requests, so it is made once.
    pub(super) fn forwarded(&self) -> Option<&HeaderValue> {
        let peer = self.peer.as_ref()?;
        Some(self.forwarded.get_or_init(|| xfcc::element(peer, self.local.as_deref())))
    }
}

/// The suite's name in the registry. rustls has names of its own for those of TLS 1.3.
fn suite_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        suite => suite.as_str().unwrap_or(""),
    }
}
