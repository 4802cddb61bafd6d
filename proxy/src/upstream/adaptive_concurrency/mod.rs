//! Adaptive concurrency: a limit on the requests of a cluster that wait for their responses, which follows the latency of
//! its endpoints. [`gradient`] decides; this is what workers share.
//!
//! A request counts from its admission until the head of its response, and an attempt is measured from the end of its
//! request until then. So neither clients that send or read slowly nor long streams look like overload.
//!
//! Workers count with atomics. The one whose response is the first after the next update is due computes it, while the
//! others go on; nothing runs without requests.

mod gradient;

use std::{
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use self::gradient::{Gradient, GradientOptions, Phase};
use super::{clock, latency_counts::LatencyCounts};
use crate::config::model;

/// The adaptive concurrency of a cluster: its options, and its state, which survives changes of the options.
#[derive(Debug)]
pub struct AdaptiveConcurrency {
    options: GradientOptions,
    shared: Arc<Shared>,
}

/// What the workers share. Times are in microseconds of [`clock`].
#[derive(Debug)]
struct Shared {
    /// Requests that wait for the heads of their responses.
    active: AtomicU64,
    limit: AtomicU64,
    /// Total: refused requests.
    refused: AtomicU64,
    latencies: LatencyCounts,
    /// The number of these latencies.
    count: AtomicU64,
    /// Attempts that began before this time are not measured: others were in flight then.
    since: AtomicU64,
    /// The time, and the number of latencies, from which the controller has something to do.
    due: AtomicU64,
    enough: AtomicU64,
    /// Only ever tried: whoever finds it locked leaves the work to the one who has it.
    controller: Mutex<Gradient>,
    shown: Shown,
}

/// What the controller last found, to be shown and for failures.
#[derive(Debug, Default)]
struct Shown {
    min_rtt: AtomicU64,
    sample_rtt: AtomicU64,
    /// In thousandths.
    gradient: AtomicU64,
    is_measuring: AtomicBool,
}

/// The state of a cluster's adaptive concurrency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConcurrencyStatus {
    /// The limit.
    pub limit: u64,
    /// Requests that wait for the heads of their responses.
    pub active: u64,
    /// Total: refused requests.
    pub refused: u64,
    /// The latency without load; `None`: not known yet.
    pub min_rtt: Option<Duration>,
    /// The latency at the last update; `None`: there was none yet.
    pub sample_rtt: Option<Duration>,
    /// What the limit was multiplied by at the last update.
    pub gradient: f64,
    /// Whether the latency without load is being measured.
    pub is_measuring: bool,
}

impl AdaptiveConcurrency {
    /// Creates it from its configuration. The state of `previous` options of the same cluster carries over.
    pub(super) fn new(
        config: &model::AdaptiveConcurrency,
        previous: Option<&AdaptiveConcurrency>,
    ) -> AdaptiveConcurrency {
        let options = GradientOptions::new(config);
        let shared = previous.map_or_else(|| Arc::new(Shared::new(&options)), |p| Arc::clone(&p.shared));
        AdaptiveConcurrency { options, shared }
    }

    /// Acquires a permit for one request; `None` at the limit.
    pub(super) fn try_acquire(&self) -> Option<ConcurrencyPermit> {
        let Shared { active, limit, refused, .. } = &*self.shared;
        let limit = limit.load(Relaxed);
        if active.try_update(Relaxed, Relaxed, |active| (active < limit).then_some(active + 1)).is_err() {
            refused.fetch_add(1, Relaxed);
            return None;
        }
        Some(ConcurrencyPermit(Arc::clone(&self.shared)))
    }

    /// Counts the latency of an attempt that began at `start` and was answered at `end`.
    pub(super) fn answered(&self, start: Instant, end: Instant, latency: Duration) {
        self.observe(clock::micros_at(start), clock::micros_at(end), latency);
    }

