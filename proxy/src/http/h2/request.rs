//! One request on an HTTP/2 connection: from its stream to the exchange, and the response back.

use std::{future::poll_fn, rc::Rc, task::Poll};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Method, Request, Response, header};
use http_body::Body as _;

use super::{Connection, streams::Place};
use crate::{
    chain::stream::Progress,
    exchange::{self, Site},
    h2::{Incoming, Sending, Tunnel},
    http::{body::Body, connection::Cut, date, fields::remove_hop_by_hop},
};

/// Serves a request in a task of its own.
pub(super) fn spawn(connection: &Rc<Connection>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let requests = &connection.info.requests;
    requests.set(requests.get().saturating_add(1));
    let progress = Rc::new(Progress::default());
    let (site, cut) = (connection.handle.site(), connection.resets.opened());
    Place::spawn(connection, progress.clone(), |place| serve(place, site, progress, cut, request, respond));
}

async fn serve(
    place: Place,
    site: Rc<Site>,
    progress: Rc<Progress>,
    cut: Cut,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (parts, received) = request.into_parts();
    let connects = parts.method == Method::CONNECT;
    if connects && parts.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0") {
        // What follows is not its content (RFC 9110 section 9.3.6).
        return respond.send_reset(Reason::PROTOCOL_ERROR);
    }
    let (body, received) = match () {
        // What follows is none of the exchange's business.
        () if connects => (Body::Empty, Some(received)),
        () if received.is_end_stream() => (Body::Empty, None),
        () => (Body::Http2(Incoming::new(received, &parts.headers)), None),
    };
    // Boxed, so that the task does not carry the space for it while the response is sent.
    let mut serving =
        Box::pin(exchange::serve(site, place.connection.info.clone(), progress, Request::from_parts(parts, body)));
    let answer = poll_fn(|cx| match serving.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        // A client that has reset the stream wants no answer.
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    })
    .await;
    drop(serving);
    let Some(answer) = answer else { return };
    cut.end();
    let Ok(answer) = answer else { return respond.send_reset(Reason::INTERNAL_ERROR) };
    let (parts, body) = answer.response.into_parts();
    let mut head = Response::from_parts(parts, ());
    let fields = head.headers_mut();
    // A filter may have set some of them.
    remove_hop_by_hop(fields);
    fields.entry(header::DATE).or_insert_with(date::now);
    if let (Some(tunnel), Some(received)) = (answer.tunnel, received) {
        fields.remove(header::CONTENT_LENGTH);
        if let Ok(send) = respond.send_response(head, false) {
            // It has a clock of its own, which always runs.
            drop(place);
            Box::pin(tunnel.run(Tunnel::new(send, received))).await;
        }
        return;
    }
    let bodiless = body.is_end_stream();
    if !bodiless && let Some(length) = body.size_hint().exact() {
        fields.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    match respond.send_response(head, bodiless) {
        Ok(_) if bodiless => {}
        Ok(send) => {
            let mut sending = Sending::new(body, send);
            // The exchange has said why, if it is cut.
            let _ = poll_fn(|cx| sending.poll(cx)).await;
        }
        Err(error) => {
            tracing::debug!(%error, "no response");
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}
