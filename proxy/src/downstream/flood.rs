//! What a client may make of work that leads to nothing, on an HTTP/2 or HTTP/3 connection: so much at once, and so much in each
//! second after that.
//!
//! These are rates and proportions, not totals: a connection that lives for days, or that a proxy in front shares among its own
//! clients, may come to any total without an attack.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::time::Instant;

/// Streams that a client may reset at once within a second of opening them, beyond those that were answered, and how many more in
/// each second. Beyond that, it does nothing but make work (rapid reset, CVE-2023-44487).
const RESETS: BucketLimit = BucketLimit { most: 500, each_second: 100 };

/// By how much the bounds are higher for a proxy in front, whose connection carries the requests of many clients.
pub(super) const SHARED: u32 = 10;

/// Frames that lead to nothing at once, beyond what others allow for, and how many more in each second.
const FRAMES: BucketLimit = BucketLimit { most: 10_000, each_second: 1000 };

/// For how many frames that lead to nothing a head allows: a client may say something of windows and priorities with it.
const HEAD: u32 = 10;

/// A bound on a leaky bucket.
#[derive(Debug, Clone, Copy)]
struct BucketLimit {
    /// What it holds.
    most: u32,
    /// What flows out of it.
    each_second: u32,
}

/// A leaky bucket. It looks at the clock only when it seems to be full, so filling it costs next to nothing; what has flowed out
/// by then is taken from it all at once.
#[derive(Debug)]
struct LeakyBucket {
    bound: BucketLimit,
    level: Cell<u32>,
    since: Cell<Instant>,
    /// It has flowed over, and stays so.
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

/// What flows out in this time.
fn flowed(each_second: u32, time: Duration) -> u32 {
    u32::try_from(time.as_millis().saturating_mul(each_second.into()) / 1000).unwrap_or(u32::MAX)
}

/// Counts the streams of a connection that its client resets at once.
#[derive(Debug, Clone)]
pub(super) struct ResetLimiter(Rc<LeakyBucket>);

impl ResetLimiter {
    /// None so far. `shared`: the client is a proxy that is trusted.
    pub(crate) fn new(shared: bool) -> ResetLimiter {
        let times = if shared { SHARED } else { 1 };
        ResetLimiter(Rc::new(LeakyBucket::new(BucketLimit {
            most: RESETS.most * times,
            each_second: RESETS.each_second * times,
        })))
    }

    /// A stream has been opened.
    pub(super) fn opened(&self) -> ResetWatch {
        ResetWatch { opened: Instant::now(), resets: Some(self.0.clone()) }
    }

    /// Whether it must be an attack.
    pub(super) fn are_too_many(&self) -> bool {
        self.0.over.get()
    }
}

/// Notices a stream that ends before its response has begun, which is the client's doing.
pub(super) struct ResetWatch {
    opened: Instant,
    resets: Option<Rc<LeakyBucket>>,
}

impl ResetWatch {
    /// There is a response.
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

/// Counts the frames of a connection that make work and lead to nothing.
#[derive(Debug)]
pub struct FrameLimiter(LeakyBucket);

impl Default for FrameLimiter {
    fn default() -> FrameLimiter {
        FrameLimiter(LeakyBucket::new(FRAMES))
    }
}

impl FrameLimiter {
    /// A frame that leads to nothing.
    pub fn idle(&self) {
        self.0.put(1);
    }

    /// A head.
    pub fn head(&self) {
        self.0.take(HEAD);
    }

    /// Bytes of data, either way. A frame of the client's allows for another one, however short it is.
    pub fn data(&self, bytes: u64, of_client: bool) {
        let bytes = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        self.0.take(bytes.saturating_add(of_client.into()));
    }

    /// Whether there are too many frames that lead to nothing.
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
    async fn many_resets_at_once_are_an_attack() {
        for (shared, most) in [(false, RESETS.most), (true, RESETS.most * SHARED)] {
            let resets = ResetLimiter::new(shared);
            reset(&resets, most);
            assert!(!resets.are_too_many());
            // In this time as much flows out as comes.
            advance(Duration::from_secs(1)).await;
            reset(&resets, most / RESETS.most * RESETS.each_second);
            assert!(!resets.are_too_many());
            reset(&resets, 1);
            assert!(resets.are_too_many());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn resets_over_a_connections_long_life_are_none() {
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
    async fn streams_that_were_answered_or_have_lasted_allow_for_resets() {
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
    async fn only_frames_that_lead_to_nothing_are_too_many() {
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
    async fn a_quiet_connection_may_be_pinged_for_years() {
        let flood = FrameLimiter::default();
        for _ in 0..1_000_000 {
            flood.idle();
            advance(Duration::from_secs(30)).await;
        }
        assert!(!flood.is_one());
    }
}
