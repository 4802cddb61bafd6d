//! The fast lane, `tollgate_v1`. Each function is documented at its declaration in `tollgate_abi::fast`.

use std::{sync::Arc, sync::OnceLock, time::Duration};

use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;
use tokio::time::Instant;
use tollgate_abi::{
    doc,
    fast::{MODULE, Take, flag, limit, map, phase, source, variant},
    proxy_wasm::Status,
};
use wasmtime::{Caller, Linker};

use super::{
    guest::{key, number, slice, slice_mut, split, status},
    headers::{begin_trailers, field_size, grow_map, with_map},
};
use crate::{
    chain::{
        SelectedRoute,
        charge::{ITEM, TIMER},
        head::{BadHeader, Found, Headers, MAX_VALUE, Name},
        route::Route,
        stream::{FilterState, StreamState},
        variants::RouteFilters,
    },
    wasm::{
        host::{
            Host, Phase, Timer,
            filter_log::{LONGEST, LossyText},
        },
        scope::call_scope,
    },
};

/// The number of headers looked up in one pass; nearly all filters read fewer.
const AT_ONCE: usize = 8;

/// Maximum bytes of a header's name, the limit of the `http` crate.
const MAX_NAME: usize = (1 << 16) - 1;

/// The maximum delay of a timer.
const LONGEST_TIMER: Duration = Duration::from_secs(86_400);

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    configuring(linker)?;
    headers(linker)?;
    linker.func_wrap(MODULE, "source_address", |mut c: Caller<'_, Host>, which: i32, out: i32| {
        status(source_address(&mut c, which, out))
    })?;
    linker.func_wrap(
        MODULE,
        "route_select",
        |mut c: Caller<'_, Host>, id: i32, given: i32, split: i64, balance: i64| {
            let host = c.data_mut();
            host.hostcalls += 1;
            let Some(route) = host.routes.get(id as u32 as usize) else { return Status::BadArgument as i32 };
            let selected = call_scope::with_subject(|subject, position| {
                let selected = SelectedRoute::new(route, given as u32, split as u64, balance as u64);
                subject.select(position, Some(selected));
            });
            selected.map_or(Status::NotFound, |()| Status::Ok) as i32
        },
    )?;
    linker.func_wrap(MODULE, "cluster_exists", |mut c: Caller<'_, Host>, name: i32, len: i32| {
        number(split(&mut c).and_then(|(memory, host)| {
            let name = str::from_utf8(key(memory, name, len)?).map_err(|_| Status::BadArgument)?;
            Ok(host.cluster(name).is_some().into())
        }))
    })?;
    linker.func_wrap(MODULE, "route_clear", |mut c: Caller<'_, Host>| {
        c.data_mut().hostcalls += 1;
        call_scope::clear_route().map_or(Status::NotFound, |()| Status::Ok) as i32
    })?;
    linker.func_wrap(
        MODULE,
        "variant_exists",
        |mut c: Caller<'_, Host>, filter: i32, filter_len: i32, name: i32, len: i32| {
            number(split(&mut c).and_then(|(memory, host)| {
                let text = |ptr, len| str::from_utf8(key(memory, ptr, len)?).map_err(|_| Status::BadArgument);
                Ok(host.variant_exists(text(filter, filter_len)?, text(name, len)?))
            }))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "bucket_take",
        |mut c: Caller<'_, Host>, id: i32, key: i32, len: i32, tokens: i32, out: i32| {
            number(split(&mut c).and_then(|(memory, host)| {
                host.note_named_effect();
                let bucket = host.definitions.bucket(id)?;
                let (taken, take) = bucket.take(self::key(memory, key, len)?, tokens);
                slice_mut(memory, out, Take::SIZE)?.copy_from_slice(&take.to_bytes());
                Ok(taken.into())
            }))
        },
    )?;
    linker.func_wrap(MODULE, "limit_acquire", |mut c: Caller<'_, Host>, id: i32| {
        let host = c.data_mut();
        host.hostcalls += 1;
        let (limit, max) = match host.definitions.limit(id) {
            Ok(found) => found,
            Err(status) => return -(status as i32),
        };
        let place = call_scope::with_notes(|s| match s.held.len() < limit::STREAM_PLACES {
            true => i32::from(limit.acquire(max).map(|place| s.held.push(place)).is_some()),
            false => -(Status::InternalFailure as i32),
        });
        place.unwrap_or(-(Status::NotFound as i32))
    })?;
    linker.func_wrap(MODULE, "limit_release", |mut c: Caller<'_, Host>, id: i32| {
        let host = c.data_mut();
        host.hostcalls += 1;
        let (limit, _) = match host.definitions.limit(id) {
            Ok(found) => found,
            Err(status) => return status as i32,
        };
        call_scope::with_notes(|s| {
            if let Some(at) = s.held.iter().position(|place| place.is_of(limit)) {
                s.held.swap_remove(at);
            }
        });
        Status::Ok as i32
    })?;
    linker.func_wrap(MODULE, "timer_set", |mut c: Caller<'_, Host>, microseconds: i64, token: i64| {
        let host = c.data_mut();
        host.hostcalls += 1;
        // A stream that has ended gets no further callbacks.
        let there = |p: &mut FilterState| {
            p.timers.retain(|timer| !timer.is_finished());
            (!p.over).then_some((p.context, p.timers.len()))
        };
        let Some((context, under_way)) = call_scope::with_position(there).flatten() else {
            return Status::NotFound as i32;
        };
        let set_now = host.timers.iter().filter(|timer| timer.context == context).count();
        let charge = if under_way + set_now < limit::STREAM_TIMERS { host.budget.charge(TIMER).ok() } else { None };
        let Some(charge) = charge else { return Status::InternalFailure as i32 };
        let after = Duration::from_micros(microseconds.max(0) as u64).min(LONGEST_TIMER);
        host.timers.push(Timer { context, after, token, charge });
        Status::Ok as i32
    })?;
    linker.func_wrap(MODULE, "flag_set", |mut c: Caller<'_, Host>, flags: i32| {
        c.data_mut().hostcalls += 1;
        let flags = flags as u32;
        if flags & !flag::BY_FILTERS != 0 {
            return Status::BadArgument as i32;
        }
        call_scope::with_notes(|s| *s.flags |= flags).map_or(Status::NotFound, |()| Status::Ok) as i32
    })?;
    linker.func_wrap(
        MODULE,
        "log_field",
        |mut c: Caller<'_, Host>, name: i32, name_len: i32, value: i32, len: i32| {
            status(log_field(&mut c, (name, name_len), (value, len)))
        },
    )?;
    linker.func_wrap(MODULE, "now", |mut c: Caller<'_, Host>| {
        static START: OnceLock<Instant> = OnceLock::new();
        c.data_mut().hostcalls += 1;
        START.get_or_init(Instant::now).elapsed().as_nanos() as i64
    })?;
    linker.func_wrap(MODULE, "random", |mut c: Caller<'_, Host>| {
        c.data_mut().hostcalls += 1;
        fastrand::i64(..)
    })?;
    Ok(())
}

