//! Tollgate: a programmable proxy. The core moves bytes; WebAssembly filters, which can be replaced while traffic
//! flows, decide what happens to a request and where it goes.
//!
//! The first modules are in the order in which a request meets them; see ARCHITECTURE.md for threads, ownership and
//! design decisions.

pub mod listener;

pub mod http;

pub mod tcp;

pub mod exchange;

pub mod chain;

pub mod wasm;

pub mod upstream;

pub mod admin;
pub mod alloc;
pub mod bench;
pub mod builtins;
pub mod ca;
pub mod cli;
pub mod config;
pub mod control;
pub mod digest;
pub mod downstream;
pub mod escape;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod h1;
pub mod h2;
pub mod net;
pub mod observe;
pub mod outbound;
pub mod process;
pub mod snapshot;
pub mod tls;
pub mod tools;
pub mod worker;
