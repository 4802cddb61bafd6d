//! What becomes of a stream: going on, ending, a response of the filter's own.
//!
//! Nothing of this happens before the guest has returned: it is written down in the stream, and who moves the stream along
//! looks there.

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

/// Bytes of a response's body: as many as an HTTP call's answer may have.
const MAX_BODY: usize = 16 << 20;

/// Bytes of its details, which stand in each line of the access log; the rest is cut off.
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
    // There is no cached route to clear: routing is a filter's work. Declared by old SDKs.
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
    // A stream that is gone has nothing to resume, which is no mistake of the filter's.
    call_scope::with_stream(|stream, position| stream.resume(position, direction));
    Status::Ok as i32
}

/// The same, of a TCP connection.
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
    // Both have bounds of their own, below.
    let details = range(memory, details.0, details.1)?;
    let body = range(memory, body.0, body.1)?;
    let headers = slice(memory, headers.0, headers.1)?;
    // The first one counts, so nothing is kept of another.
    if call_scope::with_state(|s| s.reply.is_some()).unwrap_or(false) {
        return Ok(());
    }
    host.copied += (body.len() + headers.len()) as u64;
    let filter = host.identity.clone();
    let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    // 1xx announces a final response, which would be missing.
    let code = code.filter(|c| (200..=599).contains(&c.as_u16())).unwrap_or_else(|| {
        filter.complain(format_args!("a response with an impossible status became a 500"));
        StatusCode::INTERNAL_SERVER_ERROR
    });
    let mut fields = HeaderMap::new();
    for (name, value) in pairs::decode(headers).map_err(|_| Status::BadArgument)? {
        let added = match Name::parse(name) {
            // Framing is the host's, whatever a filter says.
            Some(Name::Field(CONTENT_LENGTH | TRANSFER_ENCODING | CONNECTION)) => Ok(()),
            Some(name @ Name::Field(_)) => fields.add(&name, value),
            Some(_) => Ok(()),
            None => Err(BadHeader),
        };
        if added.is_err() {
            filter.complain(format_args!("a bad header was left out of a response"));
        }
    }
    // Negative: it follows from the HTTP status.
    let grpc_status = u32::try_from(grpc).ok();
    let details = String::from_utf8_lossy(&details[..details.len().min(MAX_DETAILS)]).replace(' ', "_");
    let owed = call_scope::with_state(|s| s.owe(&host.ledger, details.len() + head::size(&fields))).unwrap_or(true);
    let room = body.len() <= MAX_BODY && owed;
    let charge = if room { host.ledger.charge(body.len()).ok() } else { None };
    let reply = match charge {
        Some(charge) => {
            let body = if body.is_empty() { Bytes::new() } else { charge.hold(body.to_vec()) };
            LocalReply { status: code, details: details.into(), fields, body, grpc_status }
        }
        // The filter wants the stream to end here, so it must not go on.
        None => {
            filter.complain(format_args!("a response was too large, and became a 500"));
            let (status, details) = (StatusCode::INTERNAL_SERVER_ERROR, detail::FILTER_REPLY_TOO_LARGE.into());
            LocalReply { status, details, ..LocalReply::default() }
        }
    };
    call_scope::with_subject(|subject, _| match subject {
        StreamRef::Http(stream) => stream.reply(reply, flag::LOCAL_REPLY),
        // There is nothing to be answered, but that it shall not go on is clear.
        StreamRef::Tcp(_) => subject.close(),
    });
    Ok(())
}
