//! HTTP/3, end to end.

mod bodies;
mod client;
mod connections;
pub(crate) mod raw;
mod requests;
mod wrong;

use self::client::H3;
use crate::harness::{
    Config, Proxy, Upstream,
    pki::{self, SelfSigned},
};

/// Error codes of RFC 9114 section 8.1.
mod code {
    pub const NO_ERROR: u64 = 0x100;
    pub const FRAME_ERROR: u64 = 0x106;
    pub const EXCESSIVE_LOAD: u64 = 0x107;
    pub const REQUEST_REJECTED: u64 = 0x10b;
    pub const REQUEST_CANCELLED: u64 = 0x10c;
    pub const CONNECT_ERROR: u64 = 0x10f;
    pub const MESSAGE_ERROR: u64 = 0x10e;
}

/// A proxy with an HTTP/3 listener.
pub(crate) struct Site {
    proxy: Proxy,
    pair: SelfSigned,
}

/// The TLS section of an HTTP/3 listener.
fn tls() -> String {
    format!("http3: true\n{}", pki::TLS)
}

impl Site {
    /// With an upstream, and these options of the listener.
    fn to(upstream: &Upstream, listener: &str) -> Site {
        Site::start(Config::to(upstream).listener(listener))
    }

    /// With this configuration of `main`.
    fn start(config: Config) -> Site {
        Site::start_with(config, &[])
    }

    /// The same, with files next to it.
    fn start_with(config: Config, more: &[(&str, &[u8])]) -> Site {
        let pair = SelfSigned::new();
        let proxy = Proxy::start_with(config.listener(&tls()), &[&pair.files()[..], more].concat());
        Site { proxy, pair }
    }

    fn connect(&self) -> H3 {
        H3::connect(self.proxy.address("main"), &self.proxy.dir().join("server.pem"))
    }
}
