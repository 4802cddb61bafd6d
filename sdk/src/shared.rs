//! Data and queues that filters share: all workers' instances of all filters with the same `vm_id`.
//!
//! Data lasts as long as the process, over any swap of a filter, and cannot be deleted: keys are best taken from a set that
//! is bounded. For counts that many requests change, token buckets and metrics are better: they are exact without a loop.

use tollgate_abi::proxy_wasm::Status;

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

/// Makes a key's value a function of what it was; `None` leaves it. No change of another worker is lost, but for the very
/// first one of a key: two that find no value at the same time both set theirs, and one of them stays. Where that matters,
/// set it in `configure`, which comes before all requests.
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
        match store(key, &after, before.map_or(0, |(_, version)| version)) {
            Err(SharedError::Changed) => {}
            result => return result,
        }
    }
}

fn store(key: &[u8], value: &[u8], version: u32) -> Result<(), SharedError> {
    match sys::shared_set(key, value, version) {
        status if status == Status::Ok as i32 => Ok(()),
        status if status == Status::CasMismatch as i32 => Err(SharedError::Changed),
        _ => Err(SharedError::Full),
    }
}

/// A queue of messages: made by [`Setup::queue`](crate::Setup::queue) by whoever reads it, found by [`Queue::find`] by
/// others. It lasts as long as the process.
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
