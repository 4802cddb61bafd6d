//! TLS on both sides of the proxy: configuration, the peer's identity, and how it is forwarded to upstreams.
//!
//! This module does not depend on listeners, clusters or snapshots. The control thread builds [`ServerTls`] and
//! [`ClientTls`] from a section of the configuration and its files; all workers read them. [`ConnectionTls`] holds
//! the facts about a connection after its handshake.

pub mod xfcc;

mod client;
mod connection;
mod error;
mod explain;
mod handshake;
mod identity;
mod material;
mod name;
mod resolver;
mod server;
mod sessions;
mod trust;
mod verify;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, LazyLock};

use rustls::{SupportedProtocolVersion, crypto::CryptoProvider};

use crate::config::model::TlsVersion;

pub use self::{
    client::ClientTls,
    connection::{ConnectionTls, PeerError},
    error::{FieldError, Found, MaterialError, date},
    explain::{HandshakeError, Peer, cause_of_alert, explain, explain_alert, tls_error},
    handshake::HandshakeFailure,
    identity::{Identity, IdentityError},
    material::{Dated, DatedKind, Digests, Loader},
    server::ServerTls,
};

/// The cryptography provider, used even if others are linked in.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// Returns the TLS versions from `min` up.
fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static ALL: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    match min {
        TlsVersion::V1_2 => &ALL,
        TlsVersion::V1_3 => &ALL[..1],
    }
}
