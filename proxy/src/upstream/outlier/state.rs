//! What outlier detection knows of an endpoint. It stays with the endpoint's address when the cluster's endpoints change.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::{Endpoint, OutlierRule};
use crate::config::model::OutlierDetection;

/// The counts that workers keep of an endpoint, and its ejection.
#[derive(Debug, Default)]
pub(in crate::upstream) struct OutlierState {
    /// By rule: the three rules on failures in a row.
    in_row: [InRow; 3],
    /// Responses of this interval.
    pub(super) external: Interval,
    /// Attempts of this interval, and those without a response; only if these are counted apart.
    pub(super) local_origin: Interval,
    /// The current ejection. Only the thread that decides writes this and the following fields.
    pub(super) ejection: ArcSwapOption<Ejection>,
    /// How many times the base time the next ejection takes, less one. Decreases with each interval without an ejection.
    pub(super) multiplier: AtomicU32,
    /// Ejections so far.
    pub(super) ejections: AtomicU64,
}

/// Failures in a row.
#[derive(Debug, Default)]
struct InRow {
    count: AtomicU32,
    /// Whether a report is on its way.
    is_reported: AtomicBool,
}

/// The attempts of an interval.
#[derive(Debug, Default)]
pub(super) struct Interval {
    total: AtomicU64,
    failures: AtomicU64,
    /// The success rate of the last interval with enough attempts, as the bits of an `f64`; 0 bits: none.
    rate: AtomicU64,
}

/// An ejection that has not ended.
#[derive(Debug)]
pub struct Ejection {
    /// The rule.
    pub rule: OutlierRule,
    /// When it began.
    pub at: SystemTime,
    /// How long it takes, at least: it ends with the interval after this time.
    pub time: Duration,
    pub(super) since: Instant,
}

/// What outlier detection knows of an endpoint, for people.
#[derive(Debug)]
pub struct OutlierStatus {
    /// The ejection, if the endpoint is ejected.
    pub ejection: Option<Arc<Ejection>>,
    /// Ejections so far.
    pub ejections: u64,
    /// The success rate of the last interval, in percent; `None` if it had too few requests.
    pub success_rate: Option<f64>,
    /// The same of attempts that got a response at all, if these are counted apart.
    pub local_origin_success_rate: Option<f64>,
}

impl InRow {
    /// Counts an outcome; returns whether there are now at least `most` failures in a row.
    fn count(&self, has_failed: bool, most: u32) -> bool {
        if has_failed {
            return self.count.fetch_add(1, Relaxed).saturating_add(1) >= most;
        }
        // Written only on a change: usually, all workers only read it.
        if self.count.load(Relaxed) != 0 {
            self.count.store(0, Relaxed);
        }
        false
    }
}

impl Interval {
    fn count(&self, has_failed: bool) {
        self.total.fetch_add(1, Relaxed);
        if has_failed {
            self.failures.fetch_add(1, Relaxed);
        }
    }

    /// Ends the interval: the number of attempts, and the percentage of those that succeeded. An attempt that is counted at
    /// this moment may count as a failure of the next interval.
    pub(super) fn take(&self) -> (u64, f64) {
        let total = self.total.swap(0, Relaxed);
        let failures = self.failures.swap(0, Relaxed).min(total);
        (total, if total == 0 { 100.0 } else { (total - failures) as f64 * 100.0 / total as f64 })
    }

    /// Stores the success rate of the last interval for people.
    pub(super) fn show(&self, rate: Option<f64>) {
        // Stored with an offset, so that a rate of 0 is not "none".
        self.rate.store(rate.map_or(0, |rate| (rate + 1.0).to_bits()), Relaxed);
    }

    fn rate(&self) -> Option<f64> {
        let bits = self.rate.load(Relaxed);
        (bits != 0).then(|| f64::from_bits(bits) - 1.0)
    }
}

impl OutlierState {
    /// Counts a response; returns whether there are too many in a row of the class 5xx, and of gateway failures.
    pub(super) fn response(&self, config: &OutlierDetection, status: u16) -> [bool; 2] {
        let (is_5xx, is_gateway_failure) = (matches!(status, 500..=599), matches!(status, 502..=504));
        self.external.count(is_5xx);
        let [five, gateway, _] = &self.in_row;
        [
            five.count(is_5xx, config.consecutive_5xx),
            gateway.count(is_gateway_failure, config.consecutive_gateway_failure),
        ]
    }

    /// Counts whether an attempt had no response; returns whether there are too many in a row.
    pub(super) fn local_origin(&self, config: &OutlierDetection, has_failed: bool) -> bool {
        self.local_origin.count(has_failed);
        self.in_row[2].count(has_failed, config.consecutive_local_origin_failure)
    }

    /// Whether a report by a rule on failures in a row may be sent: none is on its way.
    pub(super) fn may_report(&self, rule: OutlierRule) -> bool {
        self.in_row.get(rule as usize).is_some_and(|in_row| !in_row.is_reported.swap(true, Relaxed))
    }

    /// Starts to count failures in a row again, for one rule.
    pub(super) fn restart(&self, rule: OutlierRule) {
        if let Some(in_row) = self.in_row.get(rule as usize) {
            in_row.count.store(0, Relaxed);
        }
    }

    /// A report was handled: another one may be sent.
    pub(super) fn handled(&self, rule: OutlierRule) {
        if let Some(in_row) = self.in_row.get(rule as usize) {
            in_row.is_reported.store(false, Relaxed);
        }
    }

    /// Starts to count failures in a row again, for all rules.
    pub(super) fn restart_all(&self) {
        self.in_row.iter().for_each(|in_row| in_row.count.store(0, Relaxed));
    }
}

impl Endpoint {
    /// Whether it is ejected as an outlier.
    pub fn is_ejected(&self) -> bool {
        self.state.outlier.get().is_some_and(|state| state.ejection.load().is_some())
    }

    /// Whether it may get requests: it passes its health checks and is not ejected.
    pub fn is_available(&self) -> bool {
        self.is_healthy() && !self.is_ejected()
    }

    /// What outlier detection knows of it; `None` before the first attempt.
    pub fn outlier_status(&self) -> Option<OutlierStatus> {
        let state = self.state.outlier.get()?;
        Some(OutlierStatus {
            ejection: state.ejection.load_full(),
            ejections: state.ejections.load(Relaxed),
            success_rate: state.external.rate(),
            local_origin_success_rate: state.local_origin.rate(),
        })
    }

    /// Its counts. Only for endpoints of clusters with outlier detection, so that others need no memory for them.
    pub(super) fn outlier(&self) -> &OutlierState {
        self.state.outlier.get_or_init(Box::default)
    }
}
