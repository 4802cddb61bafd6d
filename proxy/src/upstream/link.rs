//! One HTTP/1.1 connection of a worker to an upstream: sending a request on it, and returning it to the pool after the
//! response.
//!
//! The request's own task drives the connection, so that its bytes cross no channel and wake no other task. Only if the
//! response begins before the upload is complete does a separate task send the rest, because the client may read no
//! response before it has sent its request.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::{Method, Response, StatusCode, header::UPGRADE};
use http_body::Body;
use tokio::{
    task::{AbortHandle, spawn_local},
    time::Instant,
};

use super::{
    body::{H1Body, PooledBody, UpstreamBodyError, WithGuard},
    endpoint_pool::{ClusterPool, ConnectionPermit, EndpointPool},
    failure::{MOST_INTERIM, ProtocolError, RequestError, RequestErrorKind, Retryable},
    head::Head,
};
use crate::{
    h1::{self, BufferedIo, Encoder, encoder, head},
    net::{FirstBytes, Prefixed, Transport},
    observe::target,
};

/// Bytes of a request's body buffered for the socket before no more are requested (backpressure).
const ENOUGH: usize = 64 << 10;

/// The connection's I/O; `None` once it has become a tunnel.
pub(super) type H1Io = RefCell<Option<BufferedIo<Box<dyn Transport>>>>;

/// A connection. Its only owner (the request on it, or the idle list) closes it by dropping it.
pub(super) struct H1Connection<B> {
    pool: Weak<ClusterPool<B>>,
    pub(super) slot: Rc<EndpointPool<B>>,
    /// Its share of the connection limit; `None` once that was passed to another connection.
    permit: Cell<Option<ConnectionPermit<B>>>,
    line: H1Io,
    /// Its local address.
    pub(super) local: Option<SocketAddr>,
    limits: h1::Limits,
    /// Whether it can carry no further request.
    closed: Cell<bool>,
    /// Whether it carries no request.
    idle: Cell<bool>,
    /// The task that detects the end of an idle connection.
    watcher: AbortHandle,
    watching: Rc<Cell<Option<Waker>>>,
    /// The task that sends the rest of an upload, until it is done.
    upload: Cell<Option<AbortHandle>>,
    /// The reader of the response while an upload is in progress.
    reader: Cell<Option<Waker>>,
    /// Number of requests sent on it.
    served: Cell<u32>,
    /// When a sweep first found it idle since its last request.
    pub(super) seen_idle: Cell<Option<Instant>>,
}

