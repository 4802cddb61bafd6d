//! Per-stream data, and shared data with conditions and expiry, as far as Proxy-Wasm supports them. A property that a
//! filter sets on a stream can be read by later filters. Properties cannot be removed, so an empty value counts as
//! none.

use tollgate_abi::{
    fast::expected,
    proxy_wasm::Status,
    value::{Value, kind},
};

use super::imports;
use crate::sys;

/// Returns the property for a key of a stream's state.
fn state(key: &[u8]) -> Vec<u8> {
    [b"tollgate_state.", key].concat()
}

/// Returns the property for a metadata value, which begins with its type.
fn metadata(space: &[u8], key: &[u8]) -> Vec<u8> {
    [b"tollgate_metadata.", space, b".", key].concat()
}

/// Returns a property that is set and not empty.
fn get(property: &[u8]) -> Option<Vec<u8>> {
    sys::property(property).filter(|value| !value.is_empty())
}

fn set(property: &[u8], value: &[u8]) -> i32 {
    match std::str::from_utf8(property) {
        Ok(property) => {
            imports::set_property(property, value);
            Status::Ok as i32
        }
        Err(_) => Status::BadArgument as i32,
    }
}

fn remove(property: &[u8]) -> i32 {
    if get(property).is_some() { set(property, b"") } else { Status::NotFound as i32 }
}

/// Writes a value to a buffer if it fits, as the fast lane does.
fn write(value: Option<&[u8]>, buffer: &mut [u8]) -> i32 {
    value.map_or(-(Status::NotFound as i32), |value| {
        if let Some(place) = buffer.get_mut(..value.len()) {
            place.copy_from_slice(value);
        }
        value.len() as i32
    })
}

pub(crate) fn state_get(key: &[u8], buffer: &mut [u8]) -> i32 {
    write(get(&state(key)).as_deref(), buffer)
}

pub(crate) fn state_set(key: &[u8], value: &[u8]) -> i32 {
    set(&state(key), value)
}

pub(crate) fn state_delete(key: &[u8]) -> i32 {
    remove(&state(key))
}

/// A value that no portable filter has set may be the host's; it is then text or bytes.
pub(crate) fn metadata_get(space: &[u8], key: &[u8], of: &mut u32, buffer: &mut [u8]) -> i32 {
    if let Some(own) = get(&metadata(space, key)) {
        *of = own[0].into();
        return write(Some(&own[1..]), buffer);
    }
    let hosts = get(&[b"metadata\0filter_metadata\0", space, b"\0", key].concat());
    let is_text = hosts.as_ref().is_some_and(|value| Value::decode(kind::TEXT, value).is_some());
    *of = if is_text { kind::TEXT } else { kind::BYTES } as u32;
    write(hosts.as_deref(), buffer)
}

pub(crate) fn metadata_set(space: &[u8], key: &[u8], of: i32, value: &[u8]) -> i32 {
    set(&metadata(space, key), &[&[of as u8], value].concat())
}

pub(crate) fn metadata_delete(space: &[u8], key: &[u8]) -> i32 {
    remove(&metadata(space, key))
}

/// Expiry is not supported: a value that would never expire is not stored.
pub(crate) fn shared_set_if(key: &[u8], value: &[u8], expected: i64, ttl_ms: u64) -> i32 {
    let version = match expected {
        _ if ttl_ms > 0 => return Status::Unimplemented as i32,
        // Not atomic: of two concurrent callers that find no value, both set theirs.
        expected::ABSENT if sys::shared_get(key).is_some() => return Status::CasMismatch as i32,
        expected::ANY | expected::ABSENT => 0,
        version => version as u32,
    };
    sys::shared_set(key, value, version)
}

/// Not supported by Proxy-Wasm.
pub(crate) fn shared_delete(_key: &[u8], _expected: i64) -> i32 {
    Status::Unimplemented as i32
}
