//! Shared queues.

use tollgate_abi::proxy_wasm::{MODULE, Status};
use wasmtime::{Caller, Linker};

use super::guest::{give, key, range, slice, split, status, write_u32};
use crate::wasm::{host::Host, stores::queue::EnqueueError};

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_register_shared_queue",
        |mut caller: Caller<'_, Host>, name: i32, name_len: i32, id_out: i32| {
            status(register(&mut caller, name, name_len, id_out))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_resolve_shared_queue",
        |mut caller: Caller<'_, Host>, vm: i32, vm_len: i32, name: i32, name_len: i32, id_out: i32| {
            let resolve = |caller: &mut Caller<'_, Host>| {
                let (memory, host) = split(caller)?;
                host.note_named_effect();
                let text = |ptr, len| str::from_utf8(key(memory, ptr, len)?).map_err(|_| Status::NotFound);
                let (vm, name) = (text(vm, vm_len)?, text(name, name_len)?);
                let id = match vm.is_empty() {
                    true => host.identity.vm_store.queues.resolve(name),
                    false => host.env.shared.find_estate(vm).and_then(|vm_store| vm_store.queues.resolve(name)),
                };
                write_u32(memory, id_out, id.ok_or(Status::NotFound)?)
            };
            status(resolve(&mut caller))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_enqueue_shared_queue",
        |mut caller: Caller<'_, Host>, id: i32, value: i32, value_len: i32| {
            let send = |caller: &mut Caller<'_, Host>| {
                let (memory, host) = split(caller)?;
                host.note_named_effect();
                // A message without room is rejected before it is copied.
                let value = range(memory, value, value_len)?;
                host.copied += value.len() as u64;
                let queues = &host.env.shared.queues;
                let sent = match host.env.undo_log.is_on() {
                    true => {
                        let message = queues.charged(id as u32, value, &host.budget);
                        message.map(|message| host.env.undo_log.send(message))
                    }
                    false => queues.send(id as u32, value, &host.budget),
                };
                sent.map_err(|why| {
                    if why == EnqueueError::Full {
                        host.identity.complain(format_args!("queue {id} is full; message dropped"));
                    }
                    // The released SDKs accept no other status here.
                    Status::NotFound
                })
            };
            status(send(&mut caller))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_dequeue_shared_queue",
        |mut caller: Caller<'_, Host>, id: i32, out: i32, size_out: i32| {
            // Checks the output addresses first, so that a message that cannot be returned is not dequeued.
            let places = split(&mut caller)
                .and_then(|(memory, _)| slice(memory, out, 4).and_then(|_| slice(memory, size_out, 4)).map(|_| ()));
            if let Err(s) = places {
                return Ok(s as i32);
            }
            let mut taken = None;
            let given = give(&mut caller, out, size_out, |host, data| {
                host.note_named_effect();
                // A configuration that is not applied yet must not take messages from the running one.
                if host.env.undo_log.is_on() {
                    return Err(Status::Empty);
                }
                let message = host.env.shared.queues.take(id as u32, &host.identity.vm_store.queues);
                let message = message.ok_or(Status::NotFound)?.ok_or(Status::Empty)?;
                data.extend_from_slice(&message.bytes);
                taken = Some(message);
                Ok(())
            });
            // The guest has no room for it, or its allocator has trapped.
            if !matches!(given, Ok(ok) if ok == Status::Ok as i32)
                && let Some(message) = taken
            {
                caller.data().env.shared.queues.put_back(id as u32, message);
            }
            given
        },
    )?;
    Ok(())
}

fn register(caller: &mut Caller<'_, Host>, name: i32, name_len: i32, id_out: i32) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let name = str::from_utf8(key(memory, name, name_len)?).map_err(|_| Status::BadArgument)?;
    host.note_named_effect();
    let vm_store = &host.identity.vm_store;
    let (id, made) = host.env.shared.queues.open(&vm_store.queues, name).ok_or(Status::InternalFailure)?;
    if made {
        host.env.undo_log.note_queue(vm_store, id);
    }
    // It is notified of messages once it runs on a worker.
    if !host.reads.contains(&(host.acting, id)) {
        host.reads.push((host.acting, id));
    }
    write_u32(memory, id_out, id)
}
