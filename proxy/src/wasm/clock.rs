//! The bound on a call's time. Ticks of the engine go by the clock on the wall, but a guest is charged for processor time
//! only: on a busy machine, or under a quota, its thread may be off the processor for longer than any call should take, and
//! that is not the guest's doing.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Store, Trap, UpdateDeadline};

use super::{engine::Engine, host::Host};

/// How far the call under way has come.
#[derive(Debug, Default)]
pub struct Clock {
    /// Half of the time that a call may take.
    half: Duration,
    /// The thread's processor time when the first half, by the clock on the wall, was over.
    since: Option<Duration>,
}

/// Processor time of this thread. A system call, so not for every call of a guest: only for those that take long.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Bounds the calls of a store.
pub fn install(store: &mut Store<Host>) {
    store.epoch_deadline_callback(|mut context| {
        let clock = &mut context.data_mut().clock;
        let now = processor_time();
        let used = now.saturating_sub(*clock.since.get_or_insert(now));
        // The second half is charged by processor time.
        match clock.half.checked_sub(used) {
            Some(left) if !left.is_zero() => Ok(UpdateDeadline::Continue(Engine::ticks(left))),
            _ => Err(Trap::Interrupt.into()),
        }
    });
}

/// A call begins that may take this long.
pub fn start(store: &mut Store<Host>, time: Duration) {
    let half = time / 2;
    start_ticks(store, half, Engine::ticks(half));
}

/// The same, with the ticks known.
pub fn start_ticks(store: &mut Store<Host>, half: Duration, ticks: u64) {
    store.set_epoch_deadline(ticks);
    store.data_mut().clock = Clock { half, since: None };
}
