//! Proxy-Wasm functions that only this folder needs, as imports. See `standard`.
#![allow(unsafe_code)]

use std::ptr;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_replace_header_map_value(map: i32, name: *const u8, len: usize, value: *const u8, size: usize) -> i32;
    fn proxy_add_header_map_value(map: i32, name: *const u8, len: usize, value: *const u8, size: usize) -> i32;
    fn proxy_remove_header_map_value(map: i32, name: *const u8, len: usize) -> i32;
    fn proxy_set_property(path: *const u8, len: usize, value: *const u8, size: usize) -> i32;
    fn proxy_call_foreign_function(
        name: *const u8,
        len: usize,
        arguments: *const u8,
        arguments_len: usize,
        result: *mut *mut u8,
        size: *mut usize,
    ) -> i32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: i32, precision: i64, time: *mut u64) -> i32;
}

pub(super) fn set_header(map: i32, name: &str, value: &[u8]) {
    // SAFETY: both ranges are live for the call.
    unsafe { proxy_replace_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len()) };
}

pub(super) fn add_header(map: i32, name: &str, value: &[u8]) {
    // SAFETY: both ranges are live for the call.
    unsafe { proxy_add_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len()) };
}

pub(super) fn remove_header(map: i32, name: &str) {
    // SAFETY: the range is live for the call.
    unsafe { proxy_remove_header_map_value(map, name.as_ptr(), name.len()) };
}

pub(super) fn set_property(path: &str, value: &[u8]) {
    // SAFETY: both ranges are live for the call.
    unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) };
}

/// Calls a foreign function of the host, if it exists, without arguments or a result.
pub(super) fn call(name: &str) {
    // SAFETY: the name is live for the call; a host that gets null pointers for a result returns none.
    unsafe { proxy_call_foreign_function(name.as_ptr(), name.len(), ptr::null(), 0, ptr::null_mut(), ptr::null_mut()) };
}

/// Returns the time of a monotonic clock, in nanoseconds.
pub(super) fn monotonic() -> u64 {
    const MONOTONIC: i32 = 1;
    let mut time = 0;
    // SAFETY: the host writes eight bytes.
    unsafe { clock_time_get(MONOTONIC, 1, &mut time) };
    time
}
