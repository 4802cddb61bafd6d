//! Timers and ticks. A Proxy-Wasm host offers only one tick per root context, so it is set for whatever is due first;
//! when it fires, everything due is run.

use crate::sys::Due;

const MILLISECOND: u64 = 1_000_000;

/// Pending timers and ticks. Times are in nanoseconds of the host's clock.
pub(super) struct Schedule {
    timers: Vec<Timer>,
    ticks: Vec<Tick>,
    /// When the host's tick will fire.
    armed: Option<u64>,
}

struct Timer {
    due: u64,
    context: u32,
    token: i64,
}

struct Tick {
    root: u32,
    due: u64,
    period: u64,
}

impl Schedule {
    pub(super) const fn new() -> Schedule {
        Schedule { timers: Vec::new(), ticks: Vec::new(), armed: None }
    }

    pub(super) fn add_timer(&mut self, due: u64, context: u32, token: i64) {
        self.timers.push(Timer { due, context, token });
    }

    /// Sets the tick of a root context; 0 stops it.
    pub(super) fn set_tick(&mut self, root: u32, now: u64, period: u64) {
        self.ticks.retain(|tick| tick.root != root);
        if period > 0 {
            self.ticks.push(Tick { root, due: now.saturating_add(period), period });
        }
    }

    /// Removes the timers of a context.
    pub(super) fn leave(&mut self, context: u32) {
        self.timers.retain(|timer| timer.context != context);
        self.ticks.retain(|tick| tick.root != context);
    }

    /// Removes a due timer. Returns `false` if it no longer exists.
    pub(super) fn take(&mut self, context: u32, token: i64, now: u64) -> bool {
        let found = self.timers.iter().position(|t| t.context == context && t.token == token && t.due <= now);
        found.map(|at| self.timers.swap_remove(at)).is_some()
    }

    /// Returns what is due, earliest first. Ticks are rescheduled; timers stay until they are taken.
    pub(super) fn due(&mut self, now: u64) -> Vec<Due> {
        let timers = self.timers.iter().filter(|timer| timer.due <= now);
        let mut due: Vec<_> = timers.map(|t| (t.due, Due::Timer(t.context, t.token))).collect();
        for tick in self.ticks.iter_mut().filter(|tick| tick.due <= now) {
            due.push((tick.due, Due::Tick(tick.root)));
            tick.due = now.saturating_add(tick.period);
        }
        due.sort_by_key(|(at, _)| *at);
        due.into_iter().map(|(_, due)| due).collect()
    }

    /// Returns the period in milliseconds that the host's tick must be set to; `None` if it already fires in time.
    pub(super) fn arm(&mut self, now: u64) -> Option<u32> {
        let timers = self.timers.iter().map(|timer| timer.due);
        let first = timers.chain(self.ticks.iter().map(|tick| tick.due)).min()?;
        // Within a millisecond is good enough. A tick that is overdue will not fire any more.
        if self.armed.is_some_and(|armed| armed > now && armed < first.saturating_add(MILLISECOND)) {
            return None;
        }
        let millis = first.saturating_sub(now).div_ceil(MILLISECOND).clamp(1, u64::from(u32::MAX));
        self.armed = Some(now + millis * MILLISECOND);
        Some(millis as u32)
    }

    /// Handles the host's tick. Returns the next period to set; 0 means none.
    pub(super) fn arm_again(&mut self, now: u64) -> u32 {
        self.armed = None;
        self.arm(now).unwrap_or(0)
    }
}

#[cfg(target_arch = "wasm32")]
pub(super) mod host {
    //! The module's schedule, driven by the host's tick.

    use std::{cell::RefCell, mem::ManuallyDrop};

    use super::{MILLISECOND, Schedule};
    use crate::{
        sys::{self, Due, portable::lane},
        table::borrow,
    };

    thread_local! {
        static SCHEDULE: ManuallyDrop<RefCell<Schedule>> = const { ManuallyDrop::new(RefCell::new(Schedule::new())) };
    }

    fn with<T>(f: impl FnOnce(&mut Schedule) -> T) -> T {
        SCHEDULE.with(|schedule| f(&mut borrow(schedule)))
    }

    /// Returns whether the timer was set.
    pub(crate) fn timer_set(microseconds: u64, token: i64) -> bool {
        let now = sys::now();
        let due = now.saturating_add(microseconds.saturating_mul(1000));
        let period = with(|s| {
            s.add_timer(due, lane::context(), token);
            s.arm(now)
        });
        period.into_iter().for_each(sys::set_host_tick);
        true
    }

    /// Called during configuration.
    pub(crate) fn set_tick_period(ms: u32) {
        let now = sys::now();
        let period = with(|s| {
            s.set_tick(lane::context(), now, u64::from(ms) * MILLISECOND);
            s.arm(now)
        });
        period.into_iter().for_each(sys::set_host_tick);
    }

    pub(in crate::sys::portable) fn cancel(context: u32) {
        with(|s| s.leave(context));
    }

    /// Handles the tick of this context.
    pub(crate) fn tick(root: u32, mut run: impl FnMut(Due)) {
        let now = sys::now();
        for due in with(|s| s.due(now)) {
            match due {
                Due::Tick(root) => sys::set_effective_context(root),
                // One timer may have ended another's stream.
                Due::Timer(context, token) if with(|s| s.take(context, token, now)) => {
                    sys::set_effective_context(context);
                }
                Due::Timer(..) => continue,
            }
            run(due);
        }
        sys::set_effective_context(root);
        sys::set_host_tick(with(|s| s.arm_again(sys::now())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = MILLISECOND;

    #[test]
    fn host_tick_is_set_only_if_it_would_fire_too_late() {
        let mut s = Schedule::new();
        assert_eq!(s.arm(0), None, "nothing is pending");
        s.add_timer(10 * MS + 1, 2, 0);
        assert_eq!(s.arm(0), Some(11), "rounded up");
        s.add_timer(20 * MS, 3, 0);
        assert_eq!(s.arm(MS), None);
        s.add_timer(6 * MS, 4, 0);
        assert_eq!(s.arm(MS), Some(5));
        assert_eq!(s.arm(50 * MS), Some(1), "the tick is overdue");
    }

    #[test]
    fn timers_fire_once_and_ticks_repeat() {
        let mut s = Schedule::new();
        s.set_tick(1, 0, 10 * MS);
        s.add_timer(5 * MS, 2, 7);
        s.add_timer(12 * MS, 3, 8);
        assert_eq!(s.due(4 * MS), []);
        assert_eq!(s.due(10 * MS), [Due::Timer(2, 7), Due::Tick(1)]);
        assert!(s.take(2, 7, 10 * MS));
        assert!(!s.take(2, 7, 10 * MS));
        assert_eq!(s.arm_again(10 * MS), 2);
        assert_eq!(s.due(30 * MS), [Due::Timer(3, 8), Due::Tick(1)]);
        s.leave(3);
        assert!(!s.take(3, 8, 30 * MS), "its stream has ended");
        assert_eq!(s.arm_again(30 * MS), 10);
        s.set_tick(1, 30 * MS, 0);
        assert_eq!(s.arm_again(40 * MS), 0);
    }
}
