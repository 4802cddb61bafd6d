//! Flood protection for HTTP/2 and HTTP/3 (rapid reset, floods of unproductive frames): limits on work without useful
//! results, as a burst and a rate per second.
//!
//! The limits are rates and proportions, not totals: a connection that lives for days, or that a proxy in front shares
//! among its own clients, may reach any total without an attack.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::time::Instant;

/// Streams that a client may reset within a second of opening them, minus those that were answered: a burst, and a rate
/// per second. Beyond that it is a rapid reset attack (CVE-2023-44487).
const RESETS: BucketLimit = BucketLimit { most: 500, each_second: 100 };

/// Factor by which the limits are higher for a trusted proxy in front, whose connection carries the requests of many
/// clients.
pub(super) const SHARED: u32 = 10;

/// Unproductive frames beyond those that other frames allow for: a burst, and a rate per second.
const FRAMES: BucketLimit = BucketLimit { most: 10_000, each_second: 1000 };

/// Number of unproductive frames that each head allows for: a client may send window updates and priorities with it.
const HEAD: u32 = 10;

/// The limits of a leaky bucket.
#[derive(Debug, Clone, Copy)]
struct BucketLimit {
    /// Capacity.
    most: u32,
    /// Outflow per second.
    each_second: u32,
}

/// A leaky bucket. It reads the clock only when it seems full, so filling it costs next to nothing; the outflow since
/// the last reading is then subtracted in one step.
#[derive(Debug)]
struct LeakyBucket {
    bound: BucketLimit,
    level: Cell<u32>,
    since: Cell<Instant>,
    /// Whether it has ever overflowed.
    over: Cell<bool>,
}

impl LeakyBucket {
    fn new(bound: BucketLimit) -> LeakyBucket {
        LeakyBucket { bound, level: Cell::new(0), since: Cell::new(Instant::now()), over: Cell::new(false) }
    }

    fn put(&self, amount: u32) {
        let level = self.level.get().saturating_add(amount);
        self.level.set(level);
        if level > self.bound.most {
            let now = Instant::now();
            let left = level.saturating_sub(flowed(self.bound.each_second, now - self.since.replace(now)));
            self.level.set(left);
            self.over.set(self.over.get() || left > self.bound.most);
        }
    }

    fn take(&self, amount: u32) {
        self.level.set(self.level.get().saturating_sub(amount));
    }
}

/// Returns the outflow during `time`.
fn flowed(each_second: u32, time: Duration) -> u32 {
    u32::try_from(time.as_millis().saturating_mul(each_second.into()) / 1000).unwrap_or(u32::MAX)
}

/// Counts the streams of a connection that the client resets soon after opening them (rapid reset).
#[derive(Debug, Clone)]
pub(super) struct ResetLimiter(Rc<LeakyBucket>);

impl ResetLimiter {
    /// Creates a limiter. `shared`: the client is a trusted proxy.
    pub(crate) fn new(shared: bool) -> ResetLimiter {
        let times = if shared { SHARED } else { 1 };
        ResetLimiter(Rc::new(LeakyBucket::new(BucketLimit {
            most: RESETS.most * times,
            each_second: RESETS.each_second * times,
        })))
    }

    /// Watches a newly opened stream.
    pub(super) fn opened(&self) -> ResetWatch {
        ResetWatch { opened: Instant::now(), resets: Some(self.0.clone()) }
    }

    /// Returns whether the limit was exceeded, which must be an attack.
    pub(super) fn are_too_many(&self) -> bool {
        self.0.over.get()
    }
}

/// A guard that detects a stream that ended before its response began, which only the client causes.
pub(super) struct ResetWatch {
    opened: Instant,
    resets: Option<Rc<LeakyBucket>>,
}

impl ResetWatch {
    /// Records that the response has begun.
    pub(crate) fn end(mut self) {
        if let Some(resets) = self.resets.take() {
            resets.take(1);
        }
    }
}

