//! Dispatch of a request to an upstream: choice of endpoint, deadlines, and retries.

use std::{future::poll_fn, pin::pin, rc::Rc, sync::Arc, task::Poll, time::Duration};

use super::{
    ListenerContext,
    attempt::{AttemptError, AttemptTarget, OutgoingHead, attempt},
    deadline::Deadline,
    deadline_header, grpc,
    hedging::{Hedge, hedged},
    mirror,
    outcome::{Interrupted, ResponseGuards, UpstreamBody, UpstreamResponse},
    reply::LocalFailure,
    retry_state::RetryState,
    upgrade::Upgrade,
    upload::Upload,
};
use crate::{
    chain::{RequestHead, SelectedRoute, Stream},
    config::model::ClusterProtocol,
    upstream::{FailureCategory, Head, ProtocolError, RequestErrorKind, UsageGuard, WaitTime},
};

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
    let mut request_guard = match cluster.try_request() {
        Some(guard) => guard,
        None if listener.pools.make_room(&cluster) => cluster.replace_request(),
        None => return Err(failure(LocalFailure::Overflow)),
    };
    // Tunnels are not requests. Uploads that are still arriving have limits of their own, and would occupy this one for as
    // long as their clients like.
    let awaits_client = upgrade.is_some() || upload.is_unfinished() && !grpc::is_call_to(stream, &cluster);
    if !awaits_client && !request_guard.await_response() {
        return Err(failure(LocalFailure::ConcurrencyLimit));
    }
    // Of the cluster as it is now: retries go by the policy that the request began with.
    let first = Arc::clone(&cluster);
    let policy = route.retry.as_ref().or(first.retry.as_deref());
    let hedging = route.hedging.as_ref().or(first.hedging.as_deref());
    // What switches protocols cannot be done twice.
    let hedging = hedging.filter(|hedging| upgrade.is_none() && hedging.allows(&stream.state.borrow().request.method));
    // HTTP/2 upstreams may report that they have not processed a request, which is then retried without any policy.
    if policy.is_some() || hedging.is_some() || cluster.transport.protocol != ClusterProtocol::H1 {
        upload.keep(listener.buffered_body);
    }
    // A client that sets its own timeout is exempt from the cluster's, which applies to clients that do not.
    let own = grpc::set_deadline(stream, cluster.max_grpc_timeout);
    deadline_header::set(listener, stream);
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

    let mut retry_state = RetryState::new(policy, stream);
    let key = selected.key();
    let mut endpoint = cluster.pick(key, &[]).ok_or_else(|| failure(LocalFailure::NoEndpoint))?;
    loop {
        let mut active = endpoint.start();
        {
            let mut state = stream.state.borrow_mut();
            state.endpoint = Some(active.endpoint().address.clone());
            state.attempts += 1;
        }
        deadline.begin_try(policy.and_then(|p| p.per_try_timeout), policy.and_then(|p| p.per_try_idle_timeout));
        let place = tunnel.as_deref().unwrap_or(upload.place());
        let attempt_target = AttemptTarget {
            cluster: &cluster,
            endpoint: active.endpoint(),
            upgrade,
            usage: place,
            new_connection: retry_state.new_connection,
            alone: retry_state.alone,
        };
        let result = match hedging {
            // Only once, so that hedging and retries do not multiply.
            Some(policy) if stream.state.borrow().attempts == 1 => {
                let hedge = Hedge { policy, retry_state: &retry_state, key };
                // Boxed, so that other requests do not reserve the space.
                let hedged = hedged(listener, stream, attempt_target, upload, &mut deadline, hedge);
                let (result, second) = Box::pin(hedged).await;
                if let Some(mut second) = second {
                    if second.decided {
                        std::mem::swap(&mut active, &mut second.active);
                    }
                    retry_state.failed_at(second.active.endpoint());
                }
                result
            }
            _ => attempt(listener, stream, attempt_target, upload, &mut deadline).await,
        };
        let reason = match &result {
            Ok(response) => retry_state.reason_of_response(response, stream, &deadline),
            Err(error) => retry_state.reason_of_failure(error, stream),
        };
        if reason.is_some() {
            // Another attempt sees the cluster's endpoints as they are now. If the cluster is gone, its last state serves.
            cluster = listener.pools.cluster(handle, stream.start).unwrap_or(cluster);
        }
        if let Some(again) = reason
            && let Some(retry) = retry_state.again(again, active.endpoint(), upload, (&cluster, key), stream)
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
                request_guard.answered();
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
