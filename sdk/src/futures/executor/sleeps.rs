//! Timers of a task. The host allows sixteen per stream and cannot cancel them, so a new one is requested only if no
//! pending timer fires in time.

use std::task::Waker;

use super::{with, with_task};
use crate::sys;

/// The sleepers of a task and their deadlines.
#[derive(Default)]
pub(super) struct Sleeps {
    last: u32,
    sleepers: Vec<Sleeper>,
    /// When the host's timers are due.
    armed: Vec<u64>,
}

struct Sleeper {
    id: u32,
    /// Deadline on the host's clock, in nanoseconds.
    until: u64,
    waker: Waker,
}

impl Sleeps {
    /// Ensures that the host calls in time for the first sleeper; `false` if it has no timer left.
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

/// Registers a sleeper. `None`: the host has no timer for it.
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

/// Updates a sleeper's waker.
pub(crate) fn set_waker(task: u32, id: u32, waker: &Waker) {
    let waker = waker.clone();
    let before = with_task(task, |t| {
        let sleeper = t.sleeps.sleepers.iter_mut().find(|s| s.id == id)?;
        Some(std::mem::replace(&mut sleeper.waker, waker))
    });
    drop(before);
}

/// Removes a sleeper.
pub(crate) fn leave(task: u32, id: u32) {
    let gone = with_task(task, |t| {
        let sleepers = &mut t.sleeps.sleepers;
        sleepers.iter().position(|s| s.id == id).map(|at| sleepers.swap_remove(at))
    });
    drop(gone);
}

/// Handles a timer of a stream.
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
