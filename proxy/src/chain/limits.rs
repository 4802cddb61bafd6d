//! Limits on how many streams do something concurrently, over all workers.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// The number of permits in use.
#[derive(Debug, Default)]
pub struct ConcurrencyLimit {
    held: AtomicU32,
}

impl ConcurrencyLimit {
    /// Acquires a permit if fewer than `max` are in use.
    pub fn acquire(self: &Arc<Self>, max: u32) -> Option<Permit> {
        let free = |held| (held < max).then_some(held + 1);
        self.held.try_update(Ordering::AcqRel, Ordering::Relaxed, free).ok()?;
        Some(Permit(self.clone()))
    }
}

/// A permit of a limit, released on drop.
#[derive(Debug)]
pub struct Permit(Arc<ConcurrencyLimit>);

impl Permit {
    /// Whether it belongs to this limit.
    pub fn is_of(&self, limit: &Arc<ConcurrencyLimit>) -> bool {
        Arc::ptr_eq(&self.0, limit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_never_exceed_the_limit() {
        let limit = Arc::new(ConcurrencyLimit::default());
        let most = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        let places: Vec<_> = (0..40).filter_map(|_| limit.acquire(100)).collect();
                        most.fetch_max(limit.held.load(Ordering::Relaxed), Ordering::Relaxed);
                        drop(places);
                    }
                });
            }
        });
        assert!((40..=100).contains(&most.load(Ordering::Relaxed)));
        assert_eq!(limit.held.load(Ordering::Relaxed), 0);
        let place = limit.acquire(1).unwrap();
        assert!(limit.acquire(1).is_none());
        assert!(place.is_of(&limit) && !place.is_of(&Arc::default()));
    }
}
