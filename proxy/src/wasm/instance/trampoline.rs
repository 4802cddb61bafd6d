//! Callbacks that come one right after the other, made in one entry. To go into a guest from outside costs several times
//! what a call from one guest function to another does, and filters of the standard want six callbacks for a stream that is
//! nothing but its heads. So a tiny module of our own stands beside each instance, and calls the instance's functions.
//!
//! Nothing else differs: it traps when one of them does, and their time is bounded together, as it is without it.

use wasmtime::{Extern, Instance, Store, TypedFunc};

use crate::wasm::{engine::Engine, host::Host};

/// The module's name, to leave it out of what is told of a trap.
pub(super) const NAME: &str = "tollgate";

/// The callbacks, in the order of the module's imports.
const CALLBACKS: [&str; 5] =
    ["proxy_on_context_create", "proxy_on_request_headers", "proxy_on_done", "proxy_on_log", "proxy_on_delete"];

/// What `tests::TEXT` comes to.
pub(in crate::wasm) const MODULE: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x1e\x05\x60\x02\x7f\x7f\0\x60\x03\x7f\x7f\x7f\x01\x7f\x60\x01\x7f\x01\x7f\x60\x01\x7f\0\x60\x04\x7f\x7f\x7f\x7f\x01\x7f\
    \x02\x4d\x05\x06filter\x06create\0\0\x06filter\x07headers\0\x01\x06filter\x04done\0\x02\x06filter\x03log\0\x03\x06filter\x06delete\0\x03\
    \x03\x03\x02\x04\x03\
    \x07\x0f\x02\x05begin\0\x05\x03end\0\x06\
    \x0a\x22\x02\x10\0\x20\0\x20\x01\x10\0\x20\0\x20\x02\x20\x03\x10\x01\x0b\x0f\0\x20\0\x10\x02\x1a\x20\0\x10\x03\x20\0\x10\x04\x0b\
    \0\x10\x04name\0\x09\x08tollgate";

/// Several callbacks of an instance in one.
pub(in crate::wasm) struct Trampoline {
    /// Makes a context and shows it the request's head: context, root, number of fields, whether that is all.
    pub begin: TypedFunc<(u32, u32, u32, u32), i32>,
    /// A stream's end: done, log, delete.
    pub end: TypedFunc<u32, ()>,
}

impl Trampoline {
    /// Those of an instance, if it has all the callbacks, with the standard's types.
    pub fn find(engine: &Engine, instance: &Instance, store: &mut Store<Host>) -> Option<Trampoline> {
        let callbacks: Option<Vec<Extern>> =
            CALLBACKS.iter().map(|name| instance.get_func(&mut *store, name).map(Extern::from)).collect();
        let callbacks = callbacks?;
        // The types do not fit if it is made for 0.1.0.
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
    fn the_module_is_its_text() {
        assert_eq!(MODULE.escape_ascii().to_string(), wat::parse_str(TEXT).unwrap().escape_ascii().to_string());
        let module = wasmtime::Module::new(&wasmtime::Engine::default(), MODULE).unwrap();
        assert_eq!(module.name(), Some(NAME));
    }
}
