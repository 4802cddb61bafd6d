//! Dispatch of a request to an upstream: choice of endpoint, deadlines, and retries.

use std::{future::poll_fn, io, net::SocketAddr, pin::pin, rc::Rc, sync::Arc, task::Poll, time::Duration};

use http::{HeaderName, HeaderValue, Method, Response, Version, header, response};
use smallvec::SmallVec;
use tokio::time::Instant;
use tollgate_abi::{doc::RetryOn, fast::flag};

use super::{
    ListenerContext,
    deadline::{Deadline, DeadlineKind},
    grpc, mirror,
    outcome::{Interrupted, ResponseGuards, UpstreamBody, UpstreamResponse},
    reply::LocalFailure,
    upgrade::Upgrade,
    upload::Upload,
};
use crate::{
    chain::{
        Direction, RequestHead, SelectedRoute, Stream,
        flow::{Outcome, interrupted},
        retry::{Attempts, NextAttempt, NoAttempt},
    },
    config::{model::ClusterProtocol, units::Address},
    h1::{encoder, violation::length},
    http::{
        fields::{Present, add_via, remove_hop_by_hop},
        grpc::TIMEOUT,
    },
    net::proxy_protocol::Addresses,
    observe::{self, target},
    upstream::{
        self, Cluster, Endpoint, FailureCategory, Head, PooledBody, ProtocolChoice, ProtocolError, RequestError,
        RequestErrorKind, RetryPolicy, Retryable, UsageGuard, WaitTime,
    },
};

/// The reason why an attempt ended without a response to forward.
enum AttemptError {
    Failed(RequestErrorKind),
    TimedOut(DeadlineKind),
    Interrupted(Interrupted),
}

impl AttemptError {
    /// Whether the endpoint caused it.
    fn is_of_endpoint(&self, upload: &Upload) -> bool {
        match self {
            AttemptError::Failed(kind) => upload.failure().is_none() && kind.is_of_endpoint(),
            AttemptError::TimedOut(deadline) => deadline.of_upstream(upload.awaits_client()).is_some(),
            AttemptError::Interrupted(_) => false,
        }
    }
}

/// Whether a response means that the endpoint has failed or is overloaded.
fn is_failure<B>(stream: &Stream, response: &Response<B>) -> bool {
    upstream::has_failed(response.status()) || grpc::has_failed(stream, response.headers())
}

