//! Proxy-Wasm's functions as imports.
//!
//! The addresses passed are those of live Rust values, and the host checks each range against the module's memory. Data
//! that the host allocates here (which is how Proxy-Wasm returns data) comes from `dispatch::allocate`, with exactly
//! the length that the host states, and is owned as a `Vec`.
#![allow(unsafe_code)]

use std::ptr;

use tollgate_abi::{pairs, proxy_wasm::Status};

use super::given::{self, owned};
use crate::CallError;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: i32, message: *const u8, len: usize) -> i32;
    fn proxy_get_buffer_bytes(buffer: i32, start: usize, max: usize, data: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_set_buffer_bytes(buffer: i32, start: usize, size: usize, data: *const u8, len: usize) -> i32;
    fn proxy_get_header_map_pairs(map: i32, data: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_get_buffer_status(buffer: i32, length: *mut usize, flags: *mut u32) -> i32;
    #[cfg(any(feature = "log", feature = "tracing"))]
    fn proxy_get_log_level(level: *mut i32) -> i32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> i32;
    fn proxy_set_effective_context(context: u32) -> i32;
    fn proxy_continue_stream(stream: i32) -> i32;
    fn proxy_close_stream(stream: i32) -> i32;
    fn proxy_get_property(path: *const u8, len: usize, value: *mut *mut u8, size: *mut usize) -> i32;
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
    fn proxy_record_metric(id: u32, value: i64) -> i32;
    fn proxy_get_metric(id: u32, value: *mut u64) -> i32;
    fn proxy_http_call(
        upstream: *const u8,
        upstream_len: usize,
        headers: *const u8,
        headers_len: usize,
        body: *const u8,
        body_len: usize,
        trailers: *const u8,
        trailers_len: usize,
        timeout: u32,
        id: *mut u32,
    ) -> i32;
    fn proxy_get_status(code: *mut u32, message: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_get_shared_data(key: *const u8, len: usize, value: *mut *mut u8, size: *mut usize, cas: *mut u32) -> i32;
    fn proxy_set_shared_data(key: *const u8, len: usize, value: *const u8, value_len: usize, cas: u32) -> i32;
    fn proxy_register_shared_queue(name: *const u8, len: usize, id: *mut u32) -> i32;
    fn proxy_resolve_shared_queue(
        vm_id: *const u8,
        vm_id_len: usize,
        name: *const u8,
        name_len: usize,
        id: *mut u32,
    ) -> i32;
    fn proxy_enqueue_shared_queue(id: u32, value: *const u8, len: usize) -> i32;
    fn proxy_dequeue_shared_queue(id: u32, value: *mut *mut u8, size: *mut usize) -> i32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> i32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn random_get(bytes: *mut u8, len: usize) -> i32;
}

/// Returns a header map in the host's encoding.
pub(crate) fn header_map(map: i32) -> Vec<u8> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the host writes an address and a length to the two locations, and allocates through `dispatch::allocate`.
    unsafe {
        proxy_get_header_map_pairs(map, &mut data, &mut size);
        owned(data, size)
    }
}

pub(crate) fn header_pairs(map: i32) -> Vec<(String, Vec<u8>)> {
    let bytes = header_map(map);
    let pairs = pairs::decode(&bytes).unwrap_or_default();
    pairs.into_iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec())).collect()
}

pub(crate) fn log(level: i32, message: &str) {
    // SAFETY: the range is live for the call.
    unsafe { proxy_log(level, message.as_ptr(), message.len()) };
}

pub(crate) fn buffer_get(buffer: i32, start: usize, max: usize) -> Vec<u8> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: as in `header_map`.
    unsafe {
        proxy_get_buffer_bytes(buffer, start, max, &mut data, &mut size);
        owned(data, size)
    }
}

pub(crate) fn buffer_set(buffer: i32, start: usize, size: usize, data: &[u8]) {
    // SAFETY: the range is live for the call.
    unsafe { proxy_set_buffer_bytes(buffer, start, size, data.as_ptr(), data.len()) };
}

pub(crate) fn buffer_len(buffer: i32) -> usize {
    let (mut len, mut flags) = (0, 0);
    // SAFETY: the host writes four bytes to each location.
    unsafe { proxy_get_buffer_status(buffer, &mut len, &mut flags) };
    len
}

pub(crate) fn continue_stream(stream: i32) {
    // SAFETY: no addresses.
    unsafe { proxy_continue_stream(stream) };
}

pub(crate) fn close_stream(stream: i32) {
    // SAFETY: no addresses.
    unsafe { proxy_close_stream(stream) };
}

/// Returns a property by its path, whose parts are joined with zero bytes.
pub(crate) fn property(path: &[u8]) -> Option<Vec<u8>> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the path is live for the call; otherwise as in `header_map`.
    unsafe { (proxy_get_property(path.as_ptr(), path.len(), &mut data, &mut size) == 0).then(|| owned(data, size)) }
}

/// A negative gRPC status is derived from the HTTP status.
pub(crate) fn send_local_response(
    status: u16,
    details: &str,
    headers: &[(String, Vec<u8>)],
    body: &[u8],
    grpc_status: i32,
) {
    let mut encoded = Vec::new();
    pairs::encode(headers.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())), &mut encoded);
    // SAFETY: all ranges are live for the call.
    unsafe {
        proxy_send_local_response(
            status.into(),
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            encoded.as_ptr(),
            encoded.len(),
            grpc_status,
        )
    };
}

