//! What filters can reach outside their instance: the clusters of one snapshot, and state that outlives snapshots for
//! as long as some filter owns it. [`VmIdStore`] is shared by the filters of a `vm_id`, [`FilterStore`] by the
//! instances of one filter.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use arc_swap::ArcSwapOption;
use tollgate_abi::{
    doc,
    fast::{limit, variant},
    proxy_wasm::Status,
};

use super::{
    bucket::{self, Bucket},
    known_names::KnownNames,
    queue::{OwnedQueues, Queues},
    shared_data::SharedData,
    undo_log::UndoLog,
};
use crate::{
    chain::{Route, interner::Interner, limits::ConcurrencyLimit, variants::RouteFilters},
    observe::{Registry, metrics::Owner},
    upstream::{ClusterHandle, Clusters},
};

/// Maximum bytes of all bucket tables of a filter. They are declared in the filter's configuration and occupy memory
/// only as they fill, so they do not count against `limits.host_memory`.
const MAX_TABLES: usize = 1 << 30;

/// Maximum bytes of a bucket's or a limit's name.
const MAX_NAME: usize = 4096;

/// The environment of one snapshot's filters.
pub struct FilterEnv {
    /// The directory of clusters.
    pub clusters: Arc<Clusters>,
    /// What the configuration that is being built has; empty once it is applied.
    known: ArcSwapOption<KnownNames>,
    /// State that outlives the snapshot.
    pub shared: Arc<SharedStore>,
    /// Changes to shared state that are undone if the snapshot is not applied.
    pub(in crate::wasm) undo_log: UndoLog,
}

impl FilterEnv {
    /// Creates the environment of a configuration that is being built. `known` is what it has; `None`: the clusters are those
    /// of the directory, and any variant exists.
    pub fn new(clusters: Arc<Clusters>, known: Option<KnownNames>, shared: Arc<SharedStore>) -> Arc<FilterEnv> {
        let known = ArcSwapOption::new(known.map(Arc::new));
        Arc::new(FilterEnv { clusters, known, undo_log: UndoLog::new(shared.clone()), shared })
    }
}

impl FilterEnv {
    /// Whether a filter that is being configured may refer to a cluster of this name.
    pub(in crate::wasm) fn knows(&self, name: &str) -> bool {
        match &*self.known.load() {
            Some(known) => known.has_cluster(name),
            None => self.find(name).is_some(),
        }
    }

    /// Whether a filter that is being configured may refer to this variant of a filter.
    pub(in crate::wasm) fn variant_exists(&self, filter: &str, name: &str) -> i32 {
        self.known.load().as_ref().map_or(variant::EXISTS, |known| known.variant_exists(filter, name))
    }

    /// The cluster of this name as it is now.
    pub(in crate::wasm) fn find(&self, name: &str) -> Option<ClusterHandle> {
        self.clusters.find(name).filter(ClusterHandle::exists)
    }

    /// Called when the configuration is applied: from now on, its clusters are those of the directory, and what its filters
    /// change takes effect.
    pub fn settle(&self) {
        self.known.store(None);
        // Workers do this when they adopt an instance. Filters that joined a running VM have none of their own.
        self.undo_log.succeed();
    }
}

/// State that outlives snapshots and so survives hot reloads.
pub struct SharedStore {
    /// The metrics.
    pub registry: Registry,
    /// The routes that filters have defined.
    pub(in crate::wasm) routes: Interner<Route>,
    /// The variants of filters that routes select.
    pub(in crate::wasm) route_filters: Interner<RouteFilters>,
    /// The queues.
    pub(in crate::wasm) queues: Queues,
    estates: Mutex<HashMap<String, Weak<VmIdStore>>>,
    filter_store: Mutex<HashMap<String, Weak<FilterStore>>>,
}

/// State shared by the filters of a `vm_id`.
#[derive(Default)]
pub struct VmIdStore {
    /// Keys and values.
    pub data: SharedData,
    /// Queues.
    pub queues: OwnedQueues,
}

