//! HTTP with clients: HTTP/1.1 as [`crate::h1`] reads and writes it, HTTP/2 as [`crate::h2`] and the crate h2 do, HTTP/3 as h3 does; the connections'
//! time and end, the headers that a proxy must take away or add.

pub mod body;
mod date;
pub mod fields;
pub mod grpc;
pub mod grpc_web;
