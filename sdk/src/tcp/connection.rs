//! A connection as a filter sees it: a handle to what the host holds.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tollgate_abi::fast;
#[cfg(not(all(target_arch = "wasm32", feature = "portable")))]
use tollgate_abi::proxy_wasm::buffer;

use crate::{RouteId, Selection, message, sys};

/// A TCP connection.
#[derive(Debug)]
pub struct Connection(pub(super) ());

/// Who has closed a connection first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedBy {
    /// The client.
    Client,
    /// The proxy: for a filter, because the upstream has ended, or because its time was over.
    Proxy,
}

impl Connection {
    /// Where the client is. An IPv4 address is given as such, not as a mapped one.
    pub fn source(&self) -> SocketAddr {
        address(fast::source::CLIENT)
    }

    /// The address that the client has connected to.
    pub fn destination(&self) -> SocketAddr {
        address(fast::source::LOCAL)
    }

    /// The server name that the client asks for by TLS, if the listener has looked for it.
    pub fn server_name(&self) -> Option<String> {
        sys::property(b"connection\0requested_server_name").and_then(|name| String::from_utf8(name).ok())
    }

    /// Sends the connection by a route: to one of its clusters, with its retries. The last selection wins, up to the moment
    /// when the last filter has let the connection through.
    pub fn route(&self, route: RouteId, selection: Selection) {
        message::select_route(route, selection);
    }

    /// Sends bytes to the client, after those that have come from the upstream so far. They pass the filters that are
    /// between this one and the client. Not within [`on_upstream_data`](super::TcpFilter::on_upstream_data), nor while this
    /// filter holds bytes from there: use [`Data::replace`] then. Without effect once the upstream has ended. Not in portable
    /// modules.
    #[cfg(not(all(target_arch = "wasm32", feature = "portable")))]
    pub fn send_to_client(&self, bytes: impl AsRef<[u8]>) {
        sys::buffer_set(buffer::UPSTREAM_DATA, usize::MAX, 0, bytes.as_ref());
    }

    /// Sends bytes to the upstream, in the same way. Not in portable modules.
    #[cfg(not(all(target_arch = "wasm32", feature = "portable")))]
    pub fn send_to_upstream(&self, bytes: impl AsRef<[u8]>) {
        sys::buffer_set(buffer::DOWNSTREAM_DATA, usize::MAX, 0, bytes.as_ref());
    }

    /// Adds [`flag`](crate::flag)s to the access log's line.
    pub fn flag(&self, flags: u32) {
        sys::flag_set(flags);
    }

    /// Sets a named field of the access log's line. At most 16 fields of 256 bytes.
    pub fn log_field(&self, name: &str, value: &str) {
        sys::log_field(name, value);
    }
}

fn address(which: i32) -> SocketAddr {
    let (ip, port) = sys::source_address(which);
    let ip = Ipv6Addr::from(ip);
    SocketAddr::new(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4), port)
}

/// Bytes that have come from one side since the last callback (since the filter has held them, if it does).
#[derive(Debug)]
pub struct Data {
    pub(super) buffer: i32,
    pub(super) len: usize,
    pub(super) end: bool,
}

impl Data {
    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none, which only the last ones can be.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the side has ended, and nothing follows.
    pub fn is_last(&self) -> bool {
        self.end
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.first(self.len)
    }

    /// A copy of so many of them from the beginning, or of all if there are fewer.
    pub fn first(&self, count: usize) -> Vec<u8> {
        sys::buffer_get(self.buffer, 0, count.min(self.len))
    }

    /// Puts other bytes in their place.
    pub fn replace(&self, bytes: impl AsRef<[u8]>) {
        sys::buffer_set(self.buffer, 0, usize::MAX, bytes.as_ref());
    }

    /// Puts other bytes in the place of the first so many. With 0 they come before all.
    pub fn replace_first(&self, count: usize, bytes: impl AsRef<[u8]>) {
        sys::buffer_set(self.buffer, 0, count, bytes.as_ref());
    }
}
