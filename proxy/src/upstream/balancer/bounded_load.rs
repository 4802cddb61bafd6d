//! `hash_balance_factor`: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam: arXiv 1608.01350). No
//! endpoint gets more than this percentage of its fair share of the requests in flight; further keys go to other endpoints.
//! Which ones depends on the key alone, as in Envoy (random jumps, arXiv 1908.08762), so that the load that overflows is
//! spread over all endpoints, and returns to the same ones.
//!
//! State: the counts of active requests, in the cluster and its endpoints, shared by all workers. Requests that are balanced
//! at the same moment do not see each other, so with `n` workers an endpoint can exceed its bound by `n − 1` requests.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::candidates::Candidates;

/// The bound on an endpoint's load.
#[derive(Debug)]
pub(super) struct BoundedLoad {
    percent: u64,
}

/// The requests that all endpoints together may have at one moment.
#[derive(Debug)]
pub(super) struct Slots(f64);

impl BoundedLoad {
    pub(super) fn new(percent: u32) -> BoundedLoad {
        BoundedLoad { percent: percent.into() }
    }

    pub(super) fn slots(&self, in_flight: &AtomicU64, candidates: &Candidates) -> Slots {
        let slots = in_flight.load(Relaxed).max(1) as f64 * self.percent as f64 / 100.0;
        Slots(slots / candidates.total() as f64)
    }
}

impl Slots {
    /// The load of a candidate relative to its bound. From 1 on it gets no more requests.
    pub(super) fn load(&self, candidates: &Candidates, index: usize) -> f64 {
        let bound = (self.0 * candidates.weight(index) as f64).ceil().max(1.0);
        candidates.endpoint(index).active() as f64 / bound
    }
}
