//! Message bodies: received from h2 and sent through it.

use std::{
    error::Error,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::{Window, content_length, measure, remove_of_connection};

/// A received body. Reading a part immediately returns its bytes to the stream's flow-control window.
pub struct IncomingBody {
    stream: RecvStream,
    /// The number of bytes to come, if the head declares it. h2 enforces it.
    left: Option<u64>,
    /// Whether the data has ended, so that only trailers can follow.
    data_over: bool,
    /// The size of the received trailers.
    trailers: usize,
    /// The connection's flow-control window, if it is tracked.
    window: Option<Rc<Window>>,
}

impl IncomingBody {
    /// Creates the body that follows a head with these fields.
    pub fn new(stream: RecvStream, fields: &HeaderMap) -> IncomingBody {
        let left = content_length(fields).ok().flatten();
        IncomingBody { stream, left, data_over: false, trailers: 0, window: None }
    }

    /// Sets the connection's tracked window.
    pub fn within(self, window: Rc<Window>) -> IncomingBody {
        IncomingBody { window: Some(window), ..self }
    }

    /// Returns whether the peer can send more of the body. Everything received must have been read, so that the
    /// stream's own window is open. If not, the task is woken when it can.
    pub fn may_come(&self, cx: &Context<'_>) -> bool {
        self.window.as_ref().is_none_or(|window| window.is_open(cx))
    }

    /// Returns the next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_over {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // This fails for a stream that has ended, whose window is irrelevant.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_over = true,
            }
        }
        let trailers = match ready!(self.stream.poll_trailers(cx)).transpose() {
            Some(Ok(trailers)) => Some(match measure(&trailers) {
                Some(size) => {
                    self.trailers = size;
                    Ok(trailers)
                }
                None => Err(Reason::PROTOCOL_ERROR.into()),
            }),
            ended => ended,
        };
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }

    /// Returns the size of the trailers, 0 if none were received yet.
    pub fn trailers_size(&self) -> usize {
        self.trailers
    }

    /// Returns whether the whole body has been read.
    pub fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// Returns the number of bytes to come.
    pub fn size_hint(&self) -> SizeHint {
        self.left.map_or(SizeHint::default(), SizeHint::with_exact)
    }
}

/// Why a body was not sent completely.
#[derive(Debug)]
pub enum SendError {
    /// The peer ended the stream, or the connection ended.
    Stream(h2::Error),
    /// The body failed; the stream was reset.
    Body(Box<dyn Error + Send + Sync>),
}

/// Sends a body after its head.
pub struct BodySender<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Data waiting for flow-control capacity, and whether it is the last.
    held: Option<(Bytes, bool)>,
    /// Whether trailers are sent.
    trailers: bool,
}

impl<B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin> BodySender<B> {
    /// Creates a sender; [`BodySender::poll`] sends the body.
    pub fn new(body: B, stream: SendStream<Bytes>) -> Self {
        BodySender { body, stream, held: None, trailers: true }
    }

    /// Sets whether trailers are sent.
    pub fn with_trailers(self, wanted: bool) -> Self {
        BodySender { trailers: wanted, ..self }
    }

    /// Sends what can be sent. Completes when h2 has the whole body, or the peer rejects the rest.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_noting(cx, || {})
    }

    /// Like [`BodySender::poll`], and calls `moved` when the peer has granted capacity to data that waited for it.
    pub fn poll_noting(&mut self, cx: &mut Context<'_>, moved: impl FnOnce()) -> Poll<Result<(), SendError>> {
        if let Poll::Ready(sent) = self.poll_send(cx, moved) {
            return Poll::Ready(sent);
        }
        self.stream
            .poll_reset(cx)
            .map(|reset| Err(SendError::Stream(reset.map_or_else(|error| error, h2::Error::from))))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, moved: impl FnOnce()) -> Poll<Result<(), SendError>> {
        // Data that the body yields in this call did not wait.
        let mut moved = self.held.is_some().then_some(moved);
        loop {
            if let Some((mut data, last)) = self.held.take() {
                // An end without data needs no capacity.
                let room = if data.is_empty() { Poll::Ready(Ok(0)) } else { poll_room(&mut self.stream, cx) };
                let room = match room {
                    Poll::Pending => {
                        self.held = Some((data, last));
                        return Poll::Pending;
                    }
                    Poll::Ready(room) => room.map_err(SendError::Stream)?,
                };
                if let Some(moved) = moved.take() {
                    moved();
                }
                // h2 does not report how much of its data was sent. So it gets no more than the peer's window allows,
                // except for the last part, after which nothing waits.
                if room < data.len() && !last {
                    let part = data.split_to(room);
                    self.held = Some((data, last));
                    self.stream.send_data(part, false).map_err(SendError::Stream)?;
                    continue;
                }
                self.stream.send_data(data, last).map_err(SendError::Stream)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(SendError::Stream)),
                Some(Err(error)) => {
                    let error = error.into();
                    self.stream.send_reset(reset_reason(&*error));
                    return Poll::Ready(Err(SendError::Body(error)));
                }
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => {
                    let last = self.body.is_end_stream();
                    if data.is_empty() && !last {
                        continue;
                    }
                    // Capacity is reserved only when there is data: what one stream reserves of the connection's
                    // window is not available to others. And it is reserved for all of the data: with less, streams
                    // that share a window send byte by byte.
                    self.stream.reserve_capacity(data.len());
                    self.held = Some((data, last));
                }
                Err(frame) => {
                    let mut trailers = frame.into_trailers().unwrap_or_default();
                    // Filters may have added such fields.
                    remove_of_connection(&mut trailers);
                    let sent = match self.trailers && !trailers.is_empty() {
                        true => self.stream.send_trailers(trailers),
                        false => self.stream.send_data(Bytes::new(), true),
                    };
                    return Poll::Ready(sent.map_err(SendError::Stream));
                }
            }
        }
    }
}

