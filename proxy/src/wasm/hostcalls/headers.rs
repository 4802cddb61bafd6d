//! Header maps, the standard interface.
//!
//! A filter built with a released SDK panics on most statuses, and a panic costs the instance. So a map that is absent
//! in this phase reads as empty, and an invalid change is logged and answered with `Ok`; only an unknown map type is
//! `BadArgument`. (Proxy-Wasm's C++ host does not check values at all.)

use std::{fmt, sync::Arc};

use tollgate_abi::{
    pairs,
    proxy_wasm::{MODULE, Status, map},
};
use wasmtime::{Caller, Linker};

use super::guest::{answer, give, slice, split, status, write_u32};
use crate::{
    chain::{
        Direction,
        charge::{ITEM, MemoryBudget},
        head::{BadHeader, Headers, MAX_VALUE, Name, is_value},
    },
    wasm::{
        host::{Answers, Host, filter_log::Escaped, grpc::CallEvent},
        scope::call_scope,
    },
};

/// Runs `f` on a header map. `None`: the map is absent in this phase. `Err`: unknown map type.
pub(super) fn with_map<T>(
    answers: &mut Answers,
    which: i32,
    f: impl FnOnce(&mut dyn Headers) -> T,
) -> Result<Option<T>, Status> {
    Ok(match which {
        map::HTTP_REQUEST_HEADERS => call_scope::with_state(|s| f(&mut s.request)),
        map::HTTP_RESPONSE_HEADERS => call_scope::with_state(|s| s.response.as_mut().map(|r| f(r))).flatten(),
        map::HTTP_REQUEST_TRAILERS => call_scope::with_state(|s| s.trailers[0].as_mut().map(|t| f(t))).flatten(),
        map::HTTP_RESPONSE_TRAILERS => call_scope::with_state(|s| s.trailers[1].as_mut().map(|t| f(t))).flatten(),
        map::HTTP_CALL_RESPONSE_HEADERS => answers.call_response.as_mut().and_then(|c| c.head.as_mut()).map(|h| f(h)),
        map::HTTP_CALL_RESPONSE_TRAILERS => answers.call_response.as_mut().map(|c| f(&mut c.trailers)),
        map::GRPC_INITIAL_METADATA | map::GRPC_TRAILING_METADATA => match (&mut answers.grpc_event, which) {
            (Some(CallEvent::Initial(fields)), map::GRPC_INITIAL_METADATA)
            | (Some(CallEvent::Trailing(fields)), map::GRPC_TRAILING_METADATA) => Some(f(fields)),
            _ => None,
        },
        _ => return Err(Status::BadArgument),
    })
}

/// Runs `f`, which makes a header map grow by `more` bytes, if the guest's memory budget allows it. `None` and `Err` as
/// for [`with_map`].
pub(super) fn grow_map(
    answers: &mut Answers,
    ledger: &Arc<MemoryBudget>,
    which: i32,
    more: usize,
    f: impl FnOnce(&mut dyn Headers) -> Result<(), BadHeader>,
) -> Result<Option<Result<(), BadHeader>>, Status> {
    let of_stream = (map::HTTP_REQUEST_HEADERS..=map::HTTP_RESPONSE_TRAILERS).contains(&which);
    let room = match of_stream {
        _ if more == 0 => true,
        true => call_scope::with_state(|s| s.owe(ledger, more)).unwrap_or(true),
        false => answers.owe(ledger, more),
    };
    if room { with_map(answers, which, f) } else { Ok(Some(Err(BadHeader))) }
}

/// The memory cost of a field.
pub(super) fn field_size(name: usize, value: &[u8]) -> usize {
    name + value.len() + ITEM
}

/// Adds empty trailers before a change, if the message has none and they can still be added: during the callback for
/// the end of its body.
pub(super) fn begin_trailers(which: i32) {
    let way = match which {
        map::HTTP_REQUEST_TRAILERS => Direction::Request,
        map::HTTP_RESPONSE_TRAILERS => Direction::Response,
        _ => return,
    } as usize;
    call_scope::with_state(|s| {
        if s.shows_end[way] {
            s.trailers[way].get_or_insert_default();
        }
    });
}

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_get_header_map_value",
        |mut caller: Caller<'_, Host>, which: i32, key: i32, key_len: i32, out: i32, size_out: i32| {
            answer(&mut caller, out, size_out, |memory, host, data| {
                let name = host.name_cache.name(slice(memory, key, key_len)?);
                let found = with_map(&mut host.answers, which, |headers| {
                    let value = headers.first(name?)?;
                    data.extend_from_slice(&value);
                    Some(())
                })?;
                match found.flatten() {
                    Some(()) => Ok(()),
                    // In 0.1.0, a missing header reads as empty.
                    None if host.is_0_1() => Ok(()),
                    None => Err(Status::NotFound),
                }
            })
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_get_header_map_pairs",
        |mut caller: Caller<'_, Host>, which: i32, out: i32, size_out: i32| {
            caller.data_mut().hostcalls += 1;
            give(&mut caller, out, size_out, |host, data| {
                with_map(&mut host.answers, which, |headers| serialize(headers, data)).map(|_| ())
            })
        },
    )?;
    linker.func_wrap(MODULE, "proxy_get_header_map_size", |mut caller: Caller<'_, Host>, which: i32, out: i32| {
        let size = |caller: &mut Caller<'_, Host>| {
            let (memory, host) = split(caller)?;
            let mut size = 0;
            with_map(&mut host.answers, which, |headers| {
                headers.each(&mut |name, value| size += name.len() + value.len())
            })?;
            write_u32(memory, out, size as u32)
        };
        status(size(&mut caller))
    })?;
    linker.func_wrap(
        MODULE,
        "proxy_set_header_map_pairs",
        |mut caller: Caller<'_, Host>, which: i32, ptr: i32, len: i32| status(set_pairs(&mut caller, which, ptr, len)),
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_add_header_map_value",
        |mut caller: Caller<'_, Host>, which: i32, key: i32, key_len: i32, ptr: i32, len: i32| {
            status(change(&mut caller, which, (key, key_len), Some((ptr, len)), |h, name, value| h.add(name, value)))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_replace_header_map_value",
        |mut caller: Caller<'_, Host>, which: i32, key: i32, key_len: i32, ptr: i32, len: i32| {
            status(change(&mut caller, which, (key, key_len), Some((ptr, len)), |h, name, value| h.set(name, value)))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_remove_header_map_value",
        |mut caller: Caller<'_, Host>, which: i32, key: i32, len: i32| {
            status(change(&mut caller, which, (key, len), None, |h, name, _| {
                h.remove(name);
                Ok(())
            }))
        },
    )?;
    Ok(())
}

