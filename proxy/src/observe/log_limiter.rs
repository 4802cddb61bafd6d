//! Warnings that any request could cause: each kind is logged once a minute at most, with how many were left out, so that an
//! outage shows in the log without filling it.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How far apart two warnings of a kind are at least.
const APART: Duration = Duration::from_secs(60);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// When a kind of warning was logged last. Shared by all threads.
#[derive(Debug, Default)]
pub struct LogLimiter {
    /// From when on it may be logged again, in milliseconds since the process's start.
    next: AtomicU64,
    /// How often it was not.
    left_out: AtomicU64,
}

impl LogLimiter {
    /// Whether to log it now, and how many were left out since it was logged last.
    pub fn may_warn(&self) -> Option<u64> {
        self.may_warn_at(START.elapsed())
    }

    fn may_warn_at(&self, now: Duration) -> Option<u64> {
        let now = now.as_millis() as u64;
        let next = self.next.load(Relaxed);
        let after = now + APART.as_millis() as u64;
        // Of several threads at this moment, one logs it.
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
    fn a_warning_comes_once_a_minute_and_says_how_many_were_left_out() {
        let seldom = LogLimiter::default();
        let at = |seconds| seldom.may_warn_at(Duration::from_secs(seconds));
        assert_eq!([at(5), at(5), at(64), at(65), at(66), at(500)], [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
