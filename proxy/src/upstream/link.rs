//! One upstream connection of a worker: sending a request on it, and what becomes of it when the response has ended.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    io,
    rc::{Rc, Weak},
};

use bytes::Bytes;
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE},
};
use http_body::Body;
use hyper::client::conn::http1::{Builder, SendRequest};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
    task::{AbortHandle, spawn_local, yield_now},
    time::Instant,
};

use super::{
    body::{Duplex, Held, Leased, PooledBody},
    failure::{Failure, FailureKind, ProtocolError},
    slots::{ClusterPool, Permit, Slot},
};
use crate::net::{Metered, Prefixed, TokioIo, Traffic};

/// Who is given a connection on which another protocol is spoken.
type Switched = Cell<Option<oneshot::Sender<Box<dyn Duplex>>>>;

/// A connection. Whoever holds it alone closes it by dropping it: the request that is on it, or the idle list.
pub(super) struct Link<B> {
    pool: Weak<ClusterPool<B>>,
    pub(super) slot: Rc<Slot<B>>,
    /// Its place among the connections; gone once the place has been given to another one.
    permit: Cell<Option<Permit<B>>>,
    sender: RefCell<SendRequest<B>>,
    /// hyper's side of it, which reads and writes the socket.
    task: AbortHandle,
    traffic: Rc<Traffic>,
    /// Who is given the connection if the upstream switches protocols.
    switched: Rc<Switched>,
    /// Requests that it was given.
    served: Cell<u32>,
    /// When the sweep first saw it idle since its last request.
    pub(super) seen_idle: Cell<Option<Instant>>,
}

impl<B> Link<B>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Speaks HTTP/1.1 on a connected stream. Needs a place to spawn local tasks.
    pub(super) async fn open(
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        http: &Builder,
        pool: Weak<ClusterPool<B>>,
        permit: Permit<B>,
    ) -> hyper::Result<Rc<Self>> {
        let traffic = Rc::new(Traffic::default());
        let io = TokioIo::new(Metered::new(stream, Rc::clone(&traffic)));
        let (sender, connection) = http.handshake(io).await?;
        let slot = Rc::clone(&permit.slot);
        Ok(Rc::new_cyclic(|link: &Weak<Link<B>>| {
            let (link, slot_of_task) = (Weak::clone(link), Rc::clone(&slot));
            let switched = Rc::default();
            let switched_of_task: Rc<Switched> = Rc::clone(&switched);
            let task = spawn_local(async move {
                match connection.without_shutdown().await {
                    Ok(parts) => {
                        let mut stream = Prefixed::new(parts.read_buf, parts.io.into_inner());
                        match switched_of_task.take() {
                            Some(switched) => _ = switched.send(Box::new(stream)),
                            // TLS has an end of its own to say.
                            None => _ = stream.shutdown().await,
                        }
                    }
                    // An error that concerns a request has gone to the request; this one came while idle.
                    Err(error) => {
                        tracing::debug!(address = %slot_of_task.endpoint.address, %error, "upstream connection ended");
                    }
                }
                // The upstream has closed it: it must not take up one of the cluster's connections until it is found
                // dead.
                slot_of_task.forget(&link);
            });
            Link {
                pool,
                slot,
                permit: Cell::new(Some(permit)),
                sender: RefCell::new(sender),
                task: task.abort_handle(),
                traffic,
                switched,
                served: Cell::new(0),
                seen_idle: Cell::new(None),
            }
        }))
    }

    /// Sends a request and waits for the head of its response. Dropping the future closes the connection.
    pub(super) async fn exchange(self: Rc<Self>, request: Request<B>) -> Result<Response<PooledBody>, Failure<B>> {
        let reused = self.has_served();
        self.served.set(self.served.get().saturating_add(1));
        let (received, sent) = (self.traffic.received(), self.traffic.sent());
        let switched = request.headers().contains_key(UPGRADE).then(|| {
            let (sender, switched) = oneshot::channel();
            self.switched.set(Some(sender));
            switched
        });
        // Nothing is borrowed while the response is awaited: the request is queued by the call itself.
        let response = self.sender.borrow_mut().try_send_request(request);
        let mut error = match response.await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                if let Some(switched) = switched {
                    let upstream = async move {
                        let stream = switched.await.map_err(io::Error::other);
                        // Until here the link must be there for its task to go on; from here on, for its place.
                        stream.map(|stream| Box::new(Held::new(stream, self)) as Box<dyn Duplex>)
                    };
                    return Ok(response.map(|_| PooledBody::switching(Box::pin(upstream))));
                }
                return Err(Failure { kind: FailureKind::Protocol { source: ProtocolError::Switched }, request: None });
            }
            Ok(mut response) => {
                if !one_framing(response.headers_mut()) {
                    return Err(Failure {
                        kind: FailureKind::Protocol { source: ProtocolError::TransferCoding },
                        request: None,
                    });
                }
                self.switched.take();
                return Ok(response.map(|incoming| PooledBody::of_link(incoming, self)));
            }
            Err(error) => error,
        };
        let request = error.take_message().map(Box::new);
        let source = error.into_error();
        let kind = if source.is_parse() {
            FailureKind::Protocol { source: ProtocolError::Malformed(source) }
        } else if source.is_user() {
            FailureKind::RequestBody { source }
        } else {
            FailureKind::Reset {
                reused,
                request_sent: self.traffic.sent() > sent,
                bytes_received: self.traffic.received() > received,
                source,
            }
        };
        Err(Failure { kind, request })
    }
}

