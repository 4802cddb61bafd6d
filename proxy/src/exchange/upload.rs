//! A request's body on its way to the upstream: past the filters, kept for a retry as long as that is small, copied to a
//! mirror.
//!
//! The upload outlives the tries: each try reads it through an [`UploadBody`] of its own, which gives first what earlier
//! tries have read.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use super::{
    Site,
    deadline::{Bound, Deadline},
    mirror::Tee,
    reply::Fault,
};
use crate::{
    chain::{Direction, Stream, body::BodyFlow, body::Frame as Passed},
    http::body::{Body, BodyError},
    upstream::reason::chain_of,
};

/// What a part of a kept body counts for at least: it takes memory however short it is.
const LEAST_KEPT: usize = 64;

/// A request's body.
pub(super) struct Upload {
    stream: Rc<Stream>,
    /// There is no body, so nothing of what follows matters.
    empty: bool,
    filtered: bool,
    source: RefCell<Source>,
    kept: RefCell<Kept>,
    /// No other try will want what is kept.
    settled: Cell<bool>,
    /// Why it ended early, if it did.
    fault: Cell<Option<Fault>>,
    ended: Cell<bool>,
    tee: RefCell<Option<Tee>>,
}

struct Source {
    incoming: Body,
    /// The client has sent everything.
    drained: bool,
    flow: BodyFlow,
}

/// What has been read, for another try.
struct Kept {
    frames: Vec<Sent>,
    bytes: usize,
    limit: usize,
    /// Not everything is kept.
    lost: bool,
}