/// Functions that are only allowed while a filter starts or is configured.
fn configuring(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "subscribe", |mut c: Caller<'_, Host>, phases: i32| {
        let host = c.data_mut();
        let phases = phases as u32;
        if host.phase == Phase::Running || phases & !phase::ALL != 0 {
            return Status::BadArgument as i32;
        }
        let root = &mut host.roots[host.root];
        (root.subscribed, root.subscribes) = (phases, true);
        Status::Ok as i32
    })?;
    linker.func_wrap(
        MODULE,
        "config_error",
        |mut c: Caller<'_, Host>, path: i32, path_len: i32, text: i32, len: i32| {
            status(split(&mut c).and_then(|(memory, host)| {
                let get = |ptr, len| {
                    let bytes = slice(memory, ptr, len)?;
                    Ok(LossyText(&bytes[..bytes.len().min(LONGEST)]).to_string())
                };
                let (path, text) = (get(path, path_len)?, get(text, len)?);
                if host.phase == Phase::Running || host.config_errors.len() >= limit::CONFIG_ERRORS {
                    return Err(Status::InternalFailure);
                }
                host.config_errors.push((path, text));
                Ok(())
            }))
        },
    )?;
    linker.func_wrap(MODULE, "header_intern", |mut c: Caller<'_, Host>, ptr: i32, len: i32| {
        number(split(&mut c).and_then(|(memory, host)| {
            let bytes = slice(memory, ptr, len)?;
            if bytes.len() > MAX_NAME {
                return Err(Status::BadArgument);
            }
            let bytes = bytes.to_ascii_lowercase();
            if let Some(id) = host.name_ids.get(&bytes) {
                return Ok(*id as i32);
            }
            let name = Name::parse(&bytes).ok_or(Status::BadArgument)?;
            if host.names.len() >= limit::NAMES {
                return Err(Status::InternalFailure);
            }
            host.define(2 * bytes.len())?;
            let id = host.names.len() as u32;
            host.names.push(name);
            host.name_ids.insert(bytes, id);
            Ok(id as i32)
        }))
    })?;
    linker.func_wrap(MODULE, "route_define", |mut c: Caller<'_, Host>, ptr: i32, len: i32| {
        number(split(&mut c).and_then(|(memory, host)| {
            let mut route: doc::Route = document(memory, host, ptr, len)?;
            let unknown = |(filter, name): (&String, &String)| host.variant_exists(filter, name) != variant::EXISTS;
            if route.filters.iter().any(unknown) {
                return Err(Status::NotFound);
            }
            let filters = std::mem::take(&mut route.filters);
            let mut route = Route::new(route, |name| host.cluster(name))?;
            room(&host.routes, limit::ROUTES)?;
            let shared = &host.env.shared;
            route.filters = RouteFilters::new(filters).map(|filters| shared.route_filters.intern(filters));
            if let Some(filters) = &route.filters {
                host.roots[host.root].selects.insert(Arc::as_ptr(filters).addr(), filters.clone());
            }
            host.define(size_of::<Route>() + 2 * len as u32 as usize)?;
            let route = host.env.shared.routes.intern(route);
            host.routes.push(route);
            Ok(host.routes.len() as i32 - 1)
        }))
    })?;
    linker.func_wrap(MODULE, "bucket_define", |mut c: Caller<'_, Host>, ptr: i32, len: i32| {
        number(split(&mut c).and_then(|(memory, host)| {
            let bucket: doc::Bucket = document(memory, host, ptr, len)?;
            room(&host.definitions.buckets, limit::BUCKETS)?;
            host.define(2 * bucket.name.len())?;
            host.definitions.buckets.push(Ok(host.identity.store.bucket(&bucket)?));
            if let Some(shared) = &mut host.shared_definitions {
                shared.buckets.push(bucket);
            }
            Ok(host.definitions.buckets.len() as i32 - 1)
        }))
    })?;
    linker.func_wrap(MODULE, "limit_define", |mut c: Caller<'_, Host>, name: i32, len: i32, max: i32| {
        number(split(&mut c).and_then(|(memory, host)| {
            let name = str::from_utf8(slice(memory, name, len)?).map_err(|_| Status::BadArgument)?;
            let max = u32::try_from(max).map_err(|_| Status::BadArgument)?;
            if host.phase == Phase::Running {
                return Err(Status::BadArgument);
            }
            room(&host.definitions.limits, limit::LIMITS)?;
            host.define(name.len())?;
            host.definitions.limits.push((Ok(host.identity.store.limit(name)?), max));
            if let Some(shared) = &mut host.shared_definitions {
                shared.limits.push((name.to_owned(), max));
            }
            Ok(host.definitions.limits.len() as i32 - 1)
        }))
    })?;
    Ok(())
}

