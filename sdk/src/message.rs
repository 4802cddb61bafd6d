//! Requests and responses as handles to data that the host holds; headers are read into reusable buffers.

pub(crate) mod body;
pub(crate) mod flow;
pub(crate) mod reply;

use std::{
    cell::{Cell, RefCell},
    mem::ManuallyDrop,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use tollgate_abi::{fast, proxy_wasm::map};

use crate::{
    resources::{RouteId, Selection},
    sys::{self, types::Name},
    table::borrow,
};

/// Memory that header values are read into. Create one per callback with `Buffer::new()`. The first read takes memory
/// from a pool (of at most 64 buffers), so a warm filter allocates nothing.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// Creates a buffer that takes its memory from the pool on the first read.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Buffer {
        Buffer(Vec::new())
    }

    fn memory(&mut self) -> &mut Vec<u8> {
        if self.0.is_empty() {
            self.0 = POOL.with(|pool| pool.take());
        }
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            POOL.with(|pool| pool.put(std::mem::take(&mut self.0)));
        }
    }
}

/// Maximum number of pooled buffers.
const POOLED: usize = 64;

/// Memory of unused buffers. It grows to the highest number in use at the same time.
struct Pool {
    /// Usually the only buffer; futures that hold one while they wait need more. Empty while in use.
    first: Cell<Vec<u8>>,
    others: RefCell<Vec<Vec<u8>>>,
}

thread_local! {
    // Never dropped, so that the module needs no code for it.
    static POOL: ManuallyDrop<Pool> =
        const { ManuallyDrop::new(Pool { first: Cell::new(Vec::new()), others: RefCell::new(Vec::new()) }) };
}

impl Pool {
    fn take(&self) -> Vec<u8> {
        let first = self.first.take();
        if first.is_empty() { self.take_another() } else { first }
    }

    #[cold]
    fn take_another(&self) -> Vec<u8> {
        borrow(&self.others).pop().unwrap_or_else(|| vec![0; 4096])
    }

    fn put(&self, buffer: Vec<u8>) {
        let before = self.first.replace(buffer);
        if !before.is_empty() {
            self.put_another(before);
        }
    }

    #[cold]
    fn put_another(&self, buffer: Vec<u8>) {
        let mut others = borrow(&self.others);
        // Limits the memory retained after a burst.
        if others.len() + 1 < POOLED {
            others.push(buffer);
        }
    }
}

/// Marks the span of an absent header.
const ABSENT: i32 = -1;

fn get_many<'b, const N: usize>(map: i32, names: [Name; N], buffer: &'b mut Buffer) -> [Option<&'b [u8]>; N] {
    let mut spans = [sys::Span { offset: 0, len: ABSENT }; N];
    let memory = buffer.memory();
    let needed = sys::header_get_many(map, &names, memory, &mut spans);
    if needed > memory.len() as i32 {
        memory.resize(needed as usize, 0);
        sys::header_get_many(map, &names, memory, &mut spans);
    }
    let bytes: &'b [u8] = memory;
    spans.map(|span| {
        let len = usize::try_from(span.len).ok()?;
        bytes.get(span.offset as usize..)?.get(..len)
    })
}

fn get(map: i32, name: Name, buffer: &mut Buffer) -> Option<&[u8]> {
    let memory = buffer.memory();
    let mut len = usize::try_from(sys::header_get(map, name, memory)).ok()?;
    if len > memory.len() {
        memory.resize(len, 0);
        len = usize::try_from(sys::header_get(map, name, memory)).ok()?;
    }
    memory.get(..len)
}