/// Whether a response's body is framed in a way that can be passed on. `Transfer-Encoding` overrides `Content-Length`, which
/// must not be passed on then (RFC 9112 section 6.3).
fn one_framing(fields: &mut HeaderMap) -> bool {
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return true };
    if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return false;
    }
    fields.remove(CONTENT_LENGTH);
    true
}

impl<B> Link<B> {
    pub(super) fn has_served(&self) -> bool {
        self.served.get() > 0
    }

    /// Whether it may carry another request under a bound on requests per connection (0: none).
    pub(super) fn has_requests_left(&self, bound: u32) -> bool {
        bound == 0 || self.served.get() < bound
    }

    /// Whether hyper knows it to be closed. It may be closed and not known yet: then the send gives the request back.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.borrow().is_closed()
    }

    fn is_ready(&self) -> bool {
        self.sender.borrow().is_ready()
    }

    /// Closes it, and leaves its place among the connections to another one.
    pub(super) fn close_for_permit(self: Rc<Self>) -> Option<Permit<B>> {
        self.permit.take()
    }

    fn release(self: Rc<Self>) {
        if !self.is_closed()
            && let Some(pool) = self.pool.upgrade()
        {
            pool.release(self);
        }
    }
}

impl<B> Drop for Link<B> {
    fn drop(&mut self) {
        // Without this, hyper would go on sending the rest of a request whose response has ended.
        self.task.abort();
    }
}

/// A connection without a request on its way to whoever waits for it; it goes back to the pool if nobody takes it.
pub(super) struct Lease<B>(Option<Rc<Link<B>>>);

impl<B> Lease<B> {
    pub(super) fn new(link: Rc<Link<B>>) -> Self {
        Lease(Some(link))
    }

    pub(super) fn take(mut self) -> Option<Rc<Link<B>>> {
        self.0.take()
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        if let Some(link) = self.0.take() {
            link.release();
        }
    }
}

impl<B: 'static> Leased for Link<B> {
    fn finish(self: Rc<Self>) {
        if self.is_closed() {
            return;
        }
        if self.is_ready() {
            return self.release();
        }
        // Either hyper has yielded in between, or the response has come before the request was sent. The former is over
        // at its next turn. With the latter, the connection is closed: an upload that nobody asks for any more could
        // hold it for as long as the client likes.
        spawn_local(async move {
            yield_now().await;
            if self.is_ready() {
                self.release();
            }
        });
    }
}
