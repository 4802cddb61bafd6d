//! The thread behind the time limit on guest calls: every [`TICK`], it counts a tick and increments the epoch of each
//! engine, at which guests check their limits. It sleeps while no call needs it, so an idle process does not wake up
//! 200 times a second.
//!
//! Calls announce themselves ([`Ticker::run_for`]), but only the first call of a thread in each tick, so that most calls
//! cost no more than reading [`Ticker::now`]. An announcement therefore covers the whole time that a call may take, and
//! ends by itself. A call whose limit is extended, because its thread was descheduled, can take longer: it holds the
//! ticker ([`Ticker::hold`]) until it ends.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    thread::{self, Thread},
    time::Duration,
};

use wasmtime::EngineWeak;

/// The granularity of the limit on a call's time.
pub const TICK: Duration = Duration::from_millis(5);

/// The ticker of this process.
pub static TICKER: Ticker = Ticker::new();

/// Counts ticks while calls need it.
pub struct Ticker {
    now: Ticks,
    /// The tick up to which announced calls need the ticker.
    until: AtomicU64,
    /// The number of [`Hold`]s.
    holds: AtomicUsize,
    /// Whether the thread sleeps or is about to, and must be woken up.
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
    engines: Mutex<Vec<EngineWeak>>,
}

/// Ticks since the process started, without those that the ticker slept through. Read on every call and rarely written,
/// so it has a cache line to itself.
#[repr(align(128))]
struct Ticks(AtomicU64);

impl Ticker {
    const fn new() -> Ticker {
        Ticker {
            now: Ticks(AtomicU64::new(1)),
            until: AtomicU64::new(0),
            holds: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            thread: OnceLock::new(),
            engines: Mutex::new(Vec::new()),
        }
    }

    /// Adds an engine whose epoch shall be incremented until it is dropped.
    pub fn add(&self, engine: EngineWeak) {
        self.engines().push(engine);
    }

    /// Starts the thread unless it was started before.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(&'static self) -> io::Result<()> {
        // The lock also keeps two callers from starting a thread each.
        let _engines = self.engines();
        if self.thread.get().is_none() {
            let handle = thread::Builder::new().name("tollgate-epoch".into()).spawn(|| self.run())?;
            self.thread.get_or_init(|| handle.thread().clone());
        }
        Ok(())
    }

    /// The current tick.
    pub fn now(&self) -> u64 {
        self.now.0.load(Ordering::Relaxed)
    }

    /// Makes the ticker run for at least this many ticks from `now` on, a tick that the caller has read.
    pub fn run_for(&self, now: u64, ticks: u64) {
        self.until.fetch_max(now.saturating_add(ticks), Ordering::SeqCst);
        self.wake();
    }

    /// Makes the ticker run until the result is dropped.
    pub fn hold(&self) -> Hold<'_> {
        self.holds.fetch_add(1, Ordering::SeqCst);
        self.wake();
        Hold(self)
    }

    /// All accesses to `asleep` and to the conditions in `is_needed` are sequentially consistent. So either the thread,
    /// which sets `asleep` before it checks them, sees what the caller has changed, or the caller sees `asleep`.
    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn is_needed(&self) -> bool {
        self.until.load(Ordering::SeqCst) > self.now() || self.holds.load(Ordering::SeqCst) > 0
    }

    fn run(&self) {
        loop {
            self.asleep.store(true, Ordering::SeqCst);
            while !self.is_needed() {
                thread::park();
            }
            self.asleep.store(false, Ordering::SeqCst);
            thread::sleep(TICK);
            self.tick();
        }
    }

    fn tick(&self) {
        self.now.0.fetch_add(1, Ordering::Relaxed);
        // A thread that reads the new epoch also reads the new tick; see `clock::begin`.
        fence(Ordering::Release);
        self.engines().retain(|engine| engine.upgrade().map(|engine| engine.increment_epoch()).is_some());
    }

    fn engines(&self) -> MutexGuard<'_, Vec<EngineWeak>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a ticker running while it exists.
pub struct Hold<'t>(&'t Ticker);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
pub mod tests {
    use std::time::Instant;

    use super::*;

    pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(60), "timed out waiting for {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    impl Ticker {
        pub fn wait_until_asleep(&self) {
            wait_for("the ticker to sleep", || self.asleep.load(Ordering::SeqCst) && !self.is_needed());
        }

        fn wait_for_tick(&self, tick: u64) {
            wait_for("a tick", || self.now() >= tick);
        }
    }

    fn started() -> &'static Ticker {
        let ticker = Box::leak(Box::new(Ticker::new()));
        ticker.start().unwrap();
        ticker
    }

    #[test]
    fn ticker_sleeps_once_announced_calls_are_over() {
        let ticker = started();
        ticker.wait_until_asleep();
        assert_eq!(ticker.now(), 1, "no call was announced");
        for _ in 0..3 {
            let now = ticker.now();
            ticker.run_for(now, 4);
            ticker.wait_for_tick(now + 4);
            ticker.wait_until_asleep();
            assert_eq!(ticker.now(), now + 4);
        }
    }

    #[test]
    fn ticker_runs_while_it_is_held() {
        let ticker = started();
        ticker.wait_until_asleep();
        let hold = ticker.hold();
        ticker.wait_for_tick(10);
        drop(hold);
        ticker.wait_until_asleep();
    }

    /// Threads announce calls just when the ticker is about to sleep, over and over: none of them waits in vain.
    #[test]
    fn announcement_while_the_ticker_falls_asleep_is_not_lost() {
        let ticker = started();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let now = ticker.now();
                        ticker.run_for(now, 1);
                        ticker.wait_for_tick(now + 1);
                    }
                });
            }
        });
        ticker.wait_until_asleep();
    }

    #[test]
    fn each_tick_increments_the_epoch_of_each_engine() {
        let ticker = started();
        let engines: Vec<_> = (0..2).map(|_| wasmtime::Engine::default()).collect();
        engines.iter().for_each(|engine| ticker.add(engine.weak()));
        drop(engines);
        ticker.run_for(ticker.now(), 1);
        wait_for("dropped engines to be removed", || ticker.engines().is_empty());
    }
}
