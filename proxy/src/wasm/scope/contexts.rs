//! The streams of an instance by context id.
//!
//! Every filter inserts and removes each stream, so this is optimized for that: ids are assigned consecutively, so
//! concurrent streams nearly always fall into different slots of a small table. The others are in a map.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::stream_ref::WeakStreamRef;
use crate::wasm::host::plugin_info::RootIdentity;

/// A stream's context: the stream, the filter's position in its chain, and which filter it is.
pub struct StreamContext {
    /// The stream.
    pub stream: WeakStreamRef,
    /// The filter's position in the stream's chain.
    pub position: usize,
    /// The filter, or its variant.
    pub root: Rc<RootIdentity>,
}

/// Assigns context ids: consecutive, and never one that is still in use, even after wrapping around at four billion.
#[derive(Debug, Clone, Copy)]
pub struct ContextIds {
    first: u32,
    next: u32,
    wrapped: bool,
}

impl ContextIds {
    /// Starts at this id; lower ids are reserved.
    pub fn from(first: u32) -> ContextIds {
        ContextIds { first, next: first, wrapped: false }
    }

    /// The next id.
    pub fn next(self) -> u32 {
        self.next
    }

    /// The state after the next id has been assigned.
    #[must_use]
    pub fn taken(mut self, in_use: impl Fn(u32) -> bool) -> ContextIds {
        self.step();
        while self.wrapped && in_use(self.next) {
            self.step();
        }
        self
    }

    fn step(&mut self) {
        let next = self.next.checked_add(1);
        self.wrapped |= next.is_none();
        self.next = next.unwrap_or(self.first);
    }
}

/// The number of slots; a power of two.
const SLOTS: usize = 128;

/// Contexts (or other values) by id.
pub struct Contexts<T = StreamContext> {
    /// Each id maps to one slot.
    slots: Box<[Option<(u32, T)>]>,
    /// Entries whose slot was taken.
    others: FxHashMap<u32, T>,
}

impl<T> Default for Contexts<T> {
    fn default() -> Self {
        Contexts { slots: (0..SLOTS).map(|_| None).collect(), others: FxHashMap::default() }
    }
}

impl<T> Contexts<T> {
    /// Inserts a value under an id that is not in use.
    pub fn insert(&mut self, id: u32, value: T) {
        match &mut self.slots[id as usize % SLOTS] {
            free @ None => *free = Some((id, value)),
            Some(_) => {
                self.others.insert(id, value);
            }
        }
    }

    /// Returns the value of an id.
    pub fn get(&self, id: u32) -> Option<&T> {
        match &self.slots[id as usize % SLOTS] {
            Some((here, value)) if *here == id => Some(value),
            _ => self.others.get(&id),
        }
    }

    /// Removes the value of an id.
    pub fn remove(&mut self, id: u32) -> Option<T> {
        match &mut self.slots[id as usize % SLOTS] {
            Some((here, _)) if *here != id => self.others.remove(&id),
            slot @ Some(_) => slot.take().map(|(_, value)| value),
            None => self.others.remove(&id),
        }
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.others.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// Removes and returns all values.
    pub fn take(&mut self) -> Vec<T> {
        let here = self.slots.iter_mut().filter_map(Option::take).map(|(_, value)| value);
        here.chain(self.others.drain().map(|(_, value)| value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_wrap_around_and_skip_those_in_use() {
        let mut contexts = Contexts::default();
        let mut ids = ContextIds::from(3);
        let give = |contexts: &mut Contexts<u32>, ids: &mut ContextIds| {
            let id = ids.next();
            contexts.insert(id, id);
            *ids = ids.taken(|id| contexts.get(id).is_some());
            id
        };
        assert_eq!([give(&mut contexts, &mut ids), give(&mut contexts, &mut ids)], [3, 4]);
        contexts.remove(4);
        ids.next = u32::MAX - 1;
        let given = [(); 4].map(|()| give(&mut contexts, &mut ids));
        assert_eq!(given, [u32::MAX - 1, u32::MAX, 4, 5], "3 is still in use, and lower ids are reserved");
    }

    #[test]
    fn ids_that_share_a_slot_are_kept_apart() {
        let mut contexts = Contexts::default();
        let slot = SLOTS as u32;
        for id in [5, 5 + slot, 6, 5 + 2 * slot] {
            contexts.insert(id, id);
        }
        assert_eq!(contexts.get(5 + slot), Some(&(5 + slot)));
        assert_eq!((contexts.remove(5), contexts.remove(5), contexts.get(5)), (Some(5), None, None));
        assert_eq!(contexts.get(5 + 2 * slot), Some(&(5 + 2 * slot)));
        contexts.insert(5 + 3 * slot, 0);
        assert_eq!((contexts.remove(5 + slot), contexts.remove(5 + slot)), (Some(5 + slot), None));
        assert_eq!((contexts.get(5 + 3 * slot), contexts.get(7)), (Some(&0), None));
        let mut left = contexts.take();
        left.sort_unstable();
        assert_eq!((left, contexts.get(6)), (vec![0, 6, 5 + 2 * slot], None));
    }
}
