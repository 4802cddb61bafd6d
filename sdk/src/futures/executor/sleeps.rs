//! The timers of a task. The host has sixteen for a stream and cannot take one back, so it is only asked for one if none
//! that it has already will be due in time.

use std::task::Waker;

use super::{with, with_task};
use crate::sys;

/// Who sleeps in a task, and until when.
#[derive(Default)]
pub(super) struct Sleeps {
    last: u32,
    sleepers: Vec<Sleeper>,
    /// When the host's timers are due.
    armed: Vec<u64>,
}

struct Sleeper {
    id: u32,
    /// By the host's clock, in nanoseconds.
    until: u64,
    waker: Waker,
}

impl Sleeps {
    /// Whether the host will call in time for the first of the sleepers.
    fn arm(&mut self, task: u32, now: u64) -> bool {
        let Some(first) = self.sleepers.iter().map(|s| s.until).min() else { return true };
        if self.armed.iter().any(|due| *due <= first) {
            return true;
        }
        let armed = sys::timer_set(first.saturating_sub(now).div_ceil(1000), i64::from(task));
        if armed {
            self.armed.push(first);
        }
        armed
    }
}

/// Lets a task sleep. `None`: the host has no timer for it.
pub(crate) fn sleep(task: u32, until: u64, waker: &Waker) -> Option<u32> {
    with_task(task, |t| {
        let sleeps = &mut t.sleeps;
        sleeps.last += 1;
        let id = sleeps.last;
        sleeps.sleepers.push(Sleeper { id, until, waker: waker.clone() });
        if sleeps.arm(task, sys::now()) {
            return Some(id);
        }
        sleeps.sleepers.pop();
        None
    })
    .flatten()
}

/// The waker of someone who sleeps has changed.
pub(crate) fn set_waker(task: u32, id: u32, waker: &Waker) {
    let waker = waker.clone();
    let before = with_task(task, |t| {
        let sleeper = t.sleeps.sleepers.iter_mut().find(|s| s.id == id)?;
        Some(std::mem::replace(&mut sleeper.waker, waker))
    });
    drop(before);
}

/// Someone sleeps no longer.
pub(crate) fn leave(task: u32, id: u32) {
    let gone = with_task(task, |t| {
        let sleepers = &mut t.sleeps.sleepers;
        sleepers.iter().position(|s| s.id == id).map(|at| sleepers.swap_remove(at))
    });
    drop(gone);
}

/// A timer of a stream is due.
pub(crate) fn due(context: u32, token: i64) {
    let Ok(task) = u32::try_from(token) else { return };
    let now = sys::now();
    let woken = with(|e| {
        let sleeping = &mut e.tasks.get_mut(task).filter(|t| t.context == context)?.sleeps;
        sleeping.armed.retain(|due| *due > now);
        let (due, later) = std::mem::take(&mut sleeping.sleepers).into_iter().partition(|s| s.until <= now);
        sleeping.sleepers = later;
        sleeping.arm(task, now);
        Some::<Vec<_>>(due)
    });
    woken.into_iter().flatten().for_each(|sleeper| sleeper.waker.wake());
}
