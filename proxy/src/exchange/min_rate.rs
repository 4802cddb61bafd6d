//! The minimum rate of a request's body. Only time in which the proxy waits for the client counts: not while the
//! upstream or a filter is slower, nor while the connection's flow-control window is exhausted.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

/// The progress of a body with a minimum rate.
#[derive(Debug)]
pub(super) struct MinRate {
    /// Bytes per second.
    rate: u64,
    /// Waiting time allowed in addition.
    grace: Duration,
    bytes: Cell<u64>,
    /// Total waiting time up to `since`.
    waited: Cell<Duration>,
    /// Start of the current wait.
    since: Cell<Option<Instant>>,
}

impl MinRate {
    /// Requires `rate` bytes per second on average, after `grace`.
    pub(super) fn new(rate: u64, grace: Duration) -> MinRate {
        MinRate { rate, grace, bytes: Cell::new(0), waited: Cell::default(), since: Cell::new(None) }
    }

    /// Starts waiting for the client.
    pub(super) fn waits(&self) {
        if self.since.get().is_none() {
            self.since.set(Some(Instant::now()));
        }
    }

    /// Records received bytes, which ends the wait.
    pub(super) fn received(&self, bytes: usize, now: Instant) {
        self.bytes.set(self.bytes.get() + bytes as u64);
        if let Some(since) = self.since.take() {
            self.waited.set(self.waited.get() + now.saturating_duration_since(since));
        }
    }

    /// Stops waiting for the client.
    pub(super) fn rests(&self) {
        if self.since.get().is_some() {
            self.received(0, Instant::now());
        }
    }

    /// Returns when the waiting time is exhausted unless more bytes arrive. It never moves earlier.
    pub(super) fn due(&self) -> Option<Instant> {
        let earned = Duration::from_millis(self.bytes.get().saturating_mul(1000) / self.rate);
        self.since.get()?.checked_add((self.grace + earned).saturating_sub(self.waited.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn only_waiting_time_counts() {
        let pace = MinRate::new(100, 10 * SECOND);
        let start = Instant::now();
        assert_eq!(pace.due(), None, "not waiting");
        pace.waits();
        assert_eq!(pace.due(), Some(start + 10 * SECOND));
        tokio::time::advance(4 * SECOND).await;
        pace.waits();
        assert_eq!(pace.due(), Some(start + 10 * SECOND), "it is still the same wait");
        pace.received(200, Instant::now());
        assert_eq!(pace.due(), None);
        // The upstream or a filter is slow.
        tokio::time::advance(3600 * SECOND).await;
        pace.waits();
        assert_eq!(pace.due(), Some(Instant::now() + 8 * SECOND), "ten, plus two for the bytes received, minus four");
        pace.rests();
        assert_eq!(pace.due(), None);
    }

    /// So the timer need not be reset for each part.
    #[tokio::test(start_paused = true)]
    async fn deadline_only_moves_later() {
        let pace = MinRate::new(240, 10 * SECOND);
        let mut last = None;
        for bytes in [1, 0, 100_000, 3, 240] {
            pace.waits();
            assert!(pace.due() >= last);
            last = pace.due();
            tokio::time::advance(SECOND / 3).await;
            pace.received(bytes, Instant::now());
        }
    }
}
