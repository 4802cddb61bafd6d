//! The connections of the admin listener and of that for probes. Both are served by the control thread, and nobody who connects
//! there may take what others need: a head has its time, there are so many connections and no more, and if one comes too many, the
//! one that has been silent for longest goes.

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

/// How long a request's head may take, and how long a connection may wait for the next one.
const HEAD: Duration = Duration::from_secs(10);

/// How long a request's body may take.
const BODY: Duration = Duration::from_secs(10);

/// Bytes of a request's body that are read.
const MAX_BODY: usize = 4096;

/// How long is waited after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// What connections of one listener share.
pub(super) struct Connections {
    /// For the log.
    name: &'static str,
    most: usize,
    clients: Rc<Clients>,
    unaccepted: LogLimiter,
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyNotRead {
    #[error("the body is larger than {MAX_BODY} bytes")]
    TooLarge,
    #[error("the body did not come within {BODY:?}")]
    TooSlow,
}

impl Connections {
    /// Of a listener with this name.
    pub(super) fn new(name: &'static str) -> Connections {
        let most = descriptors::for_admin();
        Connections { name, most, clients: Rc::default(), unaccepted: LogLimiter::default() }
    }

    /// Accepts until the socket is taken away, and serves what was accepted.
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

    /// Serves a connection, in the place of another one if there are too many.
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

/// A request's body.
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
