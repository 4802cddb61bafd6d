//! State kept for streams until their response or end. Most streams need none.

use std::{cell::RefCell, mem::ManuallyDrop};

use tollgate_abi::proxy_wasm::map;

use super::{counts, headers, lane, routes, schedule};
use crate::{
    sys,
    table::{Table, borrow},
};

/// State of a stream.
#[derive(Default)]
struct Kept {
    flags: u32,
    /// Fields for whichever response follows.
    fields: Vec<(&'static str, Vec<u8>)>,
    route: Option<u32>,
    /// Limits of which it holds a permit.
    places: Vec<u32>,
}

thread_local! {
    static KEPT: ManuallyDrop<RefCell<Table<Kept>>> = const { ManuallyDrop::new(RefCell::new(Table::new())) };
}

/// Runs `f` on the current stream's state.
fn with<T>(f: impl FnOnce(&mut Kept) -> T) -> T {
    let context = lane::context();
    KEPT.with(|kept| {
        let mut kept = borrow(kept);
        if kept.get_mut(context).is_none() {
            kept.insert(context, Kept::default());
        }
        kept.get_mut(context).map(f).expect("it was put in")
    })
}

/// Adds flags and returns all flags of the stream.
pub(super) fn add_flags(flags: u32) -> u32 {
    with(|k| {
        k.flags |= flags;
        k.flags
    })
}

pub(super) fn add_field(name: &'static str, value: &[u8]) {
    with(|k| k.fields.push((name, value.to_vec())));
}

pub(super) fn select(route: u32) {
    with(|k| k.route = Some(route));
}

/// Returns the route that was selected, if any.
pub(super) fn deselect() -> Option<u32> {
    with(|k| k.route.take())
}

pub(super) fn has_place(limit: u32) -> bool {
    with(|k| k.places.contains(&limit))
}

pub(super) fn add_place(limit: u32) {
    with(|k| k.places.push(limit));
}

/// Returns whether the stream held a permit.
pub(super) fn remove_place(limit: u32) -> bool {
    with(|k| k.places.iter().position(|place| *place == limit).map(|at| k.places.swap_remove(at))).is_some()
}

/// Called when a response arrives, before the filter sees it.
pub(crate) fn begin_response() {
    let context = lane::context();
    let found = KEPT.with(|kept| {
        let mut kept = borrow(kept);
        kept.get_mut(context).map(|kept| (std::mem::take(&mut kept.fields), kept.route.take()))
    });
    let Some((fields, route)) = found else { return };
    if let Some(route) = route
        && is_from_upstream()
    {
        routes::change_response(route);
    }
    for (name, value) in fields {
        headers::add(map::HTTP_RESPONSE_HEADERS, name, &value);
    }
}

/// Reports whether the response comes from an upstream, not from a filter or the proxy.
fn is_from_upstream() -> bool {
    let details = sys::property(b"response\0code_details").unwrap_or_default();
    matches!(&*details, b"" | b"via_upstream")
}

/// Called when a context was deleted.
pub(crate) fn leave(context: u32) {
    schedule::host::cancel(context);
    let gone = KEPT.with(|kept| borrow(kept).remove(context));
    gone.into_iter().flat_map(|kept| kept.places).for_each(counts::host::give_back);
}