pub(crate) fn metric_define(kind: i32, name: &str) -> u32 {
    let mut id = 0;
    // SAFETY: the name is live for the call, the host writes the id's four bytes.
    unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &mut id) };
    id
}

#[inline(always)]
pub(crate) fn metric_increment(id: u32, delta: i64) {
    // SAFETY: no addresses.
    unsafe { proxy_increment_metric(id, delta) };
}

/// Sets the tick of the effective context's root context.
pub(crate) fn set_host_tick(ms: u32) {
    // SAFETY: no addresses.
    unsafe { proxy_set_tick_period_milliseconds(ms) };
}

pub(crate) fn metric_record(id: u32, value: i64) {
    // SAFETY: no addresses.
    unsafe { proxy_record_metric(id, value) };
}

pub(crate) fn metric_get(id: u32) -> u64 {
    let mut value = 0;
    // SAFETY: the host writes the value's eight bytes.
    unsafe { proxy_get_metric(id, &mut value) };
    value
}

/// Returns the lowest severity that is logged.
#[cfg(any(feature = "log", feature = "tracing"))]
pub(crate) fn log_level() -> i32 {
    let mut level = 0;
    // SAFETY: the host writes the level's four bytes.
    unsafe { proxy_get_log_level(&mut level) };
    level
}

pub(crate) fn wall_clock() -> u64 {
    let mut nanoseconds = 0;
    // SAFETY: the host writes eight bytes.
    unsafe { proxy_get_current_time_nanoseconds(&mut nanoseconds) };
    nanoseconds
}

pub(crate) fn random_bytes(bytes: &mut [u8]) {
    // SAFETY: the host writes as many bytes as `part` has, which is mutably borrowed.
    given::fill(bytes, |part| unsafe { random_get(part.as_mut_ptr(), part.len()) });
}

pub(crate) fn set_effective_context(context: u32) {
    super::enter(context);
    // SAFETY: no addresses.
    unsafe { proxy_set_effective_context(context) };
}

pub(crate) fn http_call(
    cluster: &str,
    headers: &[u8],
    body: &[u8],
    trailers: &[u8],
    millis: u32,
) -> Result<u32, CallError> {
    let mut id = 0;
    // SAFETY: all ranges are live for the call; the host writes the id's four bytes.
    let status = unsafe {
        proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            body.as_ptr(),
            body.len(),
            trailers.as_ptr(),
            trailers.len(),
            millis,
            &mut id,
        )
    };
    match status {
        0 => Ok(id),
        s if s == Status::InternalFailure as i32 => Err(CallError::TooMany),
        // A host that cannot tell gets the likelier of two reasons.
        _ if cfg!(feature = "portable") || !super::cluster_exists(cluster) => Err(CallError::UnknownCluster),
        _ => Err(CallError::Invalid),
    }
}

/// Returns the status of the call whose end is being delivered.
fn status() -> (u32, Vec<u8>) {
    let (mut code, mut message, mut size) = (0, ptr::null_mut(), 0);
    // SAFETY: as in `header_map`, plus four bytes.
    unsafe {
        proxy_get_status(&mut code, &mut message, &mut size);
        (code, owned(message, size))
    }
}

/// Returns the message of a gRPC call's status during its callback.
pub(crate) fn status_message() -> String {
    String::from_utf8_lossy(&status().1).into_owned()
}

/// Returns why the call failed whose answer is being delivered.
pub(crate) fn call_failure() -> CallError {
    // The status message repeats it.
    match status().0 {
        4 => CallError::Timeout,
        8 => CallError::TooLarge,
        _ => CallError::Reset,
    }
}

pub(crate) fn shared_get(key: &[u8]) -> Option<(Vec<u8>, u32)> {
    let (mut data, mut size, mut version) = (ptr::null_mut(), 0, 0);
    // SAFETY: the key is live for the call; otherwise as in `header_map`, plus four bytes.
    unsafe {
        let status = proxy_get_shared_data(key.as_ptr(), key.len(), &mut data, &mut size, &mut version);
        (status == 0).then(|| (owned(data, size), version))
    }
}

pub(crate) fn shared_set(key: &[u8], value: &[u8], version: u32) -> i32 {
    // SAFETY: both ranges are live for the call.
    unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), version) }
}

/// Returns the queue's id, or a negative status.
pub(crate) fn queue_register(name: &str) -> i32 {
    let mut id = 0;
    // SAFETY: the name is live for the call, the host writes the id's four bytes.
    let status = unsafe { proxy_register_shared_queue(name.as_ptr(), name.len(), &mut id) };
    if status == 0 { id as i32 } else { -status }
}

pub(crate) fn queue_resolve(vm_id: &str, name: &str) -> Option<u32> {
    let mut id = 0;
    // SAFETY: both names are live for the call, the host writes the id's four bytes.
    let status = unsafe { proxy_resolve_shared_queue(vm_id.as_ptr(), vm_id.len(), name.as_ptr(), name.len(), &mut id) };
    (status == 0).then_some(id)
}

pub(crate) fn queue_push(queue: u32, message: &[u8]) -> bool {
    // SAFETY: the message is live for the call.
    unsafe { proxy_enqueue_shared_queue(queue, message.as_ptr(), message.len()) == 0 }
}

pub(crate) fn queue_pop(queue: u32) -> Option<Vec<u8>> {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    // SAFETY: as in `header_map`.
    unsafe { (proxy_dequeue_shared_queue(queue, &mut data, &mut size) == 0).then(|| owned(data, size)) }
}
