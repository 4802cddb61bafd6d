//! HTTP/3 from end to end.

mod bodies;
mod client;
mod connections;
pub(crate) mod raw;
mod requests;
mod wrong;

use rcgen::{CertifiedKey, KeyPair};

use self::client::H3;
use crate::harness::{Config, Proxy, Upstream};

/// Codes of RFC 9114 section 8.1.
mod code {
    pub const NO_ERROR: u64 = 0x100;
    pub const FRAME_ERROR: u64 = 0x106;
    pub const EXCESSIVE_LOAD: u64 = 0x107;
    pub const REQUEST_REJECTED: u64 = 0x10b;
    pub const REQUEST_CANCELLED: u64 = 0x10c;
    pub const CONNECT_ERROR: u64 = 0x10f;
    pub const MESSAGE_ERROR: u64 = 0x10e;
}

/// A proxy whose listener speaks HTTP/3 too.
pub(crate) struct Site {
    proxy: Proxy,
    pair: CertifiedKey<KeyPair>,
}

/// A certificate for `web.test` that has signed itself.
fn pair() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["web.test".to_owned()]).expect("a certificate")
}

const TLS: &str = "
http3: true
tls: {certificates: [{certificate: server.pem, key: server.key}]}";

impl Site {
    /// To an upstream, with these options of the listener.
    fn to(upstream: &Upstream, listener: &str) -> Site {
        Site::start(Config::to(upstream).listener(TLS).listener(listener))
    }

    /// With a configuration that has [`TLS`].
    fn start(config: Config) -> Site {
        let pair = pair();
        let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let files = [("server.pem", certificate.as_bytes()), ("server.key", key.as_bytes())];
        Site { proxy: Proxy::start_with(config, &files), pair }
    }

    fn connect(&self) -> H3 {
        H3::connect(self.proxy.address("main"), &self.proxy.dir().join("server.pem"))
    }
}
