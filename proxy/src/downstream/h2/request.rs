//! One request on an HTTP/2 connection: from its stream to the exchange, and the response back.
//!
//! Each request is a task, and thousands may be in flight: the state that a task keeps across awaits is small or boxed.

use std::{future::poll_fn, pin::Pin, rc::Rc, task::Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, ext::Protocol, server::SendResponse};
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use tokio::time::Instant;

use super::{Connection, streams::StreamSlot};
use crate::{
    chain::stream::StreamProgress,
    downstream::{expect::expects_continue, flood::ResetWatch},
    exchange::{self, HeadTooLarge, ServedResponse, StreamClosed},
    h2::{BodySender, IncomingBody, Tunnel, content_length, measure},
    http::{body::Body, fields::finish_head},
    observe::{detail, target},
    upstream::MOST_INTERIM,
};

/// The part of a response after its head.
enum ResponseRest {
    Nothing,
    Body(Box<BodySender<Body>>),
    Tunnel(Pin<Box<dyn Future<Output = ()>>>),
}

/// Serves a request in its own task.
pub(super) fn spawn(connection: &Rc<Connection>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let requests = &connection.info.requests;
    requests.set(requests.get().saturating_add(1));
    let (mut parts, received) = request.into_parts();
    let listener = connection.handle.context();
    let Some(size) = measure(&parts.headers) else {
        connection.log_malformed(detail::MALFORMED_FIELD);
        // If this was found before h2 saw the stream, h2 learns of it now.
        connection.malformed.take();
        return respond.send_reset(Reason::PROTOCOL_ERROR);
    };
    if content_length(&parts.headers).is_err() {
        connection.log_malformed(detail::BAD_CONTENT_LENGTH);
        return respond.send_reset(Reason::PROTOCOL_ERROR);
    }
    HeadTooLarge::mark(&mut parts, size, &listener);
    let connects = parts.method == Method::CONNECT;
    if connects && parts.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0") {
        // What follows is tunnelled, not content (RFC 9110 section 9.3.6).
        return respond.send_reset(Reason::PROTOCOL_ERROR);
    }
    let (body, received) = match connects {
        // The exchange does not see the tunnelled bytes. The error code for an abort depends on which RFC defines it
        // (RFC 8441 section 5, RFC 9113 section 8.5).
        true if parts.extensions.get::<Protocol>().is_some() => (Body::Empty, Some((received, Reason::CANCEL))),
        true => (Body::Empty, Some((received, Reason::CONNECT_ERROR))),
        false if received.is_end_stream() => (Body::Empty, None),
        false => (Body::Http2(IncomingBody::new(received, &parts.headers).within(connection.window.clone())), None),
    };
    let progress = Rc::new(StreamProgress::default());
    let expects = !connects && expects_continue(&parts.headers) && !matches!(body, Body::Empty);
    progress.interims.begin(MOST_INTERIM, expects);
    let body = if expects { body.expected(&progress) } else { body };
    let cut = connection.resets.opened();
    let serving = Box::pin(exchange::serve(
        listener,
        connection.info.clone(),
        progress.clone(),
        Request::from_parts(parts, body),
    ));
    let moves = progress.clone();
    StreamSlot::spawn(connection, progress, |place| serve(place, moves, cut, serving, respond, received));
}

async fn serve(
    place: StreamSlot,
    progress: Rc<StreamProgress>,
    cut: ResetWatch,
    mut serving: Pin<Box<impl Future<Output = Result<ServedResponse, StreamClosed>>>>,
    mut respond: SendResponse<Bytes>,
    mut received: Option<(RecvStream, Reason)>,
) {
    let rest = poll_fn(|cx| {
        let answer = serving.as_mut().poll(cx);
        for interim in progress.interims.take() {
            // If sending fails, the client is gone, or will learn that it cannot be served.
            let _ = respond.send_informational(interim);
        }
        match answer {
            Poll::Ready(answer) => Poll::Ready(Some(send_head(answer, &mut respond, received.take()))),
            // A client that reset the stream needs no response.
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        }
    })
    .await;
    drop(serving);
    progress.interims.end();
    let Some(rest) = rest else { return };
    cut.end();
    match rest {
        ResponseRest::Nothing => {}
        ResponseRest::Body(mut sending) => {
            // If the body is truncated, the exchange has logged the reason. Dropping the sender before the end resets
            // the stream.
            let _ = poll_fn(|cx| match progress.evicted.get() {
                true => Poll::Ready(Ok(())),
                false => sending.poll_noting(cx, || progress.active.set(Instant::now())),
            })
            .await;
        }
        ResponseRest::Tunnel(tunnel) => {
            // The tunnel has its own timeouts, which always run.
            drop(place);
            tunnel.await;
        }
    }
}

/// Sends a response's head, or resets the stream if there is no response.
fn send_head(
    answer: Result<ServedResponse, StreamClosed>,
    respond: &mut SendResponse<Bytes>,
    received: Option<(RecvStream, Reason)>,
) -> ResponseRest {
    let Ok(ServedResponse { response, tunnel }) = answer else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return ResponseRest::Nothing;
    };
    let (parts, body) = response.into_parts();
    let mut head = Response::from_parts(parts, ());
    let tunnel = tunnel.zip(received);
    finish_head(&mut head, tunnel.is_some());
    let over = body.is_end_stream() && tunnel.is_none();
    if !over
        && tunnel.is_none()
        && head.status() != StatusCode::NO_CONTENT
        && let Some(length) = body.size_hint().exact()
    {
        head.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    match (respond.send_response(head, over), tunnel) {
        (Ok(_), _) if over => ResponseRest::Nothing,
        (Ok(send), Some((tunnel, (received, reason)))) => {
            ResponseRest::Tunnel(Box::pin(tunnel.run(Tunnel::new(send, received, reason))))
        }
        (Ok(send), None) => ResponseRest::Body(Box::new(BodySender::new(body, send))),
        (Err(error), _) => {
            tracing::debug!(target: target::DOWNSTREAM, %error, "no response");
            respond.send_reset(Reason::INTERNAL_ERROR);
            ResponseRest::Nothing
        }
    }
}
