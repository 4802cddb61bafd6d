//! The functions that the host offers to filters: one file for each group, one table over all of them.
//!
//! Every pointer, length and number comes from a guest and is checked. A mistake of the guest gives a status; only the
//! guest's allocator can make a host function trap, by trapping itself.

mod buffers;
mod callouts;
mod fast;
mod guest;
mod headers;
mod metrics;
mod properties;
mod shared;
mod streams;
mod system;

use tollgate_abi::{Ty, fast as fast_lane, proxy_wasm};
use wasmtime::{FuncType, Linker, Val, ValType};

use super::host::Host;

/// Adds all functions.
pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    system::link(linker)?;
    headers::link(linker)?;
    buffers::link(linker)?;
    streams::link(linker)?;
    properties::link(linker)?;
    shared::link(linker)?;
    metrics::link(linker)?;
    callouts::link(linker)?;
    fast::link(linker)?;
    stubs(linker)
}

/// Functions of the standard that are there but only answer `Unimplemented`: modules import them whether they call them or
/// not, because their SDK does.
const UNIMPLEMENTED: &[&str] = &[
    "proxy_grpc_call",
    "proxy_grpc_stream",
    "proxy_grpc_send",
    "proxy_grpc_cancel",
    "proxy_grpc_close",
    "proxy_register_shared_queue",
    "proxy_resolve_shared_queue",
    "proxy_enqueue_shared_queue",
    "proxy_dequeue_shared_queue",
    "proxy_call_foreign_function",
];

fn stubs(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    for f in proxy_wasm::HOSTCALLS.iter().filter(|f| UNIMPLEMENTED.contains(&f.name)) {
        let params = f.params.iter().map(|(_, t)| if *t == Ty::I32 { ValType::I32 } else { ValType::I64 });
        let ty = FuncType::new(linker.engine(), params, [ValType::I32]);
        linker.func_new(proxy_wasm::MODULE, f.name, ty, |mut caller, _, results| {
            caller.data_mut().hostcalls += 1;
            results[0] = Val::I32(proxy_wasm::Status::Unimplemented as i32);
            Ok(())
        })?;
    }
    Ok(())
}

/// Functions that only old modules know.
const OLD: &[&str] = &["proxy_continue_request", "proxy_continue_response", "proxy_clear_route_cache"];

/// Whether the host has a function.
pub(super) fn has(module: &str, name: &str) -> bool {
    let standard = proxy_wasm::HOSTCALLS.iter().map(|f| f.name);
    match module {
        proxy_wasm::MODULE => standard.chain(OLD.iter().copied()).any(|n| n == name),
        fast_lane::MODULE => fast_lane::HOSTCALLS.iter().any(|f| f.name == name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// A module that imports every function of the contract, with the contract's types.
    #[test]
    fn every_function_of_the_contract_is_linked_with_its_type() {
        let mut wat = String::from("(module\n");
        for (module, functions) in
            [(proxy_wasm::MODULE, proxy_wasm::HOSTCALLS), (fast_lane::MODULE, fast_lane::HOSTCALLS)]
        {
            for f in functions.iter().filter(|f| has(module, f.name)) {
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