    /// Counts an attempt that failed or was cancelled at `end`. That it ended soon says nothing about load; that it was still
    /// waiting after the latency without load does.
    pub(super) fn waited(&self, start: Instant, end: Instant, latency: Duration) {
        let min_rtt = self.shared.shown.min_rtt.load(Relaxed);
        if min_rtt > 0 && latency > Duration::from_micros(min_rtt) {
            self.answered(start, end, latency);
        }
    }

    fn observe(&self, start: u64, end: u64, latency: Duration) {
        let shared = &*self.shared;
        if start < shared.since.load(Relaxed) {
            return;
        }
        shared.latencies.observe(latency);
        let count = shared.count.fetch_add(1, Relaxed) + 1;
        if end >= shared.due.load(Relaxed) || count >= shared.enough.load(Relaxed) {
            self.advance(end);
        }
    }

    /// Lets the controller take its next step.
    #[cold]
    fn advance(&self, now: u64) {
        let shared = &*self.shared;
        let mut controller = match shared.controller.try_lock() {
            Ok(controller) => controller,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // Another worker may just have done it.
        if now < controller.due() && shared.count.load(Relaxed) < controller.enough(&self.options) {
            return;
        }
        let was_measuring = matches!(controller.phase, Phase::Measuring { .. });
        let (count, latencies) = (shared.count.swap(0, Relaxed), shared.latencies.take());
        let latency = latencies.percentile(self.options.percentile).map(|latency| latency.as_micros() as u64);
        controller.advance(&self.options, now, (count, latency), |most| fastrand::u64(..most));
        let is_measuring = matches!(controller.phase, Phase::Measuring { .. });
        if is_measuring && !was_measuring {
            shared.since.store(now, Relaxed);
        }
        shared.publish(&controller, &self.options);
    }

    /// Returns its state.
    pub fn status(&self) -> ConcurrencyStatus {
        let Shared { active, limit, refused, shown, .. } = &*self.shared;
        let time = |micros: &AtomicU64| Some(micros.load(Relaxed)).filter(|n| *n > 0).map(Duration::from_micros);
        ConcurrencyStatus {
            limit: limit.load(Relaxed),
            active: active.load(Relaxed),
            refused: refused.load(Relaxed),
            min_rtt: time(&shown.min_rtt),
            sample_rtt: time(&shown.sample_rtt),
            gradient: shown.gradient.load(Relaxed) as f64 / 1e3,
            is_measuring: shown.is_measuring.load(Relaxed),
        }
    }
}

impl Shared {
    fn new(options: &GradientOptions) -> Shared {
        let zero = || AtomicU64::new(0);
        let controller = Gradient::new(options);
        let shared = Shared {
            active: zero(),
            limit: zero(),
            refused: zero(),
            latencies: LatencyCounts::default(),
            count: zero(),
            since: zero(),
            due: zero(),
            enough: zero(),
            controller: Mutex::new(controller.clone()),
            shown: Shown::default(),
        };
        shared.publish(&controller, options);
        shared
    }

    fn publish(&self, controller: &Gradient, options: &GradientOptions) {
        self.limit.store(controller.limit, Relaxed);
        self.due.store(controller.due(), Relaxed);
        self.enough.store(controller.enough(options), Relaxed);
        self.shown.min_rtt.store(controller.min_rtt, Relaxed);
        self.shown.sample_rtt.store(controller.sample_rtt, Relaxed);
        self.shown.gradient.store((controller.gradient * 1e3) as u64, Relaxed);
        self.shown.is_measuring.store(matches!(controller.phase, Phase::Measuring { .. }), Relaxed);
    }
}

/// A request's permit, until the head of its response.
#[derive(Debug)]
#[must_use = "dropping this releases the permit"]
pub(super) struct ConcurrencyPermit(Arc<Shared>);

impl Drop for ConcurrencyPermit {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[path = "../tests/adaptive_concurrency.rs"]
mod tests;
