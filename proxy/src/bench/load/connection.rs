//! One HTTP/1.1 connection of the load generator. It carries one request at a time and is dropped once it is closed.
//!
//! hyper's connection future is not a separate task but polled along with the future that waits for it. That saves two
//! task switches per request, and dropping the `Link` closes the socket immediately.

use std::{
    error::Error,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::Poll,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{Connection, SendRequest};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::{args::Plan, stats::Failure};
use crate::net::{Prefixed, Socket, Stream, TokioIo};

/// The part of a response received so far.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: Option<u16>,
    /// The value of the tallied header, once there is a response.
    pub(super) tally: Option<Option<HeaderValue>>,
    /// Bytes of the body.
    pub(super) bytes: u64,
    pub(super) failure: Option<(Failure, String)>,
}

/// hyper's half of a connection, which reads and writes whenever it is polled.
type Driver = Pin<Box<Connection<TokioIo<Stream>, Full<Bytes>>>>;

/// An open connection.
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it has ended.
    connection: Option<Driver>,
    /// Whether it has carried a request.
    pub(super) used: bool,
}

impl Link {
    /// Connects to the first of the plan's addresses that accepts.
    pub(super) async fn open(plan: &Plan) -> io::Result<Link> {
        let socket = TcpStream::connect(&plan.addresses[..]).await?;
        // A request must be sent when it is due, not when the last response has been acknowledged.
        socket.set_nodelay(true)?;
        let socket = Prefixed::new(Bytes::new(), Socket::Tcp(socket));
        let stream = match &plan.tls {
            None => Stream::Plain(socket),
            Some((tls, name)) => {
                let secure = TlsStream::Client(tls.connect(name.clone(), socket).await?);
                Stream::Tls(Box::new(Prefixed::new(Bytes::new(), secure)))
            }
        };
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        Ok(Link { sender, connection: Some(Box::pin(connection)), used: false })
    }

    /// Waits until the connection can carry a request; false if it has ended instead.
    pub(super) async fn ready(&mut self) -> bool {
        drive(&mut self.connection, self.sender.ready()).await.is_ok()
    }

    /// Waits for `event` on an idle connection; `None` if the connection ends first.
    pub(super) async fn idle_until<F: Future>(&mut self, event: F) -> Option<F::Output> {
        let mut event = pin!(event);
        poll_fn(|cx| {
            let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
            if connection.as_mut().poll(cx).is_ready() {
                self.connection = None;
                return Poll::Ready(None);
            }
            event.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Sends the request, and fills in the answer up to the end of the response body. Returns the request if the
    /// connection had ended before a byte of it was written.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        tally: Option<&HeaderName>,
        answer: &mut Answer,
    ) -> Option<Request<Full<Bytes>>> {
        self.used = true;
        let response = match drive(&mut self.connection, self.sender.try_send_request(request)).await {
            Ok(response) => response,
            Err(mut e) => {
                let request = e.take_message();
                answer.failure = Some(head_failure(e.error()));
                return request;
            }
        };
        answer.status = Some(response.status().as_u16());
        answer.tally = tally.map(|name| response.headers().get(name).cloned());
        let mut body = response.into_body();
        while let Some(frame) = drive(&mut self.connection, body.frame()).await {
            match frame {
                Ok(frame) => answer.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
                Err(e) => {
                    answer.failure = Some((Failure::Body, explain(&e)));
                    break;
                }
            }
        }
        None
    }
}

/// Waits for `event` while the connection does its work.
async fn drive<F: Future>(connection: &mut Option<Driver>, event: F) -> F::Output {
    let mut event = pin!(event);
    poll_fn(|cx| {
        if let Poll::Ready(output) = event.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        let Some(c) = connection else { return Poll::Pending };
        // Its error can be ignored: hyper also returns it to the affected request or body, and dropping the
        // connection ends the one that still waits.
        if c.as_mut().poll(cx).is_ready() {
            *connection = None;
        }
        event.as_mut().poll(cx)
    })
    .await
}

/// The kind of an error that occurred instead of a response head.
fn head_failure(e: &hyper::Error) -> (Failure, String) {
    let kind = if e.is_parse() { Failure::Protocol } else { Failure::Reset };
    (kind, explain(e))
}

/// The error with its causes, which hyper's own message omits.
fn explain(e: &hyper::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        text += &format!(": {e}");
        cause = e.source();
    }
    text
}
