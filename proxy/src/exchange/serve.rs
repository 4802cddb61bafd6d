//! The flow of one request from its arrival to its response: request filters, upstream, response filters.

use std::{future::poll_fn, rc::Rc, task::Poll};

use http::{Method, Request};
use http_body::Body as _;

use super::{
    Overload,
    deadline::{Deadline, DeadlineKind},
    listener_context::ListenerContext,
    outcome::{Interrupted, ServedResponse, StreamClosed, UpstreamResponse, closed},
    reply::LocalFailure,
    stream_guard::StreamGuard,
    upgrade::Upgrade,
    upload::Upload,
};
use crate::{
    chain::{
        Direction, Stream,
        flow::{HeadFlow, Outcome, interrupted},
        stream::{ConnectionInfo, StreamProgress},
    },
    http::{body::Body, fields::ConnectionOptions, grpc_web},
};

/// Serves one request.
///
/// # Errors
/// A filter closed the stream.
pub async fn serve(
    listener: Rc<ListenerContext>,
    connection: Rc<ConnectionInfo>,
    progress: Rc<StreamProgress>,
    mut request: Request<Body>,
) -> Result<ServedResponse, StreamClosed> {
    let web = if listener.config.grpc_web { grpc_web::Translation::begin(&mut request) } else { None };
    let head_only = request.method() == Method::HEAD;
    let (parts, incoming) = request.into_parts();
    let version = parts.version;
    let super::request::PreparedRequest { stream, failure: refused, upgrade, listed, expects } =
        super::request::begin(&listener, connection, progress, parts, incoming.is_end_stream());
    let stream_guard = StreamGuard::new(listener.clone(), stream.clone());
    let upload = Upload::new(&listener, &stream, incoming);
    let sheds = |overload: &Overload| overload.sheds_request(&stream.state.borrow().request.path);
    let refused = match &listener.overload {
        Some(overload) if refused.is_none() && sheds(overload) => Some(LocalFailure::Overload),
        _ => refused,
    };
    let outcome = match refused {
        Some(failure) => Err(failure.into_reply(&stream)),
        None => forward(&listener, &stream, &upload, upgrade.as_ref(), &listed, expects).await,
    };
    let mut answer = match outcome {
        Ok(from_upstream) => super::response::from_upstream(&listener, stream_guard, from_upstream, head_only).await,
        Err(Interrupted::Reply(reply, seen)) => {
            super::response::local(&listener, stream_guard, *reply, seen, head_only).await
        }
        Err(Interrupted::Closed) => Err(closed(&stream)),
    }?;
    if let (Some(_), Some(upgrade)) = (&answer.tunnel, &upgrade) {
        upgrade.finish(version, &mut answer.response);
    }
    if let Some(translation) = web {
        answer.response = translation.end(answer.response);
    }
    Ok(answer)
}

/// Passes the request through the request filters and sends it to an upstream.
pub(super) async fn forward(
    listener: &Rc<ListenerContext>,
    stream: &Rc<Stream>,
    upload: &Rc<Upload>,
    upgrade: Option<&Upgrade>,
    listed: &ConnectionOptions,
    expects: bool,
) -> Result<UpstreamResponse, Interrupted> {
    let mut deadline = Deadline::idle(listener, stream).with(upload);
    let seen = request_filters(stream, upload, &mut deadline).await?;
    // Without filters no time has passed, and reading the clock is not free.
    let filtered = seen > 0 || upload.is_filtered();
    stream.times.routed.set(Some(if filtered { tokio::time::Instant::now() } else { stream.start }));
    // If filters may change the body's length, wait for its first part, so that the head announces the correct length,
    // and so that filters can choose the route by the body.
    if upload.is_filtered() {
        let passed = upload.prime(&mut deadline).await;
        check(stream, upload, passed, seen)?;
    }
    let selected = {
        let mut state = stream.state.borrow_mut();
        if state.route.is_none()
            && let Some(route) = &listener.default_route
        {
            state.route = Some(crate::chain::SelectedRoute::new(route, 0, 0, 0));
        }
        let state = &mut *state;
        listed.remove(&mut state.request.fields);
        if let Some(selected) = &state.route {
            selected.route.rewrite(&mut state.request);
        }
        state.route.clone()
    };
    let Some(selected) = selected else { return Err(LocalFailure::NoRoute.into_stop(stream, seen)) };
    let hop = super::request::count_hop(&mut stream.state.borrow_mut().request);
    hop.map_err(|failure| failure.into_stop(stream, seen))?;
    if upload.is_too_long() {
        return Err(LocalFailure::RequestBodyLimit.into_stop(stream, seen));
    }
    let ahead = usize::try_from(listener.config.limits.read_ahead.0).unwrap_or(usize::MAX);
    // Not for a client that waits for a 100 (Continue), which it gets once the upstream is known, nor for a gRPC call,
    // whose client may wait for a response before it sends more.
    if ahead > 0
        && upload.is_unfinished()
        && !expects
        && !listener
            .pools
            .cluster(selected.cluster(), stream.start)
            .is_some_and(|to| super::grpc::is_call_to(stream, &to))
    {
        let passed = upload.read_ahead(ahead, &mut deadline).await;
        check(stream, upload, passed, seen)?;
    }
    upload.rests();
    super::dispatch::run(listener, stream, &selected, upload, upgrade).await.map_err(|stop| match stop {
        Interrupted::Reply(reply, _) => Interrupted::Reply(reply, seen),
        Interrupted::Closed => Interrupted::Closed,
    })
}

/// Checks the outcome of waiting for a request's body.
pub(super) fn check(
    stream: &Stream,
    upload: &Upload,
    passed: Option<DeadlineKind>,
    seen: usize,
) -> Result<(), Interrupted> {
    match interrupted(stream) {
        Some(Outcome::Reply(reply)) => return Err(Interrupted::Reply(Box::new(reply), seen)),
        Some(Outcome::Closed) => return Err(Interrupted::Closed),
        Some(Outcome::Done) | None => {}
    }
    match upload.failure().or_else(|| Some(passed?.failure(upload.awaits_client()))) {
        Some(failure) => Err(failure.into_stop(stream, seen)),
        None => Ok(()),
    }
}

/// Passes the head through the request filters, and feeds the body to a filter that holds the head and needs the body.
/// Returns the number of filters that have seen the request.
pub(super) async fn request_filters(
    stream: &Rc<Stream>,
    upload: &Rc<Upload>,
    deadline: &mut Deadline,
) -> Result<usize, Interrupted> {
    let mut head = HeadFlow::new(stream, Direction::Request);
    let mut body: &Upload = upload;
    let outcome = poll_fn(|cx| {
        let has_body = !upload.is_empty();
        if let Poll::Ready(outcome) = head.poll_with(stream, has_body.then_some(&mut body), cx) {
            return Poll::Ready(outcome);
        }
        if !(has_body && head.feeds_body(stream)) {
            upload.rests();
        }
        deadline.poll(cx).map(|passed| {
            if has_body {
                head.stalled(stream);
            }
            Err(match passed {
                DeadlineKind::Idle => LocalFailure::FilterStalled,
                passed => passed.failure(upload.awaits_client()),
            })
        })
    })
    .await;
    let seen = head.seen();
    match outcome {
        Ok(Outcome::Done) => Ok(seen),
        Ok(Outcome::Reply(reply)) => Err(Interrupted::Reply(Box::new(reply), seen)),
        Ok(Outcome::Closed) => Err(Interrupted::Closed),
        Err(failure) => Err(failure.into_stop(stream, seen)),
    }
}
