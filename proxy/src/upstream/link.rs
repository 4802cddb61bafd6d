//! One upstream connection of a worker: sending a request on it, and what becomes of it when the response has ended.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, SendRequest},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::{AbortHandle, spawn_local, yield_now},
    time::Instant,
};

use super::{
    failure::{Failure, FailureKind, ProtocolError},
    slots::{ClusterPool, Permit, Slot},
};
use crate::net::{Metered, TokioIo, Traffic};

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
            let task = spawn_local(async move {
                if let Err(error) = connection.await {
                    // An error that concerns a request has gone to the request; this one came while idle.
                    tracing::debug!(address = %slot_of_task.endpoint.address, %error, "upstream connection ended");
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
        // Nothing is borrowed while the response is awaited: the request is queued by the call itself.
        let response = self.sender.borrow_mut().try_send_request(request);
        let mut error = match response.await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                return Err(Failure { kind: FailureKind::Protocol { source: ProtocolError::Switched }, request: None });
            }
            Ok(mut response) => {
                if !one_framing(response.headers_mut()) {
                    return Err(Failure {
                        kind: FailureKind::Protocol { source: ProtocolError::TransferCoding },
                        request: None,
                    });
                }
                return Ok(response.map(|incoming| PooledBody::new(incoming, self)));
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

/// A link to whoever need not know the type of request bodies.
trait Leased {
    /// The response has been read to its end. (Dropping the link without this closes it.)
    fn finish(self: Rc<Self>);
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

/// The body of a response. Read to its end, it gives the connection back to the pool; dropped before, it closes it.
pub struct PooledBody {
    incoming: Incoming,
    /// Gone when the end was reached.
    link: Option<Rc<dyn Leased>>,
}

impl PooledBody {
    fn new<B: 'static>(incoming: Incoming, link: Rc<Link<B>>) -> Self {
        let mut body = PooledBody { incoming, link: Some(link) };
        body.finish_at_end();
        body
    }

    fn finish(&mut self) {
        if let Some(link) = self.link.take() {
            link.finish();
        }
    }

    /// Responses without a body are at their end at once, and whoever knows the length of a body does not read on past
    /// it.
    fn finish_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }
}

impl Body for PooledBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) if frame.is_data() => self.finish_at_end(),
            // Trailers are the last frame.
            Some(Ok(_)) | None => self.finish(),
            Some(Err(_)) => self.link = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl std::fmt::Debug for PooledBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PooledBody").field("incoming", &self.incoming).field("ended", &self.link.is_none()).finish()
    }
}
