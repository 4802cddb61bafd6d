//! Lets the linker make imports of the host's functions.
//!
//! The crate `proxy-wasm` declares them and nobody defines them. Up to Rust 1.95 the linker made imports of such symbols by
//! itself; since 1.96 they are errors unless the module asks for imports.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_FAMILY").as_deref() == Ok("wasm") {
        println!("cargo::rustc-cdylib-link-arg=--import-undefined");
    }
}
