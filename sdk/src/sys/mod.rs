//! The host's functions, made safe: on wasm32 they are imports, natively they go to the test host.

#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(target_arch = "wasm32")]
mod standard;
mod waker;
#[cfg(target_arch = "wasm32")]
mod wasm;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::*;
pub(crate) use waker::waker;
#[cfg(target_arch = "wasm32")]
pub(crate) use {standard::*, wasm::*};

/// Where a value lies in a buffer; `len` is negative for a header that is not there.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Span {
    pub(crate) offset: u32,
    pub(crate) len: i32,
}
