//! HTTP calls by filters (`proxy_http_call`).

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method};
use tollgate_abi::{
    pairs,
    proxy_wasm::{MODULE, Status},
};
use wasmtime::{Caller, Linker};

use super::{
    guest::{give, key, slice, split, status, write_u32},
    headers::{Refused, with_one_authority},
};
use crate::{
    chain::{
        charge::CALL,
        head::{Headers, Name, RequestHead},
    },
    wasm::host::{Host, HttpCall, filter_log::Escaped, grpc::CallEvent},
};

/// Maximum number of pending calls per instance.
pub(super) const MAX_CALLS: usize = 4096;

pub(super) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_http_call",
        |mut caller: Caller<'_, Host>,
         upstream: i32,
         upstream_len: i32,
         headers: i32,
         headers_len: i32,
         body: i32,
         body_len: i32,
         trailers: i32,
         trailers_len: i32,
         timeout: i32,
         id_out: i32| {
            let (upstream, headers) = ((upstream, upstream_len), (headers, headers_len));
            let (body, trailers) = ((body, body_len), (trailers, trailers_len));
            status(http_call(&mut caller, upstream, headers, body, trailers, timeout, id_out))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_get_status",
        |mut caller: Caller<'_, Host>, code_out: i32, out: i32, size_out: i32| {
            let host = caller.data();
            let failure = host.answers.call_response.as_ref().and_then(|c| c.failure);
            let (code, message) = match &host.answers.grpc_event {
                Some(CallEvent::Closed(code, message)) => (*code, message.clone()),
                _ => failure.map_or((0, String::new()), |(code, message)| (code, message.to_owned())),
            };
            let written = split(&mut caller).and_then(|(memory, _)| write_u32(memory, code_out, code));
            match written {
                Ok(()) => give(&mut caller, out, size_out, |_, data| {
                    data.extend_from_slice(message.as_bytes());
                    Ok(())
                }),
                Err(s) => Ok(s as i32),
            }
        },
    )?;
    Ok(())
}

type Range = (i32, i32);

fn http_call(
    caller: &mut Caller<'_, Host>,
    upstream: Range,
    headers: Range,
    body: Range,
    trailers: Range,
    timeout: i32,
    id_out: i32,
) -> Result<(), Status> {
    let (memory, host) = split(caller)?;
    host.note_named_effect();
    let bad = |why: fmt::Arguments<'_>| {
        host.identity.complain(format_args!("HTTP call not made: {why}"));
        Status::BadArgument
    };
    let name = str::from_utf8(key(memory, upstream.0, upstream.1)?)
        .map_err(|_| bad(format_args!("the cluster's name is not UTF-8")))?;
    let cluster = host.cluster(name);
    let cluster = cluster.ok_or_else(|| bad(format_args!("there is no cluster `{}`", Escaped(name.as_bytes()))))?;
    let decode = |(ptr, len)| {
        pairs::decode(slice(memory, ptr, len)?).map_err(|_| bad(format_args!("the headers are malformed")))
    };
    let fields = with_one_authority(decode(headers)?);
    let find = |name: &[u8]| fields.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
    let (Some(method), Some(path), Some(authority)) = (find(b":method"), find(b":path"), find(b":authority")) else {
        return Err(bad(format_args!(":method, :path and :authority are required")));
    };
    let mut head = RequestHead {
        method: Method::GET,
        path: Bytes::from_static(b"/"),
        authority: Bytes::new(),
        scheme: "http",
        fields: HeaderMap::new(),
    };
    let path = origin_form(path);
    let pseudo: [(&[u8], Name, &[u8]); 3] = [
        (b":method", Name::Method, method),
        (b":path", Name::Path, &path),
        (b":authority", Name::Authority, authority),
    ];
    for (text, name, value) in pseudo {
        head.set(&name, value).map_err(|_| bad(format_args!("{}", Refused(text, value))))?;
    }
    for (name, value) in fields.iter().filter(|(n, _)| !n.starts_with(b":")) {
        let added = Name::parse(name).map(|name| head.add(&name, value));
        added.and_then(Result::ok).ok_or_else(|| bad(format_args!("{}", Refused(name, value))))?;
    }
    head.remove_framing();
    let mut trailer_map = HeaderMap::new();
    for (name, value) in decode(trailers)? {
        let added = Name::parse(name).map(|name| trailer_map.add(&name, value));
        added.and_then(Result::ok).ok_or_else(|| bad(format_args!("in the trailers, {}", Refused(name, value))))?;
    }
    let body = slice(memory, body.0, body.1)?;
    if host.calls_under_way >= MAX_CALLS {
        return Err(Status::InternalFailure);
    }
    let size = CALL + body.len() + headers.1 as u32 as usize + trailers.1 as u32 as usize;
    let charge = host.budget.charge(size).map_err(|_| Status::InternalFailure)?;
    let body = Bytes::copy_from_slice(body);
    let id = host.last_call.wrapping_add(1);
    write_u32(memory, id_out, id)?;
    host.last_call = id;
    host.calls_under_way += 1;
    host.copied += body.len() as u64;
    let timeout = u64::from(timeout as u32);
    let timeout = (timeout > 0).then(|| Duration::from_millis(timeout));
    let caller = host.acting;
    host.calls.push(HttpCall { id, caller, cluster, head, body, trailers: trailer_map, charge, timeout });
    Ok(())
}

/// The request target for a `:path`. Filters made for Envoy may pass a whole URL; its path and query are sent, and the
/// host is the given `:authority`. (Envoy sends the URL verbatim, as clients do to a proxy. Not every HTTP/1.1 server
/// accepts that, and no HTTP/2 server does.)
fn origin_form(path: &[u8]) -> Cow<'_, [u8]> {
    let after = |scheme: &[u8]| {
        let (start, rest) = path.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let Some(rest) = after(b"http://").or_else(|| after(b"https://")) else { return Cow::Borrowed(path) };
    // A fragment is never sent.
    let rest = rest.split(|b| *b == b'#').next().unwrap_or_default();
    match rest.iter().position(|b| matches!(b, b'/' | b'?')) {
        // Without a host it is not a URL.
        Some(0) => Cow::Borrowed(path),
        Some(at) if rest[at] == b'/' => Cow::Borrowed(&rest[at..]),
        Some(at) => Cow::Owned([b"/", &rest[at..]].concat()),
        None if rest.is_empty() => Cow::Borrowed(path),
        None => Cow::Borrowed(b"/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_url_is_sent_as_path_and_query() {
        for (given, sent) in [
            ("http://x.example/y?z=1", "/y?z=1"),
            ("HTTPS://x.example:8443/y#part", "/y"),
            ("http://x.example", "/"),
            ("http://x.example?z", "/?z"),
            ("http://user@x.example//y", "//y"),
            ("/y?u=http://x.example/z", "/y?u=http://x.example/z"),
            ("*", "*"),
            // These are not URLs, and are rejected as paths.
            ("http://", "http://"),
            ("http:///y", "http:///y"),
            ("ftp://x.example/y", "ftp://x.example/y"),
            ("y", "y"),
        ] {
            assert_eq!(origin_form(given.as_bytes()), sent.as_bytes(), "{given}");
        }
    }
}
