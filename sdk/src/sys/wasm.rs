//! The host's functions as imports.
//!
//! The addresses that are handed over are those of live Rust values, and the host checks each range against the module's
//! memory. Data that the host allocates here (the standard's way of returning it) comes from `dispatch::allocate`, exactly
//! as long as the host says, and is taken over as a `Vec`.
#![allow(unsafe_code)]

use tollgate_abi::{fast::Take, pairs};

use super::Span;
use crate::message::Name;

macro_rules! extern_block {
    ($( $(#[$doc:meta])* fn $name:ident($($param:ident: $ty:ident),* $(,)?) -> $ret:ident; )*) => {
        mod fast {
            #[link(wasm_import_module = "tollgate_v1")]
            unsafe extern "C" {
                $(pub(super) fn $name($($param: $ty),*) -> $ret;)*
            }
        }
    };
}
tollgate_abi::for_each_fast_call!(extern_block);

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: i32, message: *const u8, len: usize) -> i32;
    fn proxy_get_buffer_bytes(buffer: i32, start: usize, max: usize, data: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_set_buffer_bytes(buffer: i32, start: usize, size: usize, data: *const u8, len: usize) -> i32;
    fn proxy_get_header_map_pairs(map: i32, data: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_continue_stream(stream: i32) -> i32;
    fn proxy_send_local_response(
        code: u32,
        details: *const u8,
        details_len: usize,
        body: *const u8,
        body_len: usize,
        headers: *const u8,
        headers_len: usize,
        grpc_status: i32,
    ) -> i32;
    fn proxy_define_metric(kind: i32, name: *const u8, len: usize, id: *mut u32) -> i32;
    fn proxy_increment_metric(id: u32, delta: i64) -> i32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> i32;
}

fn ptr<T>(slice: &[T]) -> i32 {
    slice.as_ptr() as i32
}

fn len<T>(slice: &[T]) -> i32 {
    slice.len() as i32
}

/// Takes over what the host has allocated through `dispatch::allocate`.
fn owned(data: *mut u8, size: usize) -> Vec<u8> {
    if data.is_null() || size == 0 {
        return Vec::new();
    }
    // SAFETY: the host got `data` from `dispatch::allocate(size)`, which leaked a `Vec` of exactly this capacity, has
    // written `size` bytes to it, and keeps no claim to it.
    unsafe { Vec::from_raw_parts(data, size, size) }
}

pub(crate) fn subscribe(phases: u32) {
    // SAFETY: no addresses.
    unsafe { fast::subscribe(phases as i32) };
}

pub(crate) fn config_error(path: &str, message: &str) {
    // SAFETY: both ranges are live for the call.
    unsafe {
        fast::config_error(ptr(path.as_bytes()), len(path.as_bytes()), ptr(message.as_bytes()), len(message.as_bytes()))
    };
}

pub(crate) fn header_intern(name: &str) -> i32 {
    // SAFETY: the range is live for the call.
    unsafe { fast::header_intern(ptr(name.as_bytes()), len(name.as_bytes())) }
}

pub(crate) fn header_get(map: i32, name: Name, buffer: &mut [u8]) -> i32 {
    // SAFETY: the host writes at most `buffer.len()` bytes to the buffer, which is borrowed mutably.
    unsafe { fast::header_get(map, name.0 as i32, buffer.as_mut_ptr() as i32, len(buffer)) }
}

pub(crate) fn header_get_many(map: i32, names: &[Name], buffer: &mut [u8], spans: &mut [Span]) -> i32 {
    debug_assert_eq!(names.len(), spans.len());
    // SAFETY: `Name` is a transparent u32, `Span` two 32-bit words; the host writes at most `buffer.len()` bytes to the
    // buffer and one span for each name; both are borrowed mutably.
    unsafe {
        fast::header_get_many(
            map,
            ptr(names),
            len(names),
            buffer.as_mut_ptr() as i32,
            len(buffer),
            spans.as_mut_ptr() as i32,
        )
    }
}

pub(crate) fn header_set(map: i32, name: Name, value: &[u8]) {
    // SAFETY: the range is live for the call.
    unsafe { fast::header_set(map, name.0 as i32, ptr(value), len(value)) };
}

pub(crate) fn header_add(map: i32, name: Name, value: &[u8]) {
    // SAFETY: the range is live for the call.
    unsafe { fast::header_add(map, name.0 as i32, ptr(value), len(value)) };
}

pub(crate) fn header_remove(map: i32, name: Name) {
    // SAFETY: no addresses.
    unsafe { fast::header_remove(map, name.0 as i32) };
}

pub(crate) fn header_pairs(map: i32) -> Vec<(String, Vec<u8>)> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the host writes an address and a length to the two places, and allocates through `dispatch::allocate`.
    let bytes = unsafe {
        proxy_get_header_map_pairs(map, &mut data, &mut size);
        owned(data, size)
    };
    let pairs = pairs::decode(&bytes).unwrap_or_default();
    pairs.into_iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec())).collect()
}

