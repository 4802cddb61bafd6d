//! Safe wrappers of the host functions: imports on wasm32, calls to the test host natively.
//!
//! `standard` has the functions of Proxy-Wasm that every host has, `wasm` Tollgate's fast-lane functions. With the
//! feature `portable`, the module `portable` replaces the latter and uses only `standard`.

#[cfg(any(not(target_arch = "wasm32"), not(feature = "portable")))]
mod aided;
#[cfg(any(test, target_arch = "wasm32"))]
mod given;
#[cfg(target_arch = "wasm32")]
mod grpc;
#[cfg(not(target_arch = "wasm32"))]
mod native;
// Natively it is compiled only for its own tests.
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

/// Location of a value in a buffer; `len` is negative for an absent header.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Span {
    pub(crate) offset: u32,
    pub(crate) len: i32,
}

/// Something that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// The tick of a root context.
    Tick(u32),
    /// A timer of a stream, with its token.
    #[cfg_attr(not(all(target_arch = "wasm32", feature = "portable")), allow(dead_code))]
    Timer(u32, i64),
}
