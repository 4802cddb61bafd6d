//! Data and queues that filters share: all workers' instances of all filters with the same `vm_id`.
//!
//! Data lasts until it is removed, expires or the process ends; it survives a filter reload. For counters that many
//! requests update, prefer token buckets and metrics: they are exact without a retry loop.

use std::time::Duration;

use tollgate_abi::{fast::expected, proxy_wasm::Status};

use crate::sys;

/// A value, as read at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The value's bytes.
    pub value: Vec<u8>,
    /// The value's version.
    pub version: Version,
}

/// Identifies one of a key's successive values; every change creates a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u32);

/// Why data could not be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedError {
    /// The value has changed since it was read.
    Changed,
    /// Keys and values would exceed 64 MiB.
    Full,
}

/// Returns the value of a key, if it was ever set.
pub fn get(key: impl AsRef<[u8]>) -> Option<Entry> {
    sys::shared_get(key.as_ref()).map(|(value, version)| Entry { value, version: Version(version) })
}

/// Sets a key's value unconditionally.
///
/// # Errors
/// `Full`.
pub fn set(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), SharedError> {
    // No version has the number 0: the host treats it as "any".
    store(key.as_ref(), value.as_ref(), 0)
}

/// Sets a key's value if it has not changed since it was read.
///
/// # Errors
/// `Changed`, `Full`.
pub fn set_if(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, version: Version) -> Result<(), SharedError> {
    store(key.as_ref(), value.as_ref(), version.0)
}

/// Sets a key's value unconditionally; it expires after this time (in whole milliseconds, at least one).
///
/// # Errors
/// `Full`.
pub fn set_for(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, time: Duration) -> Result<(), SharedError> {
    outcome(sys::shared_set_if(key.as_ref(), value.as_ref(), expected::ANY, millis(time)))
}

/// Sets a key's value if it has none: of several concurrent callers, one succeeds. `time`: when the value expires;
/// `None`: never.
///
/// # Errors
/// `Changed`: the key has a value. `Full`.
pub fn create(
    key: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
    time: impl Into<Option<Duration>>,
) -> Result<(), SharedError> {
    let time = time.into().map_or(0, millis);
    outcome(sys::shared_set_if(key.as_ref(), value.as_ref(), expected::ABSENT, time))
}

/// Removes a key. Returns whether it existed.
pub fn remove(key: impl AsRef<[u8]>) -> bool {
    sys::shared_delete(key.as_ref(), expected::ANY) == Status::Ok as i32
}

/// Removes a key if its value has not changed since it was read. Returns whether it was removed.
pub fn remove_if(key: impl AsRef<[u8]>, version: Version) -> bool {
    sys::shared_delete(key.as_ref(), version.0.into()) == Status::Ok as i32
}

/// Converts to the host's unit; 0 would mean "never expires".
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Replaces a key's value with a function of the current one; `None` leaves it unchanged. No concurrent change is lost.
///
/// `change` is called again if another worker changed the value first.
///
/// # Errors
/// `Full`.
pub fn update(
    key: impl AsRef<[u8]>,
    mut change: impl FnMut(Option<&[u8]>) -> Option<Vec<u8>>,
) -> Result<(), SharedError> {
    let key = key.as_ref();
    loop {
        let before = sys::shared_get(key);
        let Some(after) = change(before.as_ref().map(|(value, _)| value.as_slice())) else { return Ok(()) };
        let result = match before {
            Some((_, version)) => store(key, &after, version),
            None => create(key, &after, None),
        };
        match result {
            Err(SharedError::Changed) => {}
            result => return result,
        }
    }
}

fn store(key: &[u8], value: &[u8], version: u32) -> Result<(), SharedError> {
    outcome(sys::shared_set(key, value, version))
}

fn outcome(status: i32) -> Result<(), SharedError> {
    match status {
        status if status == Status::Ok as i32 => Ok(()),
        status if status == Status::CasMismatch as i32 => Err(SharedError::Changed),
        _ => Err(SharedError::Full),
    }
}

/// A message queue, created by its reader with [`Setup::queue`](crate::Setup::queue) and opened by others with
/// [`Queue::find`]. It lasts as long as any filter of its `vm_id` exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Queue(pub(crate) u32);

impl Queue {
    /// Finds a queue that a filter with this `vm_id` has created; an empty `vm_id` is this filter's own.
    pub fn find(vm_id: &str, name: &str) -> Option<Queue> {
        sys::queue_resolve(vm_id, name).map(Queue)
    }

    /// Appends a message. Returns `false` if the queue is full: 16 MiB, counting 64 extra bytes per message.
    pub fn push(self, message: impl AsRef<[u8]>) -> bool {
        sys::queue_push(self.0, message.as_ref())
    }

    /// Removes the oldest message. [`Filter::on_queue`](crate::Filter::on_queue) is usually better.
    pub fn pop(self) -> Option<Vec<u8>> {
        sys::queue_pop(self.0)
    }
}
