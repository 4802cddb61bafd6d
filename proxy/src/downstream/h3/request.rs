//! One request on an HTTP/3 connection: from its stream to the exchange, and the response back.
//!
//! Each request is a task. While the client does not read, the response's body and its deadline are not polled, so the
//! task enforces the timeouts itself.

use std::{future::poll_fn, pin::pin, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use h3::{
    error::{Code, StreamError},
    server::{RequestResolver, RequestStream},
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::time::{Instant, timeout, timeout_at};
use tollgate_abi::fast::flag;

use super::{
    Connection,
    body::Incoming,
    transport::{Sender, StreamWatch, Transport},
    tunnel,
};
use crate::{
    chain::stream::StreamProgress,
    downstream::{connection::log_refusal, expect::expects_continue, flood::ResetWatch},
    exchange::{self, HeadTooLarge},
    h2::{content_length, has_of_connection, measure, remove_of_connection},
    http::{body::Body, fields::finish_head},
    observe::{Detail, detail, target},
    upstream::MOST_INTERIM,
};

/// The protocol logged for a request that could not be read.
const PROTOCOL: &str = "HTTP/3";

/// Maximum bytes per DATA frame. A client that takes this much counts as making progress.
const FRAME: usize = 64 << 10;

type Send = RequestStream<Sender, Bytes>;

/// A guard that counts an in-flight request of a connection.
struct InFlight(Rc<Connection>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let in_flight = &self.0.in_flight;
        in_flight.set(in_flight.get() - 1);
        self.0.facts.changed.notify_one();
    }
}

/// Serves the request on a stream.
pub(super) fn spawn(connection: Rc<Connection>, watch: Rc<StreamWatch>, resolver: RequestResolver<Transport, Bytes>) {
    connection.in_flight.set(connection.in_flight.get() + 1);
    let (cut, in_flight) = (connection.resets.opened(), InFlight(connection));
    tokio::task::spawn_local(async move {
        let connection = &in_flight.0;
        let finished = tokio::select! {
            biased;
            // The client has reset the request or disconnected.
            _ = watch.over() => return,
            finished = serve(connection, &watch, resolver, cut) => finished,
        };
        // Wait for delivery, because closing the connection discards undelivered data.
        if finished {
            let idle = connection.handle.context().config.timeouts.idle.bound();
            delivered(connection, &watch, idle).await;
        }
    });
}

/// Waits until the client has the whole response, or seems not to want it: for `idle`, the connection has sent no
/// response data. (quinn accepts more than the client's window allows.)
async fn delivered(connection: &Connection, watch: &StreamWatch, idle: Option<Duration>) {
    let mut sent = connection.facts.frames_sent();
    while let Err(_elapsed) = timeout(idle.unwrap_or(Duration::MAX), watch.over()).await {
        let before = std::mem::replace(&mut sent, connection.facts.frames_sent());
        if before == sent {
            return;
        }
    }
}

/// Serves a request; returns whether the response was sent completely.
async fn serve(
    connection: &Connection,
    watch: &Rc<StreamWatch>,
    resolver: RequestResolver<Transport, Bytes>,
    cut: ResetWatch,
) -> bool {
    let Connection { handle, info, .. } = connection;
    let limit = handle.context().config.timeouts.header_read.bound().unwrap_or(Duration::MAX);
    let mut resolving = pin!(resolver.resolve_request());
    let resolved = timeout(limit, resolving.as_mut()).await;
    let listener = handle.context();
    let refused = |status, flags, why| log_refusal(&listener, info, PROTOCOL, status, flags, why, "");
    let (request, stream) = match resolved {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(StreamError::HeaderTooBig { .. })) => {
            refused(431, flag::DOWNSTREAM_PROTOCOL, detail::HEAD_TOO_LARGE);
            return false;
        }
        Ok(Err(_)) if watch.head_too_large.get() => {
            refused(431, flag::DOWNSTREAM_PROTOCOL, detail::HEAD_TOO_LARGE);
            return false;
        }
        Ok(Err(error)) => {
            if watch.malformed.get() || matches!(error, StreamError::StreamError { .. }) {
                tracing::debug!(target: target::DOWNSTREAM, peer = %info.peer, %error, "malformed request");
                refused(0, flag::DOWNSTREAM_PROTOCOL, detail::MALFORMED_REQUEST);
            }
            return false;
        }
        Err(_) => {
            watch.answering.set(true);
            refused(0, flag::DOWNSTREAM_TIMEOUT, detail::HEADER_READ_TIMEOUT);
            return false;
        }
    };
    watch.answering.set(true);
    let (mut send, recv) = stream.split();
    let recv = Incoming::new(recv, watch.clone());
    let progress = Rc::new(StreamProgress::default());
    let idle = listener.config.timeouts.idle.bound();
    let (length, size) = match check(request.headers()) {
        Ok(lengths) => lengths,
        Err(why) => {
            refused(400, flag::DOWNSTREAM_PROTOCOL, why);
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return respond(&mut send, response, watch, &progress, idle).await;
        }
    };
    let mut request = request;
    if let Some(protocol) = request.extensions_mut().remove::<h3::ext::Protocol>() {
        // In h2's form.
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol.as_str()));
    }
    let expects = expects_continue(request.headers());
    progress.interims.begin(MOST_INTERIM, expects);
    let (body, recv) = match *request.method() {
        // The exchange does not see the tunnelled bytes.
        Method::CONNECT => (Body::Empty, Some(recv)),
        _ => (recv.into_body(length).await, None),
    };
    let body = if expects && !matches!(body, Body::Empty) { body.expected(&progress) } else { body };
    let (mut parts, ()) = request.into_parts();
    HeadTooLarge::mark(&mut parts, size, &listener);
    let request = Request::from_parts(parts, body);
    let mut serving = pin!(exchange::serve(listener.clone(), info.clone(), progress.clone(), request));
    let mut answer = None;
    let answer = loop {
        let interims = poll_fn(|cx| {
            if answer.is_none()
                && let Poll::Ready(ready) = serving.as_mut().poll(cx)
            {
                answer = Some(ready);
            }
            let interims = progress.interims.take();
            if answer.is_none() && interims.is_empty() { Poll::Pending } else { Poll::Ready(interims) }
        })
        .await;
        for interim in interims {
            // If this fails, the response will fail as well.
            let _ = unless_stalled(watch, &progress, idle, send.send_response(interim)).await;
        }
        if let Some(answer) = answer.take() {
            break answer;
        }
    };
    progress.interims.end();
    cut.end();
    let Ok(answer) = answer else {
        send.stop_stream(Code::H3_INTERNAL_ERROR);
        return false;
    };
    match (answer.tunnel, recv) {
        (Some(tunnel), Some(recv)) => {
            let head = head(answer.response.map(drop), true);
            match unless_stalled(watch, &progress, idle, send.send_response(head)).await {
                Some(Ok(())) => tunnel::run(tunnel, send, recv, idle).await,
                _ => false,
            }
        }
        _ => respond(&mut send, answer.response, watch, &progress, idle).await,
    }
}

