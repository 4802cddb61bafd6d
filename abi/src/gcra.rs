//! The arithmetic of token buckets, shared by the host and the SDK's test host: the generic cell rate algorithm (ITU-T
//! I.371, the "virtual scheduling" form).
//!
//! A bucket's whole state is one number, the theoretical arrival time (`tat`): the time at which it will be full again.
//! One number can be updated by compare-and-swap, and a bucket whose `tat` is in the past is full, so it can be evicted
//! without any effect.

use crate::{doc::Bucket, fast::Take};

/// Ticks per nanosecond. Finer than a nanosecond, so that fast buckets lose nothing to rounding; coarse enough for a
/// u64 to last nine years.
pub const TICKS_PER_NANO: u64 = 64;
const TICKS_PER_MS: u64 = 1_000_000 * TICKS_PER_NANO;

/// A bucket's parameters in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Ticks per added token.
    per_token: u64,
    /// Ticks that an empty bucket takes to fill.
    to_fill: u64,
}

impl Figures {
    /// The parameters of a bucket. `None` if they are out of range (zero, above 2^31-1, or filling takes over a year).
    pub fn new(bucket: &Bucket) -> Option<Figures> {
        const MAX: u32 = i32::MAX as u32;
        if !(1..=MAX).contains(&bucket.capacity) || !(1..=MAX).contains(&bucket.fill) || bucket.interval_ms == 0 {
            return None;
        }
        let per_token = (u128::from(bucket.interval_ms) * u128::from(TICKS_PER_MS) / u128::from(bucket.fill)).max(1);
        let to_fill = per_token * u128::from(bucket.capacity);
        if to_fill > 365 * 86_400_000 * u128::from(TICKS_PER_MS) {
            return None;
        }
        Some(Figures { per_token: per_token as u64, to_fill: to_fill as u64 })
    }

    /// Takes `tokens` at `now` (ticks) from a bucket that will be full at `tat`, or returns them if negative. Returns
    /// whether they were available, the new `tat` (unchanged if not), and the state to report to the filter.
    pub fn take(&self, tat: u64, now: u64, tokens: i32) -> (bool, u64, Take) {
        let missing = tat.saturating_sub(now);
        let cost = self.per_token.saturating_mul(u64::from(tokens.unsigned_abs()));
        let after = if tokens < 0 { missing.saturating_sub(cost) } else { missing.saturating_add(cost) };
        let taken = after <= self.to_fill;
        let missing = if taken { after } else { missing };
        let ms = |ticks: u64| u32::try_from(ticks.div_ceil(TICKS_PER_MS)).unwrap_or(u32::MAX);
        let take = Take {
            remaining: (self.to_fill.saturating_sub(missing) / self.per_token) as u32,
            reset_ms: ms(missing),
            retry_ms: if taken { 0 } else { ms(after - self.to_fill) },
        };
        (taken, now.saturating_add(missing), take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(capacity: u32, fill: u32, interval_ms: u64) -> Figures {
        Figures::new(&Bucket { name: "b".into(), capacity, fill, interval_ms, max_keys: 0 }).unwrap()
    }

    #[test]
    fn bucket_gives_its_capacity_and_then_its_rate() {
        let f = figures(3, 2, 1000);
        let (mut tat, now) = (0, 1_000_000 * TICKS_PER_MS);
        for left in [2, 1, 0] {
            let (taken, next, take) = f.take(tat, now, 1);
            assert_eq!((taken, take.remaining), (true, left));
            tat = next;
        }
        let (taken, same, take) = f.take(tat, now, 1);
        assert_eq!((taken, same, take), (false, tat, Take { remaining: 0, reset_ms: 1500, retry_ms: 500 }));
        assert!(!f.take(tat, now + 499 * TICKS_PER_MS, 1).0);
        assert!(f.take(tat, now + 500 * TICKS_PER_MS, 1).0);
        assert_eq!(f.take(tat, now, -2).2.remaining, 2);
        assert_eq!(f.take(0, now, -5).2.remaining, 3, "returning tokens never overfills");
    }

    #[test]
    fn more_than_the_capacity_is_never_available() {
        let f = figures(3, 1, 1000);
        assert!(!f.take(0, 5, 4).0);
        assert!(!f.take(0, 5, i32::MAX).0);
    }

    #[test]
    fn parameters_out_of_range_are_rejected() {
        for (capacity, fill, interval_ms) in
            [(0, 1, 1), (1, 0, 1), (1, 1, 0), (u32::MAX, 1, 1), (i32::MAX as u32, 1, u64::MAX)]
        {
            let bucket = Bucket { name: "b".into(), capacity, fill, interval_ms, max_keys: 0 };
            assert_eq!(Figures::new(&bucket), None);
        }
    }
}
