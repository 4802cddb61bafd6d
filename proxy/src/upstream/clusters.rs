//! The directory of clusters: names and the small numbers that stand for them, and each cluster as it is now.
//!
//! A name gets a number when something that is being configured mentions it, whether there is a cluster of that name or
//! not. Routes and listeners keep [`ClusterHandle`]s; workers resolve them through their own tables
//! ([`Pools::cluster`](super::Pools::cluster)), and everyone else through [`ClusterHandle::current`].
//!
//! Readers take no lock: the names are in shards, each an immutable map behind an atomic pointer, and a change copies
//! one shard.

use std::{
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustc_hash::FxHashMap;

use super::Cluster;
use crate::config::model::Locality;

/// The number of a cluster's name, from 0. It is reused only after every handle of the name is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(u32);

impl ClusterId {
    /// The number as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A cluster's name, and the cluster itself while there is one. Clones share the number.
#[derive(Debug, Clone)]
pub struct ClusterHandle(Arc<Slot>);

#[derive(Debug)]
struct Slot {
    id: ClusterId,
    name: Arc<str>,
    current: ArcSwapOption<Cluster>,
}

/// Handles are equal if they lead to the same cluster now and later.
impl PartialEq for ClusterHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ClusterHandle {}

impl Hash for ClusterHandle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl ClusterHandle {
    /// The number of the name.
    pub fn id(&self) -> ClusterId {
        self.0.id
    }

    /// The name.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// The cluster as it is now, for threads other than workers; `None` if there is none of this name.
    pub fn current(&self) -> Option<Arc<Cluster>> {
        self.0.current.load_full()
    }

    /// Whether there is a cluster of this name.
    pub fn exists(&self) -> bool {
        self.0.current.load().is_some()
    }
}

/// The names of one shard.
type Shard = FxHashMap<Arc<str>, ClusterHandle>;

/// The number of shards: with 10,000 names, a new one copies 40 entries.
const SHARDS: usize = 256;

/// All names, and the clusters that they stand for.
#[derive(Debug)]
pub struct Clusters {
    shards: Box<[ArcSwap<Shard>]>,
    /// Held while names are added or removed.
    ids: Mutex<Ids>,
    node: OnceLock<Arc<Locality>>,
}

#[derive(Debug, Default)]
struct Ids {
    next: u32,
    free: Vec<u32>,
    /// Handles that may have no cluster, by number.
    vacant: FxHashMap<ClusterId, ClusterHandle>,
}

impl Default for Clusters {
    fn default() -> Self {
        Clusters {
            shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(),
            ids: Mutex::default(),
            node: OnceLock::new(),
        }
    }
}

impl Clusters {
    /// Where the proxy is. The first call decides.
    pub fn node(&self, configured: Option<&Locality>) -> &Arc<Locality> {
        self.node.get_or_init(|| configured.cloned().map(Arc::new).unwrap_or_default())
    }

    /// The handle of a name, created if needed. Only for what is being configured: a name that appears in traffic must
    /// not take memory, so it is looked up with [`find`](Self::find).
    pub fn handle(&self, name: &str) -> ClusterHandle {
        let shard = self.shard(name);
        if let Some(known) = shard.load().get(name) {
            return known.clone();
        }
        let mut ids = self.ids();
        // Another thread may have added it meanwhile.
        if let Some(known) = shard.load().get(name) {
            return known.clone();
        }
        let id = ids.free.pop().unwrap_or_else(|| {
            ids.next += 1;
            ids.next - 1
        });
        let slot = Slot { id: ClusterId(id), name: name.into(), current: ArcSwapOption::empty() };
        let handle = ClusterHandle(Arc::new(slot));
        // Until it gets a cluster.
        ids.vacant.insert(handle.id(), handle.clone());
        change(shard, |names| _ = names.insert(handle.name().clone(), handle.clone()));
        handle
    }

    /// The handle of a name that is known, whether there is a cluster or not.
    pub fn find(&self, name: &str) -> Option<ClusterHandle> {
        self.shard(name).load().get(name).cloned()
    }

    /// The cluster of this name as it is now.
    pub fn get(&self, name: &str) -> Option<Arc<Cluster>> {
        self.shard(name).load().get(name)?.current()
    }

    /// Sets the cluster of a name, unless what is there is newer; see [`Pools::set`](super::Pools::set). Workers do not see
    /// this: their tables are changed by messages. Returns the cluster as it is now.
    pub fn publish(&self, handle: &ClusterHandle, cluster: &Arc<Cluster>) -> Arc<Cluster> {
        let mut now = Arc::clone(cluster);
        handle.0.current.rcu(|before| {
            now = match before {
                Some(before) if before.is_same(cluster) => before.updated_by(cluster).unwrap_or_else(|| before.clone()),
                _ => Arc::clone(cluster),
            };
            Some(Arc::clone(&now))
        });
        now
    }

    /// Removes the cluster of a name, and returns its last state.
    pub fn withdraw(&self, handle: &ClusterHandle) -> Option<Arc<Cluster>> {
        let last = handle.0.current.swap(None)?;
        self.ids().vacant.insert(handle.id(), handle.clone());
        Some(last)
    }

    /// All names that are known, in no particular order.
    pub fn handles(&self) -> Vec<ClusterHandle> {
        self.shards.iter().flat_map(|shard| shard.load().values().cloned().collect::<Vec<_>>()).collect()
    }

    /// All clusters as they are now, in no particular order.
    pub fn all(&self) -> Vec<Arc<Cluster>> {
        self.handles().iter().filter_map(ClusterHandle::current).collect()
    }

    /// The names that something refers to although there is no such cluster.
    pub fn missing(&self) -> Vec<Arc<str>> {
        let ids = self.ids();
        // The directory itself holds two: in its shard and among the vacant ones.
        let referred = ids.vacant.values().filter(|handle| !handle.exists() && Arc::strong_count(&handle.0) > 2);
        let mut names: Vec<_> = referred.map(|handle| handle.name().clone()).collect();
        names.sort();
        names
    }

    /// Gives up names without a cluster that nothing refers to, so that their numbers can be used again. Its cost
    /// depends only on the number of names that have no cluster.
    pub fn reclaim(&self) {
        let mut ids = self.ids();
        let Ids { free, vacant, .. } = &mut *ids;
        vacant.retain(|_, handle| {
            if handle.exists() {
                return false;
            }
            let shard = self.shard(handle.name());
            // As long as a reader holds an older version of the shard, that version holds the handle as well. So nobody
            // can get a handle once the count is 1.
            if Arc::strong_count(&handle.0) <= 2 {
                change(shard, |names| _ = names.remove(handle.name()));
            }
            match Arc::get_mut(&mut handle.0) {
                Some(slot) => {
                    free.push(slot.id.0);
                    false
                }
                None => {
                    // Somebody got it in between: it stays known.
                    change(shard, |names| _ = names.entry(handle.name().clone()).or_insert_with(|| handle.clone()));
                    true
                }
            }
        });
    }

    fn shard(&self, name: &str) -> &ArcSwap<Shard> {
        use std::hash::{Hash, Hasher};
        let mut hasher = rustc_hash::FxHasher::default();
        name.hash(&mut hasher);
        // The map inside uses other bits of the same hash.
        &self.shards[(hasher.finish() >> 48) as usize % SHARDS]
    }

    /// A panic during a change leaves the numbers intact.
    fn ids(&self) -> MutexGuard<'_, Ids> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces a shard by a changed copy. The lock on the numbers must be held.
fn change(shard: &ArcSwap<Shard>, change: impl FnOnce(&mut Shard)) {
    let mut names = Shard::clone(&shard.load());
    change(&mut names);
    shard.store(Arc::new(names));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> Arc<Cluster> {
        Cluster::new(&serde_json::from_value(serde_json::json!({ "name": name })).unwrap(), None)
    }

    #[test]
    fn name_keeps_its_number_while_anything_refers_to_it() {
        let clusters = Clusters::default();
        let (one, two) = (clusters.handle("one"), clusters.handle("two"));
        assert_eq!((one.id(), two.id()), (ClusterId(0), ClusterId(1)));
        assert_eq!(clusters.handle("one").id(), one.id());
        assert!(clusters.find("three").is_none());
        clusters.reclaim();
        assert_eq!(clusters.find("one").map(|h| h.id()), Some(one.id()), "a handle of it exists");
        let id = one.id();
        drop(one);
        clusters.reclaim();
        assert!(clusters.find("one").is_none());
        let three = clusters.handle("three");
        assert_eq!(three.id(), id, "the number is free again");
        assert_ne!(clusters.handle("one").id(), id);
    }

    #[test]
    fn cluster_keeps_its_name_known() {
        let clusters = Clusters::default();
        let handle = clusters.handle("web");
        assert!(!handle.exists() && clusters.get("web").is_none());
        clusters.publish(&handle, &cluster("web"));
        let (id, again) = (handle.id(), handle.clone());
        drop((handle, again));
        clusters.reclaim();
        let handle = clusters.find("web").expect("it has a cluster");
        assert_eq!((handle.id(), clusters.all().len()), (id, 1));
        clusters.withdraw(&handle);
        drop(handle);
        clusters.reclaim();
        assert!(clusters.find("web").is_none() && clusters.all().is_empty());
    }

    #[test]
    fn missing_names_are_those_that_something_refers_to() {
        let clusters = Clusters::default();
        let (kept, dropped, there) = (clusters.handle("kept"), clusters.handle("dropped"), clusters.handle("there"));
        clusters.publish(&there, &cluster("there"));
        drop(dropped);
        assert_eq!(clusters.missing(), [kept.name().clone()]);
        clusters.withdraw(&there);
        assert_eq!(clusters.missing(), [kept.name().clone(), there.name().clone()]);
    }

    #[test]
    fn many_names_in_many_threads_get_one_number_each() {
        let clusters = Clusters::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|n| _ = clusters.handle(&format!("cluster-{n}"))));
            }
        });
        let ids: std::collections::BTreeSet<_> =
            (0..500).map(|n| clusters.find(&format!("cluster-{n}")).unwrap().id()).collect();
        assert_eq!((ids.len(), ids.last().unwrap().index()), (500, 499));
        clusters.reclaim();
        assert!(clusters.find("cluster-7").is_none());
    }
}
