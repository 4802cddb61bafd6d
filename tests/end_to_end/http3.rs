//! HTTP/3 from end to end.

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
    pair: SelfSigned,
}

/// A listener that speaks it.
fn tls() -> String {
    format!("http3: true\n{}", pki::TLS)
}

impl Site {
    /// To an upstream, with these options of the listener.
    fn to(upstream: &Upstream, listener: &str) -> Site {
        Site::start(Config::to(upstream).listener(listener))
    }

    /// With a configuration for `main`.
    fn start(config: Config) -> Site {
        Site::start_with(config, &[])
    }

    /// The same, and files beside it.
    fn start_with(config: Config, more: &[(&str, &[u8])]) -> Site {
        let pair = SelfSigned::new();
        let proxy = Proxy::start_with(config.listener(&tls()), &[&pair.files()[..], more].concat());
        Site { proxy, pair }
    }

    fn connect(&self) -> H3 {
        H3::connect(self.proxy.address("main"), &self.proxy.dir().join("server.pem"))
    }
}
