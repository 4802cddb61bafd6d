//! A part of a message's body.

use crate::sys;

/// The part of a body received since the last callback, or since the beginning if the filter has paused all along.
#[derive(Debug)]
pub struct Body {
    pub(crate) buffer: i32,
    pub(crate) len: usize,
    pub(crate) end: bool,
}

impl Body {
    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reports whether the part has no bytes; only the last part can be empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reports whether this is the last part.
    pub fn is_last(&self) -> bool {
        self.end
    }

    /// Copies the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        sys::buffer_get(self.buffer, 0, self.len)
    }

    /// Replaces the bytes. The host adjusts the message's length.
    pub fn replace(&self, bytes: &[u8]) {
        sys::buffer_set(self.buffer, 0, usize::MAX, bytes);
    }
}

/// Error: the body exceeds the size that the filter accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

/// Error: the part can no longer be changed, because the future has awaited something else since receiving it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late;
