//! The part of WASI that filters built for `wasm32-wasip1` rely on: standard output goes to the log, and the
//! environment is the filter's `env`. There are no files, sockets or arguments.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tollgate_abi::{
    Function, Ty,
    proxy_wasm::{Status, log_level},
    wasi::{HOSTCALLS, MODULES, STUBS, clock, errno},
};
use wasmtime::{Caller, FuncType, Linker, Val, ValType};

use super::{
    guest::{slice, slice_mut, split, write_u32, write_u64},
    system::write_log,
};
use crate::wasm::host::{Host, filter_log::LONGEST};

/// Maximum bytes per `random_get` (the same limit as in the C++ host).
const MAX_RANDOM: usize = 64 << 10;

/// Maximum number of pieces per `fd_write`.
const MAX_IOVS: u32 = 1024;

/// Whether a function exists.
pub(super) fn has(module: &str, name: &str) -> bool {
    let mut all = HOSTCALLS.iter().chain(STUBS.iter().map(|(f, _)| f));
    MODULES.contains(&module) && all.any(|f| f.name == name)
}

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    for module in MODULES {
        functions(linker, module)?;
        for (f, errno) in STUBS {
            answer(linker, module, f, *errno)?;
        }
    }
    Ok(())
}

/// Links a function that only returns a constant.
pub(super) fn answer(linker: &mut Linker<Host>, module: &str, f: &Function, with: i32) -> wasmtime::Result<()> {
    let params = f.params.iter().map(|(_, t)| if *t == Ty::I32 { ValType::I32 } else { ValType::I64 });
    let ty = FuncType::new(linker.engine(), params, [ValType::I32]);
    linker.func_new(module, f.name, ty, move |mut caller, _, results| {
        caller.data_mut().hostcalls += 1;
        results[0] = Val::I32(with);
        Ok(())
    })?;
    Ok(())
}

fn functions(linker: &mut Linker<Host>, module: &str) -> wasmtime::Result<()> {
    linker.func_wrap(module, "args_get", |_: Caller<'_, Host>, _: i32, _: i32| errno::SUCCESS)?;
    linker.func_wrap(module, "args_sizes_get", |mut caller: Caller<'_, Host>, count: i32, size: i32| {
        done(sizes(&mut caller, count, size, 0, 0))
    })?;
    linker.func_wrap(module, "environ_get", |mut caller: Caller<'_, Host>, environ: i32, data: i32| {
        done(environ_get(&mut caller, environ, data))
    })?;
    linker.func_wrap(module, "environ_sizes_get", |mut caller: Caller<'_, Host>, count: i32, size: i32| {
        let env = &caller.data().identity.env;
        let (entries, bytes) = (env.len(), env.iter().map(|(k, v)| k.len() + v.len() + 2).sum());
        done(sizes(&mut caller, count, size, entries, bytes))
    })?;
    linker.func_wrap(module, "clock_res_get", |mut caller: Caller<'_, Host>, id: i32, out: i32| match id {
        clock::REALTIME | clock::MONOTONIC => {
            done(split(&mut caller).and_then(|(memory, _)| write_u64(memory, out, 1)))
        }
        _ => errno::INVAL,
    })?;
    // The monotonic clock may start anywhere, as long as it is the same for all calls of an instance.
    let start = Instant::now();
    linker.func_wrap(module, "clock_time_get", move |mut caller: Caller<'_, Host>, id: i32, _: i64, out: i32| {
        let now = match id {
            clock::REALTIME => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            clock::MONOTONIC => start.elapsed(),
            _ => return errno::INVAL,
        };
        done(split(&mut caller).and_then(|(memory, _)| write_u64(memory, out, now.as_nanos() as u64)))
    })?;
    linker.func_wrap(module, "fd_write", |mut caller: Caller<'_, Host>, fd: i32, iovs: i32, len: i32, out: i32| {
        let level = match fd {
            1 => log_level::INFO,
            2 => log_level::ERROR,
            _ => return errno::BADF,
        };
        if len as u32 > MAX_IOVS {
            return errno::INVAL;
        }
        done(fd_write(&mut caller, level, iovs, len, out))
    })?;
    // Nothing can be waited for: a sleeping filter would block its worker. Go's runtime relies on success.
    linker.func_wrap(
        module,
        "poll_oneoff",
        |mut caller: Caller<'_, Host>, _: i32, _: i32, _: i32, count_out: i32| {
            done(split(&mut caller).and_then(|(memory, _)| write_u32(memory, count_out, 0)))
        },
    )?;
    linker.func_wrap(module, "proc_exit", |_: Caller<'_, Host>, code: i32| -> wasmtime::Result<()> {
        Err(wasmtime::Error::msg(format!("the module exited with status {code}")))
    })?;
    linker.func_wrap(module, "random_get", |mut caller: Caller<'_, Host>, ptr: i32, len: i32| {
        let len = len as u32 as usize;
        if len > MAX_RANDOM {
            return errno::INVAL;
        }
        // Suitable for keys, as WASI requires.
        let filled = |bytes: &mut [u8]| getrandom::fill(bytes).map_err(|_| Status::InternalFailure);
        done(split(&mut caller).and_then(|(memory, _)| slice_mut(memory, ptr, len).and_then(filled)))
    })?;
    linker.func_wrap(module, "sched_yield", |_: Caller<'_, Host>| errno::SUCCESS)?;
    Ok(())
}

