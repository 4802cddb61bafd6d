//! gRPC calls by filters.
//!
//! The statuses are the ones that the released SDKs accept here; they panic on others.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method};
use tollgate_abi::{
    pairs,
    proxy_wasm::{MODULE, Status},
};
use wasmtime::{Caller, Linker};

use super::{
    callouts::MAX_CALLS,
    guest::{key, slice, split, status, write_u32},
    headers::{Refused, with_one_authority},
};
use crate::{
    chain::{
        charge::{CALL, ITEM},
        head::{Headers, MAX_VALUE, Name, RequestHead},
    },
    config::model::ClusterProtocol,
    http::grpc::framed,
    wasm::host::{
        Host,
        filter_log::Escaped,
        grpc::{CallCommand, GrpcCall, OpenCall},
    },
};

type Range = (i32, i32);

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_grpc_call",
        |mut caller: Caller<'_, Host>,
         upstream: i32,
         upstream_len: i32,
         service: i32,
         service_len: i32,
         method: i32,
         method_len: i32,
         metadata: i32,
         metadata_len: i32,
         message: i32,
         message_len: i32,
         timeout: i32,
         id_out: i32| {
            let target = Target {
                upstream: (upstream, upstream_len),
                service: (service, service_len),
                method: (method, method_len),
                metadata: (metadata, metadata_len),
            };
            status(open(&mut caller, &target, Some(((message, message_len), timeout)), id_out))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_grpc_stream",
        |mut caller: Caller<'_, Host>,
         upstream: i32,
         upstream_len: i32,
         service: i32,
         service_len: i32,
         method: i32,
         method_len: i32,
         metadata: i32,
         metadata_len: i32,
         id_out: i32| {
            let target = Target {
                upstream: (upstream, upstream_len),
                service: (service, service_len),
                method: (method, method_len),
                metadata: (metadata, metadata_len),
            };
            status(open(&mut caller, &target, None, id_out))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_grpc_send",
        |mut caller: Caller<'_, Host>, id: i32, message: i32, message_len: i32, last: i32| {
            status(send(&mut caller, id as u32, (message, message_len), last != 0))
        },
    )?;
    linker.func_wrap(MODULE, "proxy_grpc_cancel", |mut caller: Caller<'_, Host>, id: i32| {
        let host = caller.data_mut();
        status(end(host, id as u32, true))
    })?;
    linker.func_wrap(MODULE, "proxy_grpc_close", |mut caller: Caller<'_, Host>, id: i32| {
        let host = caller.data_mut();
        // Closing a unary call cancels it, as in Envoy.
        let all = host.grpc_calls.get(&(id as u32)).is_some_and(|call| !call.streams);
        status(end(host, id as u32, all))
    })?;
    Ok(())
}

struct Target {
    upstream: Range,
    service: Range,
    method: Range,
    metadata: Range,
}

fn open(
    caller: &mut Caller<'_, Host>,
    target: &Target,
    unary: Option<(Range, i32)>,
    id_out: i32,
) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    host.note_named_effect();
    let bad = |why: fmt::Arguments<'_>| {
        host.identity.complain(format_args!("gRPC call not made: {why}"));
        Status::ParseFailure
    };
    let at = |(ptr, len): Range| slice(memory, ptr, len);
    let text = |range, what: &str| {
        let text = str::from_utf8(at(range)?).ok().filter(|text| !text.is_empty());
        text.ok_or_else(|| bad(format_args!("the {what} is empty, or not UTF-8")))
    };
    let upstream = key(memory, target.upstream.0, target.upstream.1)?;
    let name = cluster_name(upstream).ok_or_else(|| bad(format_args!("the upstream is not a cluster name")))?;
    let cluster = host.cluster(name);
    let cluster = cluster.ok_or_else(|| bad(format_args!("there is no cluster `{}`", Escaped(name.as_bytes()))))?;
    // While the filter is configured, the cluster may not be there yet.
    if cluster.current().is_some_and(|cluster| cluster.transport.protocol == ClusterProtocol::H1) {
        return Err(bad(format_args!("cluster `{name}` uses HTTP/1.1; gRPC needs `protocol: h2`")));
    }
    let (service, method) = (text(target.service, "service")?, text(target.method, "method")?);
    let mut head = RequestHead {
        method: Method::POST,
        path: Bytes::from_static(b"/"),
        authority: Bytes::copy_from_slice(name.as_bytes()),
        scheme: "http",
        fields: HeaderMap::new(),
    };
    if service.len() + method.len() > MAX_VALUE {
        return Err(bad(format_args!("the service and the method do not form a valid path")));
    }
    let path = format!("/{service}/{method}");
    head.set(&Name::Path, path.as_bytes())
        .map_err(|_| bad(format_args!("the service and the method do not form a valid path")))?;
    let metadata = pairs::decode(at(target.metadata)?).map_err(|_| bad(format_args!("the metadata is malformed")))?;
    for (key, value) in with_one_authority(metadata) {
        let added = Name::parse(key).map(|name| match name {
            Name::Field(_) => head.add(&name, value),
            name => head.set(&name, value),
        });
        added.and_then(Result::ok).ok_or_else(|| bad(format_args!("in the metadata, {}", Refused(key, value))))?;
    }
    head.remove_framing();
    let (message, timeout) = match unary {
        Some((range, timeout)) => (Some(at(range)?), u64::from(timeout as u32)),
        None => (None, 0),
    };
    let size = message.map_or(0, <[u8]>::len) + at(target.metadata)?.len();
    if host.grpc_calls.len() >= MAX_CALLS {
        return Err(Status::InternalFailure);
    }
    let full = |_| Status::InternalFailure;
    let charge = host.budget.charge(CALL + path.len() + at(target.metadata)?.len()).map_err(full)?;
    let message = match message {
        Some(message) => Some(host.budget.charge(ITEM + message.len()).map_err(full)?.hold(framed(message))),
        None => None,
    };
    let id = host.last_call.wrapping_add(1);
    write_u32(memory, id_out, id)?;
    host.last_call = id;
    host.grpc_calls.insert(id, OpenCall { streams: message.is_none(), closed: false });
    host.copied += size as u64;
    let timeout = (timeout > 0).then(|| Duration::from_millis(timeout));
    let caller = host.acting;
    host.grpc_commands.push(CallCommand::Open(Box::new(GrpcCall {
        id,
        caller,
        cluster,
        head,
        message,
        timeout,
        charge,
    })));
    Ok(())
}

