//! A request's head as rules see it: host, path and method are read in a single host call; other headers only when a
//! rule needs them, and only once.

use std::{borrow::Cow, cell::RefMut};

use rustc_hash::FxHashMap;
use tollgate_sdk::{
    Buffer, Name, Request, Setup, Source,
    matching::{compared, position},
};

/// A `:path`, split once.
pub(crate) struct Target<'a> {
    whole: &'a [u8],
    written: &'a [u8],
    path: Cow<'a, [u8]>,
    query: Option<&'a [u8]>,
}

impl<'a> Target<'a> {
    pub(crate) fn of(whole: &'a [u8]) -> Self {
        let (written, query) = match position(whole, b'?') {
            Some(at) => (&whole[..at], Some(&whole[at + 1..])),
            None => (whole, None),
        };
        Target { whole, written, path: compared(written), query }
    }
}

/// The head of the current request.
pub(crate) struct Head<'a> {
    pub(crate) request: &'a Request,
    /// The host as sent by the client.
    pub(crate) authority: &'a [u8],
    /// The path with the query, as sent by the client.
    pub(crate) target: &'a [u8],
    /// The path without the query, as sent by the client.
    pub(crate) written: &'a [u8],
    /// The same in the form that rules compare.
    pub(crate) path: &'a [u8],
    /// The query without the `?`.
    pub(crate) query: Option<&'a [u8]>,
    pub(crate) method: &'a [u8],
    cache: RefMut<'a, HeaderCache>,
}

impl<'a> Head<'a> {
    pub(crate) fn new(
        request: &'a Request,
        [authority, method]: [Option<&'a [u8]>; 2],
        target: &'a Target<'a>,
        mut cache: RefMut<'a, HeaderCache>,
    ) -> Self {
        cache.begin();
        let (authority, method) = (authority.unwrap_or_default(), method.unwrap_or_default());
        let Target { whole, written, path, query } = target;
        Head { request, authority, target: whole, written, path, query: *query, method, cache }
    }

    /// The value of a header.
    pub(crate) fn header(&mut self, slot: Slot) -> Option<&[u8]> {
        self.cache.get(self.request, slot)
    }

    /// The first query parameter of this name; empty if it has no `=`.
    pub(crate) fn parameter(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.query?.split(|b| *b == b'&').find_map(|parameter| {
            let rest = parameter.strip_prefix(name)?;
            if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"=") }
        })
    }

    /// The client's address: 4 or 16 bytes, and the number of bytes used.
    pub(crate) fn source(&self) -> ([u8; 16], usize) {
        let mut bytes = [0; 16];
        let len = match self.request.source(Source::Client).ip() {
            std::net::IpAddr::V4(ip) => {
                bytes[..4].copy_from_slice(&ip.octets());
                4
            }
            std::net::IpAddr::V6(ip) => {
                bytes = ip.octets();
                16
            }
        };
        (bytes, len)
    }
}

/// A header that some rule reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(u32);

/// The headers that rules read, each in one slot, however many rules read it.
#[derive(Default)]
pub(crate) struct HeaderNames {
    slots: FxHashMap<String, Slot>,
    names: Vec<Name>,
}

impl HeaderNames {
    /// The slot of a header; `name` is in lower case.
    pub(crate) fn slot(&mut self, name: &str, setup: &mut Setup) -> Slot {
        // HTTP/1's `host` is `:authority` here, as everywhere in the proxy.
        let name = if name == "host" { ":authority" } else { name };
        if let Some(slot) = self.slots.get(name) {
            return *slot;
        }
        let slot = Slot(self.names.len() as u32);
        self.names.push(setup.name(name));
        self.slots.insert(name.into(), slot);
        slot
    }

    pub(crate) fn into_cache(self) -> HeaderCache {
        let values = vec![Cached { request: 0, span: None }; self.names.len()];
        HeaderCache { names: self.names, values, bytes: Vec::new(), buffer: Buffer::new(), request: 0 }
    }
}

/// Values of the current request's headers. Its memory is reused for each request.
pub(crate) struct HeaderCache {
    names: Vec<Name>,
    values: Vec<Cached>,
    bytes: Vec<u8>,
    buffer: Buffer,
    /// The current request's number.
    request: u32,
}

#[derive(Clone, Copy)]
struct Cached {
    /// The request that it belongs to: a new request invalidates all values without touching them.
    request: u32,
    /// The value's range in the bytes, if the header is present.
    span: Option<(u32, u32)>,
}

impl HeaderCache {
    fn begin(&mut self) {
        self.bytes.clear();
        self.request = self.request.wrapping_add(1);
        if self.request == 0 {
            // After wrapping around, values from 2^32 requests ago must not be mistaken for current ones.
            self.values.iter_mut().for_each(|value| value.request = 0);
            self.request = 1;
        }
    }

    fn get(&mut self, request: &Request, Slot(slot): Slot) -> Option<&[u8]> {
        let cached = self.values.get_mut(slot as usize)?;
        if cached.request != self.request {
            let value = request.header(self.names[slot as usize], &mut self.buffer);
            let span = value.map(|value| {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(value);
                (start as u32, self.bytes.len() as u32)
            });
            *cached = Cached { request: self.request, span };
        }
        let (start, end) = cached.span?;
        self.bytes.get(start as usize..end as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_values_are_not_reused_after_wraparound() {
        let values = vec![Cached { request: 0, span: None }, Cached { request: 1, span: None }];
        let (bytes, buffer) = (Vec::new(), Buffer::new());
        let mut cache = HeaderCache { names: Vec::new(), values, bytes, buffer, request: u32::MAX };
        cache.begin();
        assert!(cache.values.iter().all(|value| value.request != cache.request));
    }
}
