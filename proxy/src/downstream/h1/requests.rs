//! The requests of an HTTP/1.1 connection, one after the other: read, passed to the exchange, and answered.

use std::{future::poll_fn, pin::Pin, rc::Rc, task::Poll};

use http::{Method, Request};
use http_body::Body as _;
use tokio::time::Instant;

use crate::{
    chain::stream::{ConnectionInfo, StreamProgress},
    downstream::connection::ListenerHandle,
    exchange::{self, Tunnel},
    h1::{Encoder, HeadError, Limits, encoder, head, server::ServerConnection},
    http::{body::Body, fields::wants_trailers},
    net::Transport,
    upstream::MOST_INTERIM,
};

/// Bytes of a response that wait for the client before no more are requested (backpressure).
const ENOUGH: usize = 64 << 10;

/// The reason why there are no more requests.
pub(super) enum RequestsEnd {
    /// The last request was answered.
    Done,
    /// The client closed the connection (disconnect).
    Gone,
    /// A response was not sent completely.
    Cut,
    /// The client sent an invalid request.
    Refused(HeadError),
    /// The connection became a tunnel.
    Tunnel(Box<Tunnel>),
}

/// Serves requests until there are no more.
pub(super) async fn serve(
    connection: &Rc<ServerConnection>,
    handle: &ListenerHandle,
    info: &Rc<ConnectionInfo>,
    progress: &Rc<StreamProgress>,
    limits: Limits,
    most: u32,
) -> RequestsEnd {
    loop {
        let mut finder = head::HeadScanner::default();
        let request = match poll_fn(|cx| connection.poll_head(&mut finder, &limits, cx)).await {
            Ok(Some(request)) => request,
            // The connection is draining, or the client has closed it.
            Ok(None) if connection.closing.get() => return RequestsEnd::Done,
            Ok(None) => return RequestsEnd::Gone,
            Err(error) => return RequestsEnd::Refused(error),
        };
        info.requests.set(info.requests.get().saturating_add(1));
        let mut client = encoder::ClientTraits {
            version: request.parts.version,
            head_only: request.parts.method == Method::HEAD,
            trailers: wants_trailers(&request.parts.headers),
            persists: request.persists,
            switches: false,
        };
        let expects = request.expects_continue && !request.body.is_done();
        progress.interims.begin(MOST_INTERIM, expects);
        let body = match (request.body.is_done(), expects) {
            (true, _) => Body::Empty,
            (false, false) => Body::Http1(connection.begin(request.body)),
            (false, true) => Body::Http1(connection.begin(request.body)).expected(progress),
        };
        // Boxed, so that an idle connection does not reserve the space.
        let mut serving = Box::pin(exchange::serve(
            handle.context(),
            info.clone(),
            progress.clone(),
            Request::from_parts(request.parts, body),
        ));
        let answer = poll_fn(|cx| {
            let answer = serving.as_mut().poll(cx);
            connection.write_interims(progress.interims.take());
            match answer {
                Poll::Ready(answer) => Poll::Ready(answer.ok()),
                // A disconnected client needs no response.
                Poll::Pending => match connection.poll_waiting(cx) {
                    Poll::Ready(Err(_)) => Poll::Ready(None),
                    Poll::Ready(Ok(())) | Poll::Pending => connection.poll_gone(cx).map(|()| None),
                },
            }
        })
        .await;
        drop(serving);
        let Some(answer) = answer else { return RequestsEnd::Cut };
        client.switches = answer.tunnel.is_some();
        let last = most != 0 && info.requests.get() >= most;
        // Announce the close (RFC 9112 section 9.6), because a request sent in the meantime would be lost.
        client.persists &=
            !(last || info.closing.get() || !connection.has_next(progress.interims.is_awaited())) || client.switches;
        // The upload may continue alongside the response, but a 100 (Continue) can no longer be sent.
        progress.interims.end();
        let (head, body) = answer.response.into_parts();
        let written = connection
            .with(|io| encoder::response(&head, &body.size_hint(), body.is_end_stream(), client, &mut io.write_buf));
        let Some((encoder, persists)) = written else { return RequestsEnd::Gone };
        // If the end of the connection marks the end of the response, only a reset distinguishes a truncated response
        // (RFC 9112 section 8).
        let whole = matches!(encoder, Encoder::UntilClose).then(|| AbortOnDrop(connection));
        if send(connection, progress, body, encoder).await.is_err() {
            return RequestsEnd::Cut;
        }
        whole.into_iter().for_each(std::mem::forget);
        if let Some(tunnel) = answer.tunnel {
            return RequestsEnd::Tunnel(Box::new(tunnel));
        }
        connection.end_request();
        // The connection's timer counts this as idle time.
        if !persists || !poll_fn(|cx| connection.poll_rest(cx)).await {
            return RequestsEnd::Done;
        }
    }
}

/// Resets a connection on drop, because its regular end would be taken for the end of a response.
struct AbortOnDrop<'a>(&'a ServerConnection);

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        self.0.with(|io| io.get_ref().abort());
    }
}

/// An error: the response could not be sent completely.
struct ResponseCut;

/// Sends a response whose head is already in the write buffer: head and body in one write, if the body is available.
async fn send(
    connection: &ServerConnection,
    progress: &StreamProgress,
    mut body: Body,
    mut encoder: Encoder,
) -> Result<(), ResponseCut> {
    let mut over = body.is_end_stream();
    poll_fn(|cx| {
        if progress.evicted.get() {
            connection.with(|io| io.get_ref().abort());
            return Poll::Ready(Err(ResponseCut));
        }
        loop {
            // Data that the client has not taken yet counts: if the task is woken for another reason, no more is added.
            let (mut waits, mut filled) = (false, connection.with(|io| io.write_buf.len()).unwrap_or(0));
            while !over && filled < ENOUGH {
                let frame = match Pin::new(&mut body).poll_frame(cx) {
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                    Poll::Ready(frame) => frame,
                };
                let written = match frame {
                    None => {
                        over = true;
                        connection.write(&mut encoder, None, Some(None))
                    }
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => {
                            over = body.is_end_stream();
                            connection.write(&mut encoder, Some(data), over.then_some(None))
                        }
                        Err(frame) => {
                            over = true;
                            connection.write(&mut encoder, None, Some(frame.trailers_ref()))
                        }
                    },
                    Some(Err(_)) => {
                        // The client gets what is there; the framing shows it that the response is incomplete.
                        let _ = connection.poll_flush(cx);
                        return Poll::Ready(Err(ResponseCut));
                    }
                };
                match written {
                    Ok(waiting) => filled = waiting,
                    Err(_) => return Poll::Ready(Err(ResponseCut)),
                }
            }
            if over {
                // Drop the body, so that its end is settled before the client can know of it.
                body = Body::Empty;
            }
            let blocked = connection.blocked_since.get();
            let flushed = connection.poll_flush(cx);
            if blocked.is_some() && connection.blocked_since.get() != blocked {
                // The client is taking data, however long ago the upstream sent it.
                progress.active.set(Instant::now());
            }
            match flushed {
                Poll::Ready(Ok(())) if over => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if waits => break,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(ResponseCut)),
                Poll::Pending => break,
            }
        }
        connection.poll_gone(cx).map(|()| Err(ResponseCut))
    })
    .await
}
