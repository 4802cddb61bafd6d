//! Attempts at an endpoint, as far as balancers and limits learn from them: how long each one took, and whether it failed.

use std::{cell::Cell, time::Duration};

use http::{HeaderMap, Response, StatusCode};
use tokio::time::Instant;

use super::{
    AdaptiveConcurrency, Cluster, balancer::PeakEwma, clock, endpoint::Endpoint, failure::RequestErrorKind,
    rate_limited::requested_wait,
};

/// Measures one attempt at an endpoint, if the cluster's balancer or concurrency limit learns from it. Dropped without a
/// result, the attempt was cancelled: its latency is at least the time until then.
#[derive(Debug)]
#[must_use = "dropping this means that the attempt was cancelled"]
pub struct AttemptTimer<'a>(Option<Measured<'a>>);

#[derive(Debug, Clone, Copy)]
struct Measured<'a> {
    endpoint: &'a Endpoint,
    balancer: Option<&'a PeakEwma>,
    concurrency: Option<&'a AdaptiveConcurrency>,
    start: Start<'a>,
}

/// The time from which an attempt is measured.
#[derive(Debug, Clone, Copy)]
enum Start<'a> {
    At(Instant),
    /// From the later of the two, once the second is set.
    After(Instant, &'a Cell<Option<Instant>>),
    /// Only whether the attempt fails counts.
    Never,
}

impl<'a> AttemptTimer<'a> {
    pub(super) fn new(
        endpoint: &'a Endpoint,
        balancer: Option<&'a PeakEwma>,
        concurrency: Option<&'a AdaptiveConcurrency>,
        start: Instant,
    ) -> AttemptTimer<'a> {
        let is_measured = balancer.is_some() || concurrency.is_some();
        AttemptTimer(is_measured.then_some(Measured { endpoint, balancer, concurrency, start: Start::At(start) }))
    }

    /// Measures from the end of the request on, if that is later than the start: how long a client takes to send the request
    /// says nothing about the endpoint. An attempt that ends earlier counts only if it fails.
    pub fn after(mut self, request_end: &'a Cell<Option<Instant>>) -> Self {
        if let Some(measured) = &mut self.0
            && let Start::At(start) = measured.start
        {
            measured.start = Start::After(start, request_end);
        }
        self
    }

    /// Ignores how long the attempt takes, because that does not depend on the endpoint alone.
    pub fn without_latency(mut self) -> Self {
        if let Some(measured) = &mut self.0 {
            measured.start = Start::Never;
        }
        self
    }

    /// The endpoint answered at this time.
    pub fn answered(mut self, now: Instant) {
        if let Some(measured) = self.0.take() {
            measured.answered(now);
        }
    }

    /// The endpoint failed to answer.
    pub fn failed(mut self, now: Instant) {
        if let Some(measured) = self.0.take() {
            measured.failed(now, None);
        }
    }

    /// The endpoint gave an answer with these fields that means that it has failed or is overloaded.
    pub fn refused(mut self, now: Instant, fields: &HeaderMap) {
        if let Some(measured) = self.0.take() {
            measured.failed(now, requested_wait(fields));
        }
    }

    /// The attempt ended with this response or failure.
    pub fn end<B>(self, result: Result<&Response<B>, &RequestErrorKind>) {
        match result {
            Ok(response) if has_failed(response.status()) => self.refused(Instant::now(), response.headers()),
            Ok(_) => self.answered(Instant::now()),
            Err(kind) if kind.is_of_endpoint() => self.failed(Instant::now()),
            Err(_) => self.discard(),
        }
    }

    /// The attempt says nothing about the endpoint.
    pub fn discard(mut self) {
        self.0 = None;
    }
}

/// Whether a response with this status means that the endpoint has failed or is overloaded.
pub fn has_failed(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

impl Measured<'_> {
    fn answered(&self, now: Instant) {
        let Some((start, took)) = self.took(now) else { return };
        if let Some(policy) = self.balancer {
            self.endpoint.latency().observe(policy, clock::at(now), micros(took));
        }
        if let Some(limit) = self.concurrency {
            limit.answered(start, now, took);
        }
    }

    #[cold]
    fn failed(&self, now: Instant, wait: Option<Duration>) {
        let took = self.took(now);
        if let Some(policy) = self.balancer {
            policy.failed(self.endpoint, clock::at(now), took.map(|(_, took)| micros(took)), wait);
        }
        if let (Some(limit), Some((start, took))) = (self.concurrency, took) {
            limit.waited(start, now, took);
        }
    }

    fn cancelled(&self, now: Instant) {
        let Some((start, waited)) = self.took(now) else { return };
        if let Some(policy) = self.balancer {
            self.endpoint.latency().observe_at_least(policy, clock::at(now), micros(waited));
        }
        if let Some(limit) = self.concurrency {
            limit.waited(start, now, waited);
        }
    }

    /// The start of the attempt, and the time that it has taken until now.
    fn took(&self, now: Instant) -> Option<(Instant, Duration)> {
        let (start, from) = match self.start {
            Start::At(start) => (start, start),
            Start::After(start, request_end) => (start, request_end.get()?.max(start)),
            Start::Never => return None,
        };
        Some((start, now.saturating_duration_since(from)))
    }
}

impl Cluster {
    /// Tells the balancer, if it learns from that, that a call whose response's head looked well has failed: with trailers
    /// that have these fields.
    pub fn note_failed_call(&self, endpoint: &Endpoint, fields: &HeaderMap) {
        if let Some(policy) = &self.peak_ewma {
            policy.failed(endpoint, clock::now(), None, requested_wait(fields));
        }
    }
}

impl Drop for AttemptTimer<'_> {
    fn drop(&mut self) {
        if let Some(measured) = self.0 {
            measured.cancelled(Instant::now());
        }
    }
}

fn micros(time: Duration) -> f32 {
    time.as_secs_f32() * 1e6
}