macro_rules! headers {
    ($map:expr) => {
        /// Returns the value of a header. Several fields of the same name are joined with `, `.
        pub fn header<'b>(&self, name: Name, buffer: &'b mut Buffer) -> Option<&'b [u8]> {
            get($map, name, buffer)
        }

        /// Returns the values of several headers with one host call. At most 64.
        pub fn headers<'b, const N: usize>(&self, names: [Name; N], buffer: &'b mut Buffer) -> [Option<&'b [u8]>; N] {
            get_many($map, names, buffer)
        }

        /// Returns all headers in order: names as text in lower case, values as bytes, which need not be UTF-8. Slower
        /// than reading individual headers.
        pub fn all_headers(&self) -> Vec<(String, Vec<u8>)> {
            sys::header_pairs($map)
        }

        /// Sets a header to a single value.
        pub fn set_header(&self, name: Name, value: impl AsRef<[u8]>) {
            sys::header_set($map, name, value.as_ref());
        }

        /// Adds a header field.
        pub fn add_header(&self, name: Name, value: impl AsRef<[u8]>) {
            sys::header_add($map, name, value.as_ref());
        }

        /// Removes all fields of a header.
        pub fn remove_header(&self, name: Name) {
            sys::header_remove($map, name);
        }
    };
}

/// The stream's request. `:method`, `:path` (with the query), `:authority` and `:scheme` are accessible as headers.
#[derive(Debug)]
pub struct Request {
    pub(crate) end_of_stream: bool,
}

/// The stream's response. `:status` is accessible as a header.
#[derive(Debug)]
pub struct Response {
    pub(crate) end_of_stream: bool,
}

/// Selects the stream's route.
pub(crate) fn select_route(route: RouteId, selection: Selection) {
    let given = if selection.split.is_some() { fast::hash::SPLIT } else { 0 }
        | if selection.balance.is_some() { fast::hash::BALANCE } else { 0 };
    sys::route_select(route.0, given, selection.split.unwrap_or(0), selection.balance.unwrap_or(0));
}

/// Selects an address of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The remote end of the connection.
    Peer,
    /// The client, as far as `X-Forwarded-For` can be trusted; otherwise the peer.
    Client,
}

impl Request {
    headers!(map::HTTP_REQUEST_HEADERS);

    /// Reports whether the message ends with its headers: no body and no trailers.
    pub fn has_no_body(&self) -> bool {
        self.end_of_stream
    }

    /// Returns the address that the request comes from. IPv4 addresses are returned as such, not in mapped form. If
    /// trusted proxies report nothing usable about the client, this is the unspecified address `::`, which must not be
    /// treated as an identity.
    pub fn source(&self, whose: Source) -> SocketAddr {
        let which = match whose {
            Source::Peer => fast::source::PEER,
            Source::Client => fast::source::CLIENT,
        };
        let (ip, port) = sys::source_address(which);
        let ip = Ipv6Addr::from(ip);
        SocketAddr::new(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4), port)
    }

    /// Selects the request's route. The last selection takes effect.
    pub fn route(&self, route: RouteId, selection: Selection) {
        select_route(route, selection);
    }

    /// Drops the selected route, so that a filter behind this one may select another. The
    /// [variants](tollgate_abi::doc::Route::filters) that it has selected for filters that the request has not reached yet
    /// are dropped with it.
    pub fn clear_route(&self) {
        sys::route_clear();
    }

    /// Adds a header field to the stream's eventual response, wherever that comes from.
    pub fn add_response_header(&self, name: Name, value: impl AsRef<[u8]>) {
        sys::header_add(fast::map::EVENTUAL_RESPONSE, name, value.as_ref());
    }

    /// Adds [`flag`](crate::flag)s to the access log line.
    pub fn flag(&self, flags: u32) {
        sys::flag_set(flags);
    }

    /// Sets a named field of the access log line. At most 16 fields of 256 bytes.
    pub fn log_field(&self, name: &str, value: &str) {
        sys::log_field(name, value);
    }
}

impl Response {
    headers!(map::HTTP_RESPONSE_HEADERS);

    /// Reports whether the message ends with its headers: no body and no trailers.
    pub fn has_no_body(&self) -> bool {
        self.end_of_stream
    }
}
