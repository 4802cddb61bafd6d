//! Shared data of filters, across workers (`proxy_get_shared_data`, `proxy_set_shared_data`).

use tollgate_abi::proxy_wasm::{MODULE, Status};
use wasmtime::{Caller, Linker};

use super::{
    guest::{give, key, slice, split, status, write_u32},
    stored::set_shared,
};
use crate::wasm::{host::Host, stores::shared_data::ExpectedVersion};

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_get_shared_data",
        |mut caller: Caller<'_, Host>, key: i32, key_len: i32, out: i32, size_out: i32, cas_out: i32| {
            let found = split(&mut caller).and_then(|(memory, host)| {
                let key = self::key(memory, key, key_len)?;
                host.note_named_effect();
                host.identity.vm_store.data.get(key).ok_or(Status::NotFound)
            });
            let (value, cas) = match found {
                Ok(found) => found,
                Err(s) => return Ok(s as i32),
            };
            let given = give(&mut caller, out, size_out, |_, data| {
                data.extend_from_slice(&value);
                Ok(())
            })?;
            if given != Status::Ok as i32 {
                return Ok(given);
            }
            wasmtime::Result::Ok(status(split(&mut caller).and_then(|(memory, _)| write_u32(memory, cas_out, cas))))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_set_shared_data",
        |mut caller: Caller<'_, Host>, key: i32, key_len: i32, value: i32, value_len: i32, cas: i32| {
            let set = |caller: &mut Caller<'_, Host>| {
                let (memory, host) = split(caller)?;
                let (key, value) = (self::key(memory, key, key_len)?, slice(memory, value, value_len)?);
                host.copied += value.len() as u64;
                set_shared(host, key, value, ExpectedVersion::of_cas(cas as u32), None)
            };
            status(set(&mut caller))
        },
    )?;
    Ok(())
}
