//! Bounds on how many streams do something at once, over all workers.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// A bound.
#[derive(Debug)]
pub struct Limit {
    max: AtomicU32,
    held: AtomicU32,
}

impl Limit {
    /// A bound of `max` places.
    pub fn new(max: u32) -> Limit {
        Limit { max: AtomicU32::new(max), held: AtomicU32::new(0) }
    }

    /// Changes the bound; who has a place keeps it.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Takes a place, if there is one.
    pub fn acquire(self: &Arc<Self>) -> Option<Place> {
        let max = self.max.load(Ordering::Relaxed);
        let free = |held| (held < max).then_some(held + 1);
        self.held.fetch_update(Ordering::AcqRel, Ordering::Relaxed, free).ok()?;
        Some(Place(self.clone()))
    }
}

/// A place of a limit; dropping it gives it back.
#[derive(Debug)]
pub struct Place(Arc<Limit>);

impl Place {
    /// Whether it is one of this limit's.
    pub fn is_of(&self, limit: &Arc<Limit>) -> bool {
        Arc::ptr_eq(&self.0, limit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_places_than_the_bound() {
        let limit = Arc::new(Limit::new(100));
        let most = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        let places: Vec<_> = (0..40).filter_map(|_| limit.acquire()).collect();
                        most.fetch_max(limit.held.load(Ordering::Relaxed), Ordering::Relaxed);
                        drop(places);
                    }
                });
            }
        });
        assert!((40..=100).contains(&most.load(Ordering::Relaxed)));
        assert_eq!(limit.held.load(Ordering::Relaxed), 0);
    }
}
