//! Clients' connections, one driver per codec (HTTP/1.1, HTTP/2, HTTP/3): reads requests, passes each to the exchange,
//! and writes its response.

pub mod connection;
mod expect;
pub mod flood;
pub mod h1;
pub mod h2;
#[cfg(feature = "http3")]
pub mod h3;
