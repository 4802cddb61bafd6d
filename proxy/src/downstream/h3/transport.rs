//! The QUIC transport for h3, on top of quinn.
//!
//! The crate `h3-quinn` does this too, but it hides quinn's streams, and with them the only sign that a client cancels
//! a request that it has sent completely. It also ends an aborted response as if it were complete, and has no place for
//! [`framing`](super::framing).

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, stream::unfold};
use h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf},
};
use quinn::VarInt;
use tokio::{sync::Notify, time::timeout};

use super::framing::{FrameViolation, Framing};
use crate::downstream::flood::FrameLimiter;

/// An empty 431 response: a HEADERS frame (RFC 9114 section 7.2.2) with a single field line, whose name refers to
/// QPACK's static table and whose value is a literal (RFC 9204 section 4.5.4).
const HEAD_TOO_LARGE: [u8; 10] = [0x01, 8, 0, 0, 0x5f, 0x09, 3, b'4', b'3', b'1'];

/// Bytes of an unneeded request body that are read before the client is told to stop.
const DISCARDED: usize = 1 << 20;
/// Time limit for the same.
const DISCARDING: Duration = Duration::from_secs(5);

/// quinn's future for the end of a stream.
type Stopped = Pin<Box<dyn Future<Output = Result<Option<VarInt>, quinn::StoppedError>>>>;

/// State shared by a connection and its transport.
pub(super) struct ConnectionFacts {
    quic: quinn::Connection,
    max_head: u64,
    flood: FrameLimiter,
    violation: Cell<Option<FrameViolation>>,
    /// The stream most recently handed to h3.
    latest: Cell<Option<Rc<StreamWatch>>>,
    /// The id of the first stream not accepted yet.
    next: Cell<u64>,
    /// Streams with this id or above are rejected.
    refused: Cell<u64>,
    /// Notifies the connection's task of changes.
    pub(super) changed: Notify,
}

impl ConnectionFacts {
    /// Creates the state of a connection whose requests' encoded field sections are limited to `max_head` bytes.
    pub(super) fn new(quic: quinn::Connection, max_head: u64) -> Rc<ConnectionFacts> {
        Rc::new(ConnectionFacts {
            quic,
            max_head,
            flood: FrameLimiter::default(),
            violation: Cell::new(None),
            latest: Cell::new(None),
            next: Cell::new(0),
            refused: Cell::new(u64::MAX),
            changed: Notify::new(),
        })
    }

    /// Takes the stream of the request that h3 has just returned.
    pub(super) fn latest(&self) -> Option<Rc<StreamWatch>> {
        self.latest.take()
    }

    /// Returns whether no request was accepted yet.
    pub(super) fn is_new(&self) -> bool {
        self.next.get() == 0
    }

    /// Rejects all further requests as unprocessed.
    pub(super) fn refuse_more(&self) {
        self.refused.set(self.next.get());
    }

    /// Returns the number of STREAM frames sent on the connection.
    pub(super) fn frames_sent(&self) -> u64 {
        self.quic.stats().frame_tx.stream
    }

    /// Returns the violation for which the connection must end.
    pub(super) fn violation(&self) -> Option<FrameViolation> {
        self.violation.get()
    }

    fn violated(&self, violation: FrameViolation) -> StreamErrorIncoming {
        self.violation.set(Some(violation));
        // Close immediately: when h3 drops the stream, quinn would finish it, and the client might take that for the
        // response.
        self.quic.close(code(violation.code().value()), b"");
        self.changed.notify_one();
        StreamErrorIncoming::Unknown(Box::new(violation))
    }
}

/// Facts about a request's stream that h3 does not report.
pub(super) struct StreamWatch {
    /// Bytes of data handed to h3 but not consumed yet. While there are any, h3 gets no more: it reads on each poll, so
    /// a client faster than the upstream would fill the memory.
    pub(super) unread: Cell<u64>,
    /// Whether the head was too large and the client was sent a 431.
    pub(super) head_too_large: Cell<bool>,
    /// Whether the head or the trailers were malformed: the stream is then reset with that error.
    pub(super) malformed: Cell<bool>,
    /// Whether a response has started. Dropping the stream before its end must then not look like the end of the
    /// response.
    pub(super) answering: Cell<bool>,
    /// Whether the client has accepted data since this was last cleared.
    pub(super) moved: Cell<bool>,
    stopped: RefCell<Stopped>,
}

