//! Keys and values shared by the filters of one `vm_id`, across all workers.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tollgate_abi::fast::expected;

/// Maximum bytes of keys and values; each key counts [`KEY_COST`] extra.
const MAX_BYTES: usize = 64 << 20;

/// Bytes that a key costs in addition to its length.
const KEY_COST: usize = 64;

/// Maximum bytes of a key: it is hashed while others wait for the lock.
const MAX_KEY: usize = 64 << 10;

/// Keys and values, each with a version that changes with every update.
#[derive(Default)]
pub struct SharedData(RwLock<Entries>);

#[derive(Default)]
struct Entries {
    map: HashMap<Vec<u8>, Entry>,
    /// Keys by expiry and version, because several may expire at the same time.
    expiries: BTreeMap<(Instant, u32), Vec<u8>>,
    bytes: usize,
    last_version: u32,
}

#[derive(Debug, PartialEq)]
struct Entry {
    value: Bytes,
    version: u32,
    expires: Option<Instant>,
}

/// The version that a key must have for an update to succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// No condition: the key may have any version or not exist.
    Any,
    /// The key must not exist.
    Absent,
    /// Exactly this version.
    Version(u32),
}

impl ExpectedVersion {
    /// From the standard's `cas` argument, where 0 means any version.
    pub fn of_cas(cas: u32) -> ExpectedVersion {
        if cas == 0 { ExpectedVersion::Any } else { ExpectedVersion::Version(cas) }
    }

    /// From the fast lane's argument. `None` if it is not a valid version.
    pub fn of_number(number: i64) -> Option<ExpectedVersion> {
        match number {
            expected::ANY => Some(ExpectedVersion::Any),
            expected::ABSENT => Some(ExpectedVersion::Absent),
            version => u32::try_from(version).ok().map(ExpectedVersion::Version),
        }
    }

    fn fits(self, version: Option<u32>) -> bool {
        match self {
            ExpectedVersion::Any => true,
            ExpectedVersion::Absent => version.is_none(),
            ExpectedVersion::Version(expected) => version == Some(expected),
        }
    }
}

/// The result of an update.
#[derive(Debug)]
pub struct UpdateResult {
    /// The key's version now; `None` if it was deleted.
    pub version: Option<u32>,
    before: Option<Entry>,
}

/// Why an update failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateError {
    /// The version does not match.
    CasMismatch,
    /// The size limit is reached.
    Full,
    /// The key to delete does not exist.
    NotFound,
}

impl SharedData {
    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        entries.expire();
        entries
    }

    /// Returns a value and its version.
    pub fn get(&self, key: &[u8]) -> Option<(Bytes, u32)> {
        if key.len() > MAX_KEY {
            return None;
        }
        let entries = self.read();
        let entry = entries.map.get(key)?;
        let there = entry.expires.is_none_or(|at| at > Instant::now());
        there.then(|| (entry.value.clone(), entry.version))
    }

    /// Sets a value, with a time to live or for ever.
    pub fn set(
        &self,
        key: &[u8],
        value: &[u8],
        expected: ExpectedVersion,
        ttl: Option<Duration>,
    ) -> Result<UpdateResult, UpdateError> {
        if key.len() > MAX_KEY || cost(key, value) > MAX_BYTES {
            return Err(UpdateError::Full);
        }
        // Copied before taking the lock.
        let (key, value) = (key.to_vec(), Bytes::copy_from_slice(value));
        let mut entries = self.write();
        let old = entries.map.get(&key);
        if !expected.fits(old.map(|old| old.version)) {
            return Err(UpdateError::CasMismatch);
        }
        let freed = old.map_or(0, |old| cost(&key, &old.value));
        if entries.bytes - freed + cost(&key, &value) > MAX_BYTES {
            return Err(UpdateError::Full);
        }
        let before = entries.remove(&key);
        entries.last_version = entries.last_version.wrapping_add(1).max(1);
        // A time beyond the clock's range means for ever.
        let (version, expires) = (entries.last_version, ttl.and_then(|ttl| Instant::now().checked_add(ttl)));
        entries.insert(key, Entry { value, version, expires });
        drop(entries);
        Ok(UpdateResult { version: Some(version), before })
    }

    /// Deletes a key.
    pub fn delete(&self, key: &[u8], expected: ExpectedVersion) -> Result<UpdateResult, UpdateError> {
        if key.len() > MAX_KEY {
            return Err(UpdateError::NotFound);
        }
        let mut entries = self.write();
        let version = entries.map.get(key).map(|entry| entry.version).ok_or(UpdateError::NotFound)?;
        if !expected.fits(Some(version)) {
            return Err(UpdateError::CasMismatch);
        }
        let before = entries.remove(key);
        drop(entries);
        Ok(UpdateResult { version: None, before })
    }

    /// Restores a key to its state before an update, unless another filter has changed it since.
    pub fn undo(&self, key: &[u8], change: UpdateResult) {
        let mut entries = self.write();
        if entries.map.get(key).map(|entry| entry.version) != change.version {
            return;
        }
        entries.remove(key);
        if let Some(before) = change.before {
            entries.insert(key.to_vec(), before);
        }
    }
}

impl Entries {
    fn insert(&mut self, key: Vec<u8>, entry: Entry) {
        if let Some(at) = entry.expires {
            self.expiries.insert((at, entry.version), key.clone());
        }
        self.bytes += cost(&key, &entry.value);
        self.map.insert(key, entry);
    }

    fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let (key, entry) = self.map.remove_entry(key)?;
        self.bytes -= cost(&key, &entry.value);
        if let Some(at) = entry.expires {
            self.expiries.remove(&(at, entry.version));
        }
        Some(entry)
    }

    /// Removes expired entries.
    fn expire(&mut self) {
        if self.expiries.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(first) = self.expiries.first_entry().filter(|first| first.key().0 <= now) {
            let key = first.remove();
            _ = self.remove(&key);
        }
    }
}

fn cost(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + KEY_COST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(data: &SharedData, key: &[u8], value: &[u8], expected: ExpectedVersion) -> Result<(), UpdateError> {
        data.set(key, value, expected, None).map(drop)
    }

    #[test]
    fn overlong_key_is_never_found() {
        let (data, long) = (SharedData::default(), vec![0; MAX_KEY + 1]);
        assert_eq!(set(&data, &long, b"", ExpectedVersion::Any), Err(UpdateError::Full));
        assert_eq!(
            (data.get(&long), data.delete(&long, ExpectedVersion::Any).err()),
            (None, Some(UpdateError::NotFound))
        );
        set(&data, &long[1..], b"", ExpectedVersion::Any).unwrap();
        assert!(data.get(&long[1..]).is_some() && data.delete(&long[1..], ExpectedVersion::Any).is_ok());
    }

    #[test]
    fn compare_and_swap_replaces_only_the_version_read() {
        let data = SharedData::default();
        set(&data, b"k", b"1", ExpectedVersion::of_cas(0)).unwrap();
        let (_, cas) = data.get(b"k").unwrap();
        set(&data, b"k", b"2", ExpectedVersion::of_cas(cas)).unwrap();
        assert_eq!(set(&data, b"k", b"3", ExpectedVersion::Version(cas)), Err(UpdateError::CasMismatch));
        assert_eq!(set(&data, b"new", b"3", ExpectedVersion::Version(7)), Err(UpdateError::CasMismatch));
        assert_eq!(data.get(b"k").unwrap().0, "2");
    }

    #[test]
    fn key_is_created_once_and_deleted_once() {
        let data = SharedData::default();
        set(&data, b"k", b"1", ExpectedVersion::Absent).unwrap();
        assert_eq!(set(&data, b"k", b"2", ExpectedVersion::Absent), Err(UpdateError::CasMismatch));
        let (_, version) = data.get(b"k").unwrap();
        set(&data, b"k", b"2", ExpectedVersion::Any).unwrap();
        for expected in [ExpectedVersion::Absent, ExpectedVersion::Version(version)] {
            assert_eq!(data.delete(b"k", expected).err(), Some(UpdateError::CasMismatch));
        }
        data.delete(b"k", ExpectedVersion::Any).unwrap();
        assert_eq!(
            (data.get(b"k"), data.delete(b"k", ExpectedVersion::Any).err()),
            (None, Some(UpdateError::NotFound))
        );
        set(&data, b"k", b"3", ExpectedVersion::Absent).unwrap();
        assert!(data.get(b"k").unwrap().1 > version + 1, "versions are never reused");
        let numbers = [-1, 0, 7, -2, 1 << 32].map(ExpectedVersion::of_number);
        let expected =
            [Some(ExpectedVersion::Any), Some(ExpectedVersion::Absent), Some(ExpectedVersion::Version(7)), None, None];
        assert_eq!(numbers, expected);
    }

    #[test]
    fn expired_keys_are_absent() {
        let data = SharedData::default();
        data.set(b"gone", b"1", ExpectedVersion::Any, Some(Duration::ZERO)).unwrap();
        assert_eq!(data.get(b"gone"), None);
        data.set(b"gone", b"2", ExpectedVersion::Absent, Some(Duration::ZERO)).unwrap();
        data.set(b"long", b"3", ExpectedVersion::Any, Some(Duration::from_secs(3600))).unwrap();
        data.set(b"ever", b"4", ExpectedVersion::Any, Some(Duration::MAX)).unwrap();
        assert_eq!(data.delete(b"gone", ExpectedVersion::Any).err(), Some(UpdateError::NotFound));
        assert_eq!(["long", "ever"].map(|key| data.get(key.as_bytes()).unwrap().0), ["3", "4"]);
        // Set again without a time to live, the key stays, and its old expiry is gone.
        set(&data, b"long", b"5", ExpectedVersion::Any).unwrap();
        let entries = data.read();
        assert_eq!((entries.expiries.len(), entries.map.len(), entries.bytes), (0, 2, 2 * (5 + KEY_COST)));
    }

    #[test]
    fn size_is_limited() {
        let data = SharedData::default();
        let mib = vec![0; 1 << 20];
        let count =
            (0..200u32).take_while(|i| set(&data, &i.to_le_bytes(), &mib, ExpectedVersion::Any).is_ok()).count();
        assert_eq!(count, 63);
        set(&data, &0u32.to_le_bytes(), b"small", ExpectedVersion::Any).unwrap();
        set(&data, b"again", &mib, ExpectedVersion::Any).unwrap();
        data.delete(b"again", ExpectedVersion::Any).unwrap();
        // Expired entries make room.
        data.set(b"short", &mib, ExpectedVersion::Any, Some(Duration::ZERO)).unwrap();
        set(&data, b"again", &mib, ExpectedVersion::Any).unwrap();
        // Keys with empty values are limited too.
        let data = SharedData::default();
        data.write().bytes = MAX_BYTES - 2 * (KEY_COST + 1);
        let full = [b"a", b"b", b"c"].map(|key| set(&data, key, b"", ExpectedVersion::Any));
        assert_eq!(full, [Ok(()), Ok(()), Err(UpdateError::Full)]);
    }
}
