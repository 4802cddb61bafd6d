//! Rate-limits warnings that any request could cause: each kind is logged at most once a minute, with the number of suppressed
//! ones, so that an outage shows in the log without flooding it.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The minimum time between two warnings of a kind.
const APART: Duration = Duration::from_secs(60);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The limiter of one kind of warning. Shared by all threads.
#[derive(Debug, Default)]
pub struct LogLimiter {
    /// When the next warning is allowed, in milliseconds since the process's start.
    next: AtomicU64,
    /// The number of suppressed warnings.
    left_out: AtomicU64,
}

impl LogLimiter {
    /// Returns the number of warnings suppressed since the last one if this one should be logged, otherwise `None`.
    pub fn may_warn(&self) -> Option<u64> {
        self.may_warn_at(START.elapsed())
    }

    fn may_warn_at(&self, now: Duration) -> Option<u64> {
        let now = now.as_millis() as u64;
        let next = self.next.load(Relaxed);
        let after = now + APART.as_millis() as u64;
        // If several threads get here concurrently, only one logs.
        if now < next || self.next.compare_exchange(next, after, Relaxed, Relaxed).is_err() {
            self.left_out.fetch_add(1, Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_logged_once_a_minute_with_the_number_of_suppressed_ones() {
        let limiter = LogLimiter::default();
        let at = |seconds| limiter.may_warn_at(Duration::from_secs(seconds));
        assert_eq!([at(5), at(5), at(64), at(65), at(66), at(500)], [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
