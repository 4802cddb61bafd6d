//! The host functions (hostcalls) that filters can import: one file per group, and one table of all of them.
//!
//! Every pointer, length and number comes from a guest and is validated. A guest's error results in a status code; a
//! host function traps only if the guest's allocator does.

mod buffers;
mod callouts;
mod fast;
pub(crate) mod foreign;
mod grpc;
mod guest;
mod headers;
mod metrics;
mod properties;
mod queues;
mod shared;
mod stored;
mod streams;
mod system;
pub(crate) mod wasi;

use tollgate_abi::{fast as fast_lane, proxy_wasm};
use wasmtime::Linker;

use super::host::Host;

/// Creates a linker with all functions.
pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    link(&mut linker)?;
    Ok(linker)
}

/// Adds all functions to a linker.
fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    system::link(linker)?;
    headers::link(linker)?;
    buffers::link(linker)?;
    streams::link(linker)?;
    properties::link(linker)?;
    shared::link(linker)?;
    queues::link(linker)?;
    foreign::link(linker)?;
    metrics::link(linker)?;
    callouts::link(linker)?;
    fast::link(linker)?;
    stored::link(linker)?;
    grpc::link(linker)?;
    wasi::link(linker)
}

/// Functions that only old modules import.
const OLD: &[&str] =
    &["proxy_get_configuration", "proxy_continue_request", "proxy_continue_response", "proxy_clear_route_cache"];

/// Whether the host has a function.
pub fn has(module: &str, name: &str) -> bool {
    let standard = proxy_wasm::HOSTCALLS.iter().map(|f| f.name);
    match module {
        proxy_wasm::MODULE => standard.chain(OLD.iter().copied()).any(|n| n == name),
        fast_lane::MODULE => fast_lane::HOSTCALLS.iter().any(|f| f.name == name),
        _ => wasi::has(module, name),
    }
}

/// The import modules that have a function of this name; a module's name includes its version.
pub fn versions(name: &str) -> Vec<&'static str> {
    let modules = [proxy_wasm::MODULE, fast_lane::MODULE].into_iter().chain(tollgate_abi::wasi::MODULES);
    modules.filter(|module| has(module, name)).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use tollgate_abi::{Function, Ty, wasi as wasi_preview};

    use super::*;

    /// A module that imports every function of the ABI with its specified type.
    #[test]
    fn every_function_of_the_abi_is_linked_with_its_type() {
        let mut wat = String::from("(module\n");
        let stubs: Vec<Function> = wasi_preview::STUBS.iter().map(|(f, _)| *f).collect();
        let mut modules = vec![(proxy_wasm::MODULE, proxy_wasm::HOSTCALLS), (fast_lane::MODULE, fast_lane::HOSTCALLS)];
        modules.extend(wasi_preview::MODULES.iter().flat_map(|m| [(*m, wasi_preview::HOSTCALLS), (*m, &*stubs)]));
        for (module, functions) in modules {
            for f in functions {
                assert!(has(module, f.name), "{module}.{}", f.name);
                let ty = |t: Ty| if t == Ty::I32 { "i32" } else { "i64" };
                let params: String = f.params.iter().map(|(_, t)| format!("(param {})", ty(*t))).collect();
                let result = f.result.map_or(String::new(), |t| format!("(result {})", ty(t)));
                writeln!(wat, "(import \"{module}\" \"{}\" (func {params} {result}))", f.name).unwrap();
            }
        }
        let engine = wasmtime::Engine::default();
        let module = wasmtime::Module::new(&engine, wat::parse_str(wat + ")").unwrap()).unwrap();
        let mut linker = Linker::new(&engine);
        link(&mut linker).unwrap();
        linker.instantiate_pre(&module).unwrap();
    }
}
