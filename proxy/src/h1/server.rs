//! A client's connection, shared by what reads requests from it and by the body of the request under way.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};

use crate::{
    h1::{self, BodyPart, BufferedIo, Decoder, encoder, head},
    net::{Stream, is_tls},
};

/// What a client may send ahead of its request's response before no more of it is read, in bytes.
const AHEAD: usize = 16 << 10;

/// A client's connection.
pub(crate) struct ServerConnection {
    wire: RefCell<Option<BufferedIo<Stream>>>,
    /// What of the body of the request under way is still to be read.
    body: RefCell<Decoder>,
    /// Which request is under way; the bodies of those before it have nothing more to read.
    request: Cell<u32>,
    /// Since when a head has been under way.
    pub(crate) head_since: Cell<Option<Instant>>,
    /// Since when the client has taken nothing of what there is for it.
    pub(crate) blocked_since: Cell<Option<Instant>>,
    /// No request is waited for any more, unless some of it has come.
    pub(crate) ending: Cell<bool>,
}

impl ServerConnection {
    pub(crate) fn new(stream: Stream) -> ServerConnection {
        ServerConnection {
            wire: RefCell::new(Some(BufferedIo::new(stream))),
            body: RefCell::new(Decoder::length(0)),
            request: Cell::new(0),
            head_since: Cell::new(None),
            blocked_since: Cell::new(None),
            ending: Cell::new(false),
        }
    }

    /// What has come and was not read, and the connection, once.
    pub(crate) fn take(&self) -> Option<(Bytes, Stream)> {
        self.wire.take().map(BufferedIo::into_parts)
    }

