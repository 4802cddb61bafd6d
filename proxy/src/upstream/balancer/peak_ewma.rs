//! `peak_ewma`: of two endpoints drawn by weight, the one with the lower cost: its latency, times its active requests and
//! this one, relative to its weight. As in Linkerd and Finagle, the latency is a moving average that follows peaks: a higher
//! latency replaces it immediately, and from then on it decays exponentially towards the latencies that follow. So an
//! endpoint that becomes slow is avoided from its first slow response on, and trusted again only slowly.
//!
//! Measured is the time from the start of an attempt to the response's head; for TCP, the time to connect. A failed attempt
//! (no response, 5xx, 429, a failed gRPC status) counts as one that took `failure_penalty`, because failing fast would
//! otherwise attract requests. If it says for how long the endpoint wants no requests (`Retry-After`), the latency does not
//! decay until then, so that the endpoint gets few. A cancelled attempt counts as one that took at least as long as it had been waiting: it
//! can raise the average, but not lower it.
//!
//! Differences from Linkerd: reading the estimate does not store the decayed value, so that a pick writes nothing; this
//! moves the limit of the decay from 0 to the latencies measured since.
//!
//! State: one number per endpoint, shared by all workers: what one measures, all use. It takes one atomic update per attempt;
//! a pick only reads. Requests that are balanced at the same moment do not see each other; as each draws its own pair, 16
//! workers do not all choose the same endpoint.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::draw::Draw;
use crate::{config::model, upstream::endpoint::Endpoint};

/// The lowest latency that is stored, in microseconds: 0 means that nothing was measured yet.
const LEAST: f32 = 0.001;

/// The policy's parameters, also for recording latencies. Times in microseconds, apart from the decay.
#[derive(Debug, Clone, Copy)]
pub(in crate::upstream) struct PeakEwma {
    /// In milliseconds.
    decay: f32,
    default_rtt: f32,
    pub(super) failure_penalty: f32,
    max_retry_after: Duration,
}

/// An endpoint's latency: the average in microseconds as an `f32` in the lower half, and in the upper half the time in
/// milliseconds from which it decays: that of the last update, or the end of the time for which the endpoint wants no
/// requests. The time wraps around after 49 days; an endpoint that had no request for half of that counts as just measured.
#[derive(Debug)]
pub(in crate::upstream) struct LatencyCell(AtomicU64);

impl PeakEwma {
    pub(in crate::upstream) fn new(config: &model::Balancer) -> PeakEwma {
        PeakEwma {
            decay: (config.decay().as_secs_f32() * 1e3).max(1.0),
            default_rtt: config.default_rtt().as_secs_f32() * 1e6,
            failure_penalty: config.failure_penalty().as_secs_f32() * 1e6,
            max_retry_after: config.max_retry_after(),
        }
    }

    pub(super) fn choose(&self, draw: &Draw<'_>, clock: fn() -> u64) -> Option<usize> {
        let first = draw.first()?;
        let Some(second) = draw.other(first) else { return Some(first) };
        let now = clock();
        let cost = |i: usize| {
            let endpoint = draw.candidates.endpoint(i);
            endpoint.latency().estimate(self, now) * (endpoint.active() + 1) as f32
        };
        // first/weight <= second/weight, without the divisions.
        let first_is_cheaper = match &draw.warming {
            None if draw.candidates.are_even() => cost(first) <= cost(second),
            _ => cost(first) * draw.weight(second) as f32 <= cost(second) * draw.weight(first) as f32,
        };
        Some(if first_is_cheaper { first } else { second })
    }

    /// Records that an attempt has failed, which took this many microseconds, if that counts. `wait` is for how long the
    /// endpoint wants no requests.
    pub(in crate::upstream) fn failed(
        &self,
        endpoint: &Endpoint,
        now: u64,
        micros: Option<f32>,
        wait: Option<Duration>,
    ) {
        endpoint.latency().observe(self, now, micros.unwrap_or(0.0).max(self.failure_penalty));
        if let Some(wait) = wait {
            endpoint.latency().hold(self, now + wait.min(self.max_retry_after).as_millis() as u64);
        }
    }

    /// The part of an estimate that is left after this many milliseconds.
    fn left_after(&self, millis: u32) -> f32 {
        match millis {
            0 => 1.0,
            _ => (-(millis as f32) / self.decay).exp(),
        }
    }
}

impl LatencyCell {
    /// The cell of an endpoint that joins now: without measurements, its latency is the policy's `default_rtt`, which decays
    /// from now on.
    pub(in crate::upstream) fn new(now: u64) -> LatencyCell {
        LatencyCell(AtomicU64::new(pack(now as u32, 0.0)))
    }

    /// The estimated latency in microseconds. While nothing is measured, it decays towards 0, so that an endpoint that is
    /// avoided gets a request now and then.
    pub(in crate::upstream) fn estimate(&self, policy: &PeakEwma, now: u64) -> f32 {
        let (at, latency) = self.read(policy);
        latency * policy.left_after(elapsed(now as u32, at))
    }

    /// Records an attempt that took this many microseconds.
    pub(in crate::upstream) fn observe(&self, policy: &PeakEwma, now: u64, micros: f32) {
        self.update(policy, now, |latency, elapsed| match micros > latency {
            true => Some(micros),
            // Several responses within the same millisecond change nothing: the first one has decayed the average up to now.
            false if elapsed == 0 => None,
            false => {
                let left = policy.left_after(elapsed);
                Some(latency * left + micros * (1.0 - left))
            }
        });
    }

    /// Records an attempt that would have taken more than this many microseconds.
    pub(in crate::upstream) fn observe_at_least(&self, policy: &PeakEwma, now: u64, micros: f32) {
        self.update(policy, now, |latency, elapsed| (micros > latency * policy.left_after(elapsed)).then_some(micros));
    }

    /// Lets the latency decay only from this time on. Until then, only higher latencies change it.
    pub(in crate::upstream) fn hold(&self, policy: &PeakEwma, until: u64) {
        let until = until as u32;
        let _ = self.0.fetch_update(Relaxed, Relaxed, |packed| {
            let (at, latency) = unpack(packed, policy);
            (elapsed(until, at) > 0).then(|| pack(until, latency))
        });
    }

    fn update(&self, policy: &PeakEwma, now: u64, next: impl Fn(f32, u32) -> Option<f32>) {
        let now = now as u32;
        // Fails if nothing is to be changed.
        let _ = self.0.fetch_update(Relaxed, Relaxed, |packed| {
            let (at, latency) = unpack(packed, policy);
            let elapsed = elapsed(now, at);
            // Not before the end of the time for which it is held.
            Some(pack(at.wrapping_add(elapsed), next(latency, elapsed)?.max(LEAST)))
        });
    }

    fn read(&self, policy: &PeakEwma) -> (u32, f32) {
        unpack(self.0.load(Relaxed), policy)
    }
}

/// The milliseconds from `at` to `now`; 0 if `at` is later.
fn elapsed(now: u32, at: u32) -> u32 {
    (now.wrapping_sub(at) as i32).max(0) as u32
}

fn pack(at: u32, latency: f32) -> u64 {
    u64::from(at) << 32 | u64::from(latency.to_bits())
}

fn unpack(packed: u64, policy: &PeakEwma) -> (u32, f32) {
    let latency = f32::from_bits(packed as u32);
    ((packed >> 32) as u32, if latency > 0.0 { latency } else { policy.default_rtt })
}
