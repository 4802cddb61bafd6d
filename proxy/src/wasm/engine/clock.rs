//! The bound on a call's time. Ticks of the engine go by the clock on the wall, but a guest is charged for processor time
//! only: on a busy machine, or under a quota, its thread may be off the processor for longer than any call should take, and
//! that is not the guest's doing.
//!
//! A guest that runs is looked at by the engine, where it enters a function or begins a loop again (`start`). What it does in
//! between, such as one long call of the host, is looked at when it has returned ([`begin`], [`overran`]).

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use wasmtime::{Store, Trap, UpdateDeadline};

/// The grain of the bound on a call's time.
pub const TICK: Duration = Duration::from_millis(5);

/// A time in ticks, rounded up, and one more: the first tick may be due at once.
pub fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2).min(u64::MAX / 2) + 1
}

/// How far the call under way has come.
#[derive(Debug, Default)]
pub struct CallTimer {
    /// Half of the time that a call may take.
    half: Duration,
    /// The thread's processor time when the first half, by the clock on the wall, was over.
    since: Option<Duration>,
}

/// Ticks since the process's start. Read at each call and seldom written, so it has its cache line for itself.
#[repr(align(128))]
struct Ticks(AtomicU64);

static TICKS: Ticks = Ticks(AtomicU64::new(1));

thread_local! {
    /// A tick in which this thread has called a guest, and the thread's processor time then.
    static MARK: Cell<(u64, Duration)> = const { Cell::new((0, Duration::ZERO)) };
}

/// Another [`TICK`] has passed.
pub fn tick() {
    TICKS.0.fetch_add(1, Ordering::Relaxed);
}

/// A call begins: the tick that it begins in. A system call, but only for the first one in each tick.
pub fn begin() -> u64 {
    let now = TICKS.0.load(Ordering::Relaxed);
    if MARK.get().0 != now {
        MARK.set((now, processor_time()));
    }
    now
}

/// Whether a call that has returned took more processor time than it may. A call within one tick has not, and costs no system
/// call.
pub fn overran(began: u64, time: Duration) -> bool {
    let passed = TICKS.0.load(Ordering::Relaxed) - began;
    passed != 0 && took_longer(passed, time)
}

#[cold]
fn took_longer(passed: u64, time: Duration) -> bool {
    // By the clock on the wall it took no less than this; and the mark may be a tick older than the call.
    let wall = TICK * u32::try_from(passed).unwrap_or(u32::MAX);
    wall + TICK >= time && processor_time().saturating_sub(MARK.get().1 + TICK) > time
}

/// Processor time of this thread since the tick in which the call under way, or just over, began.
pub fn since_mark() -> Duration {
    processor_time().saturating_sub(MARK.get().1)
}

/// Processor time of this thread. A system call, so not for every call of a guest: only for those that take long.
#[expect(unsafe_code, reason = "rustix asks the vDSO by itself, which does not work under valgrind")]
pub fn processor_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one `timespec`, and there is room for one (clock_gettime(2)).
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    debug_assert_eq!(failed, 0, "every Linux has this clock");
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Bounds the calls of a store.
pub fn install<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>) {
    store.epoch_deadline_callback(|mut context| {
        let clock = context.data_mut().as_mut();
        let now = processor_time();
        let used = now.saturating_sub(*clock.since.get_or_insert(now));
        // The second half is charged by processor time.
        match clock.half.checked_sub(used) {
            Some(left) if !left.is_zero() => Ok(UpdateDeadline::Continue(ticks(left))),
            _ => Err(Trap::Interrupt.into()),
        }
    });
}

/// A call begins that may take this long.
pub fn start<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>, time: Duration) {
    let half = time / 2;
    start_ticks(store, half, ticks(half));
}

/// The same, with the ticks known.
pub fn start_ticks<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>, half: Duration, ticks: u64) {
    store.set_epoch_deadline(ticks);
    *store.data_mut().as_mut() = CallTimer { half, since: None };
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_call_is_charged_for_processor_time_when_it_has_returned() {
        let time = Duration::from_millis(20);
        let began = begin();
        assert!(!overran(began, time), "it has only begun");
        let start = processor_time();
        while processor_time() - start < time + 2 * TICK {
            std::hint::black_box(Instant::now());
        }
        // As the engine's thread would.
        (0..6).for_each(|_| tick());
        assert!(overran(began, time));
        assert!(!overran(began, Duration::from_secs(5)));
        let began = begin();
        (0..6).for_each(|_| tick());
        assert!(!overran(began, time), "other time has passed, and not the processor's");
    }
}
