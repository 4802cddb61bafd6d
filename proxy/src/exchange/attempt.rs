//! One attempt at an endpoint: the request as it is sent, its timeouts, and what is learned from its outcome.

use std::{
    cell::Cell,
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Response, Version, header, response};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    ListenerContext,
    deadline::{Deadline, DeadlineKind},
    deadline_header, grpc,
    outcome::Interrupted,
    upgrade::Upgrade,
    upload::Upload,
};
use crate::{
    chain::{
        Direction, Stream,
        flow::{Outcome, interrupted},
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
        self, AttemptOutcome, AttemptTimer, Cluster, Endpoint, FailureCategory, Head, PooledBody, ProtocolChoice,
        RequestError, RequestErrorKind, UsageGuard,
    },
};

/// The reason why an attempt ended without a response to forward.
pub(super) enum AttemptError {
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

/// The head of a stream's request as it is sent upstream: the one that filters produced, with the changes specific to
/// this attempt.
pub(super) struct OutgoingHead<'s> {
    listener: &'s ListenerContext,
    stream: &'s Stream,
    /// The endpoint's own name, for an HTTP/1.0 request without a host.
    host: Option<String>,
    replaced: SmallVec<[(HeaderName, Option<HeaderValue>); 2]>,
    /// The announced length of a body that filters may change.
    promised: Option<u64>,
    /// Whether interim responses are dropped.
    drops_interim: bool,
    /// The local address of the connection that carries the request.
    local: Cell<Option<SocketAddr>>,
}

impl<'s> OutgoingHead<'s> {
    pub(super) fn new(
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
        if let Some((name, left)) = deadline_header::time_left(listener, stream, deadline) {
            replaced.push((name, Some(left)));
        }
        if let Some(token) = upgrade.and_then(Upgrade::token) {
            replaced.push((header::UPGRADE, Some(token.clone())));
            replaced.push((header::CONNECTION, Some(HeaderValue::from_static("upgrade"))));
        }
        OutgoingHead { listener, stream, host: None, replaced, promised, drops_interim: false, local: Cell::new(None) }
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
        self.local.set(local);
    }

    fn interim(&self, response: response::Parts) {
        // HTTP/1.0 has no interim responses (RFC 9110 section 15.2).
        if self.drops_interim || !self.listener.config.interim_responses || self.stream.version < Version::HTTP_11 {
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
#[derive(Clone, Copy)]
pub(super) struct AttemptTarget<'a> {
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) endpoint: &'a Arc<Endpoint>,
    pub(super) upgrade: Option<&'a Upgrade>,
    /// The client's share of unfinished uploads and tunnels that this request uses, if any.
    pub(super) usage: &'a UsageGuard,
    /// Use only a newly opened connection: an idle one has just turned out to be closed.
    pub(super) new_connection: bool,
    /// Use only a connection that carries no other request.
    pub(super) alone: bool,
}

/// Makes one attempt, which ends with a response, a failure, a filter's decision or a timeout.
pub(super) async fn attempt(
    listener: &ListenerContext,
    stream: &Rc<Stream>,
    target: AttemptTarget<'_>,
    upload: &Rc<Upload>,
    deadline: &mut Deadline,
) -> Result<Response<PooledBody>, AttemptError> {
    let attempt = Attempt::begin(listener, stream, target, upload, deadline);
    let result = {
        let mut sending = pin!(attempt.send());
        poll_fn(|cx| match sending.as_mut().poll(cx) {
            // First: the upload's failure is the cause of what then happens to the connection.
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => poll_end(stream, upload, deadline, cx).map(Err),
        })
        .await
    };
    attempt.end(&result);
    result
}

/// Ready when something other than the attempt itself ends it: a filter or a timeout.
pub(super) fn poll_end(
    stream: &Stream,
    upload: &Upload,
    deadline: &mut Deadline,
    cx: &mut Context<'_>,
) -> Poll<AttemptError> {
    match interrupted(stream) {
        Some(Outcome::Reply(reply)) => {
            return Poll::Ready(AttemptError::Interrupted(Interrupted::Reply(Box::new(reply), 0)));
        }
        Some(Outcome::Closed) => return Poll::Ready(AttemptError::Interrupted(Interrupted::Closed)),
        _ => stream.register(Direction::Response, cx),
    }
    loop {
        match deadline.poll(cx) {
            Poll::Ready(DeadlineKind::PerTryIdle) if upload.awaits_client() => deadline.restart_idle_try(),
            passed => return passed.map(AttemptError::TimedOut),
        }
    }
}

/// An attempt under way. Dropped without [`Attempt::end`], it was cancelled.
pub(super) struct Attempt<'a> {
    listener: &'a ListenerContext,
    stream: &'a Rc<Stream>,
    upload: &'a Rc<Upload>,
    target: AttemptTarget<'a>,
    head: OutgoingHead<'a>,
    pub(super) start: Instant,
    timer: AttemptTimer<'a>,
}

