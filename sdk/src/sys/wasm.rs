//! The fast-lane functions as imports. The addresses passed are those of live Rust values, and the host checks each
//! range against the module's memory. Functions called per request are inlined: entering a function costs a module two
//! checks, for its stack and its time limit.
#![allow(unsafe_code)]

use tollgate_abi::fast::Take;

pub(crate) use super::standard::set_host_tick as set_tick_period;
use super::{Span, types::Name};
use crate::doc;

macro_rules! extern_block {
    ($( $(#[$doc:meta])* fn $name:ident($($param:ident: $ty:ident),* $(,)?) -> $ret:ident; )*) => {
        // Also declares functions for which the SDK uses Proxy-Wasm's.
        #[allow(dead_code)]
        mod fast {
            #[link(wasm_import_module = "tollgate_v1")]
            unsafe extern "C" {
                $(pub(super) fn $name($($param: $ty),*) -> $ret;)*
            }
        }
    };
}
tollgate_abi::for_each_fast_call!(extern_block);

fn ptr<T>(slice: &[T]) -> i32 {
    slice.as_ptr() as i32
}

fn len<T>(slice: &[T]) -> i32 {
    slice.len() as i32
}

/// `serde_json` cannot fail on documents of strings and numbers; an empty document, which the host rejects, represents
/// failure.
fn json<T: serde::Serialize>(doc: &T) -> Vec<u8> {
    serde_json::to_vec(doc).unwrap_or_default()
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

#[inline(always)]
pub(crate) fn header_get(map: i32, name: Name, buffer: &mut [u8]) -> i32 {
    // SAFETY: the host writes at most `buffer.len()` bytes to the buffer, which is mutably borrowed.
    unsafe { fast::header_get(map, name.0 as i32, buffer.as_mut_ptr() as i32, len(buffer)) }
}

#[inline(always)]
pub(crate) fn header_get_many(map: i32, names: &[Name], buffer: &mut [u8], spans: &mut [Span]) -> i32 {
    debug_assert_eq!(names.len(), spans.len());
    // SAFETY: `Name` is a transparent u32, `Span` two 32-bit words; the host writes at most `buffer.len()` bytes to the
    // buffer and one span per name; both are mutably borrowed.
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

pub(crate) fn source_address(which: i32) -> ([u8; 16], u16) {
    let mut out = [0u8; 18];
    // SAFETY: the host writes 18 bytes, the size of `out`.
    unsafe { fast::source_address(which, out.as_mut_ptr() as i32) };
    let mut ip = [0; 16];
    ip.copy_from_slice(&out[..16]);
    (ip, u16::from_le_bytes([out[16], out[17]]))
}

pub(crate) fn route_define(route: &doc::Route) -> i32 {
    let doc = json(route);
    // SAFETY: the range is live for the call.
    unsafe { fast::route_define(ptr(&doc), len(&doc)) }
}

#[inline(always)]
pub(crate) fn route_select(route: u32, given: u32, split: u64, balance: u64) {
    // SAFETY: no addresses.
    unsafe { fast::route_select(route as i32, given as i32, split as i64, balance as i64) };
}

pub(crate) fn route_clear() {
    // SAFETY: no addresses.
    unsafe { fast::route_clear() };
}

pub(crate) fn variant_exists(filter: &str, variant: &str) -> i32 {
    let (filter, variant) = (filter.as_bytes(), variant.as_bytes());
    // SAFETY: both ranges are live for the call.
    unsafe { fast::variant_exists(ptr(filter), len(filter), ptr(variant), len(variant)) }
}

pub(crate) fn cluster_exists(name: &str) -> bool {
    // SAFETY: the range is live for the call.
    unsafe { fast::cluster_exists(ptr(name.as_bytes()), len(name.as_bytes())) == 1 }
}

pub(crate) fn bucket_define(bucket: &doc::Bucket) -> i32 {
    let doc = json(bucket);
    // SAFETY: the range is live for the call.
    unsafe { fast::bucket_define(ptr(&doc), len(&doc)) }
}

#[inline(always)]
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

/// Returns whether the timer was set.
pub(crate) fn timer_set(microseconds: u64, token: i64) -> bool {
    // SAFETY: no addresses.
    unsafe { fast::timer_set(microseconds as i64, token) == 0 }
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

pub(crate) fn shared_set_if(key: &[u8], value: &[u8], expected: i64, ttl_ms: u64) -> i32 {
    let ttl = i64::try_from(ttl_ms).unwrap_or(i64::MAX);
    // SAFETY: both ranges are live for the call.
    unsafe { fast::shared_set(ptr(key), len(key), ptr(value), len(value), expected, ttl) }
}

pub(crate) fn shared_delete(key: &[u8], expected: i64) -> i32 {
    // SAFETY: the range is live for the call.
    unsafe { fast::shared_delete(ptr(key), len(key), expected) }
}

pub(crate) fn state_get(key: &[u8], buffer: &mut [u8]) -> i32 {
    // SAFETY: the key is live for the call; the host writes at most `buffer.len()` bytes to the buffer, which is
    // mutably borrowed.
    unsafe { fast::state_get(ptr(key), len(key), buffer.as_mut_ptr() as i32, len(buffer)) }
}

pub(crate) fn state_set(key: &[u8], value: &[u8]) -> i32 {
    // SAFETY: both ranges are live for the call.
    unsafe { fast::state_set(ptr(key), len(key), ptr(value), len(value)) }
}

pub(crate) fn state_delete(key: &[u8]) -> i32 {
    // SAFETY: the range is live for the call.
    unsafe { fast::state_delete(ptr(key), len(key)) }
}

pub(crate) fn metadata_get(space: &[u8], key: &[u8], kind: &mut u32, buffer: &mut [u8]) -> i32 {
    // SAFETY: both names are live for the call; the host writes four bytes to `kind`, and at most `buffer.len()` bytes
    // to the buffer; both are mutably borrowed.
    unsafe {
        fast::metadata_get(
            ptr(space),
            len(space),
            ptr(key),
            len(key),
            std::ptr::from_mut(kind) as i32,
            buffer.as_mut_ptr() as i32,
            len(buffer),
        )
    }
}

pub(crate) fn metadata_set(space: &[u8], key: &[u8], kind: i32, value: &[u8]) -> i32 {
    // SAFETY: all ranges are live for the call.
    unsafe { fast::metadata_set(ptr(space), len(space), ptr(key), len(key), kind, ptr(value), len(value)) }
}

pub(crate) fn metadata_delete(space: &[u8], key: &[u8]) -> i32 {
    // SAFETY: both ranges are live for the call.
    unsafe { fast::metadata_delete(ptr(space), len(space), ptr(key), len(key)) }
}

pub(crate) fn now() -> u64 {
    // SAFETY: no addresses.
    unsafe { fast::now() as u64 }
}

pub(crate) fn random() -> u64 {
    // SAFETY: no addresses.
    unsafe { fast::random() as u64 }
}
