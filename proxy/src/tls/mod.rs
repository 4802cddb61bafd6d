//! TLS on both sides of the proxy: what it is set up from, who the other side is, and what is told to upstreams about it.
//!
//! Nothing here knows listeners, clusters or snapshots. [`ServerTls`] and [`ClientTls`] are made from a section of the
//! configuration and the files that it names, on the control thread, and are read by all workers. [`ConnectionTls`] is what
//! one connection knows when its handshake is over.

pub mod xfcc;

mod client;
mod connection;
mod error;
mod explain;
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
    identity::{Identity, IdentityError},
    material::{Dated, DatedKind, Digests, Loader},
    server::ServerTls,
};

/// The one implementation of cryptography that is used, whatever others are linked.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// The versions from the least one on.
fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static ALL: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    match min {
        TlsVersion::V1_2 => &ALL,
        TlsVersion::V1_3 => &ALL[..1],
    }
}
