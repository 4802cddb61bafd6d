//! The fields that a log line can have: their names, what they are for, and where they are found in an entry.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use http::{HeaderMap, HeaderName};

use super::Entry;
use crate::config::units::Address;

/// A field of all lines.
#[derive(Debug)]
pub struct Field {
    /// What it is called in a format, and in JSON.
    pub name: &'static str,
    /// What it holds.
    pub doc: &'static str,
    pub(super) get: for<'a> fn(&Entry<'a>) -> Value<'a>,
}

/// What a field holds in one line, before it is written as text or JSON.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Missing,
    /// From outside: it can hold anything.
    Text(&'a [u8]),
    Count(u64),
    /// Shown in milliseconds, with three decimals.
    Micros(u64),
    Time(SystemTime),
    Ip(IpAddr),
    Socket(SocketAddr),
    Flags(u32),
    Fields(&'a [(String, String)]),
    Headers(&'a HeaderMap, &'a HeaderName),
}

const fn text(value: &[u8]) -> Value<'_> {
    if value.is_empty() { Value::Missing } else { Value::Text(value) }
}

fn micros<'a>(value: Option<u64>) -> Value<'a> {
    value.map_or(Value::Missing, Value::Micros)
}

macro_rules! fields {
    ($($name:ident, $doc:literal, |$entry:ident| $get:expr;)+) => {
        &[$(Field { name: stringify!($name), doc: $doc, get: |$entry| $get }),+]
    };
}

/// Every field with a fixed name, in the order in which JSON has them.
pub const FIELDS: &[Field] = fields! {
    start, "when the request's first byte came (RFC 3339, UTC)", |e| Value::Time(e.start);
    request_id, "the request's id", |e| text(e.request_id);
    listener, "the listener's name", |e| text(e.listener.as_bytes());
    peer, "address and port of the other end of the connection", |e| Value::Socket(e.peer);
    client, "the client's address, as far as X-Forwarded-For is trusted", |e| match e.client {
        // Trusted proxies have said nothing usable.
        unknown if unknown.is_unspecified() => Value::Missing,
        client => Value::Ip(client),
    };
    method, "the method", |e| text(e.method.as_bytes());
    authority, "the host asked for", |e| text(e.authority);
    path, "path and query as received", |e| text(e.path);
    upstream_path, "path and query as the filters left them for the upstream", |e| text(e.upstream_path);
    protocol, "the client's version of HTTP", |e| text(e.protocol.as_bytes());
    status, "the response's status", |e| if e.status == 0 { Value::Missing } else { Value::Count(e.status.into()) };
    grpc_status, "the status of a gRPC call", |e| e.grpc_status.map_or(Value::Missing, |s| Value::Count(s.into()));
    flags, "response flags, joined with commas", |e| Value::Flags(e.flags);
    details, "why the proxy or a filter answered", |e| text(e.details.as_bytes());
    upstream_failure, "why the connection to the upstream failed", |e| text(e.upstream_failure.as_bytes());
    downstream_failure, "why the client's connection failed", |e| text(e.downstream_failure.as_bytes());
    request_bytes, "bytes of the request's body", |e| Value::Count(e.request_bytes);
    response_bytes, "bytes of the response's body", |e| Value::Count(e.response_bytes);
    duration_ms, "from the request's first byte to the response's last", |e| Value::Micros(e.timings.total);
    request_received_ms, "to the request's last byte", |e| micros(e.timings.request_received);
    chain_request_ms, "time that filters took over the request", |e| Value::Micros(e.timings.chain_request);
    upstream_connect_ms, "until a connection to the upstream was there", |e| micros(e.timings.upstream_connect);
    upstream_first_byte_ms, "to the upstream's first byte", |e| micros(e.timings.upstream_first_byte);
    upstream_ms, "to the upstream's last byte", |e| micros(e.timings.upstream_total);
    route, "the route's name", |e| text(e.route.as_bytes());
    cluster, "the cluster's name", |e| text(e.cluster.as_bytes());
    endpoint, "the endpoint that the last try went to", |e| match e.endpoint {
        None => Value::Missing,
        Some(Address::Inet(socket)) => Value::Socket(*socket),
        Some(Address::Unix(path)) => text(path.as_os_str().as_encoded_bytes()),
    };
    attempts, "how often an upstream was tried", |e| Value::Count(e.attempts.into());
    user_agent, "the User-Agent", |e| text(e.user_agent);
    referer, "the Referer", |e| text(e.referer);
    fields, "what filters added: name=value, joined with commas; an object in JSON", |e| match e.fields {
        [] => Value::Missing,
        fields => Value::Fields(fields),
    };
};
