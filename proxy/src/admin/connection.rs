//! Connections of the admin and probes listeners. The control thread serves both, so no client may exhaust resources:
//! request heads have a timeout, the number of connections is limited, and when it is exceeded, the connection that has
//! been idle longest is closed.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    rt::{Sleep, Timer},
    server::conn::http1,
    service::service_fn,
};
use tokio::{task::spawn_local, time::timeout};

use crate::{
    listener::clients::Clients,
    net::{Listener, Socket, TokioIo, descriptors},
    observe::{LogLimiter, target},
};

/// Timeout for a request head, and for an idle connection.
const HEAD: Duration = Duration::from_secs(10);

/// Timeout for a request body.
const BODY: Duration = Duration::from_secs(10);

/// The maximum size of a request body.
const MAX_BODY: usize = 4096;

/// The delay after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// State shared by the connections of a listener.
pub(super) struct Connections {
    /// Used in logs.
    name: &'static str,
    most: usize,
    clients: Rc<Clients>,
    unaccepted: LogLimiter,
}

/// An error while reading a request body.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyNotRead {
    #[error("the body is larger than {MAX_BODY} bytes")]
    TooLarge,
    #[error("the body did not arrive within {BODY:?}")]
    TooSlow,
}

impl Connections {
    /// Creates the state for a listener with this name.
    pub(super) fn new(name: &'static str) -> Connections {
        let most = descriptors::for_admin();
        Connections { name, most, clients: Rc::default(), unaccepted: LogLimiter::default() }
    }

    /// Accepts connections until the socket is closed, and serves them.
    pub(super) async fn accept<F: Future<Output = Response<Full<Bytes>>> + 'static>(
        &self,
        socket: &RefCell<Option<Listener>>,
        answer: impl Fn(SocketAddr, Request<Incoming>) -> F + Clone + 'static,
    ) {
        loop {
            let accepted = poll_fn(|cx| match &*socket.borrow() {
                Some(socket) => socket.poll_accept(cx).map(Some),
                None => Poll::Ready(None),
            });
            match accepted.await {
                None => return,
                Some(Ok((stream, peer))) => self.serve(stream, peer, answer.clone()),
                Some(Err(e)) => {
                    self.clients.close_idle();
                    if let Some(left_out) = self.unaccepted.may_warn() {
                        tracing::warn!(
                            target: target::ADMIN,
                            left_out, "{}: cannot accept a connection: {e}", self.name
                        );
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection. If there are too many, another one is closed first.
    pub(super) fn serve<F: Future<Output = Response<Full<Bytes>>> + 'static>(
        &self,
        stream: Socket,
        peer: SocketAddr,
        answer: impl Fn(SocketAddr, Request<Incoming>) -> F + 'static,
    ) {
        if self.clients.count() >= self.most && self.clients.close_idle() == 0 {
            return;
        }
        self.clients.admit(|seat| {
            let serve = async move {
                let seat = &seat;
                let service = service_fn(|request| {
                    seat.rests();
                    let answered = answer(peer, request);
                    async move {
                        let answer = answered.await;
                        seat.rests();
                        Ok::<_, Infallible>(answer)
                    }
                });
                let mut http = http1::Builder::new();
                http.timer(Clock).header_read_timeout(HEAD);
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            };
            spawn_local(serve).abort_handle()
        });
    }
}

/// Reads a request body.
pub(super) async fn body(body: Incoming) -> Result<Bytes, BodyNotRead> {
    match timeout(BODY, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(BodyNotRead::TooLarge),
        Err(_) => Err(BodyNotRead::TooSlow),
    }
}

/// Tokio's clock, for hyper.
#[derive(Debug, Clone, Copy)]
struct Clock;

struct Until(Pin<Box<tokio::time::Sleep>>);

impl Until {
    fn at(deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Until(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}

impl Future for Until {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl Sleep for Until {}

impl Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Until::at(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Until::at(deadline)
    }
}
