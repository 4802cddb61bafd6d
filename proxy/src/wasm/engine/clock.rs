//! The time limit on a guest call. The engine's ticks follow wall-clock time, but a guest is charged for processor time
//! only: on a busy machine, or under a CPU quota, its thread may be descheduled for longer than any call should take,
//! and that is not the guest's fault.
//!
//! While a guest runs, the engine checks the limit at function entries and loop back-edges (`start`). Time spent
//! elsewhere, such as in one long host call, is checked after the call returns ([`begin`], [`overran`]).

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use wasmtime::{Store, Trap, UpdateDeadline};

/// The granularity of the limit on a call's time.
pub const TICK: Duration = Duration::from_millis(5);

/// Converts a duration to ticks, rounded up, plus one because the first tick may come immediately.
pub fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2).min(u64::MAX / 2) + 1
}

/// The time accounting of the current call.
#[derive(Debug, Default)]
pub struct CallTimer {
    /// Half of the call's time limit.
    half: Duration,
    /// The thread's processor time when the first half, by wall-clock time, had passed.
    since: Option<Duration>,
}

/// Ticks since the process started. Read on every call and rarely written, so it has a cache line to itself.
#[repr(align(128))]
struct Ticks(AtomicU64);

static TICKS: Ticks = Ticks(AtomicU64::new(1));

thread_local! {
    /// The latest tick in which this thread called a guest, and the thread's processor time at that moment.
    static MARK: Cell<(u64, Duration)> = const { Cell::new((0, Duration::ZERO)) };
}

/// Records that another [`TICK`] has passed.
pub fn tick() {
    TICKS.0.fetch_add(1, Ordering::Relaxed);
}

/// Marks the start of a call and returns the current tick. Makes a system call only for the first call in each tick.
pub fn begin() -> u64 {
    let now = TICKS.0.load(Ordering::Relaxed);
    if MARK.get().0 != now {
        MARK.set((now, processor_time()));
    }
    now
}

/// Whether a call that has returned took more processor time than allowed. A call within one tick did not, and costs no
/// system call.
pub fn overran(began: u64, time: Duration) -> bool {
    let passed = TICKS.0.load(Ordering::Relaxed) - began;
    passed != 0 && took_longer(passed, time)
}

#[cold]
fn took_longer(passed: u64, time: Duration) -> bool {
    // The lower bound in wall-clock time; the mark may be up to a tick older than the call.
    let wall = TICK * u32::try_from(passed).unwrap_or(u32::MAX);
    wall + TICK >= time && processor_time().saturating_sub(MARK.get().1 + TICK) > time
}

/// Processor time that this thread has used since the tick in which the current (or just finished) call began.
pub fn since_mark() -> Duration {
    processor_time().saturating_sub(MARK.get().1)
}

/// Processor time of this thread. Costs a system call, so it is used only for calls that take long, not for every guest
/// call.
#[expect(unsafe_code, reason = "rustix calls the vDSO directly, which does not work under valgrind")]
pub fn processor_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec` and `now` has room for it (clock_gettime(2)).
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    debug_assert_eq!(failed, 0, "every Linux kernel has this clock");
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Enforces the time limit on calls into a store's guest.
pub fn install<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>) {
    store.epoch_deadline_callback(|mut context| {
        let clock = context.data_mut().as_mut();
        let now = processor_time();
        let used = now.saturating_sub(*clock.since.get_or_insert(now));
        // The second half is measured in processor time.
        match clock.half.checked_sub(used) {
            Some(left) if !left.is_zero() => Ok(UpdateDeadline::Continue(ticks(left))),
            _ => Err(Trap::Interrupt.into()),
        }
    });
}

/// Starts the timer for a call that may take up to `time`.
pub fn start<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>, time: Duration) {
    let half = time / 2;
    start_ticks(store, half, ticks(half));
}

/// Like [`start`], with the ticks already computed.
pub fn start_ticks<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>, half: Duration, ticks: u64) {
    store.set_epoch_deadline(ticks);
    *store.data_mut().as_mut() = CallTimer { half, since: None };
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn returned_call_is_charged_for_processor_time() {
        let time = Duration::from_millis(20);
        let began = begin();
        assert!(!overran(began, time), "the call has just begun");
        let start = processor_time();
        while processor_time() - start < time + 2 * TICK {
            std::hint::black_box(Instant::now());
        }
        // As the ticking thread would.
        (0..6).for_each(|_| tick());
        assert!(overran(began, time));
        assert!(!overran(began, Duration::from_secs(5)));
        let began = begin();
        (0..6).for_each(|_| tick());
        assert!(!overran(began, time), "only wall-clock time has passed, not processor time");
    }
}
