//! Records what filters change in shared state while a new configuration is being built, and undoes it if that
//! configuration is not applied. Effects that cannot be undone (messages to queues, additions to metrics) are held back
//! until it is applied.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    env::{FilterStore, SharedStore, VmIdStore},
    queue::Undelivered,
    shared_data::UpdateResult,
};
use crate::observe::{self, metrics::PendingUpdates};

/// The changes made by a configuration that is not applied yet.
pub struct UndoLog {
    shared: Arc<SharedStore>,
    /// The configuration is applied.
    applied: AtomicBool,
    done: Mutex<UndoEntry>,
}

#[derive(Default)]
struct UndoEntry {
    /// Changed keys of shared data, by owner, with their state before and their version now.
    data: HashMap<(usize, Vec<u8>), (Arc<VmIdStore>, UpdateResult)>,
    /// Newly created queues.
    queues: Vec<(Arc<VmIdStore>, u32)>,
    /// Newly created metrics.
    metrics: Vec<(Arc<FilterStore>, String)>,
    /// Held-back updates of metrics.
    held_back: PendingUpdates,
    /// Held-back messages.
    messages: Vec<Undelivered>,
}

impl UndoLog {
    /// Creates an empty log.
    pub fn new(shared: Arc<SharedStore>) -> UndoLog {
        UndoLog { shared, applied: AtomicBool::new(false), done: Mutex::default() }
    }

    /// Whether the configuration is not applied yet.
    pub fn is_on(&self) -> bool {
        !self.applied.load(Ordering::Acquire)
    }

    /// Marks the configuration as applied and releases what was held back.
    pub fn succeed(&self) {
        // Called once per worker, and for each instance created later.
        if !self.is_on() {
            return;
        }
        let done = {
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            self.applied.store(true, Ordering::Release);
            std::mem::take(&mut *done)
        };
        done.held_back.count(observe::shard());
        done.messages.into_iter().for_each(|message| self.shared.queues.deliver(message));
    }

    fn note(&self, note: impl FnOnce(&mut UndoEntry)) {
        if self.is_on() {
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            // It may have been applied in the meantime.
            if self.is_on() {
                note(&mut done);
            }
        }
    }

    /// Records a change of shared data.
    pub fn note_data(&self, vm_store: &Arc<VmIdStore>, key: &[u8], change: UpdateResult) {
        self.note(|done| {
            let key = (Arc::as_ptr(vm_store) as usize, key.to_vec());
            match done.data.entry(key) {
                // The first recorded state is the one to restore.
                std::collections::hash_map::Entry::Occupied(mut known) => known.get_mut().1.version = change.version,
                std::collections::hash_map::Entry::Vacant(new) => _ = new.insert((vm_store.clone(), change)),
            }
        });
    }

    /// Records a new queue.
    pub fn note_queue(&self, vm_store: &Arc<VmIdStore>, id: u32) {
        self.note(|done| done.queues.push((vm_store.clone(), id)));
    }

    /// Records a new metric of a filter.
    pub fn note_metric(&self, filter_store: &Arc<FilterStore>, shown: String) {
        self.note(|done| done.metrics.push((filter_store.clone(), shown)));
    }

    /// Runs `f` on the held-back metric updates. `None`: the configuration is applied and nothing is held back.
    pub fn metrics<T>(&self, f: impl FnOnce(&mut PendingUpdates) -> T) -> Option<T> {
        let mut f = Some(f);
        let mut result = None;
        self.note(|done| result = f.take().map(|f| f(&mut done.held_back)));
        result
    }

    /// Delivers a message once the configuration is applied; immediately if it is already.
    pub fn send(&self, message: Undelivered) {
        let mut message = Some(message);
        self.note(|done| done.messages.extend(message.take()));
        if let Some(message) = message {
            self.shared.queues.deliver(message);
        }
    }
}

impl Drop for UndoLog {
    /// Undoes everything: the configuration failed or was only checked.
    fn drop(&mut self) {
        let done = std::mem::take(self.done.get_mut().unwrap_or_else(PoisonError::into_inner));
        for ((_, key), (vm_store, change)) in done.data {
            vm_store.data.undo(&key, change);
        }
        done.queues.into_iter().for_each(|(vm_store, id)| vm_store.queues.remove(id));
        done.metrics
            .into_iter()
            .for_each(|(filter_store, shown)| self.shared.registry.disown(&filter_store.metrics, &shown));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::charge::MemoryBudget,
        observe::{Kind, Registry},
        wasm::stores::shared_data::ExpectedVersion,
    };

    fn take(shared: &SharedStore, id: u32, vm_store: &VmIdStore) -> Option<Option<bytes::Bytes>> {
        shared.queues.take(id, &vm_store.queues).map(|taken| taken.map(|message| message.bytes))
    }