/// Sends the request to the cluster of its route.
pub(super) async fn run(
    listener: &Rc<ListenerContext>,
    stream: &Rc<Stream>,
    selected: &SelectedRoute,
    upload: &Rc<Upload>,
    upgrade: Option<&Upgrade>,
) -> Result<UpstreamResponse, Interrupted> {
    let (route, handle) = (&selected.route, selected.cluster());
    let failure = |failure: LocalFailure| failure.into_stop(stream, 0);
    let mut cluster = listener.pools.cluster(handle, stream.start).ok_or_else(|| failure(LocalFailure::NoCluster))?;
    let hold = || cluster.try_hold(stream.client.ip()).map_err(|crowded| failure(LocalFailure::Crowded(crowded)));
    if upload.is_unfinished() {
        upload.hold(hold()?);
    }
    let tunnel = upgrade.map(|_| Box::<UsageGuard>::default());
    if let Some(tunnel) = &tunnel {
        tunnel.begin(hold()?);
    }
    let request_guard = match cluster.try_request() {
        Some(guard) => guard,
        None if listener.pools.make_room(&cluster) => cluster.replace_request(),
        None => return Err(failure(LocalFailure::Overflow)),
    };
    // Of the cluster as it is now: retries go by the policy that the request began with.
    let first = Arc::clone(&cluster);
    let policy = route.retry.as_ref().or(first.retry.as_ref());
    // HTTP/2 upstreams may report that they have not processed a request, which is then retried without any policy.
    if policy.is_some() || cluster.transport.protocol != ClusterProtocol::H1 {
        upload.keep(listener.buffered_body);
    }
    // A client that sets its own timeout is exempt from the cluster's, which applies to clients that do not.
    let own = grpc::set_deadline(stream, cluster.max_grpc_timeout);
    let (head, of_cluster) = if own { (None, None) } else { (cluster.response_head_timeout, cluster.request_timeout) };
    let total = route.timeout.unwrap_or(of_cluster);
    let idle = route.idle_timeout.unwrap_or(listener.config.timeouts.idle.bound());
    let mut deadline = Deadline::new(listener, stream, total, idle);
    // A gRPC call may be silent for as long as it likes, and so may its server: response streams often begin with their
    // first message.
    if !grpc::is_call_to(stream, &cluster) {
        deadline = deadline.with_head(head.filter(|_| route.timeout.is_none())).with(upload);
    }
    // The outcome of a protocol switch cannot be mirrored.
    if let Some((mirror, per_million)) = route.mirror.as_ref().filter(|_| upgrade.is_none())
        && fastrand::u32(..1_000_000) < *per_million
        && let Some(cluster) = listener.pools.cluster(mirror, stream.start)
    {
        let head = OutgoingHead::new(listener, stream, upload, &deadline, None);
        let fields = head.show(|head| head.to_fields());
        let head = RequestHead { fields, ..stream.state.borrow().request.clone() };
        mirror::start(listener, stream, &cluster, head, upload);
    }

    let mut retry_state = RetryState::new(policy);
    let mut endpoint = cluster.pick(selected.balance, &[]).ok_or_else(|| failure(LocalFailure::NoEndpoint))?;
    loop {
        let active = endpoint.start();
        {
            let mut state = stream.state.borrow_mut();
            state.endpoint = Some(active.endpoint().address.clone());
            state.attempts += 1;
        }
        deadline.begin_try(policy.and_then(|p| p.per_try_timeout));
        let place = tunnel.as_deref().unwrap_or(upload.place());
        let attempt_target = AttemptTarget {
            cluster: &cluster,
            endpoint: active.endpoint(),
            upgrade,
            usage: place,
            new_connection: retry_state.new_connection,
            alone: retry_state.alone,
        };
        let result = attempt(listener, stream, attempt_target, upload, &mut deadline).await;
        let reason = match &result {
            Ok(response) => retry_state.reason_of_response(response, stream),
            Err(error) => retry_state.reason_of_failure(error, stream),
        };
        if reason.is_some() {
            // Another attempt sees the cluster's endpoints as they are now. If the cluster is gone, its last state serves.
            cluster = listener.pools.cluster(handle, stream.start).unwrap_or(cluster);
        }
        if let Some(again) = reason
            && let Some(retry) =
                retry_state.again(again, active.endpoint(), upload, (&cluster, selected.balance), stream)
        {
            drop((result, active));
            if !retry.wait.is_zero() {
                pause(stream, retry.wait, &mut deadline, upload).await?;
            }
            endpoint = retry.endpoint;
            continue;
        }
        return match result {
            Ok(response) => {
                deadline.answered();
                upload.settle();
                stream.times.connected.set(response.extensions().get().map(|WaitTime(time)| *time));
                let (parts, mut body) = response.into_parts();
                let body = match body.take_switching() {
                    Some(_) if upgrade.is_some_and(|upgrade| !upgrade.is_agreed(parts.version, &parts.headers)) => {
                        return Err(failure(LocalFailure::Protocol));
                    }
                    Some(upstream) => UpstreamBody::Switched(upstream),
                    None => UpstreamBody::Body(body),
                };
                let guards = ResponseGuards { request: request_guard, endpoint: active, _tunnel: tunnel };
                Ok(UpstreamResponse { parts, body, deadline, guards })
            }
            Err(AttemptError::Interrupted(stop)) => Err(stop),
            Err(AttemptError::TimedOut(passed)) => Err(failure(passed.failure(upload.awaits_client()))),
            Err(AttemptError::Failed(kind)) => {
                if kind.is_stale()
                    && let Some(failures) = &stream.state.borrow().failures
                {
                    // The closed connection has failed the request, regardless of who caused it.
                    active.endpoint().note_failure(&cluster.name, FailureCategory::Reset, &failures.upstream);
                }
                Err(failure(failed(&kind, upload)))
            }
        };
    }
}

