//! When a stream's time is over: one timer for all its bounds, set anew only when it fires or something has moved it.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{ListenerContext, min_rate::MinRate, reply::LocalFailure, upload::Upload};
use crate::{chain::Stream, net::poll_timer};

/// Which bound was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeadlineKind {
    /// The time for the response's head.
    Head,
    /// The time for the whole response.
    Total,
    /// The time that a gRPC client has set.
    Call,
    /// The age that the listener lets a stream reach.
    Age,
    /// The time for one try.
    PerTry,
    /// The request's body comes too slowly.
    Pace,
    /// Nothing has moved for too long.
    Idle,
}

impl DeadlineKind {
    /// What the request is answered with, unless its response has begun. `awaits_client`: more of its body is waited for, so
    /// it is the client that is late; otherwise it is the upstream.
    pub(super) fn fault(self, awaits_client: bool) -> LocalFailure {
        match self {
            DeadlineKind::Head => LocalFailure::HeadTimeout,
            DeadlineKind::Total => LocalFailure::Timeout,
            DeadlineKind::Call => LocalFailure::Deadline,
            DeadlineKind::Age => LocalFailure::StreamAge,
            DeadlineKind::PerTry => LocalFailure::PerTryTimeout,
            DeadlineKind::Pace => LocalFailure::SlowUpload,
            DeadlineKind::Idle if awaits_client => LocalFailure::SlowBody,
            DeadlineKind::Idle => LocalFailure::Idle,
        }
    }

    /// What it is called where it is set, if an upstream that does not answer, or does not take the request's body, has let it pass.
    pub(super) fn of_upstream(self, awaits_client: bool) -> Option<&'static str> {
        match self {
            DeadlineKind::Head => Some("`response_head_timeout`"),
            DeadlineKind::Total => Some("`request_timeout` or the route's `timeout`"),
            DeadlineKind::PerTry => Some("`per_try_timeout`"),
            DeadlineKind::Idle if !awaits_client => Some("`timeouts.idle`"),
            // The client's own wish, the listener's, or the client's fault.
            DeadlineKind::Call | DeadlineKind::Age | DeadlineKind::Pace | DeadlineKind::Idle => None,
        }
    }
}

/// The bounds of a stream.
pub(super) struct Deadline {
    stream: Rc<Stream>,
    /// Until the response begins; from the request's end, or from when the filters have let it go, if that is later.
    head: Option<Duration>,
    /// Until the response ends; from the same time on.
    total: Option<Duration>,
    /// From the request's head.
    age: Option<Duration>,
    idle: Option<Duration>,
    per_try: Option<Instant>,
    /// Until the response begins: who sends while it comes may have to say little.
    pace: Option<Rc<MinRate>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // Still set for this stream's bounds: the next one's are later, and it finds that out if ever it fires.
        if let Some(sleep) = self.sleep.take() {
            self.stream.progress.timer.set(Some(sleep));
        }
    }
}

impl Deadline {
    /// All bounds.
    pub(super) fn new(
        site: &ListenerContext,
        stream: &Rc<Stream>,
        total: Option<Duration>,
        idle: Option<Duration>,
    ) -> Deadline {
        Deadline {
            stream: stream.clone(),
            head: None,
            total,
            age: site.config.timeouts.stream_age.bound(),
            idle,
            per_try: None,
            pace: None,
            sleep: None,
        }
    }

    /// Only those that hold while no upstream is asked: something must move, and the stream does not last for ever.
    pub(super) fn idle(site: &ListenerContext, stream: &Rc<Stream>) -> Deadline {
        Deadline::new(site, stream, None, site.config.timeouts.idle.bound())
    }

    /// The same, and a response must have begun within this time.
    pub(super) fn with_head(mut self, limit: Option<Duration>) -> Deadline {
        self.head = limit;
        self
    }

    /// The same, and the request's body must come fast enough until a response begins.
    pub(super) fn with(mut self, upload: &Upload) -> Deadline {
        self.pace = upload.pace();
        self
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

    /// The response has begun.
    pub(super) fn answered(&mut self) {
        self.end_try();
        (self.head, self.pace) = (None, None);
    }

    /// This long after the request has ended, if it has. What filters take before they let it go (a delay, a callout) is not the
    /// upstream's.
    fn after_request(&self, limit: Option<Duration>) -> Option<Instant> {
        let limit = limit?;
        let (ended, routed) = (self.stream.times.request_end.get()?, self.stream.times.routed.get());
        routed.map_or(ended, |routed| ended.max(routed)).checked_add(limit)
    }

    /// When the stream is as old as it may become.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.stream.start.checked_add(self.age?)
    }

    /// When the whole must be over, as far as that is known, and by which bound.
    pub(super) fn whole(&self) -> Option<(Instant, DeadlineKind)> {
        let total = self.after_request(self.total).map(|at| (at, DeadlineKind::Total));
        let call = self.stream.grpc.get().and_then(|call| call.deadline.get()).map(|at| (at, DeadlineKind::Call));
        let age = self.oldest().map(|at| (at, DeadlineKind::Age));
        [total, call, age].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// The bound of the whole, if it was passed by this time. For streams that always have something to move, and so never come
    /// to wait for the timer.
    pub(super) fn passed(&self, now: Instant) -> Option<DeadlineKind> {
        self.whole().filter(|(end, _)| *end <= now).map(|(_, bound)| bound)
    }

    /// When the whole must be over, as far as that is known.
    pub(super) fn end(&self) -> Option<Instant> {
        self.whole().map(|(at, _)| at)
    }

    /// How much time is left of the whole. The time for one try is no part of it: a try is given up here, and an upstream that was
    /// told of it would race with that, and would hold to it when the try has succeeded.
    pub(super) fn left(&self) -> Option<Duration> {
        Some(self.end()?.saturating_duration_since(Instant::now()))
    }

    fn next(&self) -> Option<(Instant, DeadlineKind)> {
        let idle = self
            .idle
            .and_then(|limit| self.stream.progress.active.get().checked_add(limit))
            .map(|at| (at, DeadlineKind::Idle));
        let head = self.after_request(self.head).map(|at| (at, DeadlineKind::Head));
        let per_try = self.per_try.map(|at| (at, DeadlineKind::PerTry));
        let pace = self.pace.as_ref().and_then(|pace| pace.due()).map(|at| (at, DeadlineKind::Pace));
        [self.whole(), head, per_try, pace, idle].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Ready when a bound is passed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<DeadlineKind> {
        loop {
            let Some((at, which)) = self.next() else { return Poll::Pending };
            let sleep = self
                .sleep
                .get_or_insert_with(|| self.stream.progress.timer.take().unwrap_or_else(|| Box::pin(sleep_until(at))));
            // Moved to later: it may fire too early, and is set again then. Moved to earlier: now.
            if at < sleep.deadline() {
                sleep.as_mut().reset(at);
            }
            match poll_timer(sleep.as_mut(), cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if sleep.deadline() >= at => return Poll::Ready(which),
                Poll::Ready(()) => sleep.as_mut().reset(at),
            }
        }
    }
}
