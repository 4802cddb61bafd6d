//! Slow start: an endpoint that has just joined, or has just become healthy again, gets fewer requests at first. For the time
//! of `window`, its weight is multiplied by Envoy's factor: `max(min_weight, (age / window)^(1 / aggression))`, where the age
//! is at least a second.
//!
//! The weights change all the time, so nothing is precomputed from them: a turn or a draw of such an endpoint counts only
//! with the probability of its factor, and is repeated otherwise. That gives the same shares. Factors are relative to the
//! largest: when all endpoints are new, none is.
//!
//! State: the time at which an endpoint joined, in the endpoint, shared by all workers and kept over membership changes.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::candidates::Candidates;
use crate::{config::model, upstream::endpoint::Endpoint};

/// The slow start of the endpoints of one membership.
#[derive(Debug)]
pub(super) struct SlowStart {
    window: f64,
    exponent: f64,
    least: f64,
    /// When the oldest endpoint joined.
    oldest: AtomicU64,
    /// When the newest endpoint has started. 0: all have.
    until: AtomicU64,
}

/// The slow start at one moment at which some endpoint has not started yet.
#[derive(Debug)]
pub(super) struct Warming<'a> {
    slow_start: &'a SlowStart,
    now: u64,
    /// The largest factor of an endpoint.
    largest: f64,
}

/// The time at which an endpoint joined its cluster or became healthy, in milliseconds.
#[derive(Debug)]
pub(in crate::upstream) struct JoinTime(AtomicU64);

impl JoinTime {
    pub(in crate::upstream) fn new(now: u64) -> JoinTime {
        JoinTime(AtomicU64::new(now))
    }

    /// Starts the slow start again.
    pub(in crate::upstream) fn restart(&self, now: u64) {
        self.0.store(now, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl SlowStart {
    pub(super) fn new(config: &model::SlowStart, candidates: &Candidates) -> SlowStart {
        let window = config.window.0.max(Duration::from_millis(1));
        let slow_start = SlowStart {
            window: window.as_secs_f64() * 1e3,
            exponent: 1.0 / config.aggression,
            least: f64::from(config.min_weight_percent) / 100.0,
            oldest: AtomicU64::default(),
            until: AtomicU64::default(),
        };
        slow_start.refresh(candidates);
        slow_start
    }

    /// Takes over the times at which the endpoints joined.
    pub(super) fn refresh(&self, candidates: &Candidates) {
        let joined = || candidates.list().iter().map(|candidate| candidate.endpoint.joined().get());
        let (oldest, newest) = (joined().min().unwrap_or(0), joined().max().unwrap_or(0));
        let ends = newest + self.window as u64 + 1;
        self.oldest.store(oldest, Relaxed);
        self.until.store(if oldest == newest { 0 } else { ends }, Relaxed);
    }

    /// The slow start at this moment; `None` if all endpoints have started.
    pub(super) fn in_progress(&self, clock: fn() -> u64) -> Option<Warming<'_>> {
        let until = self.until.load(Relaxed);
        if until == 0 {
            return None;
        }
        let now = clock();
        if now >= until {
            self.until.store(0, Relaxed);
            return None;
        }
        Some(Warming { slow_start: self, now, largest: self.factor(self.oldest.load(Relaxed), now) })
    }

    fn factor(&self, joined: u64, now: u64) -> f64 {
        let age = (now.saturating_sub(joined) as f64).max(1e3);
        match age < self.window {
            true => (age / self.window).powf(self.exponent).max(self.least),
            false => 1.0,
        }
    }
}

impl Warming<'_> {
    /// The factor of an endpoint's weight, relative to the largest.
    pub(super) fn factor(&self, endpoint: &Endpoint) -> f64 {
        self.slow_start.factor(endpoint.joined().get(), self.now) / self.largest
    }

    /// Whether a turn of this endpoint counts.
    pub(super) fn accepts(&self, endpoint: &Endpoint) -> bool {
        let factor = self.factor(endpoint);
        factor >= 1.0 || fastrand::f64() < factor
    }
}