/// Reports why an attempt failed in the access log, in the endpoint's status and in the log.
#[cold]
fn explain(
    stream: &Stream,
    attempt_target: &AttemptTarget<'_>,
    error: &AttemptError,
    upload: &Upload,
    after: Duration,
) {
    let AttemptTarget { cluster, endpoint, .. } = attempt_target;
    let (trouble, mut why) = match error {
        // The upload caused the failure and has recorded its reason.
        AttemptError::Failed(_) if upload.failure().is_some() => return,
        AttemptError::Failed(kind) => match kind.reason(after) {
            Some(reason) => reason,
            None => return,
        },
        AttemptError::TimedOut(bound) => {
            let Some(bound) = bound.of_upstream(upload.awaits_client()) else { return };
            (FailureCategory::Timeout, format!("no response within {after:.1?} ({bound})"))
        }
        AttemptError::Interrupted(_) => return,
    };
    if let AttemptError::Failed(RequestErrorKind::Reset { bytes_received: false, .. }) = error
        && stream.grpc.get().is_some()
        && endpoint.transport.protocol == ClusterProtocol::H1
    {
        why += "; a gRPC server speaks HTTP/2: set `protocol: h2`";
    }
    tracing::debug!(
        target: target::UPSTREAM,
        cluster = &*cluster.name, endpoint = %endpoint.address, "no response: {why}"
    );
    if !matches!(error, AttemptError::Failed(kind) if kind.is_stale()) {
        endpoint.note_failure(&cluster.name, trouble, &why);
    }
    stream.upstream_failed(why);
}

fn failed(kind: &RequestErrorKind, upload: &Upload) -> LocalFailure {
    match kind {
        _ if upload.failure().is_some() => upload.failure().unwrap_or(LocalFailure::BadBody),
        RequestErrorKind::Connect(error) if error.timeout => LocalFailure::ConnectTimeout,
        RequestErrorKind::Connect(_) => LocalFailure::ConnectFailure,
        RequestErrorKind::Protocol { source: ProtocolError::Interim } => LocalFailure::Interim,
        RequestErrorKind::Protocol { .. } => LocalFailure::Protocol,
        RequestErrorKind::RequestBody { .. } => LocalFailure::BadBody,
        RequestErrorKind::Overflow => LocalFailure::Overflow,
        RequestErrorKind::Crowded(crowded) => LocalFailure::Crowded(*crowded),
        RequestErrorKind::Target => LocalFailure::Target,
        RequestErrorKind::HeadTooLong { .. } => LocalFailure::UpstreamHead,
        _ => LocalFailure::Reset,
    }
}

/// The head of a stream's request as it is sent upstream: the one that filters produced, with the changes specific to
/// this attempt.
struct OutgoingHead<'s> {
    listener: &'s ListenerContext,
    stream: &'s Stream,
    /// The endpoint's own name, for an HTTP/1.0 request without a host.
    host: Option<String>,
    replaced: SmallVec<[(HeaderName, Option<HeaderValue>); 2]>,
    /// The announced length of a body that filters may change.
    promised: Option<u64>,
}

impl<'s> OutgoingHead<'s> {
    fn new(
        listener: &'s ListenerContext,
        stream: &'s Stream,
        upload: &Upload,
        deadline: &Deadline,
        upgrade: Option<&Upgrade>,
    ) -> OutgoingHead<'s> {
        let mut replaced = SmallVec::<[(HeaderName, Option<HeaderValue>); 2]>::new();
        let mut promised = None;
        if let Some(length) = upload.length(&stream.state.borrow().request.fields) {
            replaced.push((header::CONTENT_LENGTH, length));
        }
        if !upload.is_empty() && !stream.chain.filters().is_empty() {
            let fields = &stream.state.borrow().request.fields;
            let announced = match replaced.first() {
                Some((_, announced)) => announced.as_ref(),
                None => fields.get(header::CONTENT_LENGTH),
            };
            promised = announced.and_then(|announced| length(announced.as_bytes()).ok());
        }
        if let Some(left) = grpc::time_left(stream, deadline) {
            replaced.push((TIMEOUT, Some(left)));
        }
        if let Some(token) = upgrade.and_then(Upgrade::token) {
            replaced.push((header::UPGRADE, Some(token.clone())));
            replaced.push((header::CONNECTION, Some(HeaderValue::from_static("upgrade"))));
        }
        OutgoingHead { listener, stream, host: None, replaced, promised }
    }

    /// Addresses the head to this endpoint.
    fn to(mut self, endpoint: &Endpoint) -> Self {
        if self.stream.state.borrow().request.authority.is_empty() {
            self.host = Some(match &endpoint.address {
                Address::Unix(_) => "localhost".to_owned(),
                address => address.to_string(),
            });
        }
        self
    }
}

