//! Deadlines of a stream: one timer for all of its timeouts, reset only when it fires or a deadline moves earlier.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{ListenerContext, min_rate::MinRate, reply::LocalFailure, upload::Upload};
use crate::{chain::Stream, net::poll_timer};

/// The timeout that expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeadlineKind {
    /// The time for the response's head.
    Head,
    /// The time for the whole response.
    Total,
    /// The timeout set by a gRPC client.
    Call,
    /// The deadline that a trusted client or proxy has set in a header.
    Request,
    /// The listener's maximum age of a stream.
    Age,
    /// The time for one attempt.
    PerTry,
    /// The idle timeout of one attempt.
    PerTryIdle,
    /// The minimum rate of the request's body.
    Pace,
    /// The idle timeout.
    Idle,
}

impl DeadlineKind {
    /// Returns the failure that answers the request, unless its response has begun. `awaits_client`: the proxy is
    /// waiting for more of the request's body, so the client is late; otherwise the upstream is.
    pub(super) fn failure(self, awaits_client: bool) -> LocalFailure {
        match self {
            DeadlineKind::Head => LocalFailure::HeadTimeout,
            DeadlineKind::Total => LocalFailure::Timeout,
            DeadlineKind::Call => LocalFailure::Deadline,
            DeadlineKind::Request => LocalFailure::RequestDeadline,
            DeadlineKind::Age => LocalFailure::StreamAge,
            DeadlineKind::PerTry => LocalFailure::PerTryTimeout,
            DeadlineKind::PerTryIdle => LocalFailure::PerTryIdleTimeout,
            DeadlineKind::Pace => LocalFailure::SlowUpload,
            DeadlineKind::Idle if awaits_client => LocalFailure::SlowBody,
            DeadlineKind::Idle => LocalFailure::Idle,
        }
    }

    /// Returns the timeout's configuration name if the upstream caused it to expire by not responding or by not reading
    /// the request's body.
    pub(super) fn of_upstream(self, awaits_client: bool) -> Option<&'static str> {
        match self {
            DeadlineKind::Head => Some("`response_head_timeout`"),
            DeadlineKind::Total => Some("`request_timeout` or the route's `timeout`"),
            DeadlineKind::PerTry => Some("`per_try_timeout`"),
            DeadlineKind::PerTryIdle => Some("`per_try_idle_timeout`"),
            DeadlineKind::Idle if !awaits_client => Some("`timeouts.idle`"),
            // Set by the client or the listener, or caused by the client.
            DeadlineKind::Call
            | DeadlineKind::Request
            | DeadlineKind::Age
            | DeadlineKind::Pace
            | DeadlineKind::Idle => None,
        }
    }
}

/// The idle timeout of an attempt.
#[derive(Clone, Copy)]
struct PerTryIdle {
    limit: Duration,
    /// It does not run before this moment.
    from: Instant,
}

/// The deadlines of a stream.
pub(super) struct Deadline {
    stream: Rc<Stream>,
    /// Time until the response begins, from the end of the request or, if later, from when the filters passed it on.
    head: Option<Duration>,
    /// Time until the response ends, from the same moment.
    total: Option<Duration>,
    /// Maximum age, from the request's head.
    age: Option<Duration>,
    idle: Option<Duration>,
    per_try: Option<Instant>,
    per_try_idle: Option<PerTryIdle>,
    /// The minimum upload rate, enforced until the response begins: a client that sends while it receives may have
    /// little to send.
    min_rate: Option<Rc<MinRate>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // Keep the timer for the connection's next stream. Its deadlines are later, which the timer finds out if it
        // fires.
        if let Some(sleep) = self.sleep.take() {
            self.stream.progress.timer.set(Some(sleep));
        }
    }
}

impl Deadline {
    /// Creates all deadlines.
    pub(super) fn new(
        listener: &ListenerContext,
        stream: &Rc<Stream>,
        total: Option<Duration>,
        idle: Option<Duration>,
    ) -> Deadline {
        Deadline {
            stream: stream.clone(),
            head: None,
            total,
            age: listener.config.timeouts.stream_age.bound(),
            idle,
            per_try: None,
            per_try_idle: None,
            min_rate: None,
            sleep: None,
        }
    }

    /// Creates only the deadlines that apply while no upstream is involved: the idle timeout and the maximum age.
    pub(super) fn idle(listener: &ListenerContext, stream: &Rc<Stream>) -> Deadline {
        Deadline::new(listener, stream, None, listener.config.timeouts.idle.bound())
    }

