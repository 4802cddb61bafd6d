//! Foreign functions: what hosts offer beyond the standard, by name. These are Envoy's that filters call as a matter of course.

use tollgate_abi::proxy_wasm::{MODULE, Status};
use wasmtime::{Caller, Linker};

use super::guest::{give, slice, split};
use crate::wasm::host::Host;

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_call_foreign_function",
        |mut caller: Caller<'_, Host>, name: i32, name_len: i32, args: i32, args_len: i32, out: i32, size_out: i32| {
            let called = split(&mut caller).and_then(|(memory, _)| {
                slice(memory, args, args_len)?;
                call(slice(memory, name, name_len)?)
            });
            match called {
                // Both addresses may be 0: the result is not wanted.
                Ok(()) if out == 0 || size_out == 0 => Ok(Status::Ok as i32),
                Ok(()) => give(&mut caller, out, size_out, |_, _| Ok(())),
                Err(status) => Ok(status as i32),
            }
        },
    )?;
    Ok(())
}

fn call(name: &[u8]) -> Result<(), Status> {
    match name {
        // There is no cached route to clear: routing is a filter's work.
        b"clear_route_cache" => Ok(()),
        // Properties need no declaration here: those that are set can be read, as bytes.
        b"declare_property" => Ok(()),
        _ => Err(Status::NotFound),
    }
}
