//! The time limit on a guest call. The engine's ticks follow wall-clock time, but a guest is charged for processor time
//! only: on a busy machine, or under a CPU quota, its thread may be descheduled for longer than any call should take,
//! and that is not the guest's fault.
//!
//! While a guest runs, the engine checks the limit at function entries and loop back-edges (`start`). Time spent
//! elsewhere, such as in one long host call, is checked after the call returns ([`begin`], [`overran`]).

use std::{
    cell::Cell,
    sync::atomic::{Ordering, fence},
    time::Duration,
};

use wasmtime::{Store, Trap, UpdateDeadline};

use super::ticker::{Hold, TICK, TICKER};

/// Converts a duration to ticks, rounded up, plus one because the first tick may come immediately.
pub fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2).min(u64::MAX / 2) + 1
}

/// The time accounting of the current call.
#[derive(Default)]
pub struct CallTimer {
    /// Half of the call's time limit.
    half: Duration,
    /// Set once the first half, by wall-clock time, has passed.
    second_half: Option<SecondHalf>,
}

/// The part of a call that is measured in processor time. It can take any wall-clock time, and wasmtime sets the next
/// deadline only after our callback returns, so the ticker is held until the call ends.
struct SecondHalf {
    /// The thread's processor time at the start.
    since: Duration,
    _hold: Hold<'static>,
}

/// The latest announcement of a thread.
#[derive(Clone, Copy)]
struct Mark {
    /// The tick in which it was made.
    tick: u64,
    /// Half of the announced call's time limit, in ticks.
    half: u64,
    /// The thread's processor time at that moment.
    processor_time: Duration,
}

thread_local! {
    static MARK: Cell<Mark> = const { Cell::new(Mark { tick: 0, half: 0, processor_time: Duration::ZERO }) };
}

/// Starts the timer for a call whose time limit is twice `half`, which is `ticks` in ticks. Returns the current tick. Makes
/// a system call only for the first call in each tick, or if the thread has not announced a call this long in this tick.
pub fn begin<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>, half: Duration, ticks: u64) -> u64 {
    // The deadline counts from the current epoch, and the announcement from the current tick. The tick must be as recent
    // as the epoch: otherwise, the ticker could stop before the deadline.
    store.set_epoch_deadline(ticks);
    fence(Ordering::Acquire);
    let now = TICKER.now();
    *store.data_mut().as_mut() = CallTimer { half, second_half: None };
    let mark = MARK.get();
    if mark.tick != now || mark.half < ticks {
        announce(now, ticks);
    }
    now
}

#[cold]
fn announce(now: u64, half: u64) {
    MARK.set(Mark { tick: now, half, processor_time: processor_time() });
    TICKER.run_for(now, half.saturating_mul(2));
}

/// Ends the timer of a call that has returned, and returns whether the call took more processor time than allowed. A
/// call within one tick did not, and costs no system call.
pub fn overran<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>, began: u64, time: Duration) -> bool {
    let passed = TICKER.now() - began;
    passed != 0 && {
        end(store);
        took_longer(passed, time)
    }
}

/// Ends the timer of a call that has returned. Unnecessary for a call within one tick, and for a store that is dropped.
#[cold]
pub fn end<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>) {
    store.data_mut().as_mut().second_half = None;
}

#[cold]
fn took_longer(passed: u64, time: Duration) -> bool {
    // The lower bound in wall-clock time; the mark may be up to a tick older than the call.
    let wall = TICK * u32::try_from(passed).unwrap_or(u32::MAX);
    wall + TICK >= time && since_mark().saturating_sub(TICK) > time
}

/// Processor time that this thread has used since the tick in which the current (or just finished) call began.
pub fn since_mark() -> Duration {
    processor_time().saturating_sub(MARK.get().processor_time)
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
        let timer = context.data_mut().as_mut();
        let now = processor_time();
        let second = timer.second_half.get_or_insert_with(|| SecondHalf { since: now, _hold: TICKER.hold() });
        let used = now.saturating_sub(second.since);
        match timer.half.checked_sub(used) {
            Some(left) if !left.is_zero() => Ok(UpdateDeadline::Continue(ticks(left))),
            _ => Err(Trap::Interrupt.into()),
        }
    });
}

