//! HTTP as hyper speaks it, and what hyper leaves to us: the connections' time and end, strict framing, canonical paths, the
//! headers that a proxy must take away or add.

pub mod body;
pub mod connection;
pub mod fields;
pub mod grpc;
pub mod grpc_web;
pub mod guard;
pub mod h1;
pub mod h2;

pub mod path;
