//! TCP proxying: the lifetime of one connection, whose bytes are forwarded uninterpreted except by filters.
//!
//! [`serve`] takes a connection from a listener and notifies the chain's filters of it ([`crate::chain::network`]).
//! [`route`] selects the cluster, [`connect`] opens a connection to an endpoint, and [`relay`] moves bytes in both
//! directions until both sides have ended. If no filter needs the bytes and both sides are TCP sockets, [`splice`] lets
//! the kernel move them. Every failure is a [`TcpFailure`]; [`guard`] updates metrics and the access log at the end.
//!
//! The end of one direction is forwarded (half-close) while the other direction continues. A reset is forwarded as a
//! reset.

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

pub use self::{failure::TcpFailure, route::Routes};
use self::{guard::TcpGuard, relay::Relay};
use crate::{
    chain::{
        network::{NetworkChain, NetworkStream},
        slot::SlottedChain,
        stream::ConnectionInfo,
    },
    net::{Transport, linger},
    observe::{AccessLog, Counter, Gauge},
    upstream::ClusterTable,
};

/// A worker's view of a TCP listener: the rules of one configuration snapshot. A connection keeps the rules that it
/// began with.
pub struct TcpListenerContext {
    /// The listener's name.
    pub name: Rc<str>,
    /// The listener's filters.
    pub chain: SlottedChain<NetworkChain>,
    /// The rules that select a connection's cluster.
    pub routes: Routes,
    /// Idle timeout: a connection without a byte in either direction for this long ends.
    pub idle: Option<Duration>,
    /// Maximum age of a connection.
    pub age: Option<Duration>,
    /// Bytes that a filter may hold per direction before reading pauses (backpressure).
    pub buffered: usize,
    /// The access log, if connections are logged.
    pub access_log: Option<AccessLog>,
    /// The listener's metrics.
    pub metrics: TcpMetrics,
    /// The worker's clusters.
    pub clusters: ClusterTable,
}

/// A listener's metrics.
#[derive(Clone)]
pub struct TcpMetrics {
    /// Connections in total.
    pub connections: Counter,
    /// Active connections.
    pub active: Gauge,
    /// Bytes received from clients, and sent to them.
    pub bytes: [Counter; 2],
    /// Connections per response flag.
    pub flags: Vec<(u32, Counter)>,
}

/// Serves one connection until it ends. `first` holds the bytes already read from it, `server_name` the client's TLS
/// SNI, if known.
pub async fn serve<D: Transport>(
    listener: Rc<TcpListenerContext>,
    socket: D,
    connection: Rc<ConnectionInfo>,
    first: Bytes,
    server_name: Option<&str>,
) {
    let chain = listener.chain.pin(|| fastrand::u64(..));
    let stream = NetworkStream::new(connection, chain, server_name, listener.buffered);
    let guard = TcpGuard::new(listener, stream);
    let mut relay = Relay::new(&guard, socket, first);
    let left = match run(&guard, &mut relay).await {
        Ok(()) => {
            drop(relay);
            None
        }
        Err(failure) => {
            guard.failure(failure);
            relay.finish(failure).await
        }
    };
    guard.complete();
    drop(guard);
    if let Some(socket) = left {
        linger(socket).await;
    }
}

async fn run<'e, D: Transport>(guard: &'e TcpGuard, relay: &mut Relay<'e, D>) -> Result<(), TcpFailure> {
    relay.open().await?;
    guard.opened();
    let connected = relay.meanwhile(connect::run(guard.listener(), guard.stream())).await?;
    guard.connected(&connected);
    relay.connected(connected.stream, connected.cluster.stats());
    // The rest of `connected` counts the connection as active until it ends.
    relay.run().await.inspect_err(|failure| {
        if *failure == TcpFailure::UpstreamReset {
            guard.endpoint_failed(&connected.cluster, connected.endpoint.endpoint());
        }
    })
}
