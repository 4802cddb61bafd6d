//! Listening sockets, the limits on connections and clients, and the start of a connection: PROXY protocol, protocol
//! detection and TLS handshake. Workers accept the TCP connections (`worker`); `quic` accepts those of HTTP/3.

pub mod chains;
pub mod client_hello;
pub mod clients;
pub mod connection;
pub(crate) mod count;
pub mod overload;
#[cfg(feature = "http3")]
pub mod quic;
pub mod sniff;
pub mod socket;