impl Drop for ResetWatch {
    fn drop(&mut self) {
        if let Some(resets) = &self.resets
            && self.opened.elapsed() < Duration::from_secs(1)
        {
            resets.put(1);
        }
    }
}

/// Counts the unproductive frames of a connection: frames that cause work without a useful result.
#[derive(Debug)]
pub struct FrameLimiter(LeakyBucket);

impl Default for FrameLimiter {
    fn default() -> FrameLimiter {
        FrameLimiter(LeakyBucket::new(FRAMES))
    }
}

impl FrameLimiter {
    /// Counts an unproductive frame.
    pub fn idle(&self) {
        self.0.put(1);
    }

    /// Counts a head, which allows for further unproductive frames.
    pub fn head(&self) {
        self.0.take(HEAD);
    }

    /// Counts bytes of data in either direction. Each frame from the client allows for one more unproductive frame,
    /// however short it is.
    pub fn data(&self, bytes: u64, of_client: bool) {
        let bytes = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        self.0.take(bytes.saturating_add(of_client.into()));
    }

    /// Returns whether there were too many unproductive frames.
    pub fn is_one(&self) -> bool {
        self.0.over.get()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn reset(resets: &ResetLimiter, count: u32) {
        (0..count).for_each(|_| drop(resets.opened()));
    }

    #[tokio::test(start_paused = true)]
    async fn burst_of_resets_is_an_attack() {
        for (shared, most) in [(false, RESETS.most), (true, RESETS.most * SHARED)] {
            let resets = ResetLimiter::new(shared);
            reset(&resets, most);
            assert!(!resets.are_too_many());
            // In this time the outflow equals the inflow.
            advance(Duration::from_secs(1)).await;
            reset(&resets, most / RESETS.most * RESETS.each_second);
            assert!(!resets.are_too_many());
            reset(&resets, 1);
            assert!(resets.are_too_many());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn resets_over_a_long_connection_are_not_an_attack() {
        let resets = ResetLimiter::new(false);
        for _ in 0..1000 {
            reset(&resets, RESETS.each_second);
            advance(Duration::from_secs(1)).await;
        }
        assert!(!resets.are_too_many());
        for _ in 0..20 {
            reset(&resets, 2 * RESETS.each_second);
            advance(Duration::from_secs(1)).await;
        }
        assert!(resets.are_too_many(), "twice the rate is too much after a while");
    }

    #[tokio::test(start_paused = true)]
    async fn answered_and_long_streams_allow_for_resets() {
        let resets = ResetLimiter::new(false);
        for _ in 0..10 * RESETS.most {
            resets.opened().end();
            reset(&resets, 1);
        }
        let lasting: Vec<_> = (0..2 * RESETS.most).map(|_| resets.opened()).collect();
        advance(Duration::from_secs(1)).await;
        drop(lasting);
        assert!(!resets.are_too_many());
    }

    #[tokio::test(start_paused = true)]
    async fn only_unproductive_frames_are_limited() {
        let flood = FrameLimiter::default();
        (0..FRAMES.most).for_each(|_| flood.idle());
        assert!(!flood.is_one());
        flood.head();
        flood.data(3 * 1024 + 1, false);
        (0..HEAD + 3).for_each(|_| flood.idle());
        assert!(!flood.is_one());
        flood.idle();
        assert!(flood.is_one());
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_bytes_do_not_allow_for_many_frames() {
        let flood = FrameLimiter::default();
        for _ in 0..FRAMES.most / 90 {
            (0..95).for_each(|_| flood.idle());
            flood.data(1, true);
        }
        assert!(flood.is_one());
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_connection_can_be_pinged_for_years() {
        let flood = FrameLimiter::default();
        for _ in 0..1_000_000 {
            flood.idle();
            advance(Duration::from_secs(30)).await;
        }
        assert!(!flood.is_one());
    }
}
