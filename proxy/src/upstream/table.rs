//! The clusters that a worker uses now. Messages change the table between two requests, so that a request sees a change of
//! the configuration as a whole or not at all.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use tokio::time::Instant;

use super::{Cluster, ClusterHandle};

/// A worker's clusters. Clones share the same table.
#[derive(Clone, Default)]
pub struct ClusterTable(Rc<RefCell<Vec<Option<Listed>>>>);

/// A cluster in the table.
pub(super) struct Listed {
    /// Keeps the number from being reused.
    handle: ClusterHandle,
    pub(super) cluster: Arc<Cluster>,
    /// Since when the configuration lacks it; it stays for requests that began before.
    leaving: Option<Instant>,
}

impl ClusterTable {
    /// The cluster that a handle stands for, for a request that began at this time; `None` if there is none.
    pub fn get(&self, handle: &ClusterHandle, began: Instant) -> Option<Arc<Cluster>> {
        let table = self.0.borrow();
        let listed = table.get(handle.id().index())?.as_ref()?;
        listed.leaving.is_none_or(|left| began <= left).then(|| Arc::clone(&listed.cluster))
    }

    /// The cluster that a handle stands for, whether the configuration still has it or not.
    pub(super) fn listed(&self, handle: &ClusterHandle) -> Option<Arc<Cluster>> {
        let table = self.0.borrow();
        Some(Arc::clone(&table.get(handle.id().index())?.as_ref()?.cluster))
    }

    /// Puts a cluster into the table. Returns the one that was there.
    pub(super) fn put(&self, handle: &ClusterHandle, cluster: Arc<Cluster>) -> Option<Arc<Cluster>> {
        let (index, mut table) = (handle.id().index(), self.0.borrow_mut());
        if table.len() <= index {
            table.resize_with(index + 1, || None);
        }
        let listed = Listed { handle: handle.clone(), cluster, leaving: None };
        table[index].replace(listed).map(|before| before.cluster)
    }

    /// Marks a cluster as one that the configuration lacks since `now`, and returns it. `last` was its last state: another
    /// cluster may have got the name since.
    pub(super) fn mark_leaving(&self, handle: &ClusterHandle, last: &Cluster, now: Instant) -> Option<Arc<Cluster>> {
        let mut table = self.0.borrow_mut();
        let listed = table.get_mut(handle.id().index())?.as_mut().filter(|listed| listed.cluster.is_same(last))?;
        listed.leaving = Some(now);
        Some(Arc::clone(&listed.cluster))
    }

    /// Removes a cluster that has been leaving since `then`, unless it was configured again.
    pub(super) fn take_left(&self, handle: &ClusterHandle, then: Instant) -> Option<Arc<Cluster>> {
        let mut table = self.0.borrow_mut();
        let listed = table.get_mut(handle.id().index())?.take_if(|listed| listed.leaving == Some(then))?;
        debug_assert_eq!(listed.handle.id(), handle.id());
        Some(listed.cluster)
    }
}