impl<'a> Attempt<'a> {
    /// Prepares the request as it will be sent.
    pub(super) fn begin(
        listener: &'a ListenerContext,
        stream: &'a Rc<Stream>,
        target: AttemptTarget<'a>,
        upload: &'a Rc<Upload>,
        deadline: &Deadline,
    ) -> Attempt<'a> {
        let first = stream.state.borrow().attempts == 1 && upload.is_empty();
        // Nothing has been awaited since `routed`, so it can be reused.
        let start = stream.times.routed.get().filter(|_| first).unwrap_or_else(Instant::now);
        stream.times.tried.set(Some(start));
        let head = OutgoingHead::new(listener, stream, upload, deadline, target.upgrade).to(target.endpoint);
        upload.promise(head.promised);
        let timer = match target.upgrade {
            None => target.cluster.time_attempt(target.endpoint, start),
            Some(_) => target.cluster.time_connection(target.endpoint, start),
        };
        let timer = timer.after(&stream.times.request_end);
        Attempt { listener, stream, upload, target, head, start, timer }
    }

    /// Does not pass on interim responses, because another attempt does.
    pub(super) fn without_interim(mut self) -> Attempt<'a> {
        self.head.drops_interim = true;
        self
    }

    /// Sends the request, and waits for the head of the response.
    pub(super) async fn send(&self) -> Result<Response<PooledBody>, AttemptError> {
        let AttemptTarget { cluster, endpoint, upgrade, usage: place, new_connection, alone } = &self.target;
        let (connection, pools) = (&self.stream.connection, &self.listener.pools);
        let client = endpoint.transport.proxy_protocol.map(|_| Addresses::new(connection.peer, connection.local));
        let sent = match upgrade {
            // No request is sent to the endpoint: the client will talk to it. Boxed, so that ordinary requests do not
            // reserve the space.
            Some(Upgrade::Connect) => Box::pin(pools.tunnel(cluster, endpoint, client, place)).await,
            _ => {
                let choice = ProtocolChoice {
                    client,
                    new: *new_connection,
                    uploads: self.upload.is_unfinished(),
                    usage: Some(place),
                    trailers: self.upload.has_filtered_trailers(),
                    alone: *alone,
                    on_behalf_of: Some(self.stream.client.ip()),
                };
                pools.send(cluster, endpoint, choice, &self.head, self.upload.body()).await
            }
        };
        sent.map_err(|RequestError { kind, .. }| AttemptError::Failed(kind))
    }

    /// Records the outcome, which decides the stream's unless another attempt follows.
    pub(super) fn end(self, result: &Result<Response<PooledBody>, AttemptError>) {
        let Attempt { stream, upload, target, head, start, timer, .. } = self;
        let now = Instant::now();
        match result {
            Ok(response) if is_failure(stream, response) => timer.refused(now, response.headers()),
            Ok(_) => timer.answered(now),
            Err(error) if error.is_of_endpoint(upload) => timer.failed(now),
            Err(AttemptError::Failed(_)) => timer.discard(),
            Err(AttemptError::TimedOut(_) | AttemptError::Interrupted(_)) => drop(timer),
        }
        target.cluster.report(target.endpoint, || match result {
            Ok(response) => grpc::outcome_of_head(stream, response),
            Err(error) => error.is_of_endpoint(upload).then_some(AttemptOutcome::NoResponse),
        });
        if let Err(error) = result {
            explain(stream, &target, error, upload, now - start);
            upload.rests();
        }
        if let Some(local) = head.local.get() {
            stream.state.borrow_mut().upstream_local = Some(local);
        }
        stream.times.tried.set(Some(start));
        stream.times.response_start.set(result.is_ok().then_some(now));
        stream.progress.active.set(now);
        let response = result.as_ref().ok().map(|r| (r.status().as_u16(), (now - start).as_micros() as u64));
        target.cluster.stats().attempt(observe::shard(), response);
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
