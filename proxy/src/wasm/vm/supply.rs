//! When a worker gets a replacement for a failed instance, and how much processor time that may cost.
//!
//! Creating instances may take a tenth of a worker's time. This is a budget rather than a pause: a request that makes a
//! filter fail can be sent again and again, and pausing after it would affect every client. Calls that exceed their
//! time limit have a separate, larger budget: without it, a client that knows how to trigger an endless loop could
//! take all of a worker's time, including that of listeners without the filter.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::wasm::VmTemplate;

/// A share of a worker's time.
#[derive(Debug, Clone, Copy)]
struct CpuShare {
    /// In percent.
    percent: u32,
    /// The maximum burst after idle time.
    burst: Duration,
}

/// For creating instances.
const MAKING: CpuShare = CpuShare { percent: 10, burst: Duration::from_millis(250) };

/// For calls that exceed their time limit.
const OVERRUNS: CpuShare = CpuShare { percent: 60, burst: Duration::from_millis(1000) };

/// An order for another instance.
pub struct InstanceOrder {
    /// The template to instantiate.
    pub template: Arc<VmTemplate>,
    /// The instance is not needed before this time has passed.
    pub wait: Duration,
}

/// Where a worker's instances come from, apart from those that it creates itself.
pub struct InstanceSupply {
    instantiation: RefCell<Budget>,
    overruns: RefCell<Budget>,
    order: Box<dyn Fn(InstanceOrder)>,
}

impl InstanceSupply {
    /// Creates a supply that forwards orders to `order`. The resulting instances are passed to
    /// [`Vm::deliver`](super::Vm::deliver).
    pub fn new(order: impl Fn(InstanceOrder) + 'static) -> Rc<InstanceSupply> {
        let budget = |share| RefCell::new(Budget::new(share, Instant::now()));
        Rc::new(InstanceSupply { instantiation: budget(MAKING), overruns: budget(OVERRUNS), order: Box::new(order) })
    }

    /// Charges the processor time of creating an instance for this worker, wherever it was created.
    pub fn charge(&self, used: Duration) {
        self.instantiation.borrow_mut().charge(used, Instant::now());
    }

    /// Charges the processor time of a call that exceeded its limit. Returns how long the VM should stay without an
    /// instance.
    pub(in crate::wasm) fn overran(&self, used: Duration) -> Duration {
        let (mut budget, now) = (self.overruns.borrow_mut(), Instant::now());
        budget.charge(used, now);
        budget.wait(now)
    }

    /// Returns how long to wait until another instance may be created.
    pub(in crate::wasm) fn wait(&self) -> Duration {
        self.instantiation.borrow_mut().wait(Instant::now())
    }

    /// Orders an instance, to be created after `pause` and when the budget allows it.
    pub(super) fn order(&self, template: &Arc<VmTemplate>, pause: Duration) {
        (self.order)(InstanceOrder { template: template.clone(), wait: pause.max(self.wait()) });
    }
}

/// A token bucket of processor time. An instance's cost is known only after it was created, so the bucket may go
/// negative; then nothing is created until it has refilled.
#[derive(Debug)]
struct Budget {
    share: CpuShare,
    /// What is left, in nanoseconds; negative if overdrawn.
    left: i64,
    at: Instant,
}

impl Budget {
    fn new(share: CpuShare, now: Instant) -> Budget {
        Budget { share, left: nanos(share.burst), at: now }
    }

    fn fill(&mut self, now: Instant) {
        let gained = nanos(now.saturating_duration_since(self.at) / 100).saturating_mul(self.share.percent.into());
        // An interval too short to add anything still counts towards the next one.
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(nanos(self.share.burst));
            self.at = now;
        }
    }

    fn charge(&mut self, used: Duration, now: Instant) {
        self.fill(now);
        self.left = self.left.saturating_sub(nanos(used));
    }

    fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        let owed = 1_i64.saturating_sub(self.left).max(0);
        Duration::from_nanos(owed.unsigned_abs()) * 100 / self.share.percent
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The total time and number of instances created in a minute of constant demand.
    fn minute(each: Duration) -> (Duration, u32) {
        let start = Instant::now();
        let (mut budget, mut now, mut made) = (Budget::new(MAKING, start), start, 0);
        while now < start + Duration::from_secs(60) {
            let wait = budget.wait(now);
            if wait.is_zero() {
                made += 1;
                now += each;
                budget.charge(each, now);
            } else {
                now += wait;
            }
        }
        (each * made, made)
    }

    #[test]
    fn creating_instances_takes_a_tenth_of_a_worker() {
        for each in [100, 10_000, 100_000, 1_000_000].map(Duration::from_micros) {
            let (used, made) = minute(each);
            // The burst, and the last instance's overdraft.
            let most = Duration::from_secs(6) + MAKING.burst + each;
            assert!(used <= most && used >= Duration::from_secs(6), "{each:?}: {used:?}, {made} times");
        }
    }

    #[test]
    fn unused_budget_is_capped() {
        let start = Instant::now();
        let mut budget = Budget::new(MAKING, start);
        let later = start + Duration::from_secs(86_400);
        budget.charge(MAKING.burst, later);
        assert!(!budget.wait(later).is_zero());
        assert_eq!(budget.wait(later + Duration::from_millis(1)), Duration::ZERO);
    }

    #[test]
    fn overrunning_calls_take_a_limited_share_of_a_worker() {
        let supply = InstanceSupply::new(|_| ());
        let each = Duration::from_millis(100);
        // Occasional overruns are within the budget.
        assert!((0..9).all(|_| supply.overran(each).is_zero()));
        let waits: Vec<Duration> = (0..12).map(|_| supply.overran(each)).collect();
        assert!(waits.last() > Some(&each), "{waits:?}");
        assert!(waits.is_sorted(), "{waits:?}");
    }
}
