//! Equal objects of the whole process as one. Each instance of a filter defines the same routes, and a router with
//! thousands of them would otherwise hold them once per worker and once more for its spare instance.

use std::{
    collections::HashSet,
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A set of shared objects. Used when filters are configured, not for requests.
#[derive(Debug)]
pub struct Interner<T>(Mutex<HashSet<Arc<T>>>);

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Interner(Mutex::default())
    }
}

impl<T: Eq + Hash + Debug> Interner<T> {
    /// The shared object that is equal to `value`.
    pub fn intern(&self, value: T) -> Arc<T> {
        let mut known = self.lock();
        if let Some(known) = known.get(&value) {
            return known.clone();
        }
        let new = Arc::new(value);
        known.insert(new.clone());
        new
    }

    /// Drops the objects that nothing else uses.
    pub fn forget_unused(&self) {
        let mut known = self.lock();
        known.retain(|object| Arc::strong_count(object) > 1);
        known.shrink_to_fit();
    }

    /// A panic during a change leaves the set intact: every change is a single call.
    fn lock(&self) -> MutexGuard<'_, HashSet<Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_objects_are_one_until_they_are_unused() {
        let known = Interner::default();
        let one = known.intern("a".to_owned());
        assert!(Arc::ptr_eq(&one, &known.intern("a".to_owned())));
        assert!(!Arc::ptr_eq(&one, &known.intern("b".to_owned())));
        known.forget_unused();
        assert_eq!(known.lock().len(), 1);
        drop(one);
        known.forget_unused();
        assert!(known.lock().is_empty());
    }
}
