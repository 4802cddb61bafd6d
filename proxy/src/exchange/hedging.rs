//! Hedging: a request whose response is late is also sent to another endpoint. The first response is used, and the other
//! attempt is cancelled at its upstream.
//!
//! A failure, or a response that the retry policy lists, does not win while the other attempt is under way.

use std::{
    cell::OnceCell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
    time::Duration,
};

use http::Response;
use tokio::time::{Instant, Sleep, sleep_until};
use tollgate_abi::fast::flag;

use super::{
    ListenerContext,
    attempt::{Attempt, AttemptError, AttemptTarget, poll_end},
    deadline::Deadline,
    retry_state::RetryState,
    upload::Upload,
};
use crate::{
    chain::Stream,
    net::poll_timer,
    upstream::{ActiveGuard, HedgingPolicy, PickKey, PooledBody, RetryGuard},
};

type Outcome = Result<Response<PooledBody>, AttemptError>;

/// When and how a request is hedged.
pub(super) struct Hedge<'a> {
    pub(super) policy: &'a HedgingPolicy,
    pub(super) retry_state: &'a RetryState<'a>,
    /// What decides about endpoints.
    pub(super) key: PickKey<'a>,
}

/// A second attempt that was made.
pub(super) struct Second {
    pub(super) active: ActiveGuard,
    /// Whether the outcome is this attempt's.
    pub(super) decided: bool,
}

/// How the first attempt stands when it ends or when its response is late.
enum Early {
    Ended(Outcome),
    /// With the endpoint of the second attempt, and its permit.
    Late(ActiveGuard, RetryGuard),
}

/// Makes an attempt at the endpoint of `target`, and a second one at another endpoint if the response is late.
pub(super) async fn hedged(
    listener: &ListenerContext,
    stream: &Rc<Stream>,
    target: AttemptTarget<'_>,
    upload: &Rc<Upload>,
    deadline: &mut Deadline,
    hedge: Hedge<'_>,
) -> (Outcome, Option<Second>) {
    let cluster = target.cluster;
    // Before the attempts, which refer to it.
    let other_endpoint = OnceCell::new();
    let first = Attempt::begin(listener, stream, target, upload, deadline);
    let start = first.start;
    // The first attempt has taken at least this long.
    let note_first = || {
        let (now, sent) = (Instant::now(), stream.times.request_end.get().map_or(start, |end| end.max(start)));
        cluster.note_first_attempt(hedge.policy, now, now.saturating_duration_since(sent));
    };
    let mut sending = Box::pin(first.send());
    let mut late = Late { delay: cluster.hedge_delay(hedge.policy, start), timer: None };
    let early = poll_fn(|cx| {
        if let Poll::Ready(outcome) = sending.as_mut().poll(cx) {
            return Poll::Ready(Early::Ended(outcome));
        }
        if let Poll::Ready(error) = poll_end(stream, upload, deadline, cx) {
            return Poll::Ready(Early::Ended(Err(error)));
        }
        if late.poll(stream, upload, start, cx).is_ready()
            && let Some(other) = cluster.pick_another(hedge.key, std::slice::from_ref(target.endpoint))
            && let Some(permit) = cluster.try_hedge()
        {
            return Poll::Ready(Early::Late(other.start(), permit));
        }
        Poll::Pending
    });
    let (active, _permit) = match early.await {
        Early::Late(active, permit) => (active, permit),
        Early::Ended(outcome) => {
            drop(sending);
            if matches!(outcome, Ok(_) | Err(AttemptError::TimedOut(_))) {
                note_first();
            }
            first.end(&outcome);
            return (outcome, None);
        }
    };
    {
        let mut state = stream.state.borrow_mut();
        state.attempts += 1;
        state.flags |= flag::HEDGED;
    }
    let other = other_endpoint.get_or_init(|| active).endpoint();
    let second = AttemptTarget { endpoint: other, new_connection: false, alone: false, ..target };
    let second = Attempt::begin(listener, stream, second, upload, deadline).without_interim();
    let mut sending = [sending, Box::pin(second.send())];
    let mut failed = [None, None];
    let (nth, outcome) = poll_fn(|cx| {
        for (nth, sending) in sending.iter_mut().enumerate() {
            if failed[nth].is_some() {
                continue;
            }
            if let Poll::Ready(outcome) = sending.as_mut().poll(cx) {
                let retries = |response| hedge.retry_state.reason_of_response(response, stream, deadline).is_some();
                if failed[1 - nth].is_some() || outcome.as_ref().is_ok_and(|response| !retries(response)) {
                    return Poll::Ready((nth, outcome));
                }
                failed[nth] = Some(outcome);
            }
        }
        let left = usize::from(failed[0].is_some());
        poll_end(stream, upload, deadline, cx).map(|error| (left, Err(error)))
    })
    .await;
    // Cancels the other attempt.
    drop(sending);
    if failed[0].is_none() {
        note_first();
    }
    let decided = nth == 1;
    if decided && outcome.is_ok() {
        cluster.stats().hedges_won.fetch_add(1, Relaxed);
    }
    let endpoint = if decided { other } else { target.endpoint };
    stream.state.borrow_mut().endpoint = Some(endpoint.address.clone());
    let (decisive, loser) = if decided { (second, first) } else { (first, second) };
    match &failed[1 - nth] {
        Some(failed) => loser.end(failed),
        None => drop(loser),
    }
    decisive.end(&outcome);
    (outcome, other_endpoint.into_inner().map(|active| Second { active, decided }))
}

/// When a response is late.
struct Late {
    /// From when the request was sent; `None`: never.
    delay: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Late {
    /// Ready once, when the response is late. A request whose body cannot be sent at the same time to another endpoint is
    /// never late.
    fn poll(&mut self, stream: &Stream, upload: &Upload, start: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(delay), Some(end)) = (self.delay, stream.times.request_end.get()) else { return Poll::Pending };
        if !upload.is_wholly_kept() {
            return Poll::Pending;
        }
        let Some(at) = end.max(start).checked_add(delay) else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        let passed = poll_timer(timer.as_mut(), cx);
        if passed.is_ready() {
            *self = Late { delay: None, timer: None };
        }
        passed
    }
}
