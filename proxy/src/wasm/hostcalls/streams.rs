//! Control of a stream: continuing it, closing it, sending a local response.
//!
//! Nothing takes effect before the guest returns: the functions record the request in the stream, and the code that
//! drives the stream acts on it.

use bytes::Bytes;
use http::{
    HeaderMap, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use tollgate_abi::{
    fast::flag,
    pairs,
    proxy_wasm::{MODULE, Status, stream},
};
use wasmtime::{Caller, Linker};

use super::guest::{range, slice, split, status};
use crate::{
    chain::{
        Direction, LocalReply,
        head::{self, BadHeader, Headers, Name},
        network::Side,
    },
    observe::detail,
    wasm::{
        host::Host,
        scope::{call_scope, stream_ref::StreamRef},
    },
};

/// Maximum bytes of a local response's body, the same as for the response to an HTTP call.
const MAX_BODY: usize = 16 << 20;

/// Maximum bytes of the details, which appear in each access log line; longer ones are truncated.
const MAX_DETAILS: usize = 256;

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "proxy_continue_stream", |mut caller: Caller<'_, Host>, which: i32| {
        caller.data_mut().hostcalls += 1;
        match which {
            stream::HTTP_REQUEST => resume(Direction::Request),
            stream::HTTP_RESPONSE => resume(Direction::Response),
            stream::DOWNSTREAM => resume_side(Side::Downstream),
            stream::UPSTREAM => resume_side(Side::Upstream),
            _ => Status::BadArgument as i32,
        }
    })?;
    linker.func_wrap(MODULE, "proxy_close_stream", |mut caller: Caller<'_, Host>, which: i32| {
        caller.data_mut().hostcalls += 1;
        if !(stream::HTTP_REQUEST..=stream::UPSTREAM).contains(&which) {
            return Status::BadArgument as i32;
        }
        call_scope::with_subject(|subject, _| subject.close());
        Status::Ok as i32
    })?;
    // The 0.1.0 names.
    linker.func_wrap(MODULE, "proxy_continue_request", |_: Caller<'_, Host>| resume(Direction::Request))?;
    linker.func_wrap(MODULE, "proxy_continue_response", |_: Caller<'_, Host>| resume(Direction::Response))?;
    // No cached route exists: routing is done by a filter. Imported by old SDKs.
    linker.func_wrap(MODULE, "proxy_clear_route_cache", |_: Caller<'_, Host>| Status::Ok as i32)?;
    linker.func_wrap(
        MODULE,
        "proxy_send_local_response",
        |mut caller: Caller<'_, Host>,
         code: i32,
         d: i32,
         d_len: i32,
         b: i32,
         b_len: i32,
         h: i32,
         h_len: i32,
         grpc: i32| { status(reply(&mut caller, (code, grpc), (d, d_len), (b, b_len), (h, h_len))) },
    )?;
    Ok(())
}

fn resume(direction: Direction) -> i32 {
    // Resuming a stream that has ended is not an error of the filter.
    call_scope::with_stream(|stream, position| stream.resume(position, direction));
    Status::Ok as i32
}

/// The same for a TCP connection.
fn resume_side(side: Side) -> i32 {
    call_scope::with_network(|stream, position| stream.resume(position, side));
    Status::Ok as i32
}

fn reply(
    caller: &mut Caller<'_, Host>,
    (code, grpc): (i32, i32),
    details: (i32, i32),
    body: (i32, i32),
    headers: (i32, i32),
) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    // Both have their own limits below.
    let details = range(memory, details.0, details.1)?;
    let body = range(memory, body.0, body.1)?;
    let headers = slice(memory, headers.0, headers.1)?;
    // Only the first response counts, so a second one is not stored.
    if call_scope::with_state(|s| s.reply.is_some()).unwrap_or(false) {
        return Ok(());
    }
    host.copied += (body.len() + headers.len()) as u64;
    let filter = host.identity.clone();
    let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    // 1xx announces a final response, which would be missing.
    let code = code.filter(|c| (200..=599).contains(&c.as_u16())).unwrap_or_else(|| {
        filter.complain(format_args!("a local response had an invalid status; 500 was sent instead"));
        StatusCode::INTERNAL_SERVER_ERROR
    });
    let mut fields = HeaderMap::new();
    for (name, value) in pairs::decode(headers).map_err(|_| Status::BadArgument)? {
        let added = match Name::parse(name) {
            // The host controls framing; the filter's fields for it are ignored.
            Some(Name::Field(CONTENT_LENGTH | TRANSFER_ENCODING | CONNECTION)) => Ok(()),
            Some(name @ Name::Field(_)) => fields.add(&name, value),
            Some(_) => Ok(()),
            None => Err(BadHeader),
        };
        if added.is_err() {
            filter.complain(format_args!("an invalid header was left out of a local response"));
        }
    }
    // Negative: derived from the HTTP status.
    let grpc_status = u32::try_from(grpc).ok();
    let details = String::from_utf8_lossy(&details[..details.len().min(MAX_DETAILS)]).replace(' ', "_");
    let owed = call_scope::with_state(|s| s.owe(&host.budget, details.len() + head::size(&fields))).unwrap_or(true);
    let room = body.len() <= MAX_BODY && owed;
    let charge = if room { host.budget.charge(body.len()).ok() } else { None };
    let reply = match charge {
        Some(charge) => {
            let body = if body.is_empty() { Bytes::new() } else { charge.hold(body.to_vec()) };
            LocalReply { status: code, details: details.into(), fields, body, grpc_status }
        }
        // The filter wants the stream to end here, so it must not continue.
        None => {
            filter.complain(format_args!("a local response was too large; 500 was sent instead"));
            let (status, details) = (StatusCode::INTERNAL_SERVER_ERROR, detail::FILTER_REPLY_TOO_LARGE.into());
            LocalReply { status, details, ..LocalReply::default() }
        }
    };
    call_scope::with_subject(|subject, _| match subject {
        StreamRef::Http(stream) => stream.reply(reply, flag::LOCAL_REPLY),
        // A TCP connection cannot be answered, but it must not continue.
        StreamRef::Tcp(_) => subject.close(),
    });
    Ok(())
}
