//! Backoff before retries: exponential with full jitter, so that requests that failed together do not return together.

use std::time::Duration;

/// The longest wait as a multiple of the base.
const CAP: u32 = 10;

/// The successive waits of a request, or of a client that asks again.
#[derive(Debug, Clone)]
pub struct Backoff {
    ceiling: Duration,
    longest: Duration,
}

impl Backoff {
    /// Creates a sequence whose first wait is at most `base`. A `base` of zero means no wait.
    pub fn new(base: Duration) -> Self {
        Backoff::up_to(base, base.saturating_mul(CAP))
    }

    /// Like [`Backoff::new`], but no wait is longer than `longest`.
    pub fn up_to(base: Duration, longest: Duration) -> Self {
        Backoff { ceiling: base, longest }
    }

    /// Returns the wait before the next retry: for the nth, a random duration from 0 to the lesser of `base * 2^(n-1)`
    /// and `10 * base` (or `longest`), both inclusive. Counted in whole nanoseconds, at most `u64::MAX` (584 years).
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = u64::try_from(self.ceiling.as_nanos()).unwrap_or(u64::MAX);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.longest);
        Duration::from_nanos(fastrand::u64(..=ceiling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_drawn_from_a_range_that_doubles_up_to_ten_times_the_base() {
        let base = Duration::from_millis(25);
        let mut longest = [Duration::ZERO; 7];
        for _ in 0..2000 {
            let mut backoff = Backoff::new(base);
            for longest in &mut longest {
                *longest = backoff.next_wait().max(*longest);
            }
        }
        for (longest, times) in longest.into_iter().zip([1, 2, 4, 8, 10, 10, 10]) {
            let ceiling = base * times;
            assert!(longest <= ceiling, "{longest:?} is over {ceiling:?}");
            assert!(longest > ceiling * 9 / 10, "{longest:?} is far from {ceiling:?}: the range is not used");
        }
    }

    #[test]
    fn extreme_bases_do_not_overflow() {
        let mut none = Backoff::new(Duration::ZERO);
        assert_eq!((none.next_wait(), none.next_wait()), (Duration::ZERO, Duration::ZERO));
        let mut endless = Backoff::new(Duration::MAX);
        endless.next_wait();
        endless.next_wait();
    }
}
