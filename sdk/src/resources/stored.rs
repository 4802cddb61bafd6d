//! Per-stream data that all filters of a chain share: *state* (bytes by key) and *metadata* (typed values in
//! namespaces). Both end with the stream.
//!
//! The functions act on the current callback's stream, HTTP or TCP. Outside of one, nothing is found and nothing can be
//! set. Filters for plain Proxy-Wasm read the same data as properties: `filter_state.KEY` and
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
    /// The stream's limit is reached: 64 keys of state (1 MiB in total), 64 values of metadata.
    Full,
    /// There is no current stream.
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

/// Reads the bytes that `get` writes to a buffer, retrying with a larger one if they do not fit.
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

/// Returns the stream's state under a key.
pub fn state(key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
    read(|buffer| sys::state_get(key.as_ref(), buffer))
}

/// Sets the stream's state under a key. Key and value have at most 64 KiB each.
///
/// # Errors
/// See [`StoreError`].
pub fn set_state(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), StoreError> {
    outcome(sys::state_set(key.as_ref(), value.as_ref()))
}

/// Removes the stream's state under a key. Returns whether there was any.
pub fn remove_state(key: impl AsRef<[u8]>) -> bool {
    sys::state_delete(key.as_ref()) == Status::Ok as i32
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Metadata {
    /// Text.
    Text(String),
    /// Arbitrary bytes.
    Bytes(Vec<u8>),
    /// An integer.
    Integer(i64),
    /// A floating-point number.
    Number(f64),
    /// A boolean.
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

    /// Returns the text, if the value is text.
    pub fn as_text(&self) -> Option<&str> {
        if let Metadata::Text(text) = self { Some(text) } else { None }
    }
}

/// Returns a value of the stream's metadata.
pub fn metadata(space: &str, key: &str) -> Option<Metadata> {
    let mut of = 0;
    let bytes = read(|buffer| sys::metadata_get(space.as_bytes(), key.as_bytes(), &mut of, buffer))?;
    Metadata::new(of as i32, bytes)
}

/// Sets a value of the stream's metadata: text, bytes (`&[u8]`), `i64`, `f64` or `bool`. Namespace and key have at most
/// 256 bytes each, the value 4096.
///
/// # Errors
/// See [`StoreError`].
pub fn set_metadata<'a>(space: &str, key: &str, value: impl Into<Value<'a>>) -> Result<(), StoreError> {
    let value = value.into();
    let set = |bytes: &[u8]| sys::metadata_set(space.as_bytes(), key.as_bytes(), value.kind(), bytes);
    outcome(value.with_bytes(set))
}

/// Removes a value of the stream's metadata. Returns whether there was one.
pub fn remove_metadata(space: &str, key: &str) -> bool {
    sys::metadata_delete(space.as_bytes(), key.as_bytes()) == Status::Ok as i32
}

// The documentation above states these as numbers.
const _: () = assert!(limit::STATE == 64 && limit::METADATA == 64 && limit::METADATA_BYTES == 4096);
const _: () = assert!(limit::STATE_BYTES == 64 << 10 && limit::METADATA_NAME == 256);
