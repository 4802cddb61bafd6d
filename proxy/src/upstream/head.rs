//! The head of a request, as an upstream connection needs it.

use std::net::SocketAddr;

use http::response;

use crate::h1::encoder;

/// The head of a request. It is read once per connection attempt, when there is a connection.
pub trait Head {
    /// Called when a connection was chosen, with its local address, if known.
    fn carried(&self, _local: Option<SocketAddr>) {}
    /// Called for each interim response (RFC 9110 section 15.2).
    fn interim(&self, _response: response::Parts) {}
    /// Passes the head to `look`.
    fn show<T>(&self, look: impl FnOnce(&encoder::RequestHead<'_>) -> T) -> T;
}
