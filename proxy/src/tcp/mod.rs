//! One TCP connection's life: bytes that are passed on without being looked into, but by filters.
//!
//! [`serve`] takes a connection from a listener. The chain's filters are told of it ([`crate::chain::network`]), [`route`]
//! says to which cluster it goes, [`connect`] opens a connection to an endpoint, [`relay`] moves bytes both ways until both
//! ends have ended. Where no filter wants to see the bytes, and both ends are sockets, [`splice`] lets the kernel move them.
//! Whatever goes wrong is a [`Fault`]; [`ending`] settles the accounts.
//!
//! The end of one direction is passed on, and the other direction goes on. A reset is passed on as a reset.

mod connect;
mod direction;
mod failure;
mod guard;
mod relay;
mod route;
pub mod sni;
mod splice;
#[cfg(test)]
mod tests;
mod timeouts;

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use rustc_hash::FxHashMap;

pub use self::{failure::TcpFailure, route::Routes};
use self::{guard::TcpGuard, relay::Relay};
use crate::{
    chain::{
        network::{NetworkChain, NetworkStream},
        route::RetryPolicy,
        stream::ConnectionInfo,
    },
    net::{Transport, linger},
    observe::{AccessLog, Counter, Gauge},
};

/// What a worker knows of a listener for TCP connections: the rules of one snapshot. A connection keeps those with which it
/// began.
pub struct TcpListenerContext {
    /// The listener's name.
    pub name: Rc<str>,
    /// Its filters.
    pub chain: Rc<NetworkChain>,
    /// Where connections go.
    pub routes: Routes,
    /// Without a byte in either direction for so long, a connection ends.
    pub idle: Option<Duration>,
    /// So old a connection becomes.
    pub age: Option<Duration>,
    /// Bytes that a filter may hold of each side before no more are read.
    pub buffered: usize,
    /// Where connections are logged.
    pub access_log: Option<AccessLog>,
    /// The listener's figures.
    pub figures: TcpMetrics,
    /// The clusters' figures, by name.
    pub clusters: FxHashMap<Box<str>, TcpClusterMetrics>,
    /// How often connecting is tried again, by cluster.
    pub retries: FxHashMap<Box<str>, RetryPolicy>,
}

/// A listener's figures.
#[derive(Clone)]
pub struct TcpMetrics {
    /// Connections.
    pub connections: Counter,
    /// Connections now.
    pub active: Gauge,
    /// Bytes received from clients, and sent to them.
    pub bytes: [Counter; 2],
    /// Connections by their flags.
    pub flags: Vec<(u32, Counter)>,
}

/// A cluster's figures.
#[derive(Clone)]
pub struct TcpClusterMetrics {
    /// Bytes sent to its endpoints, and received from them.
    pub bytes: [Counter; 2],
}

/// Serves one connection until it ends. `first`: what was read of it already. `server_name`: what the client asks for by
/// TLS, if that is known.
pub async fn serve<D: Transport>(
    site: Rc<TcpListenerContext>,
    socket: D,
    connection: Rc<ConnectionInfo>,
    first: Bytes,
    server_name: Option<&str>,
) {
    let stream = NetworkStream::new(connection, site.chain.clone(), server_name, site.buffered);
    let ending = TcpGuard::new(site, stream);
    let mut relay = Relay::new(&ending, socket, first);
    let left = match run(&ending, &mut relay).await {
        Ok(()) => {
            drop(relay);
            None
        }
        Err(fault) => {
            ending.fault(fault);
            relay.finish(fault).await
        }
    };
    ending.complete();
    drop(ending);
    if let Some(socket) = left {
        linger(socket).await;
    }
}

async fn run<'e, D: Transport>(ending: &'e TcpGuard, relay: &mut Relay<'e, D>) -> Result<(), TcpFailure> {
    relay.open().await?;
    ending.opened();
    let connected = relay.meanwhile(connect::run(ending.site(), ending.stream())).await?;
    ending.connected(&connected);
    let figures = ending.site().clusters.get(&connected.cluster.name);
    relay.connected(connected.stream, figures);
    // What is left of `connected` counts it as under way until it has ended.
    relay.run().await.inspect_err(|fault| {
        if *fault == TcpFailure::UpstreamReset {
            ending.endpoint_failed(&connected.cluster, connected.endpoint.endpoint());
        }
    })
}