/// State shared by all instances of a filter.
#[derive(Default)]
pub struct FilterStore {
    /// Its metrics.
    pub metrics: Arc<Owner>,
    buckets: Mutex<HashMap<doc::Bucket, Arc<Bucket>>>,
    limits: Mutex<HashMap<String, Arc<ConcurrencyLimit>>>,
}

/// A panic during a change leaves the map intact: every change is a single call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the store of this name, created if it has no owner yet.
fn shared<T: Default>(all: &Mutex<HashMap<String, Weak<T>>>, name: &str) -> Arc<T> {
    let mut all = lock(all);
    if let Some(there) = all.get(name).and_then(Weak::upgrade) {
        return there;
    }
    all.retain(|_, known| known.strong_count() > 0);
    let new = Arc::default();
    all.insert(name.to_owned(), Arc::downgrade(&new));
    new
}

impl SharedStore {
    /// Creates an empty store.
    pub fn new(registry: Registry) -> Arc<SharedStore> {
        Arc::new(SharedStore {
            registry,
            routes: Interner::default(),
            route_filters: Interner::default(),
            queues: Queues::default(),
            estates: Mutex::default(),
            filter_store: Mutex::default(),
        })
    }

    /// The store of a `vm_id`.
    pub fn vm_store(&self, vm_id: &str) -> Arc<VmIdStore> {
        shared(&self.estates, vm_id)
    }

    /// The store of a `vm_id`, if any filter uses it.
    pub fn find_estate(&self, vm_id: &str) -> Option<Arc<VmIdStore>> {
        if !OwnedQueues::is_name(vm_id) {
            return None;
        }
        lock(&self.estates).get(vm_id)?.upgrade()
    }

    /// The store of a filter.
    pub fn filter_store(&self, filter: &str) -> Arc<FilterStore> {
        shared(&self.filter_store, filter)
    }

    /// Drops buckets, limits and routes' `filters` that no instance uses.
    pub fn forget_unused(&self) {
        self.routes.forget_unused();
        self.route_filters.forget_unused();
        lock(&self.filter_store)
            .values()
            .filter_map(Weak::upgrade)
            .for_each(|filter_store| filter_store.forget_unused());
    }
}

impl FilterStore {
    /// Returns the bucket with these parameters, created if needed. `BadArgument`: parameters out of range.
    /// `InternalFailure`: too many buckets.
    pub fn bucket(&self, doc: &doc::Bucket) -> Result<Arc<Bucket>, Status> {
        if doc.name.len() > MAX_NAME {
            return Err(Status::BadArgument);
        }
        let mut buckets = lock(&self.buckets);
        if let Some(bucket) = buckets.get(doc) {
            return Ok(bucket.clone());
        }
        let table = bucket::table_size(doc.max_keys).ok_or(Status::BadArgument)?;
        let fits = |buckets: &HashMap<doc::Bucket, Arc<Bucket>>| {
            let tables = buckets.keys().filter_map(|doc| bucket::table_size(doc.max_keys)).sum::<usize>();
            buckets.len() < limit::BUCKETS && tables + table <= MAX_TABLES
        };
        if !fits(&buckets) {
            buckets.retain(|_, bucket| Arc::strong_count(bucket) > 1);
            if !fits(&buckets) {
                return Err(Status::InternalFailure);
            }
        }
        let bucket = Arc::new(Bucket::new(doc).ok_or(Status::BadArgument)?);
        buckets.insert(doc.clone(), bucket.clone());
        Ok(bucket)
    }

    /// Returns the limit of this name, created if needed. Its maximum is not stored here, because instances of two
    /// configurations may use it at the same time. `BadArgument`: the name is too long. `InternalFailure`: too many
    /// limits.
    pub fn limit(&self, name: &str) -> Result<Arc<ConcurrencyLimit>, Status> {
        if name.len() > MAX_NAME {
            return Err(Status::BadArgument);
        }
        let mut limits = lock(&self.limits);
        if let Some(limit) = limits.get(name) {
            return Ok(limit.clone());
        }
        if limits.len() >= limit::LIMITS {
            limits.retain(|_, limit| Arc::strong_count(limit) > 1);
            if limits.len() >= limit::LIMITS {
                return Err(Status::InternalFailure);
            }
        }
        let limit = Arc::<ConcurrencyLimit>::default();
        limits.insert(name.to_owned(), limit.clone());
        Ok(limit)
    }