impl Head for OutgoingHead<'_> {
    fn carried(&self, local: Option<SocketAddr>) {
        self.stream.state.borrow_mut().upstream_local = local;
    }

    fn interim(&self, response: response::Parts) {
        // HTTP/1.0 has no interim responses (RFC 9110 section 15.2).
        if !self.listener.config.interim_responses || self.stream.version < Version::HTTP_11 {
            return;
        }
        let response::Parts { status, version, headers: mut fields, .. } = response;
        let present = Present::of(&fields);
        remove_hop_by_hop(&mut fields, present);
        // Interim responses have no body.
        for name in [header::CONTENT_LENGTH, header::TRAILER] {
            fields.remove(name);
        }
        add_via(&mut fields, self.listener.via.of(version));
        let mut interim = Response::new(());
        (*interim.status_mut(), *interim.headers_mut()) = (status, fields);
        self.stream.progress.interims.pass(interim);
    }

    fn show<T>(&self, look: impl FnOnce(&encoder::RequestHead<'_>) -> T) -> T {
        let head = &self.stream.state.borrow().request;
        let mut head = head.outgoing();
        if let Some(host) = &self.host {
            head.host = Some(host.as_bytes());
        }
        look(&encoder::RequestHead { replaced: &self.replaced, ..head })
    }
}

/// The target of an attempt.
struct AttemptTarget<'a> {
    cluster: &'a Arc<Cluster>,
    endpoint: &'a Arc<Endpoint>,
    upgrade: Option<&'a Upgrade>,
    /// The client's share of unfinished uploads and tunnels that this request uses, if any.
    usage: &'a UsageGuard,
    /// Use only a newly opened connection: an idle one has just turned out to be closed.
    new_connection: bool,
    /// Use only a connection that carries no other request.
    alone: bool,
}

/// Makes one attempt, which ends with a response, a failure, a filter's decision or a timeout.
async fn attempt(
    listener: &ListenerContext,
    stream: &Rc<Stream>,
    attempt_target: AttemptTarget<'_>,
    upload: &Rc<Upload>,
    deadline: &mut Deadline,
) -> Result<Response<PooledBody>, AttemptError> {
    let AttemptTarget { cluster, endpoint, upgrade, usage: place, new_connection, alone } = &attempt_target;
    let first = stream.state.borrow().attempts == 1 && upload.is_empty();
    // Nothing has been awaited since `routed`, so it can be reused.
    let start = stream.times.routed.get().filter(|_| first).unwrap_or_else(Instant::now);
    stream.times.tried.set(Some(start));
    let head = OutgoingHead::new(listener, stream, upload, deadline, *upgrade).to(endpoint);
    upload.promise(head.promised);
    let connection = &stream.connection;
    let client = endpoint.transport.proxy_protocol.map(|_| Addresses::new(connection.peer, connection.local));
    let sending = async {
        match upgrade {
            // No request is sent to the endpoint: the client will talk to it. Boxed, so that ordinary requests do not
            // reserve the space.
            Some(Upgrade::Connect) => Box::pin(listener.pools.tunnel(cluster, endpoint, client, place)).await,
            _ => {
                let on_behalf_of = Some(stream.client.ip());
                let choice = ProtocolChoice {
                    client,
                    new: *new_connection,
                    uploads: upload.is_unfinished(),
                    usage: Some(place),
                    trailers: upload.has_filtered_trailers(),
                    alone: *alone,
                    on_behalf_of,
                };
                listener.pools.send(cluster, endpoint, choice, &head, upload.body()).await
            }
        }
    };
    let timer = cluster.time_attempt(endpoint, start).after(&stream.times.request_end);
    let mut sending = pin!(sending);
    let result = poll_fn(|cx| {
        // Check the upload first: its failure is the cause of what then happens to the connection.
        if let Poll::Ready(result) = sending.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(|RequestError { kind, .. }| AttemptError::Failed(kind)));
        }
        match interrupted(stream) {
            Some(Outcome::Reply(reply)) => {
                return Poll::Ready(Err(AttemptError::Interrupted(Interrupted::Reply(Box::new(reply), 0))));
            }
            Some(Outcome::Closed) => return Poll::Ready(Err(AttemptError::Interrupted(Interrupted::Closed))),
            _ => stream.register(Direction::Response, cx),
        }
        deadline.poll(cx).map(|passed| Err(AttemptError::TimedOut(passed)))
    });
    let result = result.await;
    let now = Instant::now();
    match &result {
        Ok(response) if is_failure(stream, response) => timer.failed(now),
        Ok(_) => timer.answered(now),
        Err(error) if error.is_of_endpoint(upload) => timer.failed(now),
        Err(AttemptError::Failed(_)) => timer.discard(),
        Err(AttemptError::TimedOut(_) | AttemptError::Interrupted(_)) => drop(timer),
    }
    if let Err(error) = &result {
        explain(stream, &attempt_target, error, upload, now - start);
        upload.rests();
    }
    stream.times.response_start.set(result.is_ok().then_some(now));
    stream.progress.active.set(now);
    let response = result.as_ref().ok().map(|r| (r.status().as_u16(), (now - start).as_micros() as u64));
    cluster.stats().attempt(observe::shard(), response);
    result
}

