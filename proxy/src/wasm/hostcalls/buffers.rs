//! Buffers: bodies, configuration, responses to calls.

use tollgate_abi::proxy_wasm::{MODULE, Status, buffer};
use wasmtime::{Caller, Linker};

use super::guest::{give, range, split, status, write_u32};
use crate::{
    chain::network::Side,
    wasm::{
        host::{Host, Phase, grpc::CallEvent},
        scope::call_scope,
    },
};

/// Runs `f` on a buffer. `NotFound`: the buffer does not exist in this phase. `BadArgument`: unknown buffer type.
fn with_buffer<T>(host: &Host, which: i32, f: impl FnOnce(&[u8]) -> T) -> Result<T, Status> {
    let found = match which {
        buffer::HTTP_REQUEST_BODY | buffer::HTTP_RESPONSE_BODY => {
            call_scope::with_state(|s| s.buffers[which as usize].as_ref().map(|b| f(b.as_slice()))).flatten()
        }
        buffer::HTTP_CALL_RESPONSE_BODY => host.answers.call_response.as_ref().map(|c| f(&c.body)),
        buffer::VM_CONFIGURATION => (host.phase != Phase::Start).then(|| f(&host.identity.vm_config)),
        buffer::PLUGIN_CONFIGURATION => (host.phase != Phase::Start).then(|| f(&host.identity.config)),
        buffer::DOWNSTREAM_DATA | buffer::UPSTREAM_DATA => call_scope::with_network(|stream, position| {
            let state = stream.state.borrow();
            state.filters[position].buffers[side(which) as usize].as_ref().map(|b| f(b.as_slice()))
        })
        .flatten(),
        buffer::GRPC_CALL_MESSAGE => match &host.answers.grpc_event {
            Some(CallEvent::Message(message)) => Some(f(message)),
            _ => None,
        },
        buffer::FOREIGN_FUNCTION_ARGUMENTS => None,
        _ => return Err(Status::BadArgument),
    };
    found.ok_or(Status::NotFound)
}

/// Which side's bytes a TCP buffer holds.
fn side(which: i32) -> Side {
    if which == buffer::DOWNSTREAM_DATA { Side::Downstream } else { Side::Upstream }
}

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_get_buffer_bytes",
        |mut caller: Caller<'_, Host>, which: i32, start: i32, max: i32, out: i32, size_out: i32| {
            caller.data_mut().hostcalls += 1;
            give(&mut caller, out, size_out, |host, data| {
                let (start, max) = (start as u32, max as u32);
                let end = start.checked_add(max).ok_or(Status::BadArgument)?;
                with_buffer(host, which, |bytes| {
                    let end = bytes.len().min(end as usize);
                    data.extend_from_slice(bytes.get(start as usize..end).unwrap_or_default());
                })
            })
        },
    )?;
    // The 0.1.0 name, for the configuration that is currently read.
    linker.func_wrap(MODULE, "proxy_get_configuration", |mut caller: Caller<'_, Host>, out: i32, size_out: i32| {
        caller.data_mut().hostcalls += 1;
        give(&mut caller, out, size_out, |host, data| {
            let identity = &host.identity;
            data.extend_from_slice(if host.phase == Phase::VmStart { &identity.vm_config } else { &identity.config });
            Ok(())
        })
    })?;
    linker.func_wrap(
        MODULE,
        "proxy_get_buffer_status",
        |mut caller: Caller<'_, Host>, which: i32, len_out: i32, flags_out: i32| {
            let get = |caller: &mut Caller<'_, Host>| {
                let (memory, host) = split(caller)?;
                let len = with_buffer(host, which, <[u8]>::len)?;
                write_u32(memory, len_out, u32::try_from(len).unwrap_or(u32::MAX))?;
                write_u32(memory, flags_out, 0)
            };
            status(get(&mut caller))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_set_buffer_bytes",
        |mut caller: Caller<'_, Host>, which: i32, start: i32, size: i32, ptr: i32, len: i32| {
            status(set(&mut caller, which, (start as u32 as usize, size as u32 as usize), ptr, len))
        },
    )?;
    Ok(())
}

/// Replaces `size` bytes from `start` on, both clamped to the buffer: a size of 0 inserts, and a start at or after the
/// end appends. The specification requires this; Envoy does not insert in the middle.
fn set(
    caller: &mut Caller<'_, Host>,
    which: i32,
    (start, size): (usize, usize),
    ptr: i32,
    len: i32,
) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    // Data that exceeds `limits.buffered_body` is rejected below, before it is copied.
    let data = range(memory, ptr, len)?;
    host.copied += data.len() as u64;
    match which {
        buffer::HTTP_REQUEST_BODY | buffer::HTTP_RESPONSE_BODY => {}
        buffer::DOWNSTREAM_DATA | buffer::UPSTREAM_DATA => {
            let changed = call_scope::with_network(|s, position| s.splice(position, side(which), (start, size), data));
            return changed.ok_or(Status::NotFound);
        }
        _ => return Err(Status::BadArgument),
    }
    let changed = call_scope::with_state(|s| {
        // SDKs expect no error status here: if the buffer exceeds its limit, the stream is answered with 413 or 500
        // after the filter has returned.
        let limit = s.buffer_limit;
        s.buffers[which as usize].as_mut().map(|buffer| buffer.splice(start, size, data, limit))
    });
    changed.flatten().ok_or(Status::NotFound)
}
