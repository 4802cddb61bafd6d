//! The fields of a log line: their names, descriptions, and values in an entry.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use http::{HeaderMap, HeaderName};

use super::Entry;
use crate::config::units::Address;

/// A field with a fixed name.
#[derive(Debug)]
pub struct Field {
    /// The name in a format, and in JSON.
    pub name: &'static str,
    /// The description.
    pub doc: &'static str,
    pub(super) get: for<'a> fn(&Entry<'a>) -> Value<'a>,
}

/// A field's value in one line, before it is encoded as text or JSON.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Missing,
    /// Text from outside, which can contain any bytes.
    Text(&'a [u8]),
    Count(u64),
    /// Microseconds, shown in milliseconds with three decimals.
    Micros(u64),
    Time(SystemTime),
    Ip(IpAddr),
    Socket(SocketAddr),
    /// A host name and a port.
    Host(&'a str, u16),
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
    start, "when the request's first byte was received (RFC 3339, UTC)", |e| Value::Time(e.start);
    request_id, "the request's id", |e| text(e.request_id);
    listener, "the listener's name", |e| text(e.listener.as_bytes());
    peer, "address and port of the other end of the connection", |e| Value::Socket(e.peer);
    client, "the client's address, as far as X-Forwarded-For is trusted", |e| match e.client {
        // Trusted proxies have sent no usable address.
        unknown if unknown.is_unspecified() => Value::Missing,
        client => Value::Ip(client),
    };
    method, "the method", |e| text(e.method.as_bytes());
    authority, "the requested host", |e| text(e.authority);
    path, "path and query as received", |e| text(e.path);
    upstream_path, "path and query as sent to the upstream, after the filters", |e| text(e.upstream_path);
    protocol, "the client's version of HTTP", |e| text(e.protocol.as_bytes());
    status, "the response's status", |e| if e.status == 0 { Value::Missing } else { Value::Count(e.status.into()) };
    grpc_status, "the status of a gRPC call", |e| e.grpc_status.map_or(Value::Missing, |s| Value::Count(s.into()));
    flags, "response flags, joined with commas", |e| Value::Flags(e.flags);
    details, "why the proxy or a filter replied", |e| text(e.details.as_bytes());
    upstream_failure, "why the connection to the upstream failed", |e| text(e.upstream_failure.as_bytes());
    downstream_failure, "why the client's connection failed", |e| text(e.downstream_failure.as_bytes());
    request_bytes, "bytes of the request's body", |e| Value::Count(e.request_bytes);
    response_bytes, "bytes of the response's body", |e| Value::Count(e.response_bytes);
    duration_ms, "from the request's first byte to the response's last", |e| Value::Micros(e.timings.total);
    request_received_ms, "to the request's last byte", |e| micros(e.timings.request_received);
    chain_request_ms, "time that filters spent on the request", |e| Value::Micros(e.timings.chain_request);
    upstream_connect_ms, "until a connection to the upstream was available", |e| micros(e.timings.upstream_connect);
    upstream_first_byte_ms, "to the upstream's first byte", |e| micros(e.timings.upstream_first_byte);
    upstream_ms, "to the upstream's last byte", |e| micros(e.timings.upstream_total);
    route, "the route's name", |e| text(e.route.as_bytes());
    cluster, "the cluster's name", |e| text(e.cluster.as_bytes());
    endpoint, "the endpoint of the last attempt", |e| match e.endpoint {
        None => Value::Missing,
        Some(Address::Inet(socket)) => Value::Socket(*socket),
        Some(Address::Unix(path)) => text(path.as_os_str().as_encoded_bytes()),
        Some(Address::Host(name, port)) => Value::Host(name, *port),
    };
    attempts, "number of attempts to send the request to an upstream", |e| Value::Count(e.attempts.into());
    user_agent, "the User-Agent", |e| text(e.user_agent);
    referer, "the Referer", |e| text(e.referer);
    fields, "fields that filters added: name=value, joined with commas; an object in JSON", |e| match e.fields {
        [] => Value::Missing,
        fields => Value::Fields(fields),
    };
};
