//! The host functions, implemented by this thread's test host.

use tollgate_abi::{fast::Take, proxy_wasm::Status};

use super::{
    Span,
    types::{GrpcError, Name},
};
use crate::{
    CallError,
    testing::{grpc, host::with, services},
};

pub(crate) use crate::testing::host::log;

pub(crate) fn subscribe(phases: u32) {
    with(|h| h.phases = phases);
}

pub(crate) fn config_error(path: &str, message: &str) {
    with(|h| h.config_errors.push(crate::ConfigError::new(path, message)));
}

pub(crate) fn header_intern(name: &str) -> i32 {
    with(|h| h.intern(name))
}

pub(crate) fn header_get(map: i32, name: Name, buffer: &mut [u8]) -> i32 {
    with(|h| h.header(map, name)).map_or(-1, |value| {
        if value.len() <= buffer.len() {
            buffer[..value.len()].copy_from_slice(&value);
        }
        value.len() as i32
    })
}

pub(crate) fn header_get_many(map: i32, names: &[Name], buffer: &mut [u8], spans: &mut [Span]) -> i32 {
    let mut at = 0;
    for (name, span) in names.iter().zip(spans) {
        let value = with(|h| h.header(map, *name));
        *span = Span { offset: at as u32, len: value.as_ref().map_or(-1, |v| v.len() as i32) };
        let value = value.unwrap_or_default();
        if let Some(place) = buffer.get_mut(at..at + value.len()) {
            place.copy_from_slice(&value);
        }
        at += value.len();
    }
    at as i32
}

pub(crate) fn header_set(map: i32, name: Name, value: &[u8]) {
    with(|h| h.set_header(map, name, value));
}

pub(crate) fn header_add(map: i32, name: Name, value: &[u8]) {
    with(|h| h.add_header(map, name, value));
}

pub(crate) fn header_remove(map: i32, name: Name) {
    with(|h| h.remove_header(map, name));
}

/// Returns a header map in the host's encoding.
pub(crate) fn header_map(map: i32) -> Vec<u8> {
    with(|h| h.encoded_map(map))
}

pub(crate) fn header_pairs(map: i32) -> Vec<(String, Vec<u8>)> {
    with(|h| h.map(map).clone())
}

pub(crate) fn source_address(which: i32) -> ([u8; 16], u16) {
    with(|h| h.source(which))
}

pub(crate) fn route_define(route: &crate::doc::Route) -> i32 {
    with(|h| h.define_route(route))
}

pub(crate) fn route_select(route: u32, given: u32, split: u64, balance: u64) {
    with(|h| h.select_route(route, given, split, balance));
}

pub(crate) fn route_clear() {
    with(|h| h.stream().selected = None);
}

pub(crate) fn variant_exists(filter: &str, variant: &str) -> i32 {
    with(|h| h.variant_exists(filter, variant))
}

pub(crate) fn cluster_exists(name: &str) -> bool {
    with(|h| h.cluster_exists(name))
}

pub(crate) fn bucket_define(bucket: &crate::doc::Bucket) -> i32 {
    with(|h| h.define_bucket(bucket))
}

pub(crate) fn bucket_take(bucket: u32, key: &[u8], tokens: i32) -> (i32, Take) {
    with(|h| h.take(bucket, key, tokens))
}

pub(crate) fn limit_define(_name: &str, max: u32) -> i32 {
    with(|h| {
        h.limits.push((max, 0));
        h.limits.len() as i32 - 1
    })
}

pub(crate) fn limit_acquire(limit: u32) -> i32 {
    with(|h| h.acquire(limit))
}

pub(crate) fn limit_release(limit: u32) {
    with(|h| h.release(limit));
}

pub(crate) fn timer_set(microseconds: u64, token: i64) -> bool {
    with(|h| h.set_timer(microseconds, token))
}

pub(crate) fn flag_set(flags: u32) {
    with(|h| h.stream().flags |= flags);
}

pub(crate) fn log_field(name: &str, value: &str) {
    with(|h| h.stream().log_fields.push((name.into(), value.into())));
}

pub(crate) fn now() -> u64 {
    with(|h| h.now_ns)
}

pub(crate) fn random() -> u64 {
    with(|h| h.random())
}

pub(crate) fn buffer_get(buffer: i32, start: usize, max: usize) -> Vec<u8> {
    with(|h| h.buffer(buffer).map_or_else(Vec::new, |b| b.iter().skip(start).take(max).copied().collect()))
}

pub(crate) fn buffer_set(buffer: i32, start: usize, size: usize, data: &[u8]) {
    with(|h| {
        let Some(bytes) = h.buffer(buffer) else { return };
        let end = start.saturating_add(size).min(bytes.len());
        bytes.splice(start.min(end)..end, data.iter().copied());
    });
}

pub(crate) fn buffer_len(buffer: i32) -> usize {
    with(|h| h.buffer(buffer).map_or(0, |b| b.len()))
}

pub(crate) fn continue_stream(stream: i32) {
    with(|h| h.resume(stream));
}

pub(crate) fn close_stream(_stream: i32) {
    with(|h| h.close());
}

/// The test host has no properties.
pub(crate) fn property(_path: &[u8]) -> Option<Vec<u8>> {
    None
}

pub(crate) fn send_local_response(
    status: u16,
    details: &str,
    headers: &[(String, Vec<u8>)],
    body: &[u8],
    grpc_status: i32,
) {
    let (headers, body, grpc_status) = (headers.to_vec(), body.to_vec(), u8::try_from(grpc_status).ok());
    let reply = crate::Reply { status, headers, body, details: details.into(), grpc_status };
    // The first response of a callback counts.
    with(|h| h.stream().answer.get_or_insert(reply).status);
}

