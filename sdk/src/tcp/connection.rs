//! A TCP connection as a handle to state that the host holds.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tollgate_abi::fast;
#[cfg(not(all(target_arch = "wasm32", feature = "portable")))]
use tollgate_abi::proxy_wasm::buffer;

use crate::{RouteId, Selection, message, sys};

/// A TCP connection.
#[derive(Debug)]
pub struct Connection(pub(super) ());

/// The side that closed a connection first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedBy {
    /// The client.
    Client,
    /// The proxy: because of a filter, the upstream's end or a timeout.
    Proxy,
}

impl Connection {
    /// Returns the client's address. IPv4 addresses are returned as such, not in mapped form.
    pub fn source(&self) -> SocketAddr {
        address(fast::source::CLIENT)
    }

    /// Returns the address that the client connected to.
    pub fn destination(&self) -> SocketAddr {
        address(fast::source::LOCAL)
    }

    /// Returns the server name (SNI) that the client requested, if the listener inspects TLS.
    pub fn server_name(&self) -> Option<String> {
        sys::property(b"connection\0requested_server_name").and_then(|name| String::from_utf8(name).ok())
    }

    /// Selects the connection's route: one of its clusters, with its retries. The last selection before the last filter
    /// lets the connection through takes effect.
    pub fn route(&self, route: RouteId, selection: Selection) {
        message::select_route(route, selection);
    }

    /// Drops the selected route, so that a filter behind this one may select another.
    pub fn clear_route(&self) {
        sys::route_clear();
    }

    /// Sends bytes to the client, after those received from the upstream so far. They pass the filters between this one
    /// and the client. Not allowed within [`on_upstream_data`](super::TcpFilter::on_upstream_data), nor while this
    /// filter holds bytes from the upstream; use [`Data::replace`] then. Has no effect once the upstream has ended. Not
    /// available in portable modules.
    #[cfg(not(all(target_arch = "wasm32", feature = "portable")))]
    pub fn send_to_client(&self, bytes: impl AsRef<[u8]>) {
        sys::buffer_set(buffer::UPSTREAM_DATA, usize::MAX, 0, bytes.as_ref());
    }

    /// Sends bytes to the upstream, in the same way. Not available in portable modules.
    #[cfg(not(all(target_arch = "wasm32", feature = "portable")))]
    pub fn send_to_upstream(&self, bytes: impl AsRef<[u8]>) {
        sys::buffer_set(buffer::DOWNSTREAM_DATA, usize::MAX, 0, bytes.as_ref());
    }

    /// Adds [`flag`](crate::flag)s to the access log line.
    pub fn flag(&self, flags: u32) {
        sys::flag_set(flags);
    }

    /// Sets a named field of the access log line. At most 16 fields of 256 bytes.
    pub fn log_field(&self, name: &str, value: &str) {
        sys::log_field(name, value);
    }
}

fn address(which: i32) -> SocketAddr {
    let (ip, port) = sys::source_address(which);
    let ip = Ipv6Addr::from(ip);
    SocketAddr::new(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4), port)
}

/// Bytes received from one side since the last callback, including those that the filter holds.
#[derive(Debug)]
pub struct Data {
    pub(super) buffer: i32,
    pub(super) len: usize,
    pub(super) end: bool,
}

impl Data {
    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reports whether the part is empty; only the last part can be.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reports whether the side has ended and no further data follows.
    pub fn is_last(&self) -> bool {
        self.end
    }

    /// Copies the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.first(self.len)
    }

    /// Copies the first `count` bytes, or all if there are fewer.
    pub fn first(&self, count: usize) -> Vec<u8> {
        sys::buffer_get(self.buffer, 0, count.min(self.len))
    }

    /// Replaces the bytes.
    pub fn replace(&self, bytes: impl AsRef<[u8]>) {
        sys::buffer_set(self.buffer, 0, usize::MAX, bytes.as_ref());
    }

    /// Replaces the first `count` bytes. With 0, inserts before them.
    pub fn replace_first(&self, count: usize, bytes: impl AsRef<[u8]>) {
        sys::buffer_set(self.buffer, 0, count, bytes.as_ref());
    }
}
