//! Cache of key owners in the data that all workers share.
//!
//! Shared data cannot be deleted and clients can send any key, so the number of slots is fixed, and a key replaces
//! whichever other key occupied its slot.

use std::{
    hash::{DefaultHasher, Hasher},
    time::Duration,
};

use tollgate_sdk::{now, shared};

/// Number of slots.
const PLACES: u64 = 4096;

/// Cached answers, each for a limited time.
pub(crate) struct Cache {
    ttl: u64,
}

impl Cache {
    /// Creates a cache whose answers are valid for `ttl`.
    pub(crate) fn new(ttl: Duration) -> Cache {
        Cache { ttl: u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Returns the cached owner of a key: `Some(None)` if the key is unknown to the service, `None` if nothing is
    /// cached.
    #[allow(clippy::option_option)]
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        let entry = shared::get(place(key))?.value;
        let (until, rest) = entry.split_first_chunk()?;
        let (key_len, rest) = rest.split_first_chunk()?;
        let (known, answer) = rest.split_at_checked(u32::from_le_bytes(*key_len) as usize)?;
        if now() >= u64::from_le_bytes(*until) || !same(known, key) {
            return None;
        }
        let (is_known, user) = answer.split_first()?;
        Some((*is_known == 1).then(|| user.to_vec()))
    }

    /// Stores an answer.
    pub(crate) fn set(&self, key: &[u8], user: Option<&[u8]>) {
        let Some(until) = now().checked_add(self.ttl).filter(|_| self.ttl > 0) else { return };
        let mut entry = until.to_le_bytes().to_vec();
        entry.extend((key.len() as u32).to_le_bytes());
        entry.extend(key);
        entry.push(user.is_some().into());
        entry.extend(user.unwrap_or_default());
        // If there is no room, the service is called again next time.
        let _ = shared::set(place(key), entry);
    }
}

fn place(key: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    format!("api-key/{}", hasher.finish() % PLACES)
}

/// Compares two keys in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