impl<B> H1Connection<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Uses a connected stream for HTTP/1.1. Requires a context for spawning local tasks.
    pub(super) fn open(
        stream: Box<dyn Transport>,
        local: Option<SocketAddr>,
        limits: h1::Limits,
        pool: Weak<ClusterPool<B>>,
        permit: ConnectionPermit<B>,
    ) -> Rc<Self> {
        Rc::new_cyclic(|link: &Weak<H1Connection<B>>| {
            let watching: Rc<Cell<Option<Waker>>> = Rc::default();
            let watcher = spawn_local(Self::watch(Weak::clone(link), Rc::clone(&watching)));
            H1Connection {
                pool,
                slot: Rc::clone(&permit.slot),
                permit: Cell::new(Some(permit)),
                line: RefCell::new(Some(BufferedIo::new(stream))),
                local,
                limits,
                closed: Cell::new(false),
                idle: Cell::new(false),
                watcher: watcher.abort_handle(),
                watching,
                upload: Cell::new(None),
                reader: Cell::new(None),
                served: Cell::new(0),
                seen_idle: Cell::new(None),
            }
        })
    }

    /// Watches an idle connection, so that its permit is released as soon as the upstream closes it.
    async fn watch(link: Weak<Self>, watching: Rc<Cell<Option<Waker>>>) {
        poll_fn(|cx| {
            watching.set(Some(cx.waker().clone()));
            let Some(link) = link.upgrade() else { return Poll::Ready(()) };
            if !link.idle.get() || !link.has_ended(cx) {
                return Poll::Pending;
            }
            tracing::debug!(
                target: target::UPSTREAM,
                address = %link.slot.endpoint.address, "idle upstream connection ended"
            );
            link.slot.forget(&Rc::downgrade(&link));
            Poll::Ready(())
        })
        .await;
    }

    /// Sends a request and waits for the head of its response. Dropping the future closes the connection.
    pub(super) async fn exchange(
        self: Rc<Self>,
        head: &impl Head,
        body: B,
    ) -> Result<Response<PooledBody>, RequestError<B>> {
        let reused = self.has_served();
        self.idle.set(false);
        self.served.set(self.served.get().saturating_add(1));
        if reused && self.has_ended(&mut Context::from_waker(Waker::noop())) {
            let source = io::ErrorKind::ConnectionAborted.into();
            let kind = RequestErrorKind::Reset {
                reused,
                request_sent: false,
                bytes_received: false,
                in_head: false,
                again: Retryable::NewConnection,
                source,
            };
            return Err(RequestError::unsent(kind, body));
        }
        let (mut upload, rules, before) = match self.line.borrow_mut().as_mut() {
            None => return Err(RequestError::unsent(RequestErrorKind::Overflow, body)),
            Some(wire) => {
                let before = [wire.sent(), wire.received()];
                let (upload, rules) =
                    head.show(|head| (RequestWriter::begin(head, body, wire), ResponseRules::of(head)));
                (upload, rules, before)
            }
        };
        let (mut finder, mut interim) = (head::HeadScanner::default(), 0);
        let result = poll_fn(|cx| {
            let mut line = self.line.borrow_mut();
            let Some(wire) = line.as_mut() else { return Poll::Pending };
            if let Err(error) = upload.poll(wire, cx) {
                return Poll::Ready(Err(H1Error::Upload(error)));
            }
            loop {
                match finder.find(&mut wire.inbox, self.limits.head) {
                    Err(error) => return Poll::Ready(Err(H1Error::Head(error))),
                    Ok(None) if !head::may_be_response(&wire.inbox) => {
                        return Poll::Ready(Err(H1Error::Head(head::HeadError::Malformed)));
                    }
                    Ok(Some(length)) => {
                        finder = head::HeadScanner::default();
                        match head::response(&mut wire.inbox, length, &self.limits, rules.head_only) {
                            Err(error) => return Poll::Ready(Err(H1Error::Head(error))),
                            // More responses follow (RFC 9110 section 15.2).
                            Ok(response) if is_interim(response.parts.status) => {
                                interim += 1;
                                if interim > MOST_INTERIM {
                                    return Poll::Ready(Err(H1Error::Interim));
                                }
                                head.interim(response.parts);
                            }
                            Ok(response) => return Poll::Ready(Ok(response)),
                        }
                    }
                    Ok(None) => match ready!(wire.poll_read(0, cx)) {
                        Ok(0) => {
                            // The reason why the request could not be written is more specific, if there is one.
                            let ended = upload.broken.take().unwrap_or(io::ErrorKind::UnexpectedEof.into());
                            return Poll::Ready(Err(H1Error::Connection(ended)));
                        }
                        Ok(_) => {}
                        Err(error) => return Poll::Ready(Err(H1Error::Connection(error))),
                    },
                }
            }
        })
        .await;
        let protocol = |source| RequestError { kind: RequestErrorKind::Protocol { source }, body: None };
        let head = result.map_err(|error| RequestError { body: None, kind: self.failed(error, reused, before) })?;
        if !head.persists || upload.broken.is_some() {
            self.closed.set(true);
        }
        if head.parts.status == StatusCode::SWITCHING_PROTOCOLS {
            if !rules.switch {
                return Err(protocol(ProtocolError::Switched));
            }
            let upstream = self.clone().switched(upload);
            return Ok(Response::from_parts(head.parts, PooledBody::switching(Box::pin(upstream))));
        }
        let Some(decoder) = head.body else { return Err(protocol(ProtocolError::TransferCoding)) };
        if !upload.is_done() {
            let upload = spawn_local(Self::upload(Rc::downgrade(&self), upload));
            self.upload.set(Some(upload.abort_handle()));
        }
        Ok(Response::from_parts(head.parts, PooledBody::of_link(H1Body::new(decoder, self))))
    }

    /// Converts the error into what the retry decision needs.
    fn failed(&self, error: H1Error, reused: bool, [sent, received]: [u64; 2]) -> RequestErrorKind {
        match error {
            H1Error::Upload(source) => RequestErrorKind::RequestBody { source },
            H1Error::Interim => RequestErrorKind::Protocol { source: ProtocolError::Interim },
            H1Error::Head(error) => {
                let first = self.line.borrow().as_ref().map(|wire| FirstBytes::of(&wire.inbox)).unwrap_or_default();
                RequestErrorKind::Protocol { source: ProtocolError::Malformed(error, Box::new(first)) }
            }
            H1Error::Connection(source) => {
                let line = self.line.borrow();
                let bytes_received = line.as_ref().is_none_or(|wire| wire.received() > received);
                RequestErrorKind::Reset {
                    reused,
                    request_sent: line.as_ref().is_none_or(|wire| wire.sent() > sent),
                    bytes_received,
                    in_head: bytes_received,
                    again: if reused && !bytes_received { Retryable::NewConnection } else { Retryable::No },
                    source,
                }
            }
        }
    }

    /// Returns the connection for another protocol once the request's head was sent.
    async fn switched(self: Rc<Self>, mut upload: RequestWriter<B>) -> io::Result<Box<dyn Transport>> {
        let sent = poll_fn(|cx| {
            let mut line = self.line.borrow_mut();
            let Some(wire) = line.as_mut() else { return Poll::Ready(Ok(())) };
            match upload.poll(wire, cx) {
                Err(error) => Poll::Ready(Err(io::Error::other(error))),
                Ok(()) if upload.is_done() => Poll::Ready(Ok(())),
                Ok(()) => Poll::Pending,
            }
        });
        sent.await?;
        let wire = self.line.take().ok_or(io::ErrorKind::NotConnected)?;
        let (seen, stream) = wire.into_parts();
        // From here on, the connection object only holds the permit.
        Ok(Box::new(WithGuard::new(Prefixed::new(seen, stream), self)))
    }

    /// Sends the rest of an upload while its response is read.
    async fn upload(link: Weak<Self>, mut upload: RequestWriter<B>) {
        poll_fn(|cx| {
            let Some(link) = link.upgrade() else { return Poll::Ready(()) };
            let failed = match link.line.borrow_mut().as_mut() {
                None => return Poll::Ready(()),
                Some(wire) => upload.poll(wire, cx).is_err(),
            };
            if !failed && !upload.is_done() {
                return Poll::Pending;
            }
            link.upload.take();
            if failed || upload.broken.is_some() {
                link.closed.set(true);
            }
            if failed {
                // Without the request's end, the upstream could take it for complete, or wait for it forever.
                link.line.take();
                if let Some(reader) = link.reader.take() {
                    reader.wake();
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// The properties of the request that determine how its response is read.
struct ResponseRules {
    /// Whether the response has only a head.
    head_only: bool,
    /// Whether it may switch protocols.
    switch: bool,
}

impl ResponseRules {
    fn of(head: &encoder::RequestHead<'_>) -> ResponseRules {
        ResponseRules { head_only: head.method == Method::HEAD, switch: head.get(&UPGRADE).is_some() }
    }
}

/// Returns whether further responses follow this one.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// The reason why there is no response.
enum H1Error {
    /// The request's body failed.
    Upload(Box<dyn Error + Send + Sync>),
    Head(head::HeadError),
    /// Too many interim responses.
    Interim,
    Connection(io::Error),
}

/// The writer of a request.
struct RequestWriter<B> {
    /// `None` once everything was handed to the write buffer.
    body: Option<B>,
    encoder: Encoder,
    /// Whether everything is sent, or nothing more will be.
    sent: bool,
    /// The reason why the upstream accepts no more. It may have responded nevertheless.
    broken: Option<io::Error>,
}

impl<B> RequestWriter<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Writes the head.
    fn begin<T>(head: &encoder::RequestHead<'_>, body: B, wire: &mut BufferedIo<T>) -> Self {
        let empty = body.is_end_stream();
        let encoder = encoder::request(head, &body.size_hint(), empty, &mut wire.write_buf);
        RequestWriter { body: (!empty).then_some(body), encoder, sent: false, broken: None }
    }

    fn is_done(&self) -> bool {
        self.sent
    }

    /// Sends as much as is available and as the upstream accepts.
    fn poll(
        &mut self,
        wire: &mut BufferedIo<Box<dyn Transport>>,
        cx: &mut Context<'_>,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        while !self.sent {
            let more = self.fill(wire, cx)?;
            match wire.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.sent = self.body.is_none(),
                Poll::Ready(Err(error)) => {
                    (self.body, self.sent, self.broken) = (None, true, Some(error));
                }
                Poll::Pending => return Ok(()),
            }
            if !more {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes available data from the body, up to a limit. Returns whether more may be available immediately.
    fn fill(
        &mut self,
        wire: &mut BufferedIo<Box<dyn Transport>>,
        cx: &mut Context<'_>,
    ) -> Result<bool, Box<dyn Error + Send + Sync>> {
        let RequestWriter { body: rest, encoder, .. } = self;
        while let Some(body) = rest {
            if wire.write_buf.len() >= ENOUGH {
                return Ok(true);
            }
            let trailers = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Some(Err(error))) => return Err(error.into()),
                Poll::Ready(None) => None,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        encoder.data(data, &mut wire.write_buf)?;
                        if !body.is_end_stream() {
                            continue;
                        }
                        None
                    }
                    Err(frame) => frame.into_trailers().ok(),
                },
            };
            encoder.end(trailers.as_ref(), &mut wire.write_buf)?;
            *rest = None;
        }
        Ok(true)
    }
}

impl<B> H1Connection<B> {
    pub(super) fn has_served(&self) -> bool {
        self.served.get() > 0
    }

    /// Returns whether it may carry another request, given a limit on requests per connection (0: unlimited).
    pub(super) fn has_requests_left(&self, bound: u32) -> bool {
        bound == 0 || self.served.get() < bound
    }

    /// Returns whether a request whose response has begun is still being sent.
    fn is_uploading(&self) -> bool {
        let upload = self.upload.take();
        let uploads = upload.is_some();
        self.upload.set(upload);
        uploads
    }

    /// Returns whether it is known to be closed. If it is closed but not known to be, sending returns the request.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Returns whether the upstream has closed it or sent unsolicited data.
    fn has_ended(&self, cx: &mut Context<'_>) -> bool {
        let ended = self.line.borrow_mut().as_mut().is_none_or(|wire| wire.poll_read(0, cx).is_ready());
        if ended {
            self.closed.set(true);
        }
        ended
    }

    /// Closes it and passes its permit to another connection.
    pub(super) fn close_for_permit(self: Rc<Self>) -> Option<ConnectionPermit<B>> {
        self.permit.take()
    }

    /// Marks it as idle. Returns whether it can carry another request, as far as is known.
    pub(super) fn rest(&self) -> bool {
        self.idle.set(true);
        self.seen_idle.set(None);
        if let Some(wire) = self.line.borrow_mut().as_mut() {
            wire.rest();
        }
        let watching = self.watching.take();
        let ended = self.has_ended(&mut Context::from_waker(watching.as_ref().unwrap_or(Waker::noop())));
        self.watching.set(watching);
        !ended
    }

    fn release(self: Rc<Self>) {
        if !self.is_closed()
            && let Some(pool) = self.pool.upgrade()
        {
            pool.release(self);
        }
    }
}

impl<B> Drop for H1Connection<B> {
    fn drop(&mut self) {
        self.watcher.abort();
        // Otherwise the rest of a request whose response has ended would still be sent.
        if let Some(upload) = self.upload.take() {
            upload.abort();
        }
    }
}

/// A connection without a request that is being handed to a waiter; it returns to the pool if the waiter is gone.
pub(super) struct Lease<B>(Option<Rc<H1Connection<B>>>);

impl<B> Lease<B> {
    pub(super) fn new(link: Rc<H1Connection<B>>) -> Self {
        Lease(Some(link))
    }

    pub(super) fn take(mut self) -> Option<Rc<H1Connection<B>>> {
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

/// The operations on its connection that a response's body needs.
pub(super) trait ConnectionGuard {
    /// Returns the connection's I/O.
    fn line(&self) -> &H1Io;
    /// Registers the reader, which is woken if the connection is taken away from it.
    fn reads(&self, cx: &Context<'_>);
    /// Called when the response has been read to its end. (Dropping the connection without this closes it.)
    fn finish(self: Rc<Self>);
}

impl<B: 'static> ConnectionGuard for H1Connection<B> {
    fn line(&self) -> &H1Io {
        &self.line
    }

    fn reads(&self, cx: &Context<'_>) {
        if self.is_uploading() {
            self.reader.set(Some(cx.waker().clone()));
        }
    }

    fn finish(self: Rc<Self>) {
        // A connection with an unneeded upload is closed, because that could occupy it for as long as the client likes.
        // So is one with unsolicited bytes.
        if !self.is_uploading() && self.line.borrow().as_ref().is_some_and(|wire| wire.inbox.is_empty()) {
            self.release();
        }
    }
}

impl H1Body {
    /// Reads the next part of the body.
    pub(super) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<h1::BodyPart, UpstreamBodyError>>> {
        let Some(link) = &self.guard else { return Poll::Ready(None) };
        let mut line = link.line().borrow_mut();
        let Some(wire) = line.as_mut() else { return Poll::Ready(Some(Err(UpstreamBodyError::Cut))) };
        loop {
            match self.decoder.decode(&mut wire.inbox) {
                Err(violation) => return Poll::Ready(Some(Err(UpstreamBodyError::Framing(violation)))),
                Ok(Some(part)) => return Poll::Ready(Some(Ok(part))),
                Ok(None) if self.decoder.is_done() => return Poll::Ready(None),
                Ok(None) => {}
            }
            match wire.poll_read(self.decoder.expects(), cx) {
                Poll::Ready(Ok(0)) if self.decoder.ends_with_connection() => {
                    self.decoder = h1::Decoder::length(0);
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Some(Err(UpstreamBodyError::Connection(io::ErrorKind::UnexpectedEof.into()))));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(UpstreamBodyError::Connection(error)))),
                Poll::Pending => {
                    link.reads(cx);
                    return Poll::Pending;
                }
            }
        }
    }
}