    /// Works on the connection, unless somebody else has it.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut BufferedIo<Stream>) -> T) -> Option<T> {
        self.wire.borrow_mut().as_mut().map(work)
    }

    /// The head of the next request. `None`: there will be none.
    pub(crate) fn poll_head(
        &self,
        finder: &mut head::HeadScanner,
        limits: &h1::Limits,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<head::Request>, h1::HeadError>> {
        let mut wire = self.wire.borrow_mut();
        let Some(wire) = wire.as_mut() else { return Poll::Ready(Ok(None)) };
        loop {
            if !wire.inbox.is_empty() {
                let found = finder.find(&mut wire.inbox, limits.head);
                if let Ok(Some(length)) = found {
                    self.head_since.set(None);
                    return Poll::Ready(head::request(&mut wire.inbox, length, limits).map(Some));
                }
                // It would be waited for in vain, or be called something else.
                if is_tls(&wire.inbox) {
                    return Poll::Ready(Err(h1::HeadError::Tls));
                }
                found?;
            }
            if wire.inbox.is_empty() {
                if self.ending.get() {
                    return Poll::Ready(Ok(None));
                }
                // Nobody knows for how long.
                wire.rest();
            } else if self.head_since.get().is_none() {
                self.head_since.set(Some(Instant::now()));
            }
            match ready!(wire.poll_read(0, cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Ok(None)),
                Ok(_) => {}
            }
        }
    }

    /// A request's body is read from now on, until it is through.
    pub(crate) fn begin(self: &Rc<Self>, body: Decoder) -> RequestBody {
        *self.body.borrow_mut() = body;
        RequestBody { request: self.request.get(), line: self.clone() }
    }

    /// Whether another request can be read when the response to this one is sent: what is left of the body must be little, and
    /// sure to come. A client that waits to be told to go on may send it nevertheless, or not.
    pub(crate) fn has_next(&self, waits: bool) -> bool {
        let body = self.body.borrow();
        body.is_done() || (!waits && body.size_hint().exact().is_some_and(|left| left <= AHEAD as u64))
    }

    /// The request's response is sent.
    pub(crate) fn end_request(&self) {
        self.request.set(self.request.get().wrapping_add(1));
    }

    /// Reads over what is left of the body of a request that is over. `false`: it does not come.
    pub(crate) fn poll_rest(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut body = self.body.borrow_mut();
        let mut wire = self.wire.borrow_mut();
        let Some(wire) = wire.as_mut() else { return Poll::Ready(false) };
        while !body.is_done() {
            match body.decode(&mut wire.inbox) {
                Ok(Some(_)) => {}
                Ok(None) if body.is_done() => {}
                Ok(None) => match ready!(wire.poll_read(0, cx)) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Poll::Ready(false),
                },
                Err(_) => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }

    /// Ready when the client is gone. What it sends ahead is kept, up to a bound.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.body.borrow().is_done() {
            // Whoever reads the body will see it.
            return Poll::Pending;
        }
        let gone = self.with(|wire| {
            while wire.inbox.len() < AHEAD {
                match ready!(wire.poll_read(0, cx)) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Poll::Ready(()),
                }
            }
            Poll::Pending
        });
        gone.unwrap_or(Poll::Pending)
    }

    /// Writes interim responses, which are sent with the next flush.
    pub(crate) fn write_interims(&self, interims: Vec<Response<()>>) {
        for interim in interims {
            self.with(|wire| encoder::interim(&interim, &mut wire.outbox));
        }
    }

    /// Sends what waits. Ready with an error when the client is gone.
    pub(crate) fn poll_waiting(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.with(|wire| wire.outbox.is_empty()) {
            Some(false) => self.poll_flush(cx),
            Some(true) | None => Poll::Ready(Ok(())),
        }
    }

    /// Sends what there is.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.with(|wire| {
            let before = wire.sent();
            let flushed = wire.poll_flush(cx);
            if flushed.is_ready() || wire.sent() > before {
                self.blocked_since.set(None);
            }
            flushed
        });
        let flushed = flushed.unwrap_or(Poll::Ready(Err(io::ErrorKind::NotConnected.into())));
        if flushed.is_pending() && self.blocked_since.get().is_none() {
            self.blocked_since.set(Some(Instant::now()));
        }
        flushed
    }

    /// Writes a part of a response and, with its last one, the end. How many bytes wait to be sent.
    ///
    /// # Errors
    /// It is longer or shorter than its head has said.
    pub(crate) fn write(
        &self,
        encoder: &mut h1::Encoder,
        data: Option<Bytes>,
        end: Option<Option<&http::HeaderMap>>,
    ) -> Result<usize, encoder::LengthMismatch> {
        let written = self.with(|wire| {
            if let Some(data) = data {
                encoder.data(data, &mut wire.outbox)?;
            }
            if let Some(trailers) = end {
                encoder.end(trailers, &mut wire.outbox)?;
            }
            Ok(wire.outbox.len())
        });
        written.unwrap_or(Ok(0))
    }
}

/// Why a request's body could not be read.
pub type ReadError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request, read from its connection when it is wanted.
pub struct RequestBody {
    line: Rc<ServerConnection>,
    request: u32,
}

impl RequestBody {
    fn is_over(&self) -> bool {
        self.line.request.get() != self.request
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let line = &self.line;
        let failed = |error: ReadError| Poll::Ready(Some(Err(error)));
        if self.is_over() {
            return failed(io::Error::from(io::ErrorKind::ConnectionAborted).into());
        }
        let (mut wire, mut body) = (line.wire.borrow_mut(), line.body.borrow_mut());
        let Some(wire) = wire.as_mut() else { return failed(io::Error::from(io::ErrorKind::NotConnected).into()) };
        loop {
            match body.decode(&mut wire.inbox) {
                Err(violation) => return failed(violation.into()),
                Ok(Some(BodyPart::Data(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Some(BodyPart::Trailers(trailers))) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) if body.is_done() => return Poll::Ready(None),
                Ok(None) => {}
            }
            match ready!(wire.poll_read(body.expects(), cx)) {
                Ok(0) => return failed(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(error) => return failed(error.into()),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.is_over() && self.line.body.borrow().is_done()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_over() { SizeHint::default() } else { self.line.body.borrow().size_hint() }
    }
}
