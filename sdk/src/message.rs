//! Requests and responses as a filter sees them: handles to what the host holds, read into a buffer that is used again.

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

/// Memory that header values are read into. Make one for each callback with `Buffer::new()`: once something is read, it
/// comes from a pool (of at most 64), so nothing is allocated once the filter is warm.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// A buffer that takes its memory from the pool when it is first read into.
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

/// Buffers that are kept.
const POOLED: usize = 64;

/// Memory of buffers that are not in use: as much as there has been at a time.
struct Pool {
    /// There is rarely more than this one, but for futures that keep theirs while they wait. Empty: it is in use.
    first: Cell<Vec<u8>>,
    others: RefCell<Vec<Vec<u8>>>,
}

thread_local! {
    // Never dropped, so that no code for that is needed.
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
        // What a burst has needed must not be kept for ever.
        if others.len() + 1 < POOLED {
            others.push(buffer);
        }
    }
}

/// Where the span of a header that is not there points.
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
        /// The value of a header; several fields of one name come joined by `, `.
        pub fn header<'b>(&self, name: Name, buffer: &'b mut Buffer) -> Option<&'b [u8]> {
            get($map, name, buffer)
        }

        /// The values of several headers, in one call of the host. At most 64.
        pub fn headers<'b, const N: usize>(&self, names: [Name; N], buffer: &'b mut Buffer) -> [Option<&'b [u8]>; N] {
            get_many($map, names, buffer)
        }

        /// All headers in order: names as text in lower case, values as bytes, which need not be text. Slower than asking for
        /// those that are needed.
        pub fn all_headers(&self) -> Vec<(String, Vec<u8>)> {
            sys::header_pairs($map)
        }

        /// Sets a header to one value.
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

/// The stream's request. `:method`, `:path` (with the query), `:authority` and `:scheme` are headers too.
#[derive(Debug)]
pub struct Request {
    pub(crate) end_of_stream: bool,
}

/// The stream's response. `:status` is a header too.
#[derive(Debug)]
pub struct Response {
    pub(crate) end_of_stream: bool,
}

/// Sends the stream by a route.
pub(crate) fn select_route(route: RouteId, selection: Selection) {
    let given = if selection.split.is_some() { fast::hash::SPLIT } else { 0 }
        | if selection.balance.is_some() { fast::hash::BALANCE } else { 0 };
    sys::route_select(route.0, given, selection.split.unwrap_or(0), selection.balance.unwrap_or(0));
}

/// Whose address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The other end of the connection.
    Peer,
    /// The client, as far as `X-Forwarded-For` can be trusted; else the peer.
    Client,
}

impl Request {
    headers!(map::HTTP_REQUEST_HEADERS);

    /// Whether there is no body (and no trailers).
    pub fn has_no_body(&self) -> bool {
        self.end_of_stream
    }

    /// Where the request comes from. An IPv4 address is given as such, not as a mapped one. A client that trusted proxies say
    /// nothing usable about has the unspecified address, `::`, and must be taken for nobody.
    pub fn source(&self, whose: Source) -> SocketAddr {
        let which = match whose {
            Source::Peer => fast::source::PEER,
            Source::Client => fast::source::CLIENT,
        };
        let (ip, port) = sys::source_address(which);
        let ip = Ipv6Addr::from(ip);
        SocketAddr::new(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4), port)
    }

    /// Sends the request by a route. The last selection wins.
    pub fn route(&self, route: RouteId, selection: Selection) {
        select_route(route, selection);
    }

    /// Adds a header field to whatever response the stream will get.
    pub fn add_response_header(&self, name: Name, value: impl AsRef<[u8]>) {
        sys::header_add(fast::map::EVENTUAL_RESPONSE, name, value.as_ref());
    }

    /// Adds [`flag`](crate::flag)s to the access log's line.
    pub fn flag(&self, flags: u32) {
        sys::flag_set(flags);
    }

    /// Sets a named field of the access log's line. At most 16 fields of 256 bytes.
    pub fn log_field(&self, name: &str, value: &str) {
        sys::log_field(name, value);
    }
}

impl Response {
    headers!(map::HTTP_RESPONSE_HEADERS);

    /// Whether there is no body (and no trailers).
    pub fn has_no_body(&self) -> bool {
        self.end_of_stream
    }
}