fn document<T: serde::de::DeserializeOwned>(memory: &[u8], host: &Host, ptr: i32, len: i32) -> Result<T, Status> {
    let bytes = slice(memory, ptr, len)?;
    if host.phase == Phase::Running || bytes.len() > limit::DOCUMENT {
        return Err(Status::BadArgument);
    }
    serde_json::from_slice(bytes).map_err(|e| {
        host.identity.complain(format_args!("cannot parse a document: {e}"));
        Status::ParseFailure
    })
}

/// Whether another id is available; checked before anything shared is created.
fn room<T>(all: &[T], max: usize) -> Result<(), Status> {
    if all.len() < max { Ok(()) } else { Err(Status::InternalFailure) }
}

fn headers(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "header_get", |mut c: Caller<'_, Host>, which: i32, name: i32, ptr: i32, cap: i32| {
        number(header_get(&mut c, which, name, ptr, cap))
    })?;
    linker.func_wrap(
        MODULE,
        "header_get_many",
        |mut c: Caller<'_, Host>, which: i32, names: i32, count: i32, ptr: i32, cap: i32, spans: i32| {
            number(header_get_many(&mut c, which, (names, count), (ptr, cap), spans))
        },
    )?;
    linker.func_wrap(MODULE, "header_set", |mut c: Caller<'_, Host>, which: i32, name: i32, ptr: i32, len: i32| {
        status(change(&mut c, which, name, Some((ptr, len)), |headers, name, value| headers.set(name, value)))
    })?;
    linker.func_wrap(MODULE, "header_add", |mut c: Caller<'_, Host>, which: i32, name: i32, ptr: i32, len: i32| {
        if which == map::EVENTUAL_RESPONSE {
            return status(add_eventual(&mut c, name, ptr, len));
        }
        status(change(&mut c, which, name, Some((ptr, len)), |headers, name, value| headers.add(name, value)))
    })?;
    linker.func_wrap(MODULE, "header_remove", |mut c: Caller<'_, Host>, which: i32, name: i32| {
        status(change(&mut c, which, name, None, |headers, name, _| {
            headers.remove(name);
            Ok(())
        }))
    })?;
    Ok(())
}

