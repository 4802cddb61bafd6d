//! Headers. Proxy-Wasm's functions return only the first of several fields with the same name, which would allow
//! bypassing a filter that decides by it. Maps are therefore read as a whole and cached during the callback.

use std::{cell::RefCell, mem::ManuallyDrop};

use tollgate_abi::{
    fast::{self, limit},
    pairs,
    proxy_wasm::{Status, map},
};

use super::{imports, streams};
use crate::{
    sys::{
        Span, header_map,
        types::{Half, Name},
    },
    table::borrow,
};

/// The maps read during this callback, in the host's encoding.
type Maps = Vec<(i32, Vec<u8>)>;

thread_local! {
    static NAMES: ManuallyDrop<RefCell<Vec<&'static str>>> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
    static READ: ManuallyDrop<RefCell<Maps>> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

/// Names are few and live as long as the module, so they are never freed.
pub(crate) fn header_intern(name: &str) -> i32 {
    // As in Tollgate: hosts use only the newer name.
    let name = if name == "host" { ":authority" } else { name };
    NAMES.with(|names| {
        let mut names = borrow(names);
        let known = names.iter().position(|known| *known == name);
        match known {
            Some(at) => at as i32,
            None if names.len() >= limit::NAMES => -(Status::InternalFailure as i32),
            None => {
                names.push(String::from(name).leak());
                names.len() as i32 - 1
            }
        }
    })
}

fn text(name: Name) -> Option<&'static str> {
    NAMES.with(|names| borrow(names).get(name.0 as usize).copied())
}

/// Clears the cache when another callback begins or the effective context changes.
pub(super) fn forget() {
    READ.with(|read| borrow(read).clear());
}

fn changed(map: i32) {
    READ.with(|read| borrow(read).retain(|(known, _)| *known != map));
}

fn with_map<T>(map: i32, f: impl FnOnce(&[pairs::Pair<'_>]) -> T) -> T {
    READ.with(|read| {
        let mut read = borrow(read);
        let at = read.iter().position(|(known, _)| *known == map).unwrap_or_else(|| {
            read.push((map, header_map(map)));
            read.len() - 1
        });
        f(&pairs::decode(&read[at].1).unwrap_or_default())
    })
}

/// A buffer that is filled as far as it has room, and the length needed.
struct Fill<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl Fill<'_> {
    fn push(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if let Some(place) = self.buffer.get_mut(self.len..end) {
            place.copy_from_slice(bytes);
        }
        self.len = end;
    }

    /// Returns the length of a header's value, with its fields joined.
    fn value(&mut self, pairs: &[pairs::Pair<'_>], name: Name) -> Option<i32> {
        let name = text(name)?.as_bytes();
        let separator: &[u8] = if name == b"cookie" { b"; " } else { b", " };
        let (start, mut found) = (self.len, false);
        for (_, value) in pairs.iter().filter(|(known, _)| *known == name) {
            if std::mem::replace(&mut found, true) {
                self.push(separator);
            }
            self.push(value);
        }
        found.then_some((self.len - start) as i32)
    }
}

pub(crate) fn header_get(map: i32, name: Name, buffer: &mut [u8]) -> i32 {
    with_map(map, |pairs| Fill { buffer, len: 0 }.value(pairs, name)).unwrap_or(-(Status::NotFound as i32))
}

pub(crate) fn header_get_many(map: i32, names: &[Name], buffer: &mut [u8], spans: &mut [Span]) -> i32 {
    with_map(map, |pairs| {
        let mut fill = Fill { buffer, len: 0 };
        for (name, span) in names.iter().zip(spans) {
            let offset = fill.len as u32;
            *span = Span { offset, len: fill.value(pairs, *name).unwrap_or(-1) };
        }
        fill.len as i32
    })
}

/// Returns the value of a map's first field with this name.
pub(super) fn first(map: i32, name: &str) -> Vec<u8> {
    with_map(map, |pairs| {
        let found = pairs.iter().find(|(known, _)| *known == name.as_bytes());
        found.map(|(_, value)| value.to_vec()).unwrap_or_default()
    })
}

pub(crate) fn header_set(map: i32, name: Name, value: &[u8]) {
    let Some(name) = text(name) else { return };
    set(map, name, value);
}

pub(super) fn set(map: i32, name: &str, value: &[u8]) {
    imports::set_header(map, name, value);
    changed(map);
}

pub(crate) fn header_add(map: i32, name: Name, value: &[u8]) {
    let Some(name) = text(name) else { return };
    match map {
        fast::map::EVENTUAL_RESPONSE => streams::add_field(name, value),
        _ => add(map, name, value),
    }
}

pub(super) fn add(map: i32, name: &str, value: &[u8]) {
    imports::add_header(map, name, value);
    changed(map);
}

pub(crate) fn header_remove(map: i32, name: Name) {
    let Some(name) = text(name) else { return };
    remove(map, name);
}

pub(super) fn remove(map: i32, name: &str) {
    imports::remove_header(map, name);
    changed(map);
}

/// Prepares for a change of the length of the body that follows these headers: Proxy-Wasm requires the filter to remove
/// the `content-length` field.
pub(crate) fn body_may_change(half: Half) {
    let map = if half == Half::Request { map::HTTP_REQUEST_HEADERS } else { map::HTTP_RESPONSE_HEADERS };
    remove(map, "content-length");
}
