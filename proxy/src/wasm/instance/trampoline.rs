//! Combines callbacks that are always called in sequence into one entry into the guest. Entering a guest from outside
//! costs several times as much as a call between guest functions, and standard filters need six callbacks for a stream
//! that consists of heads only. So each instance is accompanied by a tiny module of our own that calls the instance's
//! functions.
//!
//! Nothing else changes: the combined call traps when one of the callbacks does, and their total time is limited just
//! as without it.

use wasmtime::{Extern, Instance, Store, TypedFunc};

use crate::wasm::{engine::Engine, host::Host};

/// The module's name, used to leave its frames out of backtraces.
pub(super) const NAME: &str = "tollgate";

/// The callbacks, in the order of the module's imports.
const CALLBACKS: [&str; 5] =
    ["proxy_on_context_create", "proxy_on_request_headers", "proxy_on_done", "proxy_on_log", "proxy_on_delete"];

/// The binary form of `tests::TEXT`.
pub(in crate::wasm) const MODULE: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x1e\x05\x60\x02\x7f\x7f\0\x60\x03\x7f\x7f\x7f\x01\x7f\x60\x01\x7f\x01\x7f\x60\x01\x7f\0\x60\x04\x7f\x7f\x7f\x7f\x01\x7f\
    \x02\x4d\x05\x06filter\x06create\0\0\x06filter\x07headers\0\x01\x06filter\x04done\0\x02\x06filter\x03log\0\x03\x06filter\x06delete\0\x03\
    \x03\x03\x02\x04\x03\
    \x07\x0f\x02\x05begin\0\x05\x03end\0\x06\
    \x0a\x22\x02\x10\0\x20\0\x20\x01\x10\0\x20\0\x20\x02\x20\x03\x10\x01\x0b\x0f\0\x20\0\x10\x02\x1a\x20\0\x10\x03\x20\0\x10\x04\x0b\
    \0\x10\x04name\0\x09\x08tollgate";

/// Several callbacks of an instance combined.
pub(in crate::wasm) struct Trampoline {
    /// Creates a context and calls the request headers callback. Parameters: context, root, number of headers, end of
    /// stream.
    pub begin: TypedFunc<(u32, u32, u32, u32), i32>,
    /// Ends a stream: done, log, delete.
    pub end: TypedFunc<u32, ()>,
}

impl Trampoline {
    /// Instantiates the trampoline for an instance, if that has all the callbacks with the standard's types.
    pub fn find(engine: &Engine, instance: &Instance, store: &mut Store<Host>) -> Option<Trampoline> {
        let callbacks: Option<Vec<Extern>> =
            CALLBACKS.iter().map(|name| instance.get_func(&mut *store, name).map(Extern::from)).collect();
        let callbacks = callbacks?;
        // The types do not match in modules for 0.1.0.
        let joined = Instance::new(&mut *store, engine.joining(MODULE)?, &callbacks).ok()?;
        let begin = joined.get_typed_func(&mut *store, "begin").ok()?;
        let end = joined.get_typed_func(&mut *store, "end").ok()?;
        Some(Trampoline { begin, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"(module $tollgate
        (import "filter" "create" (func (param i32 i32)))
        (import "filter" "headers" (func (param i32 i32 i32) (result i32)))
        (import "filter" "done" (func (param i32) (result i32)))
        (import "filter" "log" (func (param i32)))
        (import "filter" "delete" (func (param i32)))
        (func (export "begin") (param i32 i32 i32 i32) (result i32)
            (call 0 (local.get 0) (local.get 1))
            (call 1 (local.get 0) (local.get 2) (local.get 3)))
        (func (export "end") (param i32)
            (drop (call 2 (local.get 0)))
            (call 3 (local.get 0))
            (call 4 (local.get 0))))"#;

    #[test]
    fn binary_module_matches_its_text() {
        assert_eq!(MODULE.escape_ascii().to_string(), wat::parse_str(TEXT).unwrap().escape_ascii().to_string());
        let module = wasmtime::Module::new(&wasmtime::Engine::default(), MODULE).unwrap();
        assert_eq!(module.name(), Some(NAME));
    }
}