/// Checks what h3 does not (RFC 9114 section 4.2). Returns the body's length, if announced, and the size of the fields.
fn check(fields: &HeaderMap) -> Result<(Option<u64>, usize), Detail> {
    if has_of_connection(fields) {
        return Err(detail::CONNECTION_FIELDS);
    }
    let size = measure(fields).ok_or(detail::MALFORMED_FIELD)?;
    let length = content_length(fields).map_err(|_| detail::BAD_CONTENT_LENGTH)?;
    Ok((length, size))
}

/// Prepares a response's head for sending.
fn head(response: Response<()>, is_tunnel: bool) -> Response<()> {
    let mut head = response;
    *head.version_mut() = http::Version::HTTP_3;
    finish_head(&mut head, is_tunnel);
    head
}

/// Sends a response; returns whether it was sent completely.
async fn respond(
    send: &mut Send,
    response: Response<Body>,
    watch: &StreamWatch,
    progress: &StreamProgress,
    idle: Option<Duration>,
) -> bool {
    let (parts, body) = response.into_parts();
    let mut body = pin!(body);
    let head = head(Response::from_parts(parts, ()), false);
    let mut sent = unless_stalled(watch, progress, idle, send.send_response(head)).await;
    while matches!(sent, Some(Ok(()))) {
        let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await else {
            return send.finish().await.is_ok();
        };
        let Ok(frame) = frame else {
            // The exchange has logged the reason.
            send.stop_stream(Code::H3_INTERNAL_ERROR);
            return false;
        };
        match frame.into_data() {
            Ok(mut data) => {
                while !data.is_empty() && matches!(sent, Some(Ok(()))) {
                    let part = data.split_to(data.len().min(FRAME));
                    sent = unless_stalled(watch, progress, idle, send.send_data(part)).await;
                    progress.active.set(Instant::now());
                }
            }
            Err(frame) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                // Filters may have added connection-specific fields.
                remove_of_connection(&mut trailers);
                if trailers.is_empty() {
                    // Some clients cannot parse an empty field section.
                    continue;
                }
                sent = unless_stalled(watch, progress, idle, send.send_trailers(trailers)).await;
            }
        }
    }
    // Dropping the stream before its end resets it.
    false
}

/// Waits for the client to accept data, unless there is no progress for `idle`, the response's deadline passes, or the
/// stream is evicted in favour of others.
async fn unless_stalled<T>(
    watch: &StreamWatch,
    progress: &StreamProgress,
    idle: Option<Duration>,
    sending: impl Future<Output = T>,
) -> Option<T> {
    let mut sending = pin!(sending);
    let mut sending = poll_fn(|cx| match progress.evicted.get() {
        true => Poll::Ready(None),
        false => {
            let sent = sending.as_mut().poll(cx);
            if sent.is_pending() && watch.moved.take() {
                progress.active.set(Instant::now());
            }
            sent.map(Some)
        }
    });
    let bound = || idle.map(|idle| progress.active.get() + idle).into_iter().chain(progress.due.get()).min();
    while let Some(until) = bound() {
        if let Ok(sent) = timeout_at(until, &mut sending).await {
            return sent;
        }
        // The deadline may have moved meanwhile.
        if bound().is_some_and(|bound| bound <= Instant::now()) {
            progress.stalled.set(true);
            return None;
        }
    }
    sending.await
}
