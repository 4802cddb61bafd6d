//! A part of a message's body.

use crate::sys;

/// What has come of a body since the last callback (since the beginning, if the filter has paused ever since).
#[derive(Debug)]
pub struct Body {
    pub(crate) buffer: i32,
    pub(crate) len: usize,
    pub(crate) end: bool,
}

impl Body {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none, which only the last part can be.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this is the last part.
    pub fn is_last(&self) -> bool {
        self.end
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        sys::buffer_get(self.buffer, 0, self.len)
    }

    /// Puts other bytes in their place. The host sees to the message's length.
    pub fn replace(&self, bytes: &[u8]) {
        sys::buffer_set(self.buffer, 0, usize::MAX, bytes);
    }
}

/// The body is longer than the filter wants to have at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

/// The part cannot be changed any more: the future has waited for something else since it was given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late;
