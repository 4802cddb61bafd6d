//! The host's functions, made safe: on wasm32 they are imports, natively they go to the test host.
//!
//! `standard` are those that every host has, `wasm` the fast lane. With the feature `portable`, `portable` stands in its
//! place, made of nothing but the standard's.

#[cfg(any(not(target_arch = "wasm32"), not(feature = "portable")))]
mod aided;
#[cfg(any(test, target_arch = "wasm32"))]
mod given;
#[cfg(target_arch = "wasm32")]
mod grpc;
#[cfg(not(target_arch = "wasm32"))]
mod native;
// Natively it is there for its own tests only.
pub mod code;
#[cfg(any(test, all(target_arch = "wasm32", feature = "portable")))]
mod portable;
#[cfg(target_arch = "wasm32")]
mod standard;
pub(crate) mod types;
#[cfg(all(target_arch = "wasm32", not(feature = "portable")))]
mod wasm;

#[cfg(any(not(target_arch = "wasm32"), not(feature = "portable")))]
pub(crate) use aided::*;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::*;
#[cfg(all(target_arch = "wasm32", feature = "portable"))]
pub(crate) use portable::*;

#[cfg(all(target_arch = "wasm32", not(feature = "portable")))]
pub(crate) use wasm::*;
#[cfg(target_arch = "wasm32")]
pub(crate) use {grpc::*, standard::*};

/// Where a value lies in a buffer; `len` is negative for a header that is not there.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Span {
    pub(crate) offset: u32,
    pub(crate) len: i32,
}

/// Something whose time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// The tick of a root context.
    Tick(u32),
    /// A timer of a stream, with its token.
    #[cfg_attr(not(all(target_arch = "wasm32", feature = "portable")), allow(dead_code))]
    Timer(u32, i64),
}