    /// Changes of every kind, as a filter may make while it is configured.
    fn configure(trial: &UndoLog, shared: &Arc<SharedStore>) -> (Arc<VmIdStore>, u32) {
        let (vm_store, filter_store) = (shared.vm_store("vm"), shared.filter_store("f"));
        for (key, value) in [(b"old", b"2"), (b"new", b"2"), (b"old", b"3")] {
            let change = vm_store.data.set(key, value, ExpectedVersion::Any, None).unwrap();
            trial.note_data(&vm_store, key, change);
        }
        let change = vm_store.data.delete(b"gone", ExpectedVersion::Any).unwrap();
        trial.note_data(&vm_store, b"gone", change);
        let (id, made) = shared.queues.open(&vm_store.queues, "q").unwrap();
        assert!(made);
        trial.note_queue(&vm_store, id);
        let (handle, shown) = shared.registry.dynamic(Kind::Counter, "m", &filter_store.metrics).unwrap();
        trial.note_metric(&filter_store, shown.unwrap());
        assert!(handle.get().is_ok());
        let (there, _) = shared.registry.dynamic(Kind::Counter, "there", &filter_store.metrics).unwrap();
        assert!(trial.metrics(|held| held.increment(&there, 5)).unwrap().is_ok());
        assert_eq!(
            trial.metrics(|held| held.get(&there)).unwrap().unwrap(),
            6,
            "other filters of the same configuration see it"
        );
        let (known, _) = shared.queues.open(&vm_store.queues, "known").unwrap();
        trial.send(shared.queues.charged(known, b"message", &MemoryBudget::new(1000, None)).unwrap());
        (vm_store, known)
    }

    /// The state before the new configuration.
    fn before() -> (Arc<SharedStore>, Arc<VmIdStore>, Arc<FilterStore>) {
        let shared = SharedStore::new(Registry::new(1));
        let (vm_store, filter_store) = (shared.vm_store("vm"), shared.filter_store("f"));
        vm_store.data.set(b"old", b"1", ExpectedVersion::Any, None).unwrap();
        vm_store.data.set(b"gone", b"1", ExpectedVersion::Any, None).unwrap();
        shared.queues.open(&vm_store.queues, "known").unwrap();
        let (there, _) = shared.registry.dynamic(Kind::Counter, "there", &filter_store.metrics).unwrap();
        there.increment(observe::shard(), 1).unwrap();
        (shared, vm_store, filter_store)
    }

    #[test]
    fn rejected_configuration_leaves_nothing_behind() {
        let (shared, vm_store, _holdings) = before();
        let version = vm_store.data.get(b"old").unwrap().1;
        let trial = UndoLog::new(shared.clone());
        let (_, known) = configure(&trial, &shared);
        drop(trial);
        let (value, now) = vm_store.data.get(b"old").unwrap();
        assert_eq!(
            (&*value, now),
            (&b"1"[..], version),
            "the version is restored too, so a compare-and-swap still succeeds"
        );
        assert_eq!((vm_store.data.get(b"new"), vm_store.data.get(b"gone").unwrap().0), (None, "1".into()));
        assert_eq!(vm_store.queues.resolve("q"), None);
        assert_eq!(take(&shared, known, &vm_store), Some(None));
        let metrics = shared.registry.render();
        assert!(!metrics.contains("wasmcustom_m") && metrics.contains("wasmcustom_there 1\n"), "{metrics}");
    }

    #[test]
    fn later_changes_by_others_are_kept() {
        let (shared, vm_store, _holdings) = before();
        let trial = UndoLog::new(shared.clone());
        configure(&trial, &shared);
        vm_store.data.set(b"old", b"theirs", ExpectedVersion::Any, None).unwrap();
        vm_store.data.set(b"gone", b"theirs", ExpectedVersion::Any, None).unwrap();
        drop(trial);
        assert_eq!(["old", "gone"].map(|key| vm_store.data.get(key.as_bytes()).unwrap().0), ["theirs", "theirs"]);
    }

    #[test]
    fn applied_configuration_keeps_its_changes() {
        let (shared, vm_store, _holdings) = before();
        let trial = UndoLog::new(shared.clone());
        let (_, known) = configure(&trial, &shared);
        trial.succeed();
        assert!(trial.metrics(|_| ()).is_none());
        assert_eq!(take(&shared, known, &vm_store), Some(Some("message".into())));
        trial.send(shared.queues.charged(known, b"later", &MemoryBudget::new(1000, None)).unwrap());
        drop(trial);
        assert_eq!(["old", "new"].map(|key| vm_store.data.get(key.as_bytes()).unwrap().0), ["3", "2"]);
        assert!(vm_store.data.get(b"gone").is_none() && vm_store.queues.resolve("q").is_some());
        assert_eq!(take(&shared, known, &vm_store), Some(Some("later".into())));
        let metrics = shared.registry.render();
        assert!(metrics.contains("wasmcustom_m") && metrics.contains("wasmcustom_there 6\n"), "{metrics}");
    }
}