    /// Adds a time limit for the response's head.
    pub(super) fn with_head(mut self, limit: Option<Duration>) -> Deadline {
        self.head = limit;
        self
    }

    /// Adds the minimum rate of the request's body, until the response begins.
    pub(super) fn with(mut self, upload: &Upload) -> Deadline {
        self.min_rate = upload.pace();
        self
    }

    /// Returns the idle timeout.
    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        self.idle
    }

    /// Starts the times for an attempt.
    pub(super) fn begin_try(&mut self, limit: Option<Duration>, idle: Option<Duration>) {
        self.per_try = limit.and_then(|limit| Instant::now().checked_add(limit));
        self.per_try_idle = idle.map(|limit| PerTryIdle { limit, from: Instant::now() });
    }

    /// Restarts the attempt's idle timeout: the proxy was waiting for the client.
    pub(super) fn restart_idle_try(&mut self) {
        if let Some(idle) = &mut self.per_try_idle {
            idle.from = Instant::now();
        }
    }

    /// Ends the times for the attempt, which has got its response; the total limits remain.
    pub(super) fn end_try(&mut self) {
        (self.per_try, self.per_try_idle) = (None, None);
    }

    /// Returns whether a timeout for the response expires within this time.
    pub(super) fn expires_within(&self, time: Duration) -> bool {
        let whole = self.whole().map(|(at, _)| at);
        let next = [whole, self.after_request(self.head)].into_iter().flatten().min();
        next.is_some_and(|at| at.saturating_duration_since(Instant::now()) <= time)
    }

    /// Records that the response has begun.
    pub(super) fn answered(&mut self) {
        self.end_try();
        (self.head, self.min_rate) = (None, None);
    }

    /// Returns the moment `limit` after the end of the request, if it has ended. Time that filters take before passing
    /// it on (a delay, a callout) is not charged to the upstream.
    fn after_request(&self, limit: Option<Duration>) -> Option<Instant> {
        let limit = limit?;
        let (ended, routed) = (self.stream.times.request_end.get()?, self.stream.times.routed.get());
        routed.map_or(ended, |routed| ended.max(routed)).checked_add(limit)
    }

    /// Returns when the stream reaches its maximum age.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.stream.start.checked_add(self.age?)
    }

    /// Returns when the whole response must be complete, as far as that is known, and by which timeout.
    pub(super) fn whole(&self) -> Option<(Instant, DeadlineKind)> {
        let total = self.after_request(self.total).map(|at| (at, DeadlineKind::Total));
        let call = self.stream.grpc.get().and_then(|call| call.deadline.get()).map(|at| (at, DeadlineKind::Call));
        let request = self.stream.deadline.get().map(|at| (at, DeadlineKind::Request));
        let age = self.oldest().map(|at| (at, DeadlineKind::Age));
        [total, call, request, age].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Returns the total timeout if it had expired at `now`. For streams that always have something to move, and so
    /// never wait for the timer.
    pub(super) fn passed(&self, now: Instant) -> Option<DeadlineKind> {
        self.whole().filter(|(end, _)| *end <= now).map(|(_, bound)| bound)
    }

    /// Returns when the whole response must be complete, as far as that is known.
    pub(super) fn end(&self) -> Option<Instant> {
        self.whole().map(|(at, _)| at)
    }

    /// Returns the time left for the whole response. The per-attempt timeout is excluded: the proxy enforces that
    /// itself. An upstream that knew of it would race with the proxy, and would still apply it after the attempt has
    /// succeeded.
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
        let active = || self.stream.progress.active.get();
        let idle_try = self.per_try_idle.and_then(|idle| idle.from.max(active()).checked_add(idle.limit));
        let idle_try = idle_try.map(|at| (at, DeadlineKind::PerTryIdle));
        let pace = self.min_rate.as_ref().and_then(|pace| pace.due()).map(|at| (at, DeadlineKind::Pace));
        [self.whole(), head, per_try, idle_try, pace, idle].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Ready when a timeout has expired.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<DeadlineKind> {
        loop {
            let Some((at, which)) = self.next() else { return Poll::Pending };
            let sleep = self
                .sleep
                .get_or_insert_with(|| self.stream.progress.timer.take().unwrap_or_else(|| Box::pin(sleep_until(at))));
            // If the deadline moved later, the timer may fire too early and is reset then; if earlier, it is reset now.
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
