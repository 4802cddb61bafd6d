//! What all filters of the process share: shared data, token buckets, limits, metrics; and the clusters of one snapshot.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use tollgate_abi::doc;

use super::{bucket::Bucket, limits::Limit, queue::Queues, shared_data::SharedData};
use crate::{chain::route::Clusters, observe::Registry};

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

#[cfg(test)]
mod tests {
    use super::*;

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
