//! What lives with a stream, for all filters of its chain: *state*, which is bytes by keys, and *metadata*, which is typed and
//! in namespaces. Both are gone when the stream is.
//!
//! The functions act on the stream whose callback it is, HTTP or TCP. Outside of one there is nothing, and nothing can be set.
//! Filters that are written for the standard read the same as properties: `filter_state.KEY` and
//! `metadata.filter_metadata.NAMESPACE.KEY`.

use tollgate_abi::{
    fast::limit,
    proxy_wasm::Status,
    value::{Value, kind},
};

use crate::sys;

/// Why something was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// A name or a value is too large.
    TooLarge,
    /// The stream has as much as it may have: 64 keys of state (1 MiB in all), 64 values of metadata.
    Full,
    /// There is no stream.
    NoStream,
}

fn outcome(status: i32) -> Result<(), StoreError> {
    match status {
        s if s == Status::Ok as i32 => Ok(()),
        s if s == Status::NotFound as i32 => Err(StoreError::NoStream),
        s if s == Status::InternalFailure as i32 => Err(StoreError::Full),
        _ => Err(StoreError::TooLarge),
    }
}

/// The bytes that `get` writes to a buffer, which is asked for a larger one if they do not fit.
fn read(mut get: impl FnMut(&mut [u8]) -> i32) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 256];
    let mut len = usize::try_from(get(&mut buffer)).ok()?;
    if len > buffer.len() {
        buffer.resize(len, 0);
        len = usize::try_from(get(&mut buffer)).ok()?;
    }
    buffer.truncate(len);
    Some(buffer)
}

/// The stream's state under a key.
pub fn state(key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    read(|buffer| sys::state_get(key.as_ref(), buffer))
}

/// Sets the stream's state under a key: key and value of at most 64 KiB.
///
/// # Errors
/// See [`StoreError`].
pub fn set_state(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), StoreError> {
    outcome(sys::state_set(key.as_ref(), value.as_ref()))
}

/// Removes the stream's state under a key. Whether there was any.
pub fn remove_state(key: impl AsRef<[u8]>) -> bool {
    sys::state_delete(key.as_ref()) == Status::Ok as i32
}

/// A value of metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Metadata {
    /// Text.
    Text(String),
    /// Any bytes.
    Bytes(Vec<u8>),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// Yes or no.
    Bool(bool),
}

impl Metadata {
    pub(crate) fn new(of: i32, bytes: Vec<u8>) -> Option<Metadata> {
        match Value::decode(of, &bytes)? {
            Value::Integer(n) => Some(Metadata::Integer(n)),
            Value::Number(n) => Some(Metadata::Number(n)),
            Value::Bool(b) => Some(Metadata::Bool(b)),
            Value::Text(_) | Value::Bytes(_) if of == kind::BYTES => Some(Metadata::Bytes(bytes)),
            Value::Text(_) | Value::Bytes(_) => String::from_utf8(bytes).ok().map(Metadata::Text),
        }
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        if let Metadata::Text(text) = self { Some(text) } else { None }
    }
}

/// A value of the stream's metadata.
pub fn metadata(space: &str, key: &str) -> Option<Metadata> {
    let mut of = 0;
    let bytes = read(|buffer| sys::metadata_get(space.as_bytes(), key.as_bytes(), &mut of, buffer))?;
    Metadata::new(of as i32, bytes)
}

/// Sets a value of the stream's metadata: text, bytes (`&[u8]`), `i64`, `f64` or `bool`. Namespace and key have at most 256
/// bytes, the value 4096.
///
/// # Errors
/// See [`StoreError`].
pub fn set_metadata<'a>(space: &str, key: &str, value: impl Into<Value<'a>>) -> Result<(), StoreError> {
    let value = value.into();
    let set = |bytes: &[u8]| sys::metadata_set(space.as_bytes(), key.as_bytes(), value.kind(), bytes);
    outcome(value.with_bytes(set))
}

/// Removes a value of the stream's metadata. Whether there was one.
pub fn remove_metadata(space: &str, key: &str) -> bool {
    sys::metadata_delete(space.as_bytes(), key.as_bytes()) == Status::Ok as i32
}

// The documentation above gives them as numbers.
const _: () = assert!(limit::STATE == 64 && limit::METADATA == 64 && limit::METADATA_BYTES == 4096);
const _: () = assert!(limit::STATE_BYTES == 64 << 10 && limit::METADATA_NAME == 256);