pub(crate) fn set_effective_context(context: u32) {
    with(|h| h.set_effective(context));
}

pub(crate) fn metric_define(kind: i32, name: &str) -> u32 {
    with(|h| h.define_metric(kind, name))
}

pub(crate) fn metric_increment(id: u32, delta: i64) {
    with(|h| h.increment_metric(id, delta));
}

pub(crate) fn metric_record(id: u32, value: i64) {
    with(|h| h.record_metric(id, value));
}

pub(crate) fn metric_get(id: u32) -> u64 {
    with(|h| h.metric_value(id))
}

pub(crate) fn set_tick_period(ms: u32) {
    with(|h| h.tick_ms = ms);
}

/// Returns the lowest severity that is logged.
#[cfg(any(feature = "log", feature = "tracing"))]
pub(crate) fn log_level() -> i32 {
    crate::Level::Trace as i32
}

pub(crate) fn wall_clock() -> u64 {
    with(|h| h.wall_clock())
}

pub(crate) fn random_bytes(bytes: &mut [u8]) {
    for part in bytes.chunks_mut(8) {
        part.copy_from_slice(&random().to_le_bytes()[..part.len()]);
    }
}

pub(crate) fn http_call(
    cluster: &str,
    headers: &[u8],
    body: &[u8],
    trailers: &[u8],
    millis: u32,
) -> Result<u32, CallError> {
    services::call(cluster, headers, body, trailers, millis)
}

pub(crate) fn grpc_call(
    cluster: &str,
    service: &str,
    method: &str,
    metadata: &[u8],
    message: &[u8],
    millis: u32,
) -> Result<u32, GrpcError> {
    grpc::open(cluster, service, method, metadata, Some((message, millis)))
}

pub(crate) fn grpc_stream(cluster: &str, service: &str, method: &str, metadata: &[u8]) -> Result<u32, GrpcError> {
    grpc::open(cluster, service, method, metadata, None)
}

pub(crate) fn grpc_send(call: u32, message: &[u8], end: bool) -> bool {
    with(|h| h.grpc_send(call, message, end))
}

pub(crate) fn grpc_close(call: u32) {
    with(|h| h.grpc_end(call));
}

pub(crate) fn grpc_cancel(call: u32) {
    with(|h| h.grpc_cancel(call));
}

/// Returns the message of a gRPC call's status during its callback.
pub(crate) fn status_message() -> String {
    with(|h| h.grpc_status_message())
}

/// Returns why the call failed whose answer is being delivered.
pub(crate) fn call_failure() -> CallError {
    with(|h| h.failure())
}

pub(crate) fn shared_get(key: &[u8]) -> Option<(Vec<u8>, u32)> {
    with(|h| h.shared_get(key))
}

pub(crate) fn shared_set(key: &[u8], value: &[u8], version: u32) -> i32 {
    with(|h| h.shared_set(key, value, version))
}

pub(crate) fn shared_set_if(key: &[u8], value: &[u8], expected: i64, ttl_ms: u64) -> i32 {
    with(|h| h.shared_set_if(key, value, expected, ttl_ms))
}

pub(crate) fn shared_delete(key: &[u8], expected: i64) -> i32 {
    with(|h| h.shared_delete(key, expected))
}

/// Writes a value to a buffer if it fits, as the host does.
fn write(value: Option<&[u8]>, buffer: &mut [u8]) -> i32 {
    value.map_or(-(Status::NotFound as i32), |value| {
        if let Some(place) = buffer.get_mut(..value.len()) {
            place.copy_from_slice(value);
        }
        value.len() as i32
    })
}

pub(crate) fn state_get(key: &[u8], buffer: &mut [u8]) -> i32 {
    with(|h| write(h.stream().state.get(key).map(Vec::as_slice), buffer))
}

pub(crate) fn state_set(key: &[u8], value: &[u8]) -> i32 {
    with(|h| h.set_state(key, value))
}

pub(crate) fn state_delete(key: &[u8]) -> i32 {
    with(|h| h.stream().state.remove(key)).map_or(Status::NotFound, |_| Status::Ok) as i32
}

pub(crate) fn metadata_get(space: &[u8], key: &[u8], kind: &mut u32, buffer: &mut [u8]) -> i32 {
    with(|h| {
        let found = h.stream().metadata.get(&(space.to_vec(), key.to_vec()));
        if let Some((of, _)) = found {
            *kind = *of as u32;
        }
        write(found.map(|(_, value)| value.as_slice()), buffer)
    })
}

pub(crate) fn metadata_set(space: &[u8], key: &[u8], kind: i32, value: &[u8]) -> i32 {
    with(|h| h.set_metadata(space, key, kind, value))
}

pub(crate) fn metadata_delete(space: &[u8], key: &[u8]) -> i32 {
    let removed = with(|h| h.stream().metadata.remove(&(space.to_vec(), key.to_vec())));
    removed.map_or(Status::NotFound, |_| Status::Ok) as i32
}

pub(crate) fn queue_register(name: &str) -> i32 {
    with(|h| h.queue(name, true)) as i32
}

/// The test host has a single `vm_id`.
pub(crate) fn queue_resolve(_vm_id: &str, name: &str) -> Option<u32> {
    with(|h| h.find_queue(name))
}

pub(crate) fn queue_push(queue: u32, message: &[u8]) -> bool {
    with(|h| h.push(queue, message))
}

pub(crate) fn queue_pop(queue: u32) -> Option<Vec<u8>> {
    with(|h| h.pop(queue))
}