#[derive(Clone)]
enum Sent {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Sent {
    fn frame(self) -> Frame<Bytes> {
        match self {
            Sent::Data(data) => Frame::data(data),
            Sent::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

impl Upload {
    pub(super) fn new(site: &Site, stream: &Rc<Stream>, incoming: Body) -> Rc<Upload> {
        let empty = incoming.is_end_stream();
        if empty {
            stream.times.request_end.set(Some(stream.start));
        }
        let flow = BodyFlow::new(stream, Direction::Request, site.buffered_body);
        Rc::new(Upload {
            stream: stream.clone(),
            empty,
            filtered: !empty && stream.chain.wants_body(Direction::Request),
            source: RefCell::new(Source { incoming, drained: empty, flow }),
            kept: RefCell::new(Kept { frames: Vec::new(), bytes: 0, limit: 0, lost: true }),
            settled: Cell::new(false),
            fault: Cell::new(None),
            ended: Cell::new(empty),
            tee: RefCell::new(None),
        })
    }

    /// Whether there is no body.
    pub(super) fn is_empty(&self) -> bool {
        self.empty
    }

    /// Whether filters see the body.
    pub(super) fn is_filtered(&self) -> bool {
        self.filtered
    }

    /// Whether the last byte has been read.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Why it ended early.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.get()
    }

    /// Keeps up to this many bytes for another try.
    pub(super) fn keep(&self, limit: usize) {
        let mut kept = self.kept.borrow_mut();
        (kept.limit, kept.lost) = (limit, false);
    }

    /// There will be no other try: what was kept is let go once it is sent.
    pub(super) fn settle(&self) {
        self.settled.set(true);
    }

    /// Whether another try could send the same body.
    pub(super) fn can_repeat(&self) -> bool {
        self.empty || !self.kept.borrow().lost
    }

    /// Copies what is read from now on.
    pub(super) fn set_tee(&self, tee: Tee) {
        *self.tee.borrow_mut() = Some(tee);
    }

    /// The body for a try. `first`: nothing has been read by another one, so nothing need be kept to make it whole.
    pub(super) fn body(self: &Rc<Self>) -> Body {
        if self.empty { Body::Empty } else { Body::stream(UploadBody { upload: self.clone(), at: 0 }) }
    }

    /// What `Content-Length` must say in place of these fields' own, if that cannot be promised any more: as it came if no filter
    /// can change it; else what it has become, if all of it is through, and nothing if it has changed already. Over HTTP/1.1 a body
    /// with a length has no trailers, so there is nothing either if trailers are announced, or there.
    pub(super) fn length(&self, fields: &HeaderMap) -> Option<Option<HeaderValue>> {
        if self.empty || !self.filtered || !fields.contains_key(header::CONTENT_LENGTH) {
            return None;
        }
        let source = self.source.borrow();
        let (came, went) = source.flow.lengths();
        match source.flow.has_ended() {
            true if source.flow.has_trailers() => Some(None),
            true => Some(Some(went.into())),
            false if fields.contains_key(header::TRAILER) => Some(None),
            false => (came != went || self.stream.chain.changes_body(Direction::Request)).then_some(None),
        }
    }

    /// Waits until a first part is through the filters, or everything is, or nothing more will be; or until a bound is
    /// passed.
    pub(super) async fn prime(&self, deadline: &mut Deadline) -> Option<Bound> {
        std::future::poll_fn(|cx| {
            let mut source = self.source.borrow_mut();
            loop {
                if source.flow.is_ready() || source.flow.has_ended() || self.fault.get().is_some() {
                    return Poll::Ready(None);
                }
                if crate::chain::flow::is_interrupted(&self.stream) {
                    return Poll::Ready(None);
                }
                match self.poll_flow(&mut source, None, cx) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(None),
                    Poll::Pending => return deadline.poll(cx).map(Some),
                }
            }
        })
        .await
    }

    /// Lets go what the filter `nth` holds, now that it has let the head go.
    pub(super) fn release(&self, nth: usize, until: Option<usize>) -> Result<(), Fault> {
        let mut source = self.source.borrow_mut();
        source.flow.release(&self.stream, nth, until).map_err(Fault::from)
    }

    /// Shows the next part to a filter that holds the head. Whether that filter lets the head go.
    pub(super) fn poll_held(&self, nth: usize, cx: &mut Context<'_>) -> Poll<Result<bool, Fault>> {
        let mut source = self.source.borrow_mut();
        self.poll_flow(&mut source, Some(nth), cx).map_err(|_| self.fault.get().unwrap_or(Fault::BadBody))
    }

    /// Moves one part from the client into the filters.
    fn poll_flow(
        &self,
        source: &mut Source,
        until: Option<usize>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, BodyError>> {
        let Source { incoming, drained, flow } = source;
        flow.resume(&self.stream, until).map_err(|e| self.fail(e.into(), e.into()))?;
        if *drained || (until.is_none() && flow.is_ready()) {
            self.stream.register(Direction::Request, cx);
            return if flow.is_ready() || flow.has_ended() { Poll::Ready(Ok(false)) } else { Poll::Pending };
        }
        let frame = match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Pending => {
                // A filter may resume what it holds before more comes.
                self.stream.register(Direction::Request, cx);
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame,
        };
        self.stream.touch();
        let moved = match frame {
            None => {
                *drained = true;
                self.request_ended();
                if flow.has_ended() { Ok(false) } else { flow.data(&self.stream, Bytes::new(), true, until) }
            }
            Some(Err(e)) => return Poll::Ready(Err(self.fail(Fault::BadBody, e))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.count(data.len());
                    let end = incoming.is_end_stream();
                    if end {
                        *drained = true;
                        self.request_ended();
                    }
                    flow.data(&self.stream, data, end, until)
                }
                Err(frame) => {
                    *drained = true;
                    self.request_ended();
                    flow.trailers(&self.stream, frame.into_trailers().unwrap_or_default(), until)
                }
            },
        };
        Poll::Ready(moved.map_err(|e| self.fail(e.into(), e.into())))
    }

    fn count(&self, bytes: usize) {
        self.stream.state.borrow_mut().bytes[Direction::Request as usize] += bytes as u64;
    }

    fn request_ended(&self) {
        if self.stream.times.request_end.get().is_none() {
            self.stream.times.request_end.set(Some(Instant::now()));
            // The time for the response begins now.
            self.stream.wake();
        }
    }

    #[cold]
    fn fail(&self, fault: Fault, error: BodyError) -> BodyError {
        if let BodyError::Downstream(source) = &error {
            self.stream.downstream_failed(format!("the request's body: {}", chain_of(&**source)));
        }
        self.fault.set(Some(fault));
        self.stream.wake();
        error
    }

    /// The next frame from the client, through the filters.
    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Sent, BodyError>>> {
        let mut source = self.source.borrow_mut();
        if !self.filtered {
            let frame = ready!(Pin::new(&mut source.incoming).poll_frame(cx));
            self.stream.touch();
            return Poll::Ready(match frame {
                None => {
                    self.request_ended();
                    None
                }
                Some(Err(e)) => Some(Err(self.fail(Fault::BadBody, e))),
                Some(Ok(frame)) => Some(Ok(match frame.into_data() {
                    Ok(data) => {
                        self.count(data.len());
                        if source.incoming.is_end_stream() {
                            self.request_ended();
                        }
                        Sent::Data(data)
                    }
                    Err(frame) => {
                        self.request_ended();
                        Sent::Trailers(frame.into_trailers().unwrap_or_default())
                    }
                })),
            });
        }
        loop {
            match source.flow.pop() {
                Some(Passed::Data(data)) => return Poll::Ready(Some(Ok(Sent::Data(data)))),
                Some(Passed::Trailers(trailers)) => return Poll::Ready(Some(Ok(Sent::Trailers(trailers)))),
                None if source.flow.has_ended() => return Poll::Ready(None),
                None => {}
            }
            ready!(self.poll_flow(&mut source, None, cx))?;
        }
    }
}

/// The body of one try.
struct UploadBody {
    upload: Rc<Upload>,
    /// How many of the kept frames it has given.
    at: usize,
}

impl http_body::Body for UploadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let upload = self.upload.clone();
        let earlier = upload.kept.borrow().frames.get(self.at).cloned();
        if let Some(sent) = earlier {
            self.at += 1;
            return Poll::Ready(Some(Ok(sent.frame())));
        }
        if upload.settled.get() {
            let mut kept = upload.kept.borrow_mut();
            (kept.lost, kept.frames) = (true, Vec::new());
        }
        if upload.ended.get() {
            return Poll::Ready(None);
        }
        let next = ready!(upload.poll_next(cx));
        if let Some(tee) = upload.tee.borrow_mut().as_mut() {
            match &next {
                Some(Ok(Sent::Data(data))) => tee.send(data.clone()),
                None => tee.end(),
                _ => {}
            }
        }
        let Some(sent) = next.transpose()? else {
            upload.ended.set(true);
            return Poll::Ready(None);
        };
        let mut kept = upload.kept.borrow_mut();
        if !kept.lost {
            kept.bytes += if let Sent::Data(data) = &sent { data.len().max(LEAST_KEPT) } else { 0 };
            if kept.bytes > kept.limit {
                kept.lost = true;
                kept.frames = Vec::new();
            } else {
                kept.frames.push(sent.clone());
                self.at += 1;
            }
        }
        Poll::Ready(Some(Ok(sent.frame())))
    }

    fn is_end_stream(&self) -> bool {
        self.upload.ended.get() && self.at >= self.upload.kept.borrow().frames.len()
    }

    fn size_hint(&self) -> SizeHint {
        // The head says what the length is, and whoever sends the body holds it to that.
        SizeHint::default()
    }
}
