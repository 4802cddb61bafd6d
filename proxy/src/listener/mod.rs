//! Where traffic comes in: sockets, the workers that accept from them, and the connections.

pub mod client_hello;
pub mod clients;
pub mod connection;
pub(crate) mod count;
pub mod overload;
#[cfg(feature = "http3")]
pub mod quic;
pub mod sniff;
pub mod socket;
