//! How fast a request's body comes: whether its client sends enough while it is waited for. What the proxy does not ask for,
//! since the upstream or a filter is slower, is not held against the client, nor is the time in which its connection has no window.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

/// A body that must come at a rate.
#[derive(Debug)]
pub(super) struct MinRate {
    /// Bytes a second.
    rate: u64,
    /// What is waited in any case.
    grace: Duration,
    bytes: Cell<u64>,
    /// How long it has been waited for, up to `since`.
    waited: Cell<Duration>,
    /// Since when it is waited for again.
    since: Cell<Option<Instant>>,
}

impl MinRate {
    /// So many bytes a second on average, after `grace`.
    pub(super) fn new(rate: u64, grace: Duration) -> MinRate {
        MinRate { rate, grace, bytes: Cell::new(0), waited: Cell::default(), since: Cell::new(None) }
    }

    /// The client is waited for.
    pub(super) fn waits(&self) {
        if self.since.get().is_none() {
            self.since.set(Some(Instant::now()));
        }
    }

    /// Something has come by now.
    pub(super) fn came(&self, bytes: usize, now: Instant) {
        self.bytes.set(self.bytes.get() + bytes as u64);
        if let Some(since) = self.since.take() {
            self.waited.set(self.waited.get() + now.saturating_duration_since(since));
        }
    }

    /// Nobody waits for the client any more.
    pub(super) fn rests(&self) {
        if self.since.get().is_some() {
            self.came(0, Instant::now());
        }
    }

    /// When the client will have been waited for for too long, unless something comes. Never earlier than it was before.
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
    async fn only_what_is_waited_for_counts() {
        let pace = MinRate::new(100, 10 * SECOND);
        let start = Instant::now();
        assert_eq!(pace.due(), None, "nobody waits");
        pace.waits();
        assert_eq!(pace.due(), Some(start + 10 * SECOND));
        tokio::time::advance(4 * SECOND).await;
        pace.waits();
        assert_eq!(pace.due(), Some(start + 10 * SECOND), "it is still the same wait");
        pace.came(200, Instant::now());
        assert_eq!(pace.due(), None);
        // The upstream is slow, or a filter is.
        tokio::time::advance(3600 * SECOND).await;
        pace.waits();
        assert_eq!(pace.due(), Some(Instant::now() + 8 * SECOND), "ten, and two for what came, less the four");
        pace.rests();
        assert_eq!(pace.due(), None);
    }

    /// So the timer need not be set anew with each part.
    #[tokio::test(start_paused = true)]
    async fn the_end_only_moves_on() {
        let pace = MinRate::new(240, 10 * SECOND);
        let mut last = None;
        for bytes in [1, 0, 100_000, 3, 240] {
            pace.waits();
            assert!(pace.due() >= last);
            last = pace.due();
            tokio::time::advance(SECOND / 3).await;
            pace.came(bytes, Instant::now());
        }
    }
}