pub(crate) fn source_address(which: i32) -> ([u8; 16], u16) {
    let mut out = [0u8; 18];
    // SAFETY: the host writes 18 bytes, which `out` has.
    unsafe { fast::source_address(which, out.as_mut_ptr() as i32) };
    let mut ip = [0; 16];
    ip.copy_from_slice(&out[..16]);
    (ip, u16::from_le_bytes([out[16], out[17]]))
}

pub(crate) fn route_define(doc: &[u8]) -> i32 {
    // SAFETY: the range is live for the call.
    unsafe { fast::route_define(ptr(doc), len(doc)) }
}

pub(crate) fn route_select(route: u32, given: u32, split: u64, balance: u64) {
    // SAFETY: no addresses.
    unsafe { fast::route_select(route as i32, given as i32, split as i64, balance as i64) };
}

pub(crate) fn cluster_exists(name: &str) -> bool {
    // SAFETY: the range is live for the call.
    unsafe { fast::cluster_exists(ptr(name.as_bytes()), len(name.as_bytes())) == 1 }
}

pub(crate) fn bucket_define(doc: &[u8]) -> i32 {
    // SAFETY: the range is live for the call.
    unsafe { fast::bucket_define(ptr(doc), len(doc)) }
}

pub(crate) fn bucket_take(bucket: u32, key: &[u8], tokens: i32) -> (i32, Take) {
    let mut out = [0; Take::SIZE];
    // SAFETY: the key is live for the call; the host writes `Take::SIZE` bytes.
    let status = unsafe { fast::bucket_take(bucket as i32, ptr(key), len(key), tokens, out.as_mut_ptr() as i32) };
    (status, Take::from_bytes(out))
}

pub(crate) fn limit_define(name: &str, max: u32) -> i32 {
    // SAFETY: the range is live for the call.
    unsafe { fast::limit_define(ptr(name.as_bytes()), len(name.as_bytes()), max as i32) }
}

pub(crate) fn limit_acquire(limit: u32) -> i32 {
    // SAFETY: no addresses.
    unsafe { fast::limit_acquire(limit as i32) }
}

pub(crate) fn limit_release(limit: u32) {
    // SAFETY: no addresses.
    unsafe { fast::limit_release(limit as i32) };
}

pub(crate) fn timer_set(microseconds: u64, token: i64) {
    // SAFETY: no addresses.
    unsafe { fast::timer_set(microseconds as i64, token) };
}

pub(crate) fn flag_set(flags: u32) {
    // SAFETY: no addresses.
    unsafe { fast::flag_set(flags as i32) };
}

pub(crate) fn log_field(name: &str, value: &str) {
    // SAFETY: both ranges are live for the call.
    unsafe {
        fast::log_field(ptr(name.as_bytes()), len(name.as_bytes()), ptr(value.as_bytes()), len(value.as_bytes()))
    };
}

pub(crate) fn now() -> u64 {
    // SAFETY: no addresses.
    unsafe { fast::now() as u64 }
}

pub(crate) fn random() -> u64 {
    // SAFETY: no addresses.
    unsafe { fast::random() as u64 }
}

pub(crate) fn log(level: i32, message: &str) {
    // SAFETY: the range is live for the call.
    unsafe { proxy_log(level, message.as_ptr(), message.len()) };
}

pub(crate) fn buffer_get(buffer: i32, start: usize, max: usize) -> Vec<u8> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: as in `header_pairs`.
    unsafe {
        proxy_get_buffer_bytes(buffer, start, max, &mut data, &mut size);
        owned(data, size)
    }
}

pub(crate) fn buffer_set(buffer: i32, start: usize, size: usize, data: &[u8]) {
    // SAFETY: the range is live for the call.
    unsafe { proxy_set_buffer_bytes(buffer, start, size, data.as_ptr(), data.len()) };
}

pub(crate) fn continue_stream(stream: i32) {
    // SAFETY: no addresses.
    unsafe { proxy_continue_stream(stream) };
}

pub(crate) fn send_local_response(status: u16, details: &str, headers: &[(String, Vec<u8>)], body: &[u8]) {
    let mut encoded = Vec::new();
    pairs::encode(headers.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())), &mut encoded);
    // SAFETY: all ranges are live for the call. -1: no gRPC status.
    unsafe {
        proxy_send_local_response(
            status.into(),
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            encoded.as_ptr(),
            encoded.len(),
            -1,
        )
    };
}

pub(crate) fn metric_define(kind: i32, name: &str) -> u32 {
    let mut id = 0;
    // SAFETY: the name is live for the call, the host writes the id's four bytes.
    unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &mut id) };
    id
}

pub(crate) fn metric_increment(id: u32, delta: i64) {
    // SAFETY: no addresses.
    unsafe { proxy_increment_metric(id, delta) };
}

pub(crate) fn set_tick_period(ms: u32) {
    // SAFETY: no addresses.
    unsafe { proxy_set_tick_period_milliseconds(ms) };
}
