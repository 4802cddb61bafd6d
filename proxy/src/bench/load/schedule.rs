//! The schedule of the requests, and the thread that follows it.
//!
//! Tokio's timer counts whole milliseconds, which would add up to one to each latency. So a dedicated thread sleeps
//! until the next request is due and adds a permit to a semaphore. Available permits are the queue of
//! requests that wait for a free connection; connections that wait for a permit get one in order.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

/// The requests of one generator thread: every `stride`-th request, beginning with number `first`, counted from 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    rate: f64,
    first: u64,
    stride: u64,
    len: u64,
}

impl Schedule {
    /// The share of thread `thread` (of `threads`) in a load of `rate` requests per second for `total`.
    pub(super) fn new(rate: f64, total: Duration, thread: usize, threads: usize) -> Schedule {
        let (first, stride) = (thread as u64, threads as u64);
        let all = (rate * total.as_secs_f64()).ceil() as u64 + 1;
        let mut schedule = Schedule { rate, first, stride, len: all.saturating_sub(first).div_ceil(stride) };
        // This is an upper bound: 100 per second for 1.1 s is slightly less than 110 as an f64.
        schedule.len = schedule.before(total);
        schedule
    }

    /// The number of requests.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// When request `j` of this thread is due, from the start.
    pub(super) fn at(&self, j: u64) -> Duration {
        let i = self.first + j * self.stride;
        // An f64 represents whole nanoseconds exactly for 104 days, so there is no drift, unlike in a sum of rounded intervals.
        Duration::from_nanos((i as f64 * 1e9 / self.rate) as u64)
    }

    /// The number of requests that are due after `elapsed`; the first is due immediately.
    pub(super) fn due(&self, elapsed: Duration) -> u64 {
        let (mut low, mut high) = (0, self.len);
        // A search instead of the inverse formula, so that rounding cannot make it disagree with `at`.
        while low < high {
            let middle = low + (high - low) / 2;
            if self.at(middle) <= elapsed { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The number of requests that are due before `end`.
    pub(super) fn before(&self, end: Duration) -> u64 {
        end.checked_sub(Duration::from_nanos(1)).map_or(0, |last| self.due(last))
    }
}

/// The thread that releases the permits of one schedule.
pub(super) struct Pacer {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl Pacer {
    pub(super) fn start(schedule: Schedule, t0: Instant, permits: Arc<Semaphore>) -> std::io::Result<Pacer> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("load-pacer".into()).spawn(move || {
            sleep_precisely();
            let mut released = 0;
            while released < schedule.len() && !stopped.load(Ordering::Acquire) {
                let wait = (t0 + schedule.at(released)).saturating_duration_since(Instant::now());
                if !wait.is_zero() {
                    thread::park_timeout(wait);
                }
                // All requests that are due by now: above some 10,000 per second one sleep covers several.
                let Some(elapsed) = Instant::now().checked_duration_since(t0) else { continue };
                let due = schedule.due(elapsed);
                permits.add_permits((due - released) as usize);
                released = due;
            }
            released
        })?;
        Ok(Pacer { stop, thread })
    }

    /// Stops releasing permits.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }

    /// Stops the thread; returns the number of requests that came due.
    pub(super) fn join(self) -> u64 {
        self.stop();
        self.thread.join().unwrap_or(0)
    }
}

/// Asks Linux not to delay this thread's wake-ups, which it does by 50 µs to save power. If that is not possible,
/// requests are late by that much, which the report shows as the generator's lag.
fn sleep_precisely() {
    // The link is `<process>/task/<thread>`; `timerslack_ns` is under the thread's own number.
    if let Ok(link) = std::fs::read_link("/proc/thread-self")
        && let Some(thread) = link.file_name()
    {
        let _ = std::fs::write(Path::new("/proc").join(thread).join("timerslack_ns"), "1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_the_load_evenly() {
        let total = Duration::from_millis(1100);
        let parts: Vec<_> = (0..3).map(|k| Schedule::new(100.0, total, k, 3)).collect();
        assert_eq!(parts.iter().map(Schedule::len).collect::<Vec<_>>(), [37, 37, 36]);
        let mut all: Vec<_> = parts.iter().flat_map(|s| (0..s.len()).map(|j| s.at(j))).collect();
        all.sort();
        for (i, at) in all.iter().enumerate() {
            assert_eq!(*at, Duration::from_millis(10) * i as u32);
        }
        assert_eq!(Schedule::new(1.0, Duration::from_secs(1), 1, 2).len(), 0);
    }

    #[test]
    fn due_agrees_with_at() {
        for rate in [0.3, 1.0, 3.0, 7.7, 1000.0 / 3.0, 49_999.0] {
            let s = Schedule::new(rate, Duration::from_secs(20), 0, 1);
            for j in (0..s.len()).step_by(1 + s.len() as usize / 500) {
                assert_eq!(s.due(s.at(j)), j + 1, "rate {rate}, request {j}");
                if j > 0 {
                    assert_eq!(s.due(s.at(j) - Duration::from_nanos(1)), j, "rate {rate}, before request {j}");
                }
            }
            assert_eq!(s.due(Duration::from_secs(3600)), s.len());
            assert_eq!((s.before(Duration::ZERO), s.before(Duration::from_nanos(1))), (0, 1));
        }
        // No drift: after an hour at a rate that no interval expresses exactly.
        let s = Schedule::new(3.0, Duration::from_secs(3600), 0, 1);
        assert_eq!(s.at(3 * 3599), Duration::from_secs(3599));
    }

    #[test]
    fn a_pacer_releases_all_of_its_requests_and_can_be_stopped() {
        let permits = Arc::new(Semaphore::new(0));
        let fast = Schedule::new(20_000.0, Duration::from_millis(50), 0, 1);
        let start = Instant::now();
        let pacer = Pacer::start(fast, start, permits.clone()).unwrap();
        while permits.available_permits() < 1000 {
            assert!(start.elapsed() < Duration::from_secs(5));
            thread::sleep(Duration::from_millis(1));
        }
        assert!(start.elapsed() >= fast.at(999));
        assert_eq!(pacer.join(), 1000);

        let slow = Schedule::new(0.01, Duration::from_secs(1000), 0, 1);
        let pacer = Pacer::start(slow, Instant::now(), Arc::new(Semaphore::new(0))).unwrap();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(pacer.join(), 1);
        assert!(start.elapsed() < Duration::from_secs(5), "stopped while sleeping");
    }
}
