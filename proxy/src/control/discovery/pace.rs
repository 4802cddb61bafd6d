//! How fast lookups start, so that a thousand names whose time to live ends together do not make a burst of queries.

use std::time::Duration;

/// The time between the starts of two lookups.
const GAP: Duration = Duration::from_millis(2);

/// How many lookups may start without a gap after a pause.
const BURST: u32 = 16;

/// When the next lookup may start, since a fixed moment.
#[derive(Debug, Default)]
pub(super) struct Pace {
    next: Duration,
}

impl Pace {
    /// Takes a turn. Otherwise returns when there is one.
    pub(super) fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let earliest = now.saturating_sub(GAP * BURST);
        if self.next > now {
            return Err(self.next);
        }
        self.next = self.next.max(earliest) + GAP;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_names_take_two_seconds() {
        let (mut pace, mut now) = (Pace::default(), Duration::from_secs(60));
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