/// Runs `f` on a header map and the interned names, both of which belong to the host.
fn with_names<T>(
    host: &mut Host,
    which: i32,
    f: impl FnOnce(&mut dyn Headers, &[Name]) -> T,
) -> Result<Option<T>, Status> {
    let Host { names, answers, .. } = host;
    with_map(answers, which, |headers| f(headers, names))
}

fn name(names: &[Name], id: i32) -> Result<&Name, Status> {
    names.get(id as u32 as usize).ok_or(Status::BadArgument)
}

fn header_get(caller: &mut Caller<'_, Host>, which: i32, id: i32, ptr: i32, cap: i32) -> Result<i32, Status> {
    let (memory, host) = split(caller)?;
    name(&host.names, id)?;
    let buffer = slice_mut(memory, ptr, cap as u32 as usize)?;
    let len = with_names(host, which, |headers, names| {
        let value = headers.get(names.get(id as u32 as usize)?)?;
        if let Some(place) = buffer.get_mut(..value.len()) {
            place.copy_from_slice(&value);
        }
        Some(value.len())
    })?;
    let len = len.flatten().ok_or(Status::NotFound)?;
    host.copied += len as u64;
    length(len)
}

/// A length as returned to a guest: non-negative, so that it cannot be mistaken for a status.
fn length(len: usize) -> Result<i32, Status> {
    i32::try_from(len).map_err(|_| Status::InternalFailure)
}

/// Encodes a span.
fn span(offset: usize, len: i32) -> [u8; 8] {
    (u64::from(offset as u32) | u64::from(len as u32) << 32).to_le_bytes()
}

fn header_get_many(
    caller: &mut Caller<'_, Host>,
    which: i32,
    (ids, count): (i32, i32),
    (ptr, cap): (i32, i32),
    spans: i32,
) -> Result<i32, Status> {
    let (memory, host) = split(caller)?;
    let count = count as u32 as usize;
    if count > limit::GET_MANY {
        return Err(Status::BadArgument);
    }
    let cap = cap as u32 as usize;
    // Copies the names first: the guest may have placed the buffer over them, at its own risk.
    let mut wanted = [0u32; limit::GET_MANY];
    for (id, bytes) in wanted.iter_mut().zip(slice(memory, ids, count as i32 * 4)?.as_chunks().0) {
        *id = u32::from_le_bytes(*bytes);
    }
    slice_mut(memory, ptr, cap)?;
    slice_mut(memory, spans, count * 8)?;
    let at = with_names(host, which, |headers, names| {
        let (mut at, mut place) = (0, spans);
        // Joined values, so that a name requested repeatedly is joined only once.
        let mut joined: SmallVec<[(u32, usize, usize); 4]> = SmallVec::new();
        for ids in wanted[..count].chunks(AT_ONCE) {
            let (mut named, mut found) = ([None; AT_ONCE], [Found::Nothing; AT_ONCE]);
            named.iter_mut().zip(ids).for_each(|(name, id)| *name = names.get(*id as usize));
            headers.get_many(&named[..ids.len()], &mut found[..ids.len()]);
            let buffer = slice_mut(memory, ptr, cap)?;
            let mut spanned = [[0; 8]; AT_ONCE];
            for (((span_of, found), name), id) in spanned.iter_mut().zip(&found[..ids.len()]).zip(named).zip(ids) {
                let several;
                let value = match (found, name) {
                    (Found::One(value), _) => *value,
                    (Found::Several, Some(name)) => {
                        if let Some((_, offset, len)) = joined.iter().find(|(known, ..)| known == id) {
                            *span_of = span(*offset, length(*len)?);
                            continue;
                        }
                        several = headers.get(name).unwrap_or_default();
                        joined.push((*id, at, several.len()));
                        &several
                    }
                    _ => {
                        *span_of = span(at, -1);
                        continue;
                    }
                };
                *span_of = span(at, length(value.len())?);
                // A value that does not fit is not written, but counts.
                if let Some(place) = buffer.get_mut(at..at + value.len()) {
                    place.copy_from_slice(value);
                }
                at += value.len();
            }
            let spanned = spanned[..ids.len()].as_flattened();
            slice_mut(memory, place, spanned.len())?.copy_from_slice(spanned);
            place = place.wrapping_add(spanned.len() as i32);
        }
        Ok(at)
    })?;
    let Some(at) = at else {
        slice_mut(memory, spans, count * 8)?.as_chunks_mut().0.fill(span(0, -1));
        return Ok(0);
    };
    let at = at?;
    host.copied += at as u64;
    length(at)
}

