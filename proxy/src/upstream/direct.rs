//! Connections outside the pools: each belongs to the one client whose bytes it carries. They count towards the
//! cluster's connection limit.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{cluster::Cluster, connect, endpoint::Endpoint, reason::ConnectError};
use crate::net::{Stream, proxy_protocol::Addresses};

/// A connection's permit in its cluster, held from before it is opened until this is dropped.
#[derive(Debug)]
#[must_use = "dropping this releases the permit"]
pub struct DirectConnection {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
}

impl Cluster {
    /// Acquires a permit for a connection to one of the endpoints. `None` if `limits.connections` are open, which
    /// counts as a refused request.
    pub fn try_connection(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Option<DirectConnection> {
        let stats = self.stats();
        // Add first, then undo, as in `try_request`.
        if stats.connections.fetch_add(1, Relaxed) >= self.limits.connections {
            stats.connections.fetch_sub(1, Relaxed);
            stats.request_overflows.fetch_add(1, Relaxed);
            return None;
        }
        endpoint.state.connections.fetch_add(1, Relaxed);
        Some(DirectConnection { cluster: Arc::clone(self), endpoint: Arc::clone(endpoint) })
    }
}

impl DirectConnection {
    /// Opens the connection within the cluster's `connect_timeout` and with its settings: TLS, and the PROXY protocol
    /// with the `client`'s address. The outcome is counted.
    pub async fn open(&self, client: Addresses) -> Result<Stream, ConnectError> {
        let opened = connect::open(&self.cluster, &self.endpoint, Some(client), false).await;
        count(&self.cluster, &self.endpoint, opened).map(|(stream, _)| stream)
    }
}

/// Counts the outcome of opening a connection.
pub(super) fn count<T>(
    cluster: &Cluster,
    endpoint: &Endpoint,
    opened: Result<T, ConnectError>,
) -> Result<T, ConnectError> {
    let stats = cluster.stats();
    opened.inspect(|_| _ = stats.connects.fetch_add(1, Relaxed)).inspect_err(|error| {
        stats.connect_failures.fetch_add(1, Relaxed);
        stats.connect_timeouts.fetch_add(error.timeout.into(), Relaxed);
        endpoint.state.connect_failures.fetch_add(1, Relaxed);
    })
}

impl Drop for DirectConnection {
    fn drop(&mut self) {
        self.cluster.stats().connections.fetch_sub(1, Relaxed);
        self.endpoint.state.connections.fetch_sub(1, Relaxed);
    }
}