    fn forget_unused(&self) {
        lock(&self.buckets).retain(|_, bucket| Arc::strong_count(bucket) > 1);
        lock(&self.limits).retain(|_, limit| Arc::strong_count(limit) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc(name: &str, max_keys: u32) -> doc::Bucket {
        doc::Bucket { name: name.into(), capacity: 1, fill: 1, interval_ms: 60_000, max_keys }
    }

    #[test]
    fn bucket_survives_while_its_parameters_are_unchanged() {
        let shared = SharedStore::new(Registry::new(1));
        let mut doc = doc("b", 0);
        let (f, other) = (shared.filter_store("f"), shared.filter_store("other"));
        assert!(f.bucket(&doc).unwrap().take(b"", 1).0);
        assert!(!shared.filter_store("f").bucket(&doc).unwrap().take(b"", 1).0);
        assert!(other.bucket(&doc).unwrap().take(b"", 1).0);
        doc.capacity = 2;
        assert!(f.bucket(&doc).unwrap().take(b"", 1).0);
        shared.forget_unused();
        doc.capacity = 1;
        assert!(f.bucket(&doc).unwrap().take(b"", 1).0, "it was unused, so it was dropped");
    }

    #[test]
    fn buckets_are_limited_and_dropped_with_their_filter() {
        let shared = SharedStore::new(Registry::new(1));
        let f = shared.filter_store("f");
        let full = |result: Result<_, Status>| result.err() == Some(Status::InternalFailure);
        // Two in use leave no room for a third of half their size.
        let kept: Vec<_> = ["a", "b"].map(|name| f.bucket(&doc(name, 1 << 24)).unwrap()).into();
        assert!(full(f.bucket(&doc("c", 1 << 23))));
        assert!(shared.filter_store("other").bucket(&doc("c", 1 << 23)).is_ok(), "another filter has its own limit");
        drop(kept);
        f.bucket(&doc("c", 1 << 23)).unwrap();
        assert_eq!(f.bucket(&doc("d", 1 << 30)).err(), Some(Status::BadArgument));
        assert_eq!(f.bucket(&doc(&"n".repeat(MAX_NAME + 1), 0)).err(), Some(Status::BadArgument));
        let buckets: Vec<_> = (0..5000).map_while(|i| f.bucket(&doc(&i.to_string(), 0)).ok()).collect();
        assert!(buckets.len() == limit::BUCKETS && full(f.bucket(&doc("more", 0))));
        let limits: Vec<_> = (0..5000).map_while(|i| f.limit(&i.to_string()).ok()).collect();
        assert_eq!(limits.len(), limit::LIMITS);
        let bucket = Arc::downgrade(&buckets[0]);
        drop((buckets, f));
        assert!(bucket.upgrade().is_none());
    }

    #[test]
    fn vm_id_store_is_dropped_with_its_last_filter() {
        let shared = SharedStore::new(Registry::new(1));
        let (first, second) = (shared.vm_store("vm"), shared.vm_store("vm"));
        first.data.set(b"k", b"v", super::super::shared_data::ExpectedVersion::Any, None).unwrap();
        let (id, _) = shared.queues.open(&first.queues, "q").unwrap();
        drop(first);
        assert!(second.data.get(b"k").is_some() && shared.find_estate("vm").is_some());
        drop(second);
        assert!(shared.find_estate("vm").is_none());
        let again = shared.vm_store("vm");
        assert_eq!((again.data.get(b"k"), again.queues.resolve("q")), (None, None));
        assert!(shared.queues.take(id, &again.queues).is_none());
    }
}