fn done(result: Result<(), Status>) -> i32 {
    match result {
        Ok(()) => errno::SUCCESS,
        Err(Status::InvalidMemoryAccess) => errno::FAULT,
        Err(_) => errno::INVAL,
    }
}

fn sizes(caller: &mut Caller<'_, Host>, count: i32, size: i32, entries: usize, bytes: usize) -> Result<(), Status> {
    let (memory, _) = split(caller)?;
    write_u32(memory, count, entries as u32)?;
    write_u32(memory, size, bytes as u32)
}

/// Writes consecutive `NAME=value` entries, each NUL-terminated, and pointers to them.
fn environ_get(caller: &mut Caller<'_, Host>, mut environ: i32, mut data: i32) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    for (name, value) in &host.identity.env {
        write_u32(memory, environ, data as u32)?;
        let entry = [name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat();
        slice_mut(memory, data, entry.len())?.copy_from_slice(&entry);
        environ = environ.wrapping_add(4);
        data = data.wrapping_add(entry.len() as i32);
    }
    Ok(())
}

fn fd_write(caller: &mut Caller<'_, Host>, level: i32, iovs: i32, len: i32, out: i32) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let (text, total) = gathered(memory, iovs, len)?;
    write_u32(memory, out, total as u32)?;
    let line = text.strip_suffix(b"\n").unwrap_or(&text);
    if !line.is_empty() {
        write_log(host, level, line)?;
    }
    Ok(())
}

/// Gathers the pieces of guest memory listed in `iovs`: the text to log, and the total length.
pub(crate) fn gathered(memory: &[u8], iovs: i32, len: i32) -> Result<(Vec<u8>, usize), Status> {
    let (mut text, mut total) = (Vec::new(), 0);
    for iov in slice(memory, iovs, len.wrapping_mul(8))?.as_chunks::<8>().0 {
        let word = |at: usize| i32::from_le_bytes([iov[at], iov[at + 1], iov[at + 2], iov[at + 3]]);
        let piece = slice(memory, word(0), word(4))?;
        total += piece.len();
        // Overlapping pieces could add up to any size.
        if total > memory.len() {
            return Err(Status::BadArgument);
        }
        // The rest is not logged.
        text.extend_from_slice(&piece[..piece.len().min(LONGEST - text.len())]);
    }
    Ok((text, total))
}