impl StreamWatch {
    /// Ready when the client no longer wants the response, has received it, or the connection has ended. Returns
    /// whether it was received.
    pub(super) async fn over(&self) -> bool {
        let over = poll_fn(|cx| self.stopped.borrow_mut().as_mut().poll(cx)).await;
        matches!(over, Ok(None))
    }
}

type Incoming<T> = Pin<Box<dyn Stream<Item = Result<T, quinn::ConnectionError>>>>;
type Opening = Pin<Box<dyn Future<Output = Result<quinn::SendStream, quinn::ConnectionError>>>>;

/// A QUIC connection.
pub(super) struct Transport {
    quic: quinn::Connection,
    requests: Incoming<(quinn::SendStream, quinn::RecvStream)>,
    one_way: Incoming<quinn::RecvStream>,
    opening: Option<Opening>,
    facts: Rc<ConnectionFacts>,
}

impl Transport {
    /// Wraps a quinn connection.
    pub(super) fn new(quic: quinn::Connection, facts: Rc<ConnectionFacts>) -> Transport {
        let requests = unfold(quic.clone(), |quic| async { Some((quic.accept_bi().await, quic)) });
        let one_way = unfold(quic.clone(), |quic| async { Some((quic.accept_uni().await, quic)) });
        Transport { quic, requests: Box::pin(requests), one_way: Box::pin(one_way), opening: None, facts }
    }
}

fn closed(error: quinn::ConnectionError) -> ConnectionErrorIncoming {
    match error {
        quinn::ConnectionError::ApplicationClosed(closed) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: closed.error_code.into_inner() }
        }
        quinn::ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error => ConnectionErrorIncoming::Undefined(std::sync::Arc::new(error)),
    }
}

fn lost(error: quinn::ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: closed(error) }
}

/// An error that does not occur, because the unfolded streams never end.
fn over() -> ConnectionErrorIncoming {
    ConnectionErrorIncoming::InternalError("the connection returned no more streams".to_owned())
}

