//! The data of an access log line about an ended request. All of it is borrowed: the worker that served the request
//! formats the line immediately.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use http::HeaderMap;

use crate::config::units::Address;

/// Data that filters stored with a stream and that a log can show.
pub trait Stored: std::fmt::Debug {
    /// The bytes under a key of the filter state.
    fn state(&self, key: &[u8]) -> Option<&[u8]>;

    /// The type and the bytes of a metadata value.
    fn metadata(&self, space: &[u8], key: &[u8]) -> Option<(i32, &[u8])>;
}

/// One request. Values from the client are bytes, because they need not be UTF-8; empty values count as missing.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// When its first byte was received.
    pub start: SystemTime,
    /// The listener's name.
    pub listener: &'a str,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The client, as far as `X-Forwarded-For` is trusted.
    pub client: IpAddr,
    /// The method.
    pub method: &'a str,
    /// The path and query as received.
    pub path: &'a [u8],
    /// The path and query as sent to the upstream, after the filters.
    pub upstream_path: &'a [u8],
    /// The requested host.
    pub authority: &'a [u8],
    /// The client's version of HTTP, such as `HTTP/1.1`.
    pub protocol: &'a str,
    /// The request's id.
    pub request_id: &'a [u8],
    /// The response's status; 0 if none was sent.
    pub status: u16,
    /// The status of a gRPC call; `None` for other requests.
    pub grpc_status: Option<u32>,
    /// [`flag`](tollgate_abi::fast::flag) bits.
    pub flags: u32,
    /// Why the proxy or a filter replied.
    pub details: &'a str,
    /// Why the transport to the upstream failed, in the last failed attempt.
    pub upstream_failure: &'a str,
    /// Why the transport from the client failed.
    pub downstream_failure: &'a str,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// Durations.
    pub timings: Timings,
    /// The route's name.
    pub route: &'a str,
    /// The cluster's name.
    pub cluster: &'a str,
    /// The endpoint of the last attempt.
    pub endpoint: Option<&'a Address>,
    /// The number of attempts to send the request to an upstream.
    pub attempts: u32,
    /// The `User-Agent`.
    pub user_agent: &'a [u8],
    /// The `Referer`.
    pub referer: &'a [u8],
    /// The request's headers, if the format [needs](super::Format::request_headers) them.
    pub request_headers: Option<&'a HeaderMap>,
    /// The response's headers, if the format [needs](super::Format::response_headers) them.
    pub response_headers: Option<&'a HeaderMap>,
    /// Fields that filters added.
    pub fields: &'a [(String, String)],
    /// Data that filters stored with the stream.
    pub stored: Option<&'a dyn Stored>,
}

/// Durations in microseconds, counted from the request's first byte, except for the time in filters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// To the response's last byte.
    pub total: u64,
    /// To the request's last byte.
    pub request_received: Option<u64>,
    /// Time that the filters spent on the request.
    pub chain_request: u64,
    /// Until a connection to the upstream was available.
    pub upstream_connect: Option<u64>,
    /// To the first byte of the upstream's response.
    pub upstream_first_byte: Option<u64>,
    /// To the last byte of the upstream's response.
    pub upstream_total: Option<u64>,
}

impl<'a> Entry<'a> {
    /// Creates an entry with only these values.
    pub fn new(start: SystemTime, listener: &'a str, peer: SocketAddr) -> Self {
        Entry {
            start,
            listener,
            peer,
            client: peer.ip(),
            method: "",
            path: b"",
            upstream_path: b"",
            authority: b"",
            protocol: "",
            request_id: b"",
            status: 0,
            grpc_status: None,
            flags: 0,
            details: "",
            upstream_failure: "",
            downstream_failure: "",
            request_bytes: 0,
            response_bytes: 0,
            timings: Timings::default(),
            route: "",
            cluster: "",
            endpoint: None,
            attempts: 0,
            user_agent: b"",
            referer: b"",
            request_headers: None,
            response_headers: None,
            fields: &[],
            stored: None,
        }
    }
}