/// Like [`begin`], for a call that may take up to `time`.
pub fn start<T: AsMut<CallTimer> + 'static>(store: &mut Store<T>, time: Duration) {
    let half = time / 2;
    begin(store, half, ticks(half));
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use wasmtime::{Caller, Config, Engine, Linker, Module, TypedFunc};

    use super::{super::ticker::tests::wait_for, *};

    const TIME: Duration = Duration::from_millis(20);

    impl AsMut<CallTimer> for CallTimer {
        fn as_mut(&mut self) -> &mut CallTimer {
            self
        }
    }

    /// A guest whose function `f` loops while the host function `more` returns 1.
    fn guest(more: impl Fn(&CallTimer) -> bool + Send + Sync + 'static) -> (Store<CallTimer>, TypedFunc<(), ()>) {
        TICKER.start().unwrap();
        let engine = Engine::new(Config::new().epoch_interruption(true)).unwrap();
        TICKER.add(engine.weak());
        let module = r#"(module
            (import "host" "more" (func $more (result i32)))
            (func (export "f") (loop $again (br_if $again (call $more)))))"#;
        let module = Module::new(&engine, wat::parse_str(module).unwrap()).unwrap();
        let mut linker = Linker::new(&engine);
        let more = move |caller: Caller<'_, CallTimer>| i32::from(more(caller.data()));
        linker.func_wrap("host", "more", more).unwrap();
        let mut store = Store::new(&engine, CallTimer::default());
        install(&mut store);
        start(&mut store, TIME);
        let instance = linker.instantiate(&mut store, &module).unwrap();
        let f = instance.get_typed_func(&mut store, "f").unwrap();
        (store, f)
    }

    fn half() -> (Duration, u64) {
        (TIME / 2, ticks(TIME / 2))
    }

    fn begin_one(store: &mut Store<CallTimer>) -> u64 {
        begin(store, half().0, half().1)
    }

    fn ticks_pass_since(began: u64) {
        wait_for("ticks", || TICKER.now() >= began + 6);
    }

    #[test]
    fn returned_call_is_charged_for_processor_time() {
        let (mut store, _) = guest(|_| false);
        let began = begin_one(&mut store);
        let start = processor_time();
        while processor_time() - start < TIME + 2 * TICK {
            std::hint::spin_loop();
        }
        ticks_pass_since(began);
        assert!(overran(&mut store, began, TIME));
        assert!(!overran(&mut store, began, Duration::from_secs(5)));
    }

    #[test]
    fn returned_call_is_not_charged_for_wall_clock_time() {
        let (mut store, _) = guest(|_| false);
        let began = begin_one(&mut store);
        ticks_pass_since(began);
        assert!(!overran(&mut store, began, TIME), "waiting took no processor time");
    }

    #[test]
    fn call_that_begins_while_the_ticker_sleeps_is_interrupted() {
        let (mut store, f) = guest(|_| true);
        TICKER.wait_until_asleep();
        let (done, result) = mpsc::channel();
        thread::spawn(move || {
            begin_one(&mut store);
            done.send(f.call(&mut store, ())).unwrap();
        });
        let result = result.recv_timeout(Duration::from_secs(60)).expect("the call ends");
        assert_eq!(result.unwrap_err().downcast::<Trap>().unwrap(), Trap::Interrupt);
    }

    #[test]
    fn call_holds_the_ticker_in_its_second_half_until_it_ends() {
        let (mut store, f) = guest(|timer| timer.second_half.is_none());
        let began = begin_one(&mut store);
        f.call(&mut store, ()).unwrap();
        assert!(store.data().second_half.is_some(), "the call got into its second half");
        assert!(!overran(&mut store, began, Duration::from_secs(60)));
        assert!(store.data().second_half.is_none());
        TICKER.wait_until_asleep();
    }

    /// A call with a longer limit follows a shorter one in the same tick.
    #[test]
    fn longer_call_is_announced_in_the_same_tick() {
        let (mut store, _) = guest(|_| false);
        for long in [40, 80, 160] {
            begin(&mut store, TICK, 2);
            begin(&mut store, TICK * long as u32, long);
            assert!(MARK.get().half >= long);
        }
    }
}