fn code(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

impl quic::Connection<Bytes> for Transport {
    type RecvStream = Receiver;
    type OpenStreams = Never;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Receiver, ConnectionErrorIncoming>> {
        let Some(stream) = ready!(self.one_way.as_mut().poll_next(cx)) else { return Poll::Ready(Err(over())) };
        Poll::Ready(stream.map_err(closed).map(|stream| Receiver {
            id: stream.id(),
            stream: Some(stream),
            framing: Framing::one_way(),
            facts: self.facts.clone(),
            watch: None,
            ended: false,
        }))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Both, ConnectionErrorIncoming>> {
        loop {
            let Some(streams) = ready!(self.requests.as_mut().poll_next(cx)) else { return Poll::Ready(Err(over())) };
            let (mut send, mut recv) = streams.map_err(closed)?;
            let id = u64::from(VarInt::from(send.id()));
            if id >= self.facts.refused.get() {
                // As GOAWAY has announced. h3 would accept the first one of them.
                let rejected = code(Code::H3_REQUEST_REJECTED.value());
                let _ = (send.reset(rejected), recv.stop(rejected));
                continue;
            }
            self.facts.next.set(self.facts.next.get().max(id + 4));
            let watch = Rc::new(StreamWatch {
                unread: Cell::new(0),
                head_too_large: Cell::new(false),
                malformed: Cell::new(false),
                answering: Cell::new(false),
                moved: Cell::new(false),
                stopped: RefCell::new(Box::pin(send.stopped())),
            });
            self.facts.latest.set(Some(watch.clone()));
            let recv = Receiver {
                id: recv.id(),
                stream: Some(recv),
                framing: Framing::request(self.facts.max_head),
                facts: self.facts.clone(),
                watch: Some(watch.clone()),
                ended: false,
            };
            return Poll::Ready(Ok(Both { send: Sender::new(send, Some(watch)), recv }));
        }
    }

    fn opener(&self) -> Never {
        Never
    }
}

impl quic::OpenStreams<Bytes> for Transport {
    type BidiStream = Both;
    type SendStream = Sender;

    fn poll_open_bidi(&mut self, _: &mut Context<'_>) -> Poll<Result<Both, StreamErrorIncoming>> {
        Poll::Ready(Err(lost(quinn::ConnectionError::LocallyClosed)))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Sender, StreamErrorIncoming>> {
        let quic = &self.quic;
        let opening = self.opening.get_or_insert_with(|| {
            let quic = quic.clone();
            Box::pin(async move { quic.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(cx));
        self.opening = None;
        Poll::Ready(opened.map_err(lost).map(|stream| Sender::new(stream, None)))
    }

    fn close(&mut self, with: Code, reason: &[u8]) {
        self.quic.close(code(with.value()), reason);
    }
}

/// The opener of streams that h3's traits require; a server has no use for it.
pub(super) struct Never;

impl quic::OpenStreams<Bytes> for Never {
    type BidiStream = Both;
    type SendStream = Sender;

    fn poll_open_bidi(&mut self, _: &mut Context<'_>) -> Poll<Result<Both, StreamErrorIncoming>> {
        Poll::Ready(Err(lost(quinn::ConnectionError::LocallyClosed)))
    }

    fn poll_open_send(&mut self, _: &mut Context<'_>) -> Poll<Result<Sender, StreamErrorIncoming>> {
        Poll::Ready(Err(lost(quinn::ConnectionError::LocallyClosed)))
    }

    fn close(&mut self, _: Code, _: &[u8]) {}
}

/// The sending half of a stream.
pub(super) struct Sender {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    watch: Option<Rc<StreamWatch>>,
    ended: bool,
}

impl Sender {
    fn new(stream: quinn::SendStream, watch: Option<Rc<StreamWatch>>) -> Sender {
        Sender { stream, writing: None, watch, ended: false }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // quinn would finish the stream as if it were complete.
        if !self.ended && self.watch.as_ref().is_some_and(|watch| watch.answering.get()) {
            quic::SendStream::reset(self, Code::H3_REQUEST_CANCELLED.value());
        }
    }
}

impl quic::SendStream<Bytes> for Sender {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if let Some(writing) = &mut self.writing {
            while writing.has_remaining() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, writing.chunk()));
                writing.advance(written.map_err(|error| match error {
                    quinn::WriteError::Stopped(code) => {
                        StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
                    }
                    quinn::WriteError::ConnectionLost(error) => lost(error),
                    error => StreamErrorIncoming::Unknown(Box::new(error)),
                })?);
                if let Some(watch) = &self.watch {
                    watch.moved.set(true);
                }
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.ended = true;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))))
    }

    fn reset(&mut self, with: u64) {
        self.ended = true;
        let malformed = self.watch.as_ref().is_some_and(|watch| watch.malformed.get());
        let _ = self.stream.reset(code(if malformed { Code::H3_MESSAGE_ERROR.value() } else { with }));
    }

    fn send_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

/// The receiving half of a stream.
pub(super) struct Receiver {
    id: quinn::StreamId,
    /// Present until dropped.
    stream: Option<quinn::RecvStream>,
    framing: Framing,
    facts: Rc<ConnectionFacts>,
    /// Present on request streams.
    watch: Option<Rc<StreamWatch>>,
    ended: bool,
}

impl Receiver {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        loop {
            if let Some(piece) = self.framing.pop() {
                return Poll::Ready(Ok(Some(piece)));
            }
            if self.watch.as_ref().is_some_and(|watch| watch.unread.get() > 0) {
                return Poll::Pending;
            }
            // The future is recreated per poll; it holds no state that would be lost.
            let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(None)) };
            let chunk = ready!(pin!(stream.read_chunk(usize::MAX, true)).poll(cx));
            let chunk = chunk.map_err(|error| match error {
                quinn::ReadError::Reset(code) => {
                    StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
                }
                quinn::ReadError::ConnectionLost(error) => lost(error),
                error => StreamErrorIncoming::Unknown(Box::new(error)),
            })?;
            let Some(chunk) = chunk else {
                self.ended = true;
                return Poll::Ready(self.framing.end().map(|()| None).map_err(|error| self.facts.violated(error)));
            };
            match (self.framing.push(&chunk.bytes, &self.facts.flood), &self.watch) {
                (Ok(data), Some(watch)) => watch.unread.set(watch.unread.get() + data),
                (Ok(_), None) => {}
                (Err(error @ FrameViolation::HeadTooLarge), Some(watch)) => {
                    watch.head_too_large.set(true);
                    return Poll::Ready(Err(StreamErrorIncoming::Unknown(Box::new(error))));
                }
                (Err(error @ FrameViolation::Malformed), Some(watch)) => {
                    watch.malformed.set(true);
                    quic::RecvStream::stop_sending(self, error.code().value());
                    return Poll::Ready(Err(StreamErrorIncoming::Unknown(Box::new(error))));
                }
                (Err(error), _) => return Poll::Ready(Err(self.facts.violated(error))),
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take().filter(|_| !self.ended) else { return };
        match &self.watch {
            Some(_) => drop(tokio::task::spawn_local(discard(stream))),
            None => _ = stream.stop(code(Code::H3_NO_ERROR.value())),
        }
    }
}

