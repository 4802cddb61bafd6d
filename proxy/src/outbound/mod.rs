//! The client for requests that the proxy itself makes: to sources of resources, to a certificate authority, to service
//! registries. Requests of clients and of filters go through `upstream` instead.
//!
//! A [`Client`] talks to one [`Server`] over HTTP/1.1 or HTTP/2, on TCP or a Unix socket, with or without TLS. It keeps
//! one connection open between requests. Everything that a server decides is bounded: the sizes of heads and bodies, and
//! the time for resolving, connecting, the head and the body. `grpc` adds unary calls and streams of messages.
//!
//! It runs on the control side, as tasks of a `LocalSet`, never on a worker.

mod body;
mod client;
mod connection;
mod error;
mod grpc;
mod redirect;
mod retry_after;
#[cfg(test)]
pub mod script;
mod server;
mod tls;
mod token;

#[cfg(test)]
mod tests;

pub use self::{
    body::Body,
    client::Client,
    error::{BodyError, ConnectError, Error},
    grpc::{Call, CallError, Messages},
    retry_after::retry_after,
    server::{AddressFilter, Dial, Protocol, Server, Version},
    token::TokenFile,
};
