//! The fast lane's storage functions: shared data with versions and expiry, and per-stream state and metadata.

use std::time::Duration;

use tollgate_abi::{fast::MODULE, proxy_wasm::Status};
use wasmtime::{Caller, Linker};

use super::guest::{key, number, slice, slice_mut, split, status, write_u32};
use crate::{
    chain::stored::{StoreError, StreamMetadata},
    wasm::{
        host::Host,
        scope::call_scope,
        stores::shared_data::{ExpectedVersion, UpdateError},
    },
};

type Range = (i32, i32);

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    shared(linker)?;
    state(linker)?;
    metadata(linker)
}

/// Writes a value to the guest's buffer if it fits. Returns its length.
fn write(memory: &mut [u8], host: &mut Host, buffer: Range, value: &[u8]) -> Result<i32, Status> {
    let place = slice_mut(memory, buffer.0, buffer.1 as u32 as usize)?;
    if let Some(place) = place.get_mut(..value.len()) {
        place.copy_from_slice(value);
        host.copied += value.len() as u64;
    }
    i32::try_from(value.len()).map_err(|_| Status::InternalFailure)
}

fn shared(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "shared_get",
        |mut c: Caller<'_, Host>, key: i32, len: i32, buffer: i32, cap: i32, version_out: i32| {
            number(split(&mut c).and_then(|(memory, host)| {
                host.note_named_effect();
                let (value, version) =
                    host.identity.vm_store.data.get(self::key(memory, key, len)?).ok_or(Status::NotFound)?;
                if version_out != 0 {
                    write_u32(memory, version_out, version)?;
                }
                write(memory, host, (buffer, cap), &value)
            }))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "shared_set",
        |mut c: Caller<'_, Host>, key: i32, len: i32, value: i32, value_len: i32, expected: i64, ttl: i64| {
            status(split(&mut c).and_then(|(memory, host)| {
                let (key, value) = (self::key(memory, key, len)?, slice(memory, value, value_len)?);
                let expected = ExpectedVersion::of_number(expected).ok_or(Status::BadArgument)?;
                let ttl = u64::try_from(ttl).map_err(|_| Status::BadArgument)?;
                let ttl = (ttl > 0).then(|| Duration::from_millis(ttl));
                host.copied += value.len() as u64;
                set_shared(host, key, value, expected, ttl)
            }))
        },
    )?;
    linker.func_wrap(MODULE, "shared_delete", |mut c: Caller<'_, Host>, key: i32, len: i32, expected: i64| {
        status(split(&mut c).and_then(|(memory, host)| {
            let expected = ExpectedVersion::of_number(expected).ok_or(Status::BadArgument)?;
            host.note_named_effect();
            let (key, vm_store) = (self::key(memory, key, len)?, &host.identity.vm_store);
            let change = vm_store.data.delete(key, expected).map_err(of_shared)?;
            if host.env.undo_log.is_on() {
                host.env.undo_log.note_data(vm_store, key, change);
            }
            Ok(())
        }))
    })?;
    Ok(())
}

/// Sets a key of the shared data.
pub(super) fn set_shared(
    host: &Host,
    key: &[u8],
    value: &[u8],
    expected: ExpectedVersion,
    ttl: Option<Duration>,
) -> Result<(), Status> {
    host.note_named_effect();
    let vm_store = &host.identity.vm_store;
    let change = vm_store.data.set(key, value, expected, ttl).map_err(of_shared)?;
    if host.env.undo_log.is_on() {
        host.env.undo_log.note_data(vm_store, key, change);
    }
    Ok(())
}

/// The status for a failed update of shared data.
fn of_shared(why: UpdateError) -> Status {
    match why {
        UpdateError::CasMismatch => Status::CasMismatch,
        UpdateError::Full => Status::InternalFailure,
        UpdateError::NotFound => Status::NotFound,
    }
}

fn of_stored(why: StoreError) -> Status {
    match why {
        StoreError::Bad => Status::BadArgument,
        StoreError::Full => Status::InternalFailure,
    }
}

/// Runs `f` on the stream's state and metadata. `NotFound` without a stream.
fn with_stored<T>(f: impl FnOnce(&mut StreamMetadata) -> Result<T, Status>) -> Result<T, Status> {
    call_scope::with_notes(|notes| f(notes.stored)).ok_or(Status::NotFound)?
}

fn found(there: bool) -> Result<(), Status> {
    if there { Ok(()) } else { Err(Status::NotFound) }
}

fn state(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "state_get", |mut c: Caller<'_, Host>, key: i32, len: i32, buffer: i32, cap: i32| {
        number(split(&mut c).and_then(|(memory, host)| {
            with_stored(|stored| {
                let value = stored.state(slice(memory, key, len)?).ok_or(Status::NotFound)?;
                write(memory, host, (buffer, cap), value)
            })
        }))
    })?;
    linker.func_wrap(
        MODULE,
        "state_set",
        |mut c: Caller<'_, Host>, key: i32, len: i32, value: i32, value_len: i32| {
            status(split(&mut c).and_then(|(memory, host)| {
                let (key, value) = (slice(memory, key, len)?, slice(memory, value, value_len)?);
                host.copied += value.len() as u64;
                with_stored(|stored| stored.set_state(key, value, &host.budget).map_err(of_stored))
            }))
        },
    )?;
    linker.func_wrap(MODULE, "state_delete", |mut c: Caller<'_, Host>, key: i32, len: i32| {
        status(split(&mut c).and_then(|(memory, _)| {
            let key = slice(memory, key, len)?;
            with_stored(|stored| found(stored.delete_state(key)))
        }))
    })?;
    Ok(())
}

fn metadata(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "metadata_get",
        |mut c: Caller<'_, Host>,
         space: i32,
         space_len: i32,
         key: i32,
         key_len: i32,
         kind_out: i32,
         buffer: i32,
         cap: i32| {
            number(split(&mut c).and_then(|(memory, host)| {
                with_stored(|stored| {
                    let (space, key) = (slice(memory, space, space_len)?, slice(memory, key, key_len)?);
                    let (kind, value) = stored.metadata(space, key).ok_or(Status::NotFound)?;
                    write_u32(memory, kind_out, kind as u32)?;
                    write(memory, host, (buffer, cap), value)
                })
            }))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "metadata_set",
        |mut c: Caller<'_, Host>,
         space: i32,
         space_len: i32,
         key: i32,
         key_len: i32,
         kind: i32,
         value: i32,
         value_len: i32| {
            status(split(&mut c).and_then(|(memory, host)| {
                let (space, key) = (slice(memory, space, space_len)?, slice(memory, key, key_len)?);
                let value = slice(memory, value, value_len)?;
                host.copied += value.len() as u64;
                with_stored(|stored| stored.set_metadata((space, key), kind, value, &host.budget).map_err(of_stored))
            }))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "metadata_delete",
        |mut c: Caller<'_, Host>, space: i32, space_len: i32, key: i32, key_len: i32| {
            status(split(&mut c).and_then(|(memory, _)| {
                let (space, key) = (slice(memory, space, space_len)?, slice(memory, key, key_len)?);
                with_stored(|stored| found(stored.delete_metadata(space, key)))
            }))
        },
    )?;
    Ok(())
}
