//! Makes the linker import the host's functions.
//!
//! The crate `proxy-wasm` declares them without a definition. Up to Rust 1.95 the linker imported such symbols by
//! default; since 1.96 they are errors unless the build requests imports.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_FAMILY").as_deref() == Ok("wasm") {
        println!("cargo::rustc-cdylib-link-arg=--import-undefined");
    }
}
