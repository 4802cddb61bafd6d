//! A QUIC client that leaves HTTP/3 to the test, connected to a [`Site`].

use std::{net::SocketAddr, time::Duration};

use quinn::{Endpoint, TransportConfig};
use tokio::sync::oneshot;

use super::Site;
pub use crate::harness::quic::*;

/// Clients that start this many handshakes through `relay`, and get no further until it forwards responses.
pub struct Beginners {
    _all: Vec<quinn::Connecting>,
    _endpoint: Endpoint,
    _end: oneshot::Sender<()>,
}

impl Beginners {
    /// Starts the handshakes.
    pub fn begin(site: &Site, relay: SocketAddr, count: usize) -> Beginners {
        let (runtime, end) = runtime();
        let guard = runtime.enter();
        let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
        let config = config(&site.pair.der(), TransportConfig::default());
        let begin = |_| endpoint.connect_with(config.clone(), relay, "web.test").expect("a start");
        let all = (0..count).map(begin).collect();
        drop(guard);
        Beginners { _all: all, _endpoint: endpoint, _end: end }
    }
}

impl Raw {
    /// Connects.
    pub fn connect(site: &Site) -> Raw {
        Raw::connect_with(site, TransportConfig::default())
    }

    /// The same, without allowing the proxy to open streams.
    pub fn connect_without_streams(site: &Site) -> Raw {
        let mut transport = TransportConfig::default();
        transport.max_concurrent_uni_streams(0_u8.into());
        Raw::connect_with(site, transport)
    }

    /// The same, with a window of this size for a response; keep-alives show that the client is still there.
    pub fn connect_with_window(site: &Site, window: u32) -> Raw {
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(window.into()).keep_alive_interval(Some(Duration::from_millis(100)));
        Raw::connect_with(site, transport)
    }

    fn connect_with(site: &Site, transport: TransportConfig) -> Raw {
        Raw::connect_to(site.proxy.address("main"), &site.pair.der(), transport)
    }
}
