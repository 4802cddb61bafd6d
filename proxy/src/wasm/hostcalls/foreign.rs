//! Foreign functions: extensions of the standard, called by name. These are the functions of Envoy that filters
//! commonly call.

use tollgate_abi::proxy_wasm::{MODULE, Status};
use wasmtime::{Caller, Linker};

use super::guest::{give, slice, split};
use crate::{
    chain::stored::CLUSTER_STATE,
    wasm::{
        host::{Host, filter_log::Escaped},
        scope::call_scope,
    },
};

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_call_foreign_function",
        |mut caller: Caller<'_, Host>, name: i32, name_len: i32, args: i32, args_len: i32, out: i32, size_out: i32| {
            let called = split(&mut caller).and_then(|(memory, host)| {
                let args = slice(memory, args, args_len)?;
                call(host, slice(memory, name, name_len)?, args)
            });
            match called {
                // Either address may be 0 if the guest does not need the result.
                Ok(()) if out == 0 || size_out == 0 => Ok(Status::Ok as i32),
                Ok(()) => give(&mut caller, out, size_out, |_, _| Ok(())),
                Err(status) => Ok(status as i32),
            }
        },
    )?;
    Ok(())
}

fn call(host: &Host, name: &[u8], args: &[u8]) -> Result<(), Status> {
    match name {
        // No cached route exists: routing is done by a filter. Dropping the route that one has selected would leave the
        // request without a route, because filters made for Envoy call this wherever they are in the chain.
        b"clear_route_cache" => Ok(()),
        b"tollgate_route_clear" => call_scope::clear_route().ok_or(Status::NotFound),
        // Properties need no declaration here: properties that are set can be read, as bytes.
        b"declare_property" => Ok(()),
        b"set_envoy_filter_state" => {
            // The SDKs accept these statuses here.
            let (key, value) = key_and_value(args).ok_or(Status::BadArgument)?;
            let names_cluster = str::from_utf8(value).is_ok_and(|name| host.cluster(name).is_some());
            if key == CLUSTER_STATE && !names_cluster {
                host.identity.complain(format_args!("there is no cluster \"{}\"", Escaped(value)));
            }
            let set = call_scope::with_notes(|notes| notes.stored.set_state(key, value, &host.budget))
                .ok_or(Status::NotFound)?;
            set.map_err(|why| {
                host.identity.complain(format_args!("filter state not set: {why}"));
                Status::InternalFailure
            })
        }
        _ => Err(Status::NotFound),
    }
}

/// The key and the value of Envoy's `SetEnvoyFilterStateArguments` (fields 1 and 2, both bytes). The life span (field
/// 3) is ignored: here it is always the stream's.
pub(crate) fn key_and_value(mut message: &[u8]) -> Option<(&[u8], &[u8])> {
    fn varint(message: &mut &[u8]) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = message.split_first()?;
            *message = rest;
            value |= u64::from(byte & 127) << shift;
            if byte & 128 == 0 {
                return Some(value);
            }
        }
        None
    }
    let (mut key, mut value) = (&[][..], &[][..]);
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => _ = varint(&mut message)?,
            2 => {
                let len = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(len)?;
                message = rest;
                match tag >> 3 {
                    1 => key = bytes,
                    2 => value = bytes,
                    _ => {}
                }
            }
            _ => return None,
        }
    }
    (!key.is_empty()).then_some((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_state_is_parsed_from_its_message() {
        let read = |message: &'static [u8]| key_and_value(message);
        assert_eq!(read(b"\x0a\x03key\x12\x05value\x18\x02"), Some((&b"key"[..], &b"value"[..])));
        assert_eq!(read(b"\x12\x01v\x0a\x01k\x22\x01?"), Some((&b"k"[..], &b"v"[..])));
        assert_eq!(read(b"\x0a\x01k"), Some((&b"k"[..], &b""[..])));
        for bad in [
            &b""[..],
            b"\x12\x01v",
            b"\x0a\x05key",
            b"\x0a",
            b"\x0a\xff\xff",
            b"\x0d1234",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