fn change(
    caller: &mut Caller<'_, Host>,
    which: i32,
    id: i32,
    value: Option<(i32, i32)>,
    f: impl FnOnce(&mut dyn Headers, &Name, &[u8]) -> Result<(), BadHeader>,
) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let name = name(&host.names, id)?;
    let (value, more) = match value {
        // An interned name is stored once, so only the value is charged.
        Some((ptr, len)) => slice(memory, ptr, len).map(|value| (value, field_size(0, value)))?,
        None => (&[][..], 0),
    };
    host.copied += value.len() as u64;
    begin_trailers(which);
    let changed = grow_map(&mut host.answers, &host.budget, which, more, |headers| f(headers, name, value))?;
    changed.ok_or(Status::NotFound)?.map_err(|_| Status::BadArgument)
}

/// Maximum number of fields per stream that are added to whatever response is sent.
const MAX_EVENTUAL: usize = 100;

fn add_eventual(caller: &mut Caller<'_, Host>, id: i32, ptr: i32, len: i32) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let Name::Field(name) = name(&host.names, id)?.clone() else { return Err(Status::BadArgument) };
    let value = slice(memory, ptr, len)?;
    if value.len() > MAX_VALUE {
        return Err(Status::BadArgument);
    }
    let value = HeaderValue::from_bytes(value).map_err(|_| Status::BadArgument)?;
    host.copied += value.len() as u64;
    let field: (HeaderName, HeaderValue) = (name, value);
    let push = |s: &mut StreamState| {
        let fits = s.eventual.len() < MAX_EVENTUAL && s.owe(&host.budget, field_size(0, field.1.as_bytes()));
        fits.then(|| s.eventual.push(field)).ok_or(Status::BadArgument)
    };
    call_scope::with_state(push).ok_or(Status::NotFound)?
}

fn source_address(caller: &mut Caller<'_, Host>, which: i32, out: i32) -> Result<(), Status> {
    let (memory, _) = split(caller)?;
    let address = call_scope::with_subject(|stream, _| match which {
        source::PEER => Some(stream.connection().peer),
        source::CLIENT => Some(stream.client()),
        source::LOCAL => Some(stream.connection().local),
        _ => None,
    });
    let address = address.ok_or(Status::NotFound)?.ok_or(Status::BadArgument)?;
    let ip = match address.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    };
    let place = slice_mut(memory, out, 18)?;
    place[..16].copy_from_slice(&ip.octets());
    place[16..].copy_from_slice(&address.port().to_le_bytes());
    Ok(())
}

fn log_field(caller: &mut Caller<'_, Host>, name: (i32, i32), value: (i32, i32)) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let text = |(ptr, len)| {
        let bytes = slice(memory, ptr, len)?;
        if bytes.len() > limit::LOG_FIELD_BYTES {
            return Err(Status::BadArgument);
        }
        Ok(String::from_utf8_lossy(bytes).into_owned())
    };
    let (name, value) = (text(name)?, text(value)?);
    if !call_scope::with_subject(|subject, _| subject.owe(&host.budget, name.len() + value.len() + ITEM))
        .unwrap_or(true)
    {
        return Err(Status::InternalFailure);
    }
    let set = call_scope::with_notes(|s| match s.log_fields.iter().position(|(n, _)| *n == name) {
        Some(at) => {
            s.log_fields[at].1 = value;
            Ok(())
        }
        None if s.log_fields.len() >= limit::LOG_FIELDS => Err(Status::InternalFailure),
        None => {
            s.log_fields.push((name, value));
            Ok(())
        }
    });
    set.ok_or(Status::NotFound)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_limited() {
        assert_eq!([room(&[0], 2), room(&[0, 1], 2)], [Ok(()), Err(Status::InternalFailure)]);
    }

    #[test]
    fn length_is_never_mistaken_for_a_status() {
        assert_eq!(length(i32::MAX as usize), Ok(i32::MAX));
        assert_eq!(length(i32::MAX as usize + 1), Err(Status::InternalFailure));
    }
}
