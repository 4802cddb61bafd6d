//! Short replacements of fast-lane functions.

use std::cell::Cell;

use tollgate_abi::{fast, fast::flag, proxy_wasm::log_level};

use super::{address, headers, imports, streams};
use crate::sys;

thread_local! {
    /// The context that host functions act on.
    static CONTEXT: Cell<u32> = const { Cell::new(0) };
    static DICE: Cell<u64> = const { Cell::new(0) };
}

/// Called when a callback begins that acts on this context.
pub(crate) fn enter(context: u32) {
    CONTEXT.set(context);
    headers::forget();
}

pub(super) fn context() -> u32 {
    CONTEXT.get()
}

/// The host makes every callback that the module exports.
pub(crate) fn subscribe(_phases: u32) {}

pub(crate) fn config_error(path: &str, message: &str) {
    match path {
        "" => sys::log(log_level::ERROR, message),
        _ => sys::log(log_level::ERROR, &[path, ": ", message].concat()),
    }
}

/// A Proxy-Wasm host reports only the client's address, as far as it trusts it.
pub(crate) fn source_address(which: i32) -> ([u8; 16], u16) {
    let path: &[u8] = if which == fast::source::LOCAL { b"destination\0address" } else { b"source\0address" };
    sys::property(path).and_then(|text| address::parse(&text)).unwrap_or_default()
}

/// Unknown to Proxy-Wasm.
pub(crate) fn cluster_exists(_name: &str) -> bool {
    true
}

/// A portable filter cannot define routes with `filters`; that is reported with the route.
pub(crate) fn variant_exists(_filter: &str, _variant: &str) -> i32 {
    fast::variant::EXISTS
}

/// The flags are exposed as the property `tollgate_flags`, by their short names.
pub(crate) fn flag_set(flags: u32) {
    let all = streams::add_flags(flags);
    let names: Vec<_> = flag::NAMES.iter().filter(|(bit, _)| all & bit != 0).map(|(_, name)| *name).collect();
    imports::set_property("tollgate_flags", names.join(",").as_bytes());
}

/// The field is exposed as a property.
pub(crate) fn log_field(name: &str, value: &str) {
    imports::set_property(name, value.as_bytes());
}

pub(crate) fn now() -> u64 {
    imports::monotonic()
}

/// SplitMix64, seeded by the host: a host call per number would be slow.
pub(crate) fn random() -> u64 {
    let mut state = DICE.get();
    if state == 0 {
        let mut seed = [0; 8];
        sys::random_bytes(&mut seed);
        state = u64::from_le_bytes(seed);
    }
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    DICE.set(state);
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
