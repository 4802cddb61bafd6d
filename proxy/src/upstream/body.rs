//! The body of an upstream's response.

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

/// A future of the connection to an upstream that has switched to another protocol. Ready once HTTP is finished on it.
pub type Upgrading = Pin<Box<dyn Future<Output = io::Result<Box<dyn Transport>>>>>;

/// A stream together with a guard that must live as long.
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

/// The reason why a response's body ended early.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamBodyError {
    /// An HTTP/2 stream was reset, or its connection ended.
    #[error("the stream ended early")]
    Http2(#[from] h2::Error),
    /// The connection ended or failed within the body.
    #[error("the connection ended before the body did")]
    Connection(#[source] io::Error),
    /// The body's framing is invalid.
    #[error("the body's framing is broken")]
    Framing(#[source] h1::Violation),
    /// The body or its trailers violate HTTP/2. The error code is not forwarded to the client.
    #[error("the response is malformed")]
    Malformed(h2::Error),
    /// The trailers exceed the limit on response heads.
    #[error("the response's trailers are longer than {0} bytes")]
    TooLong(usize),
    /// The upstream ended the stream within the body without reporting an error, or sending the request's own body
    /// failed.
    #[error("the stream was reset before its end")]
    Cut,
}

/// A guard that lives as long as a response's stream and is notified of how that ended. Without a notification, the
/// stream is reset.
pub(super) trait BodyGuard: 'static {
    /// The response was received completely.
    fn ended(&self);
    /// The upstream ended the response early.
    fn broken(&self);
}

/// A body received over HTTP/1.1.
pub(super) struct H1Body {
    pub(super) decoder: Decoder,
    /// The connection; `None` once the end was reached.
    pub(super) guard: Option<Rc<dyn ConnectionGuard>>,
}

impl H1Body {
    pub(super) fn new(decoder: Decoder, link: Rc<dyn ConnectionGuard>) -> Self {
        H1Body { decoder, guard: Some(link) }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let part = ready!(self.poll_part(cx));
        if part.as_ref().is_some_and(Result::is_err) {
            self.guard = None;
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

    /// Releases the connection at the end of the body. A caller that knows where the body ends does not read past it.
    fn finish_at_end(&mut self) {
        if self.decoder.is_done()
            && let Some(link) = self.guard.take()
        {
            link.finish();
        }
    }
}

/// The body of a response. At its end, the connection or stream is returned to the pool. If it is dropped earlier, an
/// HTTP/1.1 connection is closed and an HTTP/2 stream is reset.
pub struct PooledBody(BodyKind);

enum BodyKind {
    /// Over HTTP/1.1.
    Link(H1Body),
    /// Over HTTP/2; occupies one of the connection's streams until it is dropped.
    Stream {
        incoming: IncomingBody,
        /// Whether the upstream has ended the response, and how.
        ended: Ended,
        /// Maximum size of trailers in bytes.
        max_head: usize,
        /// The guard that is dropped with the stream.
        keeps: Box<dyn BodyGuard>,
    },
    /// No body, because the protocol was switched.
    Switching(Option<Upgrading>),
}

impl PooledBody {
    pub(super) fn of_link(mut body: H1Body) -> Self {
        body.finish_at_end();
        PooledBody(BodyKind::Link(body))
    }

    /// Wraps an HTTP/2 stream with trailers of at most `max_head` bytes. `keeps` is dropped with the stream.
    pub(super) fn of_stream(incoming: IncomingBody, ended: Ended, max_head: usize, keeps: Box<dyn BodyGuard>) -> Self {
        PooledBody(BodyKind::Stream { incoming, ended, max_head, keeps })
    }

    pub(super) fn switching(upstream: Upgrading) -> Self {
        PooledBody(BodyKind::Switching(Some(upstream)))
    }

    /// Takes the connection if the response switched protocols.
    pub fn take_switching(&mut self) -> Option<Upgrading> {
        match &mut self.0 {
            BodyKind::Switching(upstream) => upstream.take(),
            _ => None,
        }
    }
}

/// Returns whether this side found the stream malformed.
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
                    // A reset with NO_ERROR may follow an early response that was complete (RFC 9113 section 8.1), but
                    // servers and proxies also use it to end incomplete ones.
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
