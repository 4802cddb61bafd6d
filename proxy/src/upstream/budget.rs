//! The retry budget: limits concurrent retries to a share of the active requests. Without it, a cluster that fails
//! under load would receive a multiple of its load.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::config::model;

/// The limit on concurrent retries of a cluster, over all workers.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    share: f64,
    min_concurrent: u64,
    /// The most, whatever the number of requests.
    most: u64,
    under_way: Arc<AtomicU64>,
}

impl RetryBudget {
    /// Creates a budget from its configuration, for at most this many retries, if there is a limit. Retries in progress under
    /// `previous` still count.
    pub fn new(config: &model::RetryBudget, most: Option<u32>, previous: Option<&RetryBudget>) -> Self {
        RetryBudget {
            // A percentage that is negative or not a number allows nothing.
            share: (config.percent / 100.0).max(0.0),
            min_concurrent: config.min_concurrent.into(),
            most: most.map_or(u64::MAX, u64::from),
            under_way: previous.map(|p| Arc::clone(&p.under_way)).unwrap_or_default(),
        }
    }

    /// Acquires a permit for one retry, released when the guard is dropped; `None` if the budget is exhausted. `active`
    /// is the number of in-flight requests, of which a share (rounded down) may be retries; `min_concurrent` retries
    /// are always allowed, unless the limit is lower.
    pub fn try_acquire(&self, active: u64) -> Option<RetryGuard> {
        let allowed = self.allowed(active);
        // Add first, then undo: one atomic operation in the usual case. At the limit, a retry about to be refused may
        // briefly take the permit of another, which errs on the safe side.
        if self.under_way.fetch_add(1, Relaxed) >= allowed {
            self.under_way.fetch_sub(1, Relaxed);
            return None;
        }
        Some(RetryGuard(Arc::clone(&self.under_way)))
    }

    fn allowed(&self, active: u64) -> u64 {
        ((active as f64 * self.share) as u64).max(self.min_concurrent).min(self.most)
    }

    /// Returns how many more retries are allowed now.
    pub fn remaining(&self, active: u64) -> u64 {
        self.allowed(active).saturating_sub(self.under_way())
    }

    /// Returns the number of retries in progress.
    pub fn under_way(&self) -> u64 {
        self.under_way.load(Relaxed)
    }
}

/// A retry's permit in its cluster's budget.
#[derive(Debug)]
#[must_use = "dropping this releases the permit"]
pub struct RetryGuard(Arc<AtomicU64>);

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(percent: f64, min_concurrent: u32) -> RetryBudget {
        RetryBudget::new(&model::RetryBudget { percent, min_concurrent }, None, None)
    }

    #[test]
    fn share_of_the_active_requests_may_be_retries() {
        let budget = budget(20.0, 3);
        let held: Vec<_> = std::iter::from_fn(|| budget.try_acquire(50)).take(100).collect();
        assert_eq!(held.len(), 10);
        assert_eq!(budget.under_way(), 10);
        drop(held);
        assert_eq!(budget.under_way(), 0);
    }

    #[test]
    fn limit_applies_to_the_share_and_the_minimum() {
        let budget = RetryBudget::new(&model::RetryBudget { percent: 20.0, min_concurrent: 3 }, Some(2), None);
        for active in [1, 1_000] {
            assert_eq!(budget.remaining(active), 2);
            let held: Vec<_> = std::iter::from_fn(|| budget.try_acquire(active)).take(100).collect();
            assert_eq!((held.len(), budget.remaining(active)), (2, 0));
        }
        assert_eq!(self::budget(20.0, 3).remaining(1_000), 200);
    }

    #[test]
    fn minimum_is_always_allowed() {
        let budget = budget(20.0, 3);
        let held: Vec<_> = std::iter::from_fn(|| budget.try_acquire(1)).take(100).collect();
        assert_eq!(held.len(), 3);
        assert!(self::budget(0.0, 0).try_acquire(1_000_000).is_none());
        assert!(self::budget(f64::NAN, 0).try_acquire(1_000_000).is_none());
    }

    #[test]
    fn reload_keeps_retries_in_progress() {
        let old = budget(0.0, 1);
        let guard = old.try_acquire(1);
        let new = RetryBudget::new(&model::RetryBudget { percent: 0.0, min_concurrent: 1 }, None, Some(&old));
        assert!(new.try_acquire(1).is_none());
        drop(guard);
        assert!(new.try_acquire(1).is_some());
    }
}
