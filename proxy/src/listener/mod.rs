//! Accepts connections: listening sockets, protocol detection and the limits on connections.

pub mod client_hello;
pub mod clients;
pub mod connection;
pub(crate) mod count;
pub mod overload;
#[cfg(feature = "http3")]
pub mod quic;
pub mod sniff;
pub mod socket;