/// Waits before a retry, unless the total timeout expires first.
async fn pause(
    stream: &Rc<Stream>,
    wait: Duration,
    deadline: &mut Deadline,
    upload: &Upload,
) -> Result<(), Interrupted> {
    deadline.end_try();
    let mut sleep = pin!(tokio::time::sleep(wait));
    poll_fn(|cx| match sleep.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(Ok(())),
        Poll::Pending => {
            deadline.poll(cx).map(|passed| Err(passed.failure(upload.awaits_client()).into_stop(stream, 0)))
        }
    })
    .await
}

/// Maximum number of resends of a request whose upstream connections closed without processing it. An upstream that
/// limits requests per connection closes several at once when it is busy.
const UNPROCESSED: u32 = 3;

/// The retry state of one request.
struct RetryState<'p> {
    attempts: Attempts<'p>,
    /// Whether the one repetition that HTTP allows without a retry policy was used.
    repeated: bool,
    /// How often upstreams reported that they have not processed the request.
    unprocessed: u32,
    /// Whether the next attempt needs a new connection.
    new_connection: bool,
    /// Whether that connection may carry no other request.
    alone: bool,
}

/// A reason for a possible retry.
enum RetryReason {
    /// Retry if the policy includes one of these conditions.
    Policy(&'static [RetryOn]),
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
    fn new(policy: Option<&'p RetryPolicy>) -> RetryState<'p> {
        let attempts = Attempts::new(policy);
        RetryState { attempts, repeated: false, unprocessed: 0, new_connection: false, alone: false }
    }

    fn reason_of_response<B>(&self, response: &Response<B>, stream: &Stream) -> Option<RetryReason> {
        Some(RetryReason::Policy(match response.status().as_u16() {
            200 => grpc::retries(stream, response.headers())?,
            502..=504 => &[RetryOn::GatewayError, RetryOn::ServerError],
            500..=599 => &[RetryOn::ServerError],
            409 => &[RetryOn::Retriable4xx],
            429 => &[RetryOn::RateLimited],
            _ => return None,
        }))
    }

    fn reason_of_failure(&self, error: &AttemptError, stream: &Stream) -> Option<RetryReason> {
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
            }) if !self.repeated && is_idempotent(&stream.state.borrow().request.method) => {
                RetryReason::Stale { alone: *again == Retryable::Alone }
            }
            AttemptError::Failed(RequestErrorKind::Reset { .. } | RequestErrorKind::Protocol { .. })
            | AttemptError::TimedOut(DeadlineKind::PerTry) => {
                RetryReason::Policy(&[RetryOn::Reset, RetryOn::GatewayError, RetryOn::ServerError])
            }
            _ => return None,
        })
    }

    /// Decides whether to retry, with which endpoint, and after which wait.
    fn again(
        &mut self,
        reason: RetryReason,
        failed: &Arc<Endpoint>,
        upload: &Upload,
        (cluster, balance): (&Cluster, Option<u64>),
        stream: &Stream,
    ) -> Option<NextAttempt> {
        if !upload.can_repeat() || upload.failure().is_some() {
            return None;
        }
        (self.new_connection, self.alone) = (false, false);
        self.attempts.failed_at(failed);
        let next = match reason {
            RetryReason::Policy(conditions) => self.attempts.retry(conditions, cluster, balance),
            RetryReason::Connect => self.attempts.reconnect(cluster, balance),
            RetryReason::Stale { alone } => {
                (self.repeated, self.new_connection, self.alone) = (true, true, alone);
                stream.state.borrow_mut().failures = None;
                self.attempts.repeat(cluster, balance)
            }
            RetryReason::Unprocessed => {
                self.unprocessed += 1;
                // An HTTP/2 connection that accepts no more streams is no longer chosen, but one that still accepts them
                // may be about to close.
                self.new_connection = self.unprocessed > 1 || failed.transport.protocol == ClusterProtocol::H1;
                stream.state.borrow_mut().failures = None;
                self.attempts.repeat(cluster, balance)
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

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}
