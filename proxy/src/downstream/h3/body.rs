//! Request bodies over HTTP/3, as the h3 crate reads them.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h3::server::RequestStream;
use http_body::{Frame, SizeHint};

use super::transport::{Receiver, StreamWatch};
use crate::{
    h2::{has_of_connection, measure},
    http::body::{Body, BodyError},
};

/// The part of the body that is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Trailers,
    Over,
}

/// A request's body.
pub(super) struct Incoming {
    stream: RequestStream<Receiver, Bytes>,
    watch: Rc<StreamWatch>,
    /// Bytes still expected, if the head announced a length.
    left: Option<u64>,
    part: Part,
    /// A frame that had already arrived when the body was created.
    early: Option<Result<Frame<Bytes>, BodyError>>,
}

/// An error: the body's length differs from the announced one (RFC 9114 section 4.1.2).
#[derive(Debug, thiserror::Error)]
#[error("the body's length differs from its `Content-Length`")]
struct Length;

/// An error: a malformed field in the trailers (RFC 9114 section 4.2).
#[derive(Debug, thiserror::Error)]
#[error("malformed field in the trailers")]
struct Malformed;

impl Incoming {
    /// Wraps the receiving half of a stream.
    pub(super) fn new(stream: RequestStream<Receiver, Bytes>, watch: Rc<StreamWatch>) -> Incoming {
        Incoming { stream, watch, left: None, part: Part::Data, early: None }
    }

    /// Converts into a request's body. If it is already known to be empty, the exchange gets an empty body.
    pub(super) async fn into_body(mut self, length: Option<u64>) -> Body {
        self.left = length;
        match poll_fn(|cx| Poll::Ready(self.poll_next(cx))).await {
            Poll::Ready(None) => return Body::Empty,
            Poll::Ready(early) => self.early = early,
            Poll::Pending => {}
        }
        Body::stream(self)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let next = loop {
            match self.part {
                Part::Over => return Poll::Ready(None),
                Part::Data => match ready!(self.stream.poll_recv_data(cx)) {
                    Ok(None) => self.part = Part::Trailers,
                    Ok(Some(mut data)) => {
                        let data = data.copy_to_bytes(data.remaining());
                        let count = data.len() as u64;
                        self.watch.unread.set(self.watch.unread.get().saturating_sub(count));
                        let Some(left) = self.left else { break Ok(Frame::data(data)) };
                        self.left = left.checked_sub(count);
                        break self.left.map(|_| Frame::data(data)).ok_or_else(wrong_length);
                    }
                    Err(error) => break Err(BodyError::Downstream(Box::new(error))),
                },
                Part::Trailers => {
                    let trailers = ready!(self.stream.poll_recv_trailers(cx));
                    self.part = Part::Over;
                    match trailers {
                        _ if self.left.is_some_and(|left| left > 0) => break Err(wrong_length()),
                        Ok(None) => return Poll::Ready(None),
                        Ok(Some(trailers)) if measure(&trailers).is_none() || has_of_connection(&trailers) => {
                            break Err(BodyError::Downstream(Box::new(Malformed)));
                        }
                        Ok(Some(trailers)) => break Ok(Frame::trailers(trailers)),
                        Err(error) => break Err(BodyError::Downstream(Box::new(error))),
                    }
                }
            }
        };
        if next.is_err() {
            self.part = Part::Over;
        }
        Poll::Ready(Some(next))
    }
}

fn wrong_length() -> BodyError {
    BodyError::Downstream(Box::new(Length))
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let me = self.get_mut();
        if let Some(early) = me.early.take() {
            return Poll::Ready(Some(early));
        }
        me.poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.part == Part::Over && self.early.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let early = self.early.as_ref().and_then(|early| early.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        self.left.map_or(SizeHint::default(), |left| SizeHint::with_exact(left + early as u64))
    }
}
