//! Instances in place of those that fail: when a worker gets another one, and what that may cost.
//!
//! Making instances may take a tenth of a worker's time. That is a budget and not a pause: a request that makes a filter fail
//! can be sent again and again, and a pause after it would be everybody's.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Machine;

/// What making instances may take of a worker's time: one part in this many.
const SHARE: u32 = 10;

/// What it may take at once, if it has taken nothing for a while.
const BURST: Duration = Duration::from_millis(250);

/// Asks for another instance of a machine.
pub struct Order {
    /// Of which.
    pub machine: Arc<Machine>,
    /// It is not wanted before this much time has passed.
    pub wait: Duration,
}

/// Where a worker's instances come from, beside those that it makes itself.
pub struct Supply {
    budget: RefCell<Budget>,
    order: Box<dyn Fn(Order)>,
}

impl Supply {
    /// A supply that passes orders on to whoever makes instances. Those are given to [`Vm::deliver`](super::Vm::deliver).
    pub fn new(order: impl Fn(Order) + 'static) -> Rc<Supply> {
        Rc::new(Supply { budget: RefCell::new(Budget::new(Instant::now())), order: Box::new(order) })
    }

    /// Charges processor time that an instance for this worker has taken, wherever it was made.
    pub fn charge(&self, used: Duration) {
        self.budget.borrow_mut().charge(used, Instant::now());
    }

    /// How long to wait until another one may be made.
    pub(super) fn wait(&self) -> Duration {
        self.budget.borrow_mut().wait(Instant::now())
    }

    /// Orders an instance, not before this much time has passed and not before the budget allows it.
    pub(super) fn order(&self, machine: &Arc<Machine>, pause: Duration) {
        (self.order)(Order { machine: machine.clone(), wait: pause.max(self.wait()) });
    }
}

/// A token bucket of processor time. What an instance costs is known only when it has been made, so the bucket may go below
/// zero; then nothing is made until it has filled up again.
#[derive(Debug)]
struct Budget {
    /// What is left, in nanoseconds; below zero: a debt.
    left: i64,
    at: Instant,
}

impl Budget {
    fn new(now: Instant) -> Budget {
        Budget { left: nanos(BURST), at: now }
    }

    fn fill(&mut self, now: Instant) {
        let gained = nanos(now.saturating_duration_since(self.at) / SHARE);
        // Time that has brought nothing yet, because it is so short, still counts.
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(nanos(BURST));
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
        Duration::from_nanos(owed.unsigned_abs()) * SHARE
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much is made in a minute, and how often, if another instance is wanted all the time.
    fn minute(each: Duration) -> (Duration, u32) {
        let start = Instant::now();
        let (mut budget, mut now, mut made) = (Budget::new(start), start, 0);
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
    fn instances_take_a_tenth_of_a_worker() {
        for each in [100, 10_000, 100_000, 1_000_000].map(Duration::from_micros) {
            let (used, made) = minute(each);
            // The burst, and the last one's debt.
            let most = Duration::from_secs(6) + BURST + each;
            assert!(used <= most && used >= Duration::from_secs(6), "{each:?}: {used:?}, {made} times");
        }
    }

    #[test]
    fn a_budget_that_was_not_used_does_not_grow_without_bound() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let later = start + Duration::from_secs(86_400);
        budget.charge(BURST, later);
        assert!(!budget.wait(later).is_zero());
        assert_eq!(budget.wait(later + Duration::from_millis(1)), Duration::ZERO);
    }
}