/// Waits for reserved capacity and returns its size in bytes.
pub(super) fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<usize, h2::Error>> {
    loop {
        match stream.capacity() {
            0 => {}
            room => return Poll::Ready(Ok(room)),
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(room) => room?,
            // The stream has ended.
            None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
        };
    }
}

/// Returns the reset reason to send for a failed body: the reason of another peer's reset, if there was one. Two
/// reasons are true only of that peer's connection and are not forwarded: that the request was not processed, and
/// that HTTP/1.1 is required.
pub fn reset_reason(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(theirs) = error.downcast_ref::<h2::Error>() {
            return match theirs.reason().filter(|_| !theirs.is_library()) {
                None | Some(Reason::REFUSED_STREAM | Reason::HTTP_1_1_REQUIRED) => Reason::INTERNAL_ERROR,
                Some(reason) => reason,
            };
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http::{Request, Response};

    use super::*;

    /// A body of parts that knows its last part.
    struct Parts(Vec<Result<Bytes, h2::Error>>);

    impl Body for Parts {
        type Data = Bytes;
        type Error = h2::Error;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
            let next = (!self.0.is_empty()).then(|| self.0.remove(0));
            Poll::Ready(next.map(|part| part.map(Frame::data)))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    /// Returns what a client with a window of this size reads of a body, without opening the window again.
    async fn sent(parts: Vec<Result<Bytes, h2::Error>>, window: u32) -> Vec<Result<Bytes, Option<Reason>>> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let serving = async move {
            let mut http = h2::server::handshake(near).await.unwrap();
            let (_, mut respond) = http.accept().await.unwrap().unwrap();
            let mut sending = BodySender::new(Parts(parts), respond.send_response(Response::new(()), false).unwrap());
            let _ = tokio::join!(poll_fn(|cx| sending.poll(cx)), http.accept());
        };
        let reading = async move {
            let mut builder = h2::client::Builder::new();
            let (sender, http) = builder.initial_window_size(window).handshake::<_, Bytes>(far).await.unwrap();
            let mut sender = sender.ready().await.unwrap();
            let asking = async move {
                let (response, _) = sender.send_request(Request::get("http://h/").body(()).unwrap(), true).unwrap();
                // A reset discards what was not sent yet.
                let mut body = match response.await {
                    Ok(response) => response.into_body(),
                    Err(error) => return vec![Err(error.reason())],
                };
                let mut read = Vec::new();
                while let Some(part) = body.data().await {
                    let ended = part.is_err();
                    read.push(part.map_err(|error| error.reason()));
                    if ended {
                        break;
                    }
                }
                read
            };
            tokio::select! {
                read = asking => read,
                ended = http => panic!("{ended:?}"),
            }
        };
        tokio::select! {
            read = reading => read,
            () = serving => panic!("the client has not finished"),
        }
    }

    #[tokio::test]
    async fn an_end_without_data_needs_no_room() {
        let parts = vec![Ok(Bytes::from_static(b"abc")), Ok(Bytes::new()), Ok(Bytes::new())];
        let read: Vec<u8> = sent(parts, 3).await.into_iter().flat_map(|part| part.unwrap()).collect();
        assert_eq!(read, b"abc");
    }

    #[tokio::test]
    async fn the_reason_of_a_reset_is_forwarded() {
        let parts = vec![Ok(Bytes::from_static(b"abc")), Err(Reason::CANCEL.into())];
        assert_eq!(sent(parts, 100).await.last(), Some(&Err(Some(Reason::CANCEL))));
    }
}