fn send(caller: &mut Caller<'_, Host>, id: u32, message: Range, last: bool) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    let message = slice(memory, message.0, message.1)?;
    let call = match host.grpc_calls.get_mut(&id) {
        Some(call) if call.streams => call,
        Some(_) => return Err(Status::BadArgument),
        None => return Err(Status::NotFound),
    };
    if call.closed {
        // The guest has already half-closed the call.
        return Ok(());
    }
    let Ok(charge) = host.budget.charge(ITEM + message.len()) else {
        host.identity.complain(format_args!("gRPC message not sent: `limits.host_memory` is reached"));
        // The released SDKs accept no better status here.
        return Err(Status::BadArgument);
    };
    call.closed = last;
    host.copied += message.len() as u64;
    host.grpc_commands.push(CallCommand::Send(id, charge.hold(framed(message)), last));
    Ok(())
}

fn end(host: &mut Host, id: u32, all: bool) -> Result<(), Status> {
    host.hostcalls += 1;
    let Some(call) = host.grpc_calls.get_mut(&id) else {
        // The other side has ended the call; the guest may close it once more.
        return if host.grpc_over.take(id) { Ok(()) } else { Err(Status::NotFound) };
    };
    if all {
        host.grpc_calls.remove(&id);
        host.grpc_commands.push(CallCommand::Cancel(id));
    } else if !std::mem::replace(&mut call.closed, true) {
        host.grpc_commands.push(CallCommand::Close(id));
    }
    Ok(())
}

/// The target cluster: its name or, in filters made for Envoy, a `GrpcService` message with `envoy_grpc.cluster_name`
/// (both fields have number 1 and are length-delimited).
fn cluster_name(upstream: &[u8]) -> Option<&str> {
    fn first_field(bytes: &[u8]) -> Option<&[u8]> {
        let [0x0a, length, rest @ ..] = bytes else { return None };
        // Names are shorter than 128 bytes, or have a two-byte length.
        let (length, rest) = match (length, rest) {
            (0..=127, rest) => (usize::from(*length), rest),
            (low, [high @ 0..=127, rest @ ..]) => (usize::from(low & 127) | usize::from(*high) << 7, rest),
            _ => return None,
        };
        rest.get(..length)
    }
    let in_message = first_field(upstream).and_then(first_field);
    str::from_utf8(in_message.unwrap_or(upstream)).ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_is_named_directly_or_in_a_grpc_service_message() {
        assert_eq!(cluster_name(b"authz"), Some("authz"));
        assert_eq!(cluster_name(b"\x0a\x07\x0a\x05authz"), Some("authz"));
        let long = "n".repeat(300);
        let inner = [&[0x0a, 0xac, 0x02][..], long.as_bytes()].concat();
        let outer = [&[0x0a, 0xaf, 0x02][..], &inner].concat();
        assert_eq!(cluster_name(&outer), Some(&*long));
        assert_eq!(cluster_name(b"\x0a\xff"), None);
        assert_eq!(cluster_name(b""), None);
    }
}
