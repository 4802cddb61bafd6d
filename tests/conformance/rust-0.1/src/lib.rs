//! Conformance module built with the 0.1 line of the `proxy-wasm` crate, for ABI 0.1.0; the cases are in `../../rust`.
#![cfg(target_family = "wasm")]

#[macro_use]
mod sdk;
#[path = "../../rust/contexts.rs"]
mod contexts;
#[path = "../../rust/mod.rs"]
mod run;

/// Entry point of modules of this line.
// SAFETY: no other function of this name is linked, and it accesses only the crate's own table.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn _start() {
    proxy_wasm::set_root_context(|_| Box::new(contexts::Root));
}
