//! How fast something may start again and again: a burst after a pause, and then one at a time.

use std::time::Duration;

/// When the next start may be, since a fixed moment.
#[derive(Debug)]
pub(super) struct Pace {
    /// The time between two starts.
    gap: Duration,
    /// How many may follow each other without a gap at the beginning and after a pause.
    burst: u32,
    next: Duration,
}

impl Pace {
    pub(super) fn new(gap: Duration, burst: u32) -> Pace {
        Pace { gap, burst, next: Duration::ZERO }
    }

    /// Takes a turn. Otherwise returns when there is one.
    pub(super) fn take(&mut self, now: Duration) -> Result<(), Duration> {
        // `next` is later by this time, so that there can be a burst from the first moment on.
        let lead = self.gap * self.burst;
        if self.next > now + lead {
            return Err(self.next - lead);
        }
        self.next = self.next.max(now) + self.gap;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_names_take_two_seconds() {
        let (mut pace, mut now) = (Pace::new(Duration::from_millis(2), 16), Duration::from_secs(60));
        let start = now;
        let mut at = Vec::new();
        while at.len() < 1_000 {
            match pace.take(now) {
                Ok(()) => at.push(now - start),
                Err(next) => now = next,
            }
        }
        let within = |from: u64| {
            let (from, to) = (Duration::from_millis(from), Duration::from_millis(from + 100));
            at.iter().filter(|at| (from..to).contains(*at)).count()
        };
        assert_eq!((within(0), within(1_000)), (66, 50));
        assert!(*at.last().unwrap() > Duration::from_millis(1_960), "{:?}", at.last());
    }
}