/// Formats why a header was rejected, for the log. Shows a pseudo-header's value but not a field's, which may be a
/// secret.
pub(super) struct Refused<'a>(pub &'a [u8], pub &'a [u8]);

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused(name, value) = *self;
        let (name_text, value_text) = (Escaped(name), Escaped(value));
        let right = match Name::parse(name) {
            None => return write!(f, "\"{name_text}\" is not a valid header name"),
            Some(Name::Field(_)) if is_value(value) => {
                return write!(f, "there is no room for another field `{name_text}`");
            }
            Some(Name::Field(_)) => {
                return write!(f, "the value of `{name_text}` has control characters, or more than {MAX_VALUE} bytes");
            }
            Some(_) if value.len() > MAX_VALUE => {
                return write!(f, "the value of `{name_text}` has more than {MAX_VALUE} bytes");
            }
            Some(Name::Path) => "a path begins with `/` or `*` and has no spaces",
            Some(Name::Authority) => "an authority is a host with an optional port",
            Some(Name::Method) => "a method is a token",
            Some(Name::Scheme) => "a scheme is `http` or `https`, and only requests have one",
            Some(Name::Status) => "a status is 200 to 599, and only responses have one",
        };
        write!(f, "`{name_text}` cannot be \"{value_text}\": {right}")
    }
}

/// The pairs of a request's head with a single authority: `host` is another name for `:authority`, which wins if both
/// are given.
pub(super) fn with_one_authority<'a>(mut pairs: Vec<pairs::Pair<'a>>) -> Vec<pairs::Pair<'a>> {
    if pairs.iter().any(|(name, _)| *name == b":authority") {
        pairs.retain(|(name, _)| !name.eq_ignore_ascii_case(b"host"));
    }
    pairs
}

fn serialize(headers: &dyn Headers, data: &mut Vec<u8>) {
    let mut all = Vec::with_capacity(headers.count());
    headers.each(&mut |name, value| all.push((name, value)));
    // An empty map is returned as no data (address 0), not as a count of zero.
    if !all.is_empty() {
        pairs::encode(all.iter().copied(), data);
    }
}

fn change(
    caller: &mut Caller<'_, Host>,
    which: i32,
    key: (i32, i32),
    value: Option<(i32, i32)>,
    f: impl FnOnce(&mut dyn Headers, &Name, &[u8]) -> Result<(), BadHeader>,
) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let key = slice(memory, key.0, key.1)?;
    let (value, more) = match value {
        Some((ptr, len)) => slice(memory, ptr, len).map(|value| (value, field_size(key.len(), value)))?,
        None => (&[][..], 0),
    };
    host.copied += (key.len() + value.len()) as u64;
    begin_trailers(which);
    let name = host.name_cache.name(key);
    let changed =
        grow_map(&mut host.answers, &host.budget, which, more, |headers| f(headers, name.ok_or(BadHeader)?, value))?;
    let why: &dyn fmt::Display = match changed {
        Some(Ok(())) => return Ok(()),
        Some(Err(_)) => &Refused(key, value),
        None => &"the map does not exist in this phase",
    };
    host.identity.complain(format_args!("header \"{}\" not changed: {why}", Escaped(key)));
    Ok(())
}

fn set_pairs(caller: &mut Caller<'_, Host>, which: i32, ptr: i32, len: i32) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let bytes = slice(memory, ptr, len)?;
    host.copied += bytes.len() as u64;
    let mut decoded = pairs::decode(bytes).map_err(|_| Status::BadArgument)?;
    if which == map::HTTP_REQUEST_HEADERS {
        decoded = with_one_authority(decoded);
    }
    let more = bytes.len() + decoded.len() * ITEM;
    let named: Option<Vec<_>> = decoded.into_iter().map(|(name, value)| Some((Name::parse(name)?, value))).collect();
    begin_trailers(which);
    let replaced = match named {
        Some(named) => grow_map(&mut host.answers, &host.budget, which, more, |headers| headers.replace(&named))?,
        None => Some(Err(BadHeader)),
    };
    if replaced != Some(Ok(())) {
        host.identity.complain(format_args!(
            "headers not replaced: the map does not exist in this phase, or a name or value is invalid"
        ));
    }
    Ok(())
}