/// Reads an unneeded body up to a limit before telling the client to stop sending it (RFC 9114 section 4.1). The
/// response has already been sent, but a browser told to stop before it has read the response treats that as a failure
/// and may retry.
async fn discard(mut stream: quinn::RecvStream) {
    let reading = async {
        let mut left = DISCARDED;
        while left > 0 {
            match stream.read_chunk(left, true).await {
                Ok(Some(chunk)) => left -= chunk.bytes.len().min(left),
                Ok(None) | Err(_) => return,
            }
        }
    };
    // A finished stream ignores this, which does no harm.
    let _ = timeout(DISCARDING, reading).await;
    let _ = stream.stop(code(Code::H3_NO_ERROR.value()));
}

impl quic::RecvStream for Receiver {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.poll_piece(cx)
    }

    fn stop_sending(&mut self, with: u64) {
        self.ended = true;
        if let Some(stream) = &mut self.stream {
            let _ = stream.stop(code(with));
        }
    }

    fn recv_id(&self) -> StreamId {
        id(self.id)
    }
}

/// Both halves of a request's stream.
pub(super) struct Both {
    send: Sender,
    recv: Receiver,
}

impl quic::BidiStream<Bytes> for Both {
    type SendStream = Sender;
    type RecvStream = Receiver;

    fn split(self) -> (Sender, Receiver) {
        (self.send, self.recv)
    }
}

impl quic::RecvStream for Both {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let piece = self.recv.poll_piece(cx);
        if self.recv.watch.as_ref().is_some_and(|watch| watch.malformed.get()) && !self.send.ended {
            quic::SendStream::reset(&mut self.send, Code::H3_MESSAGE_ERROR.value());
        }
        if self.recv.watch.as_ref().is_some_and(|watch| watch.head_too_large.get()) && !self.send.ended {
            // h3 will not respond to a head that it has not seen.
            let _ = Pin::new(&mut self.send.stream).poll_write(cx, &HEAD_TOO_LARGE);
            let _ = self.send.stream.finish();
            self.send.ended = true;
        }
        piece
    }

    fn stop_sending(&mut self, with: u64) {
        self.recv.stop_sending(with);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl quic::SendStream<Bytes> for Both {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, with: u64) {
        self.send.reset(with);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

/// Converts a stream id to h3's type.
fn id(id: quinn::StreamId) -> StreamId {
    // QUIC stream ids are below 2^62, which is also h3's limit.
    let number = u64::from(VarInt::from(id));
    StreamId::try_from(number).unwrap_or_else(|_| unreachable!("{number} is a stream's number"))
}
