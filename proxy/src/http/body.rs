//! Bodies: those that come from clients, and those that the proxy sends to upstreams and to clients.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::chain::body::BodyAborted;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client's body could not be read.
    #[error("the client's request body could not be read")]
    Downstream(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The upstream's body could not be read.
    #[error("the upstream's response body could not be read")]
    Upstream(#[source] crate::upstream::UpstreamBodyError),
    /// A filter is in the way.
    #[error(transparent)]
    Filter(#[from] BodyAborted),
    /// A filter has changed the length of a body whose length had been announced already.
    #[error("a filter changed the body's length after its head was sent")]
    Length,
    /// The client's body is longer than the listener lets it be.
    #[error("the request's body is longer than `limits.request_body`")]
    TooLong,
    /// Time is over.
    #[error("the time for the body is over")]
    Timeout,
    /// A filter has ended the stream, or somebody else has no more use for it.
    #[error("the stream was ended")]
    Closed,
}

impl BodyError {
    /// Whether the client has given its request up, so that nobody waits for an answer: it has reset the stream or the connection,
    /// or the connection of a stream is gone. A connection of HTTP/1.1 that has merely ended may be half closed.
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

/// A body of any origin.
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// All of it, and perhaps trailers.
    Full {
        /// The data, until it is sent.
        data: Option<Bytes>,
        /// The trailers, until they are sent.
        trailers: Option<HeaderMap>,
    },
    /// A request's over HTTP/1.1.
    Http1(crate::h1::server::RequestBody),
    /// A request's over HTTP/2.
    Http2(crate::h2::IncomingBody),
    /// As hyper reads it, where `tollgate test` is the client.
    Incoming(hyper::body::Incoming),
    /// As it comes.
    Stream(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>),
}

impl Body {
    /// Whether its client may send more of it, of which nothing is here. If not, the task is woken when it may.
    pub fn may_come(&self, cx: &Context<'_>) -> bool {
        match self {
            Body::Http2(body) => body.may_come(cx),
            _ => true,
        }
    }

    /// A body that is there as a whole.
    pub fn full(data: Bytes) -> Body {
        Body::full_with_trailers(data, HeaderMap::new())
    }

    /// A body that is there as a whole, with trailers.
    pub fn full_with_trailers(data: Bytes, trailers: HeaderMap) -> Body {
        match (data.is_empty(), trailers.is_empty()) {
            (true, true) => Body::Empty,
            (empty, none) => Body::Full { data: (!empty).then_some(data), trailers: (!none).then_some(trailers) },
        }
    }

    /// A body that comes bit by bit.
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
            // With trailers the length must not be announced: they need chunks.
            Body::Full { data, trailers: None } => SizeHint::with_exact(data.as_ref().map_or(0, |d| d.len() as u64)),
            Body::Full { .. } => SizeHint::default(),
            Body::Http1(body) => body.size_hint(),
            Body::Http2(body) => body.size_hint(),
            Body::Incoming(body) => body.size_hint(),
            Body::Stream(body) => body.size_hint(),
        }
    }
}
