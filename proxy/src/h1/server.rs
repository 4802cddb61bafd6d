//! A client's HTTP/1.1 connection, shared by the reader of requests and the body of the current request.

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

/// How many bytes a client may send ahead of the current response before reading pauses.
const AHEAD: usize = 16 << 10;

/// A client's connection.
pub(crate) struct ServerConnection {
    io: RefCell<Option<BufferedIo<Stream>>>,
    /// The unread rest of the current request's body.
    body: RefCell<Decoder>,
    /// The number of the current request; bodies of earlier ones have ended.
    request: Cell<u32>,
    /// When the first byte of an incomplete head was received.
    pub(crate) head_since: Cell<Option<Instant>>,
    /// Since when the client has accepted none of the bytes to send.
    pub(crate) blocked_since: Cell<Option<Instant>>,
    /// Whether to close instead of waiting for a request, unless some of it was received.
    pub(crate) closing: Cell<bool>,
}

impl ServerConnection {
    pub(crate) fn new(stream: Stream) -> ServerConnection {
        ServerConnection {
            io: RefCell::new(Some(BufferedIo::new(stream))),
            body: RefCell::new(Decoder::length(0)),
            request: Cell::new(0),
            head_since: Cell::new(None),
            blocked_since: Cell::new(None),
            closing: Cell::new(false),
        }
    }

    /// Takes the unread bytes and the connection, once.
    pub(crate) fn take(&self) -> Option<(Bytes, Stream)> {
        self.io.take().map(BufferedIo::into_parts)
    }

    /// Calls `work` with the connection, unless it was taken.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut BufferedIo<Stream>) -> T) -> Option<T> {
        self.io.borrow_mut().as_mut().map(work)
    }

    /// Reads the head of the next request. `None` if the connection ends.
    pub(crate) fn poll_head(
        &self,
        scanner: &mut head::HeadScanner,
        limits: &h1::Limits,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<head::Request>, h1::HeadError>> {
        let mut wire = self.io.borrow_mut();
        let Some(wire) = wire.as_mut() else { return Poll::Ready(Ok(None)) };
        loop {
            if !wire.inbox.is_empty() {
                let found = scanner.find(&mut wire.inbox, limits.head);
                if let Ok(Some(length)) = found {
                    self.head_since.set(None);
                    return Poll::Ready(head::request(&mut wire.inbox, length, limits).map(Some));
                }
                // Otherwise it would time out, or be reported as something else.
                if is_tls(&wire.inbox) {
                    return Poll::Ready(Err(h1::HeadError::Tls));
                }
                found?;
            }
            if wire.inbox.is_empty() {
                if self.closing.get() {
                    return Poll::Ready(Ok(None));
                }
                // The connection may stay idle for long.
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

    /// Starts reading a request's body.
    pub(crate) fn begin(self: &Rc<Self>, body: Decoder) -> RequestBody {
        *self.body.borrow_mut() = body;
        RequestBody { request: self.request.get(), connection: self.clone() }
    }

    /// Returns whether another request can follow after this response: the rest of the body must be short and certain
    /// to arrive. A client that waits for a 100 (Continue) may or may not send its body.
    pub(crate) fn has_next(&self, waits: bool) -> bool {
        let body = self.body.borrow();
        body.is_done() || (!waits && body.size_hint().exact().is_some_and(|left| left <= AHEAD as u64))
    }

    /// Ends the current request once its response is sent.
    pub(crate) fn end_request(&self) {
        self.request.set(self.request.get().wrapping_add(1));
    }

    /// Discards the rest of a finished request's body. Returns `false` if it cannot be read.
    pub(crate) fn poll_rest(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut body = self.body.borrow_mut();
        let mut wire = self.io.borrow_mut();
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

    /// Completes when the client disconnects. Bytes that it sends ahead are buffered up to a limit.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.body.borrow().is_done() {
            // The reader of the body will notice.
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

    /// Queues interim responses for the next flush.
    pub(crate) fn write_interims(&self, interims: Vec<Response<()>>) {
        for interim in interims {
            self.with(|wire| encoder::interim(&interim, &mut wire.write_buf));
        }
    }

    /// Sends queued bytes. Fails when the client has disconnected.
    pub(crate) fn poll_waiting(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.with(|wire| wire.write_buf.is_empty()) {
            Some(false) => self.poll_flush(cx),
            Some(true) | None => Poll::Ready(Ok(())),
        }
    }

    /// Flushes the queued bytes.
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

    /// Queues a part of a response and, with the last one, its end. Returns the number of queued bytes.
    ///
    /// # Errors
    /// The body is longer or shorter than declared.
    pub(crate) fn write(
        &self,
        encoder: &mut h1::Encoder,
        data: Option<Bytes>,
        end: Option<Option<&http::HeaderMap>>,
    ) -> Result<usize, encoder::LengthMismatch> {
        let written = self.with(|wire| {
            if let Some(data) = data {
                encoder.data(data, &mut wire.write_buf)?;
            }
            if let Some(trailers) = end {
                encoder.end(trailers, &mut wire.write_buf)?;
            }
            Ok(wire.write_buf.len())
        });
        written.unwrap_or(Ok(0))
    }
}

/// Why a request's body could not be read.
pub type ReadError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body, read from its connection on demand.
pub struct RequestBody {
    connection: Rc<ServerConnection>,
    request: u32,
}

impl RequestBody {
    fn is_over(&self) -> bool {
        self.connection.request.get() != self.request
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let line = &self.connection;
        let failed = |error: ReadError| Poll::Ready(Some(Err(error)));
        if self.is_over() {
            return failed(io::Error::from(io::ErrorKind::ConnectionAborted).into());
        }
        let (mut wire, mut body) = (line.io.borrow_mut(), line.body.borrow_mut());
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
        !self.is_over() && self.connection.body.borrow().is_done()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_over() { SizeHint::default() } else { self.connection.body.borrow().size_hint() }
    }
}
