//! Conformance module built with the newest `proxy-wasm` crate; the cases are in `../../rust`.
#![cfg(target_family = "wasm")]

#[macro_use]
mod sdk;
#[path = "../../rust/contexts.rs"]
mod contexts;
#[path = "../../rust/mod.rs"]
mod run;

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(contexts::Root));
}}
