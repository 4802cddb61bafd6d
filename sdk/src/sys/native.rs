//! The host's functions, answered by the test host of this thread.

use tollgate_abi::fast::Take;

use super::Span;
use crate::{message::Name, testing::host::with};

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

pub(crate) fn header_pairs(map: i32) -> Vec<(String, Vec<u8>)> {
    with(|h| h.map(map).clone())
}

pub(crate) fn source_address(which: i32) -> ([u8; 16], u16) {
    with(|h| h.source(which))
}

pub(crate) fn route_define(doc: &[u8]) -> i32 {
    with(|h| h.define_route(doc))
}

pub(crate) fn route_select(route: u32, given: u32, split: u64, balance: u64) {
    with(|h| h.select_route(route, given, split, balance));
}

pub(crate) fn cluster_exists(name: &str) -> bool {
    with(|h| h.cluster_exists(name))
}

pub(crate) fn bucket_define(doc: &[u8]) -> i32 {
    with(|h| h.define_bucket(doc))
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

pub(crate) fn timer_set(microseconds: u64, token: i64) {
    with(|h| h.stream.timer = Some((h.now_ns + microseconds * 1000, token)));
}

pub(crate) fn flag_set(flags: u32) {
    with(|h| h.stream.flags |= flags);
}

pub(crate) fn log_field(name: &str, value: &str) {
    with(|h| h.stream.log_fields.push((name.into(), value.into())));
}

pub(crate) fn now() -> u64 {
    with(|h| h.now_ns)
}

pub(crate) fn random() -> u64 {
    with(|h| h.random())
}

pub(crate) fn log(level: i32, message: &str) {
    with(|h| h.logs.push((level, message.into())));
}

pub(crate) fn buffer_get(buffer: i32, start: usize, max: usize) -> Vec<u8> {
    with(|h| h.buffer(buffer).iter().skip(start).take(max).copied().collect())
}

pub(crate) fn buffer_set(buffer: i32, start: usize, size: usize, data: &[u8]) {
    with(|h| {
        let bytes = h.buffer(buffer);
        let end = start.saturating_add(size).min(bytes.len());
        bytes.splice(start.min(end)..end, data.iter().copied());
    });
}

pub(crate) fn continue_stream(_stream: i32) {
    with(|h| h.stream.continued = true);
}

pub(crate) fn send_local_response(status: u16, details: &str, headers: &[(String, Vec<u8>)], body: &[u8]) {
    let reply = crate::Reply { status, headers: headers.to_vec(), body: body.to_vec(), details: details.into() };
    with(|h| h.stream.reply = Some(reply));
}

pub(crate) fn metric_define(_kind: i32, name: &str) -> u32 {
    with(|h| {
        h.metrics.push((name.into(), 0));
        h.metrics.len() as u32 - 1
    })
}

pub(crate) fn metric_increment(id: u32, delta: i64) {
    with(|h| h.metrics[id as usize].1 += delta);
}

pub(crate) fn set_tick_period(ms: u32) {
    with(|h| h.tick_ms = ms);
}
