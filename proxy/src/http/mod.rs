//! HTTP/1.1 as hyper speaks it, and what hyper leaves to us: strict framing, canonical paths, the headers that a proxy must
//! take away or add.

pub mod body;
pub mod fields;
pub mod grpc;
pub mod grpc_web;
pub mod guard;
pub mod path;
