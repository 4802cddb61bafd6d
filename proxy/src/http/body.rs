//! Message bodies: those received from clients, and those that the proxy sends to upstreams and clients.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::chain::body::BodyAborted;

/// The reason why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client's body could not be read.
    #[error("cannot read the client's request body")]
    Downstream(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The upstream's body could not be read.
    #[error("cannot read the upstream's response body")]
    Upstream(#[source] crate::upstream::UpstreamBodyError),
    /// A filter aborted the body.
    #[error(transparent)]
    Filter(#[from] BodyAborted),
    /// A filter changed the length of a body whose length had already been announced.
    #[error("a filter changed the body's length after its head was sent")]
    Length,
    /// The client's body exceeds the listener's limit.
    #[error("the request's body is longer than `limits.request_body`")]
    TooLong,
    /// A timeout expired.
    #[error("timed out waiting for the body")]
    Timeout,
    /// A filter ended the stream, or the other side no longer needs it.
    #[error("the stream was ended")]
    Closed,
}

impl BodyError {
    /// Returns whether the client gave up its request and no longer waits for a response: it reset the stream or the
    /// connection, or the connection of its stream is gone. An HTTP/1.1 connection that merely ended may be
    /// half-closed.
    pub fn is_given_up(&self) -> bool {
        let BodyError::Downstream(source) = self else { return false };
        if let Some(error) = source.downcast_ref::<h2::Error>() {
            return error.is_remote() || error.is_io();
        }
        #[cfg(feature = "http3")]
        if let Some(error) = source.downcast_ref::<h3::error::StreamError>() {
            return matches!(error, h3::error::StreamError::RemoteTerminate { .. });
        }
        source.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    }
}

/// A body from any source.
#[derive(Default)]
pub enum Body {
    /// No content.
    #[default]
    Empty,
    /// A complete body, with optional trailers.
    Full {
        /// The data, until it is sent.
        data: Option<Bytes>,
        /// The trailers, until they are sent.
        trailers: Option<HeaderMap>,
    },
    /// A request's body over HTTP/1.1.
    Http1(crate::h1::server::RequestBody),
    /// A request's body over HTTP/2.
    Http2(crate::h2::IncomingBody),
    /// A body read by hyper, when `tollgate test` is the client.
    Incoming(hyper::body::Incoming),
    /// A streamed body.
    Stream(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>),
}

impl Body {
    /// Returns whether the client may send more of the body while nothing is buffered. If it may not, the task is woken
    /// when it may.
    pub fn may_come(&self, cx: &Context<'_>) -> bool {
        match self {
            Body::Http2(body) => body.may_come(cx),
            _ => true,
        }
    }

    /// Creates a complete body.
    pub fn full(data: Bytes) -> Body {
        Body::full_with_trailers(data, HeaderMap::new())
    }

    /// Creates a complete body with trailers.
    pub fn full_with_trailers(data: Bytes, trailers: HeaderMap) -> Body {
        match (data.is_empty(), trailers.is_empty()) {
            (true, true) => Body::Empty,
            (empty, none) => Body::Full { data: (!empty).then_some(data), trailers: (!none).then_some(trailers) },
        }
    }

    /// Creates a streamed body.
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = BodyError> + 'static) -> Body {
        Body::Stream(Box::pin(body))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Body::Empty => Poll::Ready(None),
            Body::Full { data, trailers } => {
                let frame = data.take().map(Frame::data).or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Body::Http1(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Downstream),
            Body::Http2(body) => body.poll_frame(cx).map_err(|error| BodyError::Downstream(Box::new(error))),
            Body::Incoming(body) => {
                Pin::new(body).poll_frame(cx).map_err(|error| BodyError::Downstream(Box::new(error)))
            }
            Body::Stream(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full { data, trailers } => data.is_none() && trailers.is_none(),
            Body::Http1(body) => body.is_end_stream(),
            Body::Http2(body) => body.is_end_stream(),
            Body::Incoming(body) => body.is_end_stream(),
            Body::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            // With trailers the length must not be announced, because they require chunked encoding.
            Body::Full { data, trailers: None } => SizeHint::with_exact(data.as_ref().map_or(0, |d| d.len() as u64)),
            Body::Full { .. } => SizeHint::default(),
            Body::Http1(body) => body.size_hint(),
            Body::Http2(body) => body.size_hint(),
            Body::Incoming(body) => body.size_hint(),
            Body::Stream(body) => body.size_hint(),
        }
    }
}
