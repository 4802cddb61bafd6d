//! What all filters of the process share: shared data, token buckets, limits, metrics; and the clusters of one snapshot.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use bytes::Bytes;
use tollgate_abi::doc;

use super::{bucket::Bucket, limits::Limit, queue::Queues};
use crate::{chain::route::Clusters, observe::Registry};

/// Bytes of keys and values that the filters of one `vm_id` may share.
const SHARED_DATA_BYTES: usize = 64 << 20;

/// What the filters of one snapshot see of the world.
pub struct World {
    /// The snapshot's clusters.
    pub clusters: Arc<Clusters>,
    /// What outlives the snapshot.
    pub shared: Arc<Shared>,
}

/// What outlives snapshots, and so survives a swap.
pub struct Shared {
    /// The metrics.
    pub registry: Registry,
    /// The queues.
    pub(super) queues: Queues,
    data: RwLock<HashMap<String, Arc<SharedData>>>,
    buckets: Mutex<HashMap<(String, doc::Bucket), Arc<Bucket>>>,
    limits: Mutex<HashMap<(String, String), Arc<Limit>>>,
}

/// A panic while a map was changed leaves it whole: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Nothing shared yet.
    pub fn new(registry: Registry) -> Arc<Shared> {
        Arc::new(Shared {
            registry,
            queues: Queues::default(),
            data: RwLock::default(),
            buckets: Mutex::default(),
            limits: Mutex::default(),
        })
    }

    /// The data shared by the filters of a `vm_id`.
    pub fn data(&self, vm_id: &str) -> Arc<SharedData> {
        if let Some(data) = self.data.read().unwrap_or_else(PoisonError::into_inner).get(vm_id) {
            return data.clone();
        }
        let mut all = self.data.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(vm_id.to_owned()).or_default().clone()
    }

    /// The bucket of a filter: the one there is, if its figures are the same. `None`: figures out of range.
    pub fn bucket(&self, filter: &str, doc: &doc::Bucket) -> Option<Arc<Bucket>> {
        let mut buckets = lock(&self.buckets);
        let key = (filter.to_owned(), doc.clone());
        if let Some(bucket) = buckets.get(&key) {
            return Some(bucket.clone());
        }
        let bucket = Arc::new(Bucket::new(doc)?);
        buckets.insert(key, bucket.clone());
        Some(bucket)
    }

    /// The limit of a filter. Its bound is not kept here: instances of two configurations may use it at the same time.
    pub fn limit(&self, filter: &str, name: &str) -> Arc<Limit> {
        lock(&self.limits).entry((filter.to_owned(), name.to_owned())).or_default().clone()
    }

    /// Forgets the buckets and limits that no instance uses any more.
    pub fn forget_unused(&self) {
        lock(&self.buckets).retain(|_, bucket| Arc::strong_count(bucket) > 1);
        lock(&self.limits).retain(|_, limit| Arc::strong_count(limit) > 1);
    }
}

/// Keys and values shared by filters, each with a number that changes whenever the value does.
#[derive(Default)]
pub struct SharedData(RwLock<Entries>);

#[derive(Default)]
struct Entries {
    map: HashMap<Vec<u8>, (Bytes, u32)>,
    bytes: usize,
    last_cas: u32,
}

/// Why a value was not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSet {
    /// The value has been changed since.
    CasMismatch,
    /// There is no room.
    Full,
}

impl SharedData {
    /// A value and its number.
    pub fn get(&self, key: &[u8]) -> Option<(Bytes, u32)> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).map.get(key).cloned()
    }

    /// Sets a value; if `cas` is not 0, only if that is still its number.
    pub fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), NotSet> {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let old = entries.map.get(key);
        if cas != 0 && old.is_none_or(|(_, number)| *number != cas) {
            return Err(NotSet::CasMismatch);
        }
        let freed = old.map_or(0, |(old, _)| key.len() + old.len());
        let bytes = entries.bytes - freed + key.len() + value.len();
        if bytes > SHARED_DATA_BYTES {
            return Err(NotSet::Full);
        }
        entries.bytes = bytes;
        entries.last_cas = entries.last_cas.wrapping_add(1).max(1);
        let number = entries.last_cas;
        entries.map.insert(key.to_vec(), (Bytes::copy_from_slice(value), number));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_only_replaced_if_it_is_the_one_that_was_read() {
        let data = SharedData::default();
        data.set(b"k", b"1", 0).unwrap();
        let (_, cas) = data.get(b"k").unwrap();
        data.set(b"k", b"2", cas).unwrap();
        assert_eq!(data.set(b"k", b"3", cas), Err(NotSet::CasMismatch));
        assert_eq!(data.set(b"new", b"3", 7), Err(NotSet::CasMismatch));
        assert_eq!(data.get(b"k").unwrap().0, "2");
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let data = SharedData::default();
        let mib = vec![0; 1 << 20];
        let set = (0..200u32).take_while(|i| data.set(&i.to_le_bytes(), &mib, 0).is_ok()).count();
        assert_eq!(set, 63);
        data.set(&0u32.to_le_bytes(), b"small", 0).unwrap();
        data.set(b"again", &mib, 0).unwrap();
    }

    #[test]
    fn a_bucket_survives_as_long_as_its_figures_are_the_same() {
        let shared = Shared::new(Registry::new(1));
        let mut doc = doc::Bucket { name: "b".into(), capacity: 1, fill: 1, interval_ms: 60_000, max_keys: 0 };
        assert!(shared.bucket("f", &doc).unwrap().take(b"", 1).0);
        assert!(!shared.bucket("f", &doc).unwrap().take(b"", 1).0);
        assert!(shared.bucket("other", &doc).unwrap().take(b"", 1).0);
        doc.capacity = 2;
        assert!(shared.bucket("f", &doc).unwrap().take(b"", 1).0);
        shared.forget_unused();
        doc.capacity = 1;
        assert!(shared.bucket("f", &doc).unwrap().take(b"", 1).0, "nobody used it, so it was forgotten");
    }
}
