//! What follows the head of an upstream's response.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::link::ConnectionGuard;
use crate::{
    h1::{self, Decoder},
    h2::{Ended, IncomingBody},
    net::{Transport, pass_writes},
};

/// The connection to an upstream that speaks another protocol from now on, as soon as the version of HTTP that it has spoken
/// until now is out of the way.
pub type Upgrading = Pin<Box<dyn Future<Output = io::Result<Box<dyn Transport>>>>>;

/// A stream together with something that must live as long.
pub(super) struct WithGuard<T, K> {
    stream: T,
    _keeps: K,
}

impl<T, K> WithGuard<T, K> {
    pub(super) fn new(stream: T, keeps: K) -> Self {
        WithGuard { stream, _keeps: keeps }
    }
}

impl<T: AsyncRead + Unpin, K: Unpin> AsyncRead for WithGuard<T, K> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

pass_writes!([T: AsyncWrite + Unpin, K: Unpin] WithGuard<T, K>, stream);

impl<T: Transport, K: Unpin> Transport for WithGuard<T, K> {
    fn plain(&self) -> Option<&TcpStream> {
        self.stream.plain()
    }

    fn abort(&self) {
        self.stream.abort();
    }
}

/// Why a response's body ended early.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamBodyError {
    /// An HTTP/2 stream was reset, or its connection has ended.
    #[error("the stream ended early")]
    Http2(#[from] h2::Error),
    /// The connection has ended or failed in the middle of it.
    #[error("the connection ended before the body did")]
    Connection(#[source] io::Error),
    /// It is not framed as it should be.
    #[error("the body's framing is broken")]
    Framing(#[source] h1::Violation),
    /// It, or its trailers, break HTTP/2. Whoever gets it is told nothing of that code.
    #[error("the response is malformed")]
    Malformed(h2::Error),
    /// Its trailers are longer than those of any response may be.
    #[error("the response's trailers are longer than {0} bytes")]
    TooLong(usize),
    /// The upstream has ended the stream in the middle of it and called it no error, or the request's own body has failed.
    #[error("the stream was reset before its end")]
    Cut,
}

/// What lives as long as a response's stream, and is told how that has ended. If it is told nothing, the stream is reset.
pub(super) trait BodyGuard: 'static {
    /// The response is here to its end.
    fn ended(&self);
    /// The upstream has ended it before.
    fn broken(&self);
}

/// A body over HTTP/1.1.
pub(super) struct H1Body {
    pub(super) decoder: Decoder,
    /// The connection; gone when the end was reached.
    pub(super) link: Option<Rc<dyn ConnectionGuard>>,
}

impl H1Body {
    pub(super) fn new(decoder: Decoder, link: Rc<dyn ConnectionGuard>) -> Self {
        H1Body { decoder, link: Some(link) }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let part = ready!(self.poll_part(cx));
        if part.as_ref().is_some_and(Result::is_err) {
            self.link = None;
        } else {
            self.finish_at_end();
        }
        Poll::Ready(part.map(|part| {
            part.map(|part| match part {
                h1::BodyPart::Data(data) => Frame::data(data),
                h1::BodyPart::Trailers(trailers) => Frame::trailers(trailers),
            })
        }))
    }

    /// Whoever knows where a body ends does not read on past it.
    fn finish_at_end(&mut self) {
        if self.decoder.is_done()
            && let Some(link) = self.link.take()
        {
            link.finish();
        }
    }
}

/// The body of a response. What carries it is given back at its end; dropped before, an HTTP/1.1 connection is closed, and an
/// HTTP/2 stream is reset.
pub struct PooledBody(BodyKind);

enum BodyKind {
    /// Over HTTP/1.1.
    Link(H1Body),
    /// Over HTTP/2; the place among the connection's streams is held until this is dropped.
    Stream {
        incoming: IncomingBody,
        /// Whether the response was ended, and with what.
        ended: Ended,
        /// Bytes that trailers may have.
        max_head: usize,
        /// What ends with the stream.
        keeps: Box<dyn BodyGuard>,
    },
    /// There is none: the protocol is switched.
    Switching(Option<Upgrading>),
}

impl PooledBody {
    pub(super) fn of_link(mut body: H1Body) -> Self {
        body.finish_at_end();
        PooledBody(BodyKind::Link(body))
    }

    /// Trailers may have `max_head` bytes. `keeps` is dropped with the stream.
    pub(super) fn of_stream(incoming: IncomingBody, ended: Ended, max_head: usize, keeps: Box<dyn BodyGuard>) -> Self {
        PooledBody(BodyKind::Stream { incoming, ended, max_head, keeps })
    }

    pub(super) fn switching(upstream: Upgrading) -> Self {
        PooledBody(BodyKind::Switching(Some(upstream)))
    }

    /// The connection, if the response has switched protocols.
    pub fn take_switching(&mut self) -> Option<Upgrading> {
        match &mut self.0 {
            BodyKind::Switching(upstream) => upstream.take(),
            _ => None,
        }
    }
}

/// Whether it is this side that has found it wrong.
fn is_malformed(error: &h2::Error) -> bool {
    error.reason() == Some(h2::Reason::PROTOCOL_ERROR) && !error.is_remote()
}

impl Body for PooledBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        match &mut self.0 {
            BodyKind::Link(body) => body.poll_frame(cx),
            BodyKind::Stream { incoming, ended, max_head, keeps } => {
                let frame = ready!(incoming.poll_frame(cx));
                if matches!(frame, Some(Err(_))) {
                    keeps.broken();
                }
                let frame = match frame {
                    // A reset without an error may follow an early answer that was whole (RFC 9113 section 8.1), but servers and
                    // proxies also end broken ones in this way.
                    Some(Err(error)) if error.reason() == Some(h2::Reason::NO_ERROR) => {
                        (!ended.get()).then_some(Err(UpstreamBodyError::Cut))
                    }
                    Some(Ok(frame)) if frame.is_trailers() && ended.has_pseudo() => {
                        Some(Err(UpstreamBodyError::Malformed(h2::Reason::PROTOCOL_ERROR.into())))
                    }
                    Some(Ok(_)) if incoming.trailers_size() > *max_head => {
                        Some(Err(UpstreamBodyError::TooLong(*max_head)))
                    }
                    Some(Err(error)) if is_malformed(&error) => Some(Err(UpstreamBodyError::Malformed(error))),
                    frame => frame.map(|frame| frame.map_err(UpstreamBodyError::Http2)),
                };
                Poll::Ready(frame)
            }
            BodyKind::Switching(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodyKind::Link(body) => body.decoder.is_done(),
            BodyKind::Stream { incoming, .. } => incoming.is_end_stream(),
            BodyKind::Switching(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodyKind::Link(body) => body.decoder.size_hint(),
            BodyKind::Stream { incoming, .. } => incoming.size_hint(),
            BodyKind::Switching(_) => SizeHint::with_exact(0),
        }
    }
}

impl Drop for PooledBody {
    fn drop(&mut self) {
        if let BodyKind::Stream { incoming, keeps, .. } = &self.0
            && incoming.is_end_stream()
        {
            keeps.ended();
        }
    }
}

impl std::fmt::Debug for PooledBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PooledBody").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}
