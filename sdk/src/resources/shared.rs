//! Data and queues that filters share: all workers' instances of all filters with the same `vm_id`.
//!
//! Data lasts until it is removed, or its time is over, or the process ends: over any swap of a filter. For counts that many requests change, token buckets and metrics are better: they are exact without a loop.

use std::time::Duration;

use tollgate_abi::{fast::expected, proxy_wasm::Status};

use crate::sys;

/// A value, as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its bytes.
    pub value: Vec<u8>,
    /// Which of the key's values it is.
    pub version: Version,
}

/// Which of a key's values one is; each change makes another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u32);

/// Why data could not be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedError {
    /// The value is no longer the one that was meant.
    Changed,
    /// Keys and values would be more than 64 MiB.
    Full,
}

/// The value of a key, if it was ever set.
pub fn get(key: impl AsRef<[u8]>) -> Option<Entry> {
    sys::shared_get(key.as_ref()).map(|(value, version)| Entry { value, version: Version(version) })
}

/// Sets a key's value, whatever it was.
///
/// # Errors
/// `Full`.
pub fn set(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), SharedError> {
    // No version has the number 0: the host takes it for "any".
    store(key.as_ref(), value.as_ref(), 0)
}

/// Sets a key's value if it is still the one that was read.
///
/// # Errors
/// `Changed`, `Full`.
pub fn set_if(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, version: Version) -> Result<(), SharedError> {
    store(key.as_ref(), value.as_ref(), version.0)
}

/// Sets a key's value, whatever it was, for this long (in whole milliseconds, at least one).
///
/// # Errors
/// `Full`.
pub fn set_for(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, time: Duration) -> Result<(), SharedError> {
    outcome(sys::shared_set_if(key.as_ref(), value.as_ref(), expected::ANY, millis(time)))
}

/// Sets a key's value if it has none: of several that try, one succeeds. `time`: how long it is there; for ever, if there is
/// none.
///
/// # Errors
/// `Changed`: it has one. `Full`.
pub fn create(
    key: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
    time: impl Into<Option<Duration>>,
) -> Result<(), SharedError> {
    let time = time.into().map_or(0, millis);
    outcome(sys::shared_set_if(key.as_ref(), value.as_ref(), expected::ABSENT, time))
}

/// Removes a key. Whether it was there.
pub fn remove(key: impl AsRef<[u8]>) -> bool {
    sys::shared_delete(key.as_ref(), expected::ANY) == Status::Ok as i32
}

/// Removes a key if its value is still the one that was read. Whether it was.
pub fn remove_if(key: impl AsRef<[u8]>, version: Version) -> bool {
    sys::shared_delete(key.as_ref(), version.0.into()) == Status::Ok as i32
}

/// As the host counts it: nothing would be for ever.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Makes a key's value a function of what it was; `None` leaves it. No change of another worker is lost.
///
/// `change` is called again when another worker was faster.
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

/// A queue of messages: made by [`Setup::queue`](crate::Setup::queue) by whoever reads it, found by [`Queue::find`] by
/// others. It lasts as long as there is a filter of its `vm_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Queue(pub(crate) u32);

impl Queue {
    /// A queue that a filter with this `vm_id` has made; an empty one is this filter's own.
    pub fn find(vm_id: &str, name: &str) -> Option<Queue> {
        sys::queue_resolve(vm_id, name).map(Queue)
    }

    /// Puts a message in. Whether it is in: a queue of 16 MiB (64 bytes more for each message) takes no more.
    pub fn push(self, message: impl AsRef<[u8]>) -> bool {
        sys::queue_push(self.0, message.as_ref())
    }

    /// Takes the oldest message out. Mostly [`Filter::on_queue`](crate::Filter::on_queue) is better.
    pub fn pop(self) -> Option<Vec<u8>> {
        sys::queue_pop(self.0)
    }
}
