//! The head of a request as an upstream connection needs it.

use std::net::SocketAddr;

use http::response;

use crate::h1::encoder;

/// The head of a request. It is looked at when there is a connection for it, once for each that is tried.
pub trait Head {
    /// It goes out by a connection whose end here has this address, if that is known.
    fn carried(&self, _local: Option<SocketAddr>) {}
    /// An interim response has come (RFC 9110 section 15.2).
    fn interim(&self, _response: response::Parts) {}
    /// Shows it.
    fn show<T>(&self, look: impl FnOnce(&encoder::RequestHead<'_>) -> T) -> T;
}
