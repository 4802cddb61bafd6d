//! Which failures of a request are retried: by its policy, and by what HTTP allows without one.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::Response;
use tollgate_abi::{doc::RetryOn, fast::flag};

use super::{
    attempt::AttemptError,
    deadline::{Deadline, DeadlineKind},
    grpc,
    upload::Upload,
};
use crate::{
    chain::{
        Stream,
        retry::{Attempts, NextAttempt, NoAttempt},
    },
    config::model::ClusterProtocol,
    upstream::{Cluster, Endpoint, PickKey, RequestErrorKind, RetryPolicy, Retryable},
};

/// Maximum number of resends of a request whose upstream connections closed without processing it. An upstream that
/// limits requests per connection closes several at once when it is busy.
const UNPROCESSED: u32 = 3;

/// The retry state of one request.
pub(super) struct RetryState<'p> {
    attempts: Attempts<'p>,
    policy: Option<&'p RetryPolicy>,
    /// Whether the one repetition that HTTP allows without a retry policy was used.
    repeated: bool,
    /// How often upstreams reported that they have not processed the request.
    unprocessed: u32,
    /// Whether the next attempt needs a new connection.
    pub(super) new_connection: bool,
    /// Whether that connection may carry no other request.
    pub(super) alone: bool,
}

/// A reason for a possible retry.
pub(super) enum RetryReason {
    /// Retry if the policy includes one of these conditions.
    Policy(&'static [RetryOn]),
    /// The policy lists the response, which may request a delay.
    Listed(Option<Duration>),
    /// The connection failed; another endpoint may accept one.
    Connect,
    /// The upstream closed a connection that had been idle, or closed it because of another request. That is not this
    /// request's fault and does not count as a retry (RFC 9112 section 9.3.1). Other idle connections may be closed as
    /// well. `alone`: this request may be the cause after all.
    Stale { alone: bool },
    /// The upstream reported that it has not processed the request, or has not received it.
    Unprocessed,
}

impl<'p> RetryState<'p> {
    /// The state of a stream's request before the first attempt.
    pub(super) fn new(policy: Option<&'p RetryPolicy>, stream: &Stream) -> RetryState<'p> {
        let policy = policy.filter(|policy| policy.applies_to(&stream.state.borrow().request.fields));
        let attempts = Attempts::new(policy);
        RetryState { attempts, policy, repeated: false, unprocessed: 0, new_connection: false, alone: false }
    }

    /// Notes that an attempt at this endpoint is not worth repeating.
    pub(super) fn failed_at(&mut self, endpoint: &Arc<Endpoint>) {
        self.attempts.failed_at(endpoint);
    }

    pub(super) fn reason_of_response<B>(
        &self,
        response: &Response<B>,
        stream: &Stream,
        deadline: &Deadline,
    ) -> Option<RetryReason> {
        let (policy, fields) = (self.policy?, response.headers());
        if !policy.lists_response(response.status(), fields, grpc::retry_condition(stream, fields)) {
            return None;
        }
        let delay = policy.rate_limited.as_ref().and_then(|limited| limited.wait(fields, SystemTime::now()));
        // The client gets this response rather than a timeout.
        (!delay.is_some_and(|delay| deadline.expires_within(delay))).then_some(RetryReason::Listed(delay))
    }

    pub(super) fn reason_of_failure(&self, error: &AttemptError, stream: &Stream) -> Option<RetryReason> {
        Some(match error {
            AttemptError::Failed(RequestErrorKind::Connect(_)) => RetryReason::Connect,
            // The upstream has not processed the request (RFC 9113 section 8.7). An upstream that refuses single
            // streams is overloaded, so only one resend.
            AttemptError::Failed(RequestErrorKind::Reset { request_sent: false, reused: true, source, .. })
                if self.unprocessed == 0 || (self.unprocessed < UNPROCESSED && is_go_away(source)) =>
            {
                RetryReason::Unprocessed
            }
            AttemptError::Failed(RequestErrorKind::Reset {
                again: again @ (Retryable::NewConnection | Retryable::Alone),
                ..
            }) if !self.repeated && stream.state.borrow().request.method.is_idempotent() => {
                RetryReason::Stale { alone: *again == Retryable::Alone }
            }
            AttemptError::Failed(RequestErrorKind::Reset { .. } | RequestErrorKind::Protocol { .. })
            | AttemptError::TimedOut(DeadlineKind::PerTry | DeadlineKind::PerTryIdle) => {
                RetryReason::Policy(&[RetryOn::Reset, RetryOn::GatewayError, RetryOn::ServerError])
            }
            _ => return None,
        })
    }

    /// Decides whether to retry, with which endpoint, and after which wait.
    pub(super) fn again(
        &mut self,
        reason: RetryReason,
        failed: &Arc<Endpoint>,
        upload: &Upload,
        (cluster, key): (&Cluster, PickKey<'_>),
        stream: &Stream,
    ) -> Option<NextAttempt> {
        if !upload.can_repeat() || upload.failure().is_some() {
            return None;
        }
        (self.new_connection, self.alone) = (false, false);
        self.attempts.failed_at(failed);
        let next = match reason {
            RetryReason::Policy(conditions) => self.attempts.retry(conditions, cluster, key),
            RetryReason::Listed(delay) => self.attempts.retry_listed(delay, cluster, key),
            RetryReason::Connect => self.attempts.reconnect(cluster, key),
            RetryReason::Stale { alone } => {
                (self.repeated, self.new_connection, self.alone) = (true, true, alone);
                stream.state.borrow_mut().failures = None;
                self.attempts.repeat(cluster, key)
            }
            RetryReason::Unprocessed => {
                self.unprocessed += 1;
                // An HTTP/2 connection that accepts no more streams is no longer chosen, but one that still accepts them
                // may be about to close.
                self.new_connection = self.unprocessed > 1 || failed.transport.protocol == ClusterProtocol::H1;
                stream.state.borrow_mut().failures = None;
                self.attempts.repeat(cluster, key)
            }
        };
        if matches!(next, Err(NoAttempt::Exhausted)) {
            stream.flag(flag::RETRY_LIMIT);
        }
        next.ok()
    }
}

/// Returns whether an HTTP/2 connection was closed gracefully (GOAWAY).
fn is_go_away(error: &io::Error) -> bool {
    error.get_ref().and_then(|error| error.downcast_ref::<h2::Error>()).is_some_and(h2::Error::is_go_away)
}
