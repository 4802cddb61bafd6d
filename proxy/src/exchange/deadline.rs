//! When a stream's time is over: one timer for all its bounds, set anew only when it fires or something has moved it.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::chain::Stream;

/// Which bound was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// The time for the whole response.
    Total,
    /// The time for one try.
    PerTry,
    /// Nothing has moved for too long.
    Idle,
}

/// The bounds of a stream.
pub(super) struct Deadline {
    stream: Rc<Stream>,
    /// From the request's end, or from when the filters have let it go, if that is later.
    total: Option<Duration>,
    idle: Option<Duration>,
    per_try: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Bounds on the whole.
    pub(super) fn new(stream: &Rc<Stream>, total: Option<Duration>, idle: Option<Duration>) -> Deadline {
        Deadline { stream: stream.clone(), total, idle, per_try: None, sleep: None }
    }

    /// Only that something must move.
    pub(super) fn idle(stream: &Rc<Stream>, idle: Option<Duration>) -> Deadline {
        Deadline::new(stream, None, idle)
    }

    /// How long nothing may move.
    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        self.idle
    }

    /// A try begins.
    pub(super) fn begin_try(&mut self, limit: Option<Duration>) {
        self.per_try = limit.and_then(|limit| Instant::now().checked_add(limit));
    }

    /// The try has got its response; only the whole is bounded now.
    pub(super) fn end_try(&mut self) {
        self.per_try = None;
    }

    /// When the whole must be over, once the request has ended. What filters take before they let it go (a delay, a callout) is
    /// not the upstream's.
    pub(super) fn total(&self) -> Option<Instant> {
        let (ended, routed) = (self.stream.times.request_end.get()?, self.stream.times.routed.get());
        routed.map_or(ended, |routed| ended.max(routed)).checked_add(self.total?)
    }

    fn next(&self) -> Option<(Instant, Passed)> {
        let total = self.total().map(|at| (at, Passed::Total));
        let idle = self
            .idle
            .and_then(|limit| self.stream.progress.active.get().checked_add(limit))
            .map(|at| (at, Passed::Idle));
        let per_try = self.per_try.map(|at| (at, Passed::PerTry));
        [total, per_try, idle].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Ready when a bound is passed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Passed> {
        loop {
            let Some((at, which)) = self.next() else { return Poll::Pending };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            // Moved to later: it may fire too early, and is set again then. Moved to earlier: now.
            if at < sleep.deadline() {
                sleep.as_mut().reset(at);
            }
            match sleep.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if sleep.deadline() >= at => return Poll::Ready(which),
                Poll::Ready(()) => sleep.as_mut().reset(at),
            }
        }
    }
}
