//! A request's body on its way to the upstream: passed through the filters, read ahead if short, kept for retries while
//! small, and copied to a mirror.
//!
//! The upload outlives the attempts: each attempt reads it through its own [`UploadBody`], which first replays what
//! earlier attempts have read.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, sleep};

use super::{
    ListenerContext,
    deadline::{Deadline, DeadlineKind},
    min_rate::MinRate,
    mirror::MirrorTee,
    read_ahead::{PATIENCE, ReadAhead},
    reply::LocalFailure,
};
use crate::{
    chain::{
        Direction, Stream,
        body::{BodyFlow, FilteredFrame as Passed},
        flow::BodyFeed,
    },
    config::model::HeaderUnderscores,
    h2::measure,
    http::{
        body::{Body, BodyError},
        fields::clean_trailers,
    },
    net::poll_timer,
    upstream::{ClientPermit, UsageGuard, reason::chain_of},
};

/// Minimum weight of a kept part, because even a short one takes memory.
const LEAST_KEPT: usize = 64;

/// An error: the trailers exceed the listener's limit on heads.
#[derive(Debug, thiserror::Error)]
#[error("the trailers exceed `limits.header_bytes`")]
struct TrailersTooLarge;

/// A request's body.
pub(super) struct Upload {
    stream: Rc<Stream>,
    /// Whether there is no body; the other fields are then irrelevant.
    empty: bool,
    filtered: bool,
    /// Whether field names may contain a `_`.
    keeps_underscores: bool,
    /// Maximum size of trailers in bytes.
    max_trailers: u64,
    source: RefCell<UploadSource>,
    read_ahead: RefCell<ReadAhead>,
    kept: RefCell<ReplayBuffer>,
    /// Whether no further attempt will need the kept parts.
    settled: Cell<bool>,
    /// Whether an attempt has begun to read the body.
    begun: Cell<bool>,
    /// The reason why it ended early, if it did.
    failure: Cell<Option<LocalFailure>>,
    ended: Cell<bool>,
    /// The length announced in the head of the current attempt.
    promised: Cell<Option<u64>>,
    tee: RefCell<Option<MirrorTee>>,
    /// Whether nothing was available at the last read although the client could have sent more.
    awaits_client: Cell<bool>,
    /// The minimum rate, if there is one.
    pace: Option<Rc<MinRate>>,
    /// Maximum length in bytes.
    limit: Option<u64>,
    /// The permit among the unfinished uploads to the cluster.
    place: UsageGuard,
}

struct UploadSource {
    incoming: Body,
    /// Whether the client has sent everything.
    drained: bool,
    flow: BodyFlow,
}

/// The parts already read, for replay in another attempt.
struct ReplayBuffer {
    frames: Vec<UploadFrame>,
    bytes: usize,
    limit: usize,
    /// Whether parts were discarded, so that no replay is possible.
    lost: bool,
}

/// A part of a body.
#[derive(Clone)]
pub(super) enum UploadFrame {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl UploadFrame {
    /// Returns the number of bytes that count towards memory limits.
    pub(super) fn weight(&self) -> usize {
        match self {
            UploadFrame::Data(data) => data.len().max(LEAST_KEPT),
            // There is at most one, with its own limit.
            UploadFrame::Trailers(_) => 0,
        }
    }

    fn frame(self) -> Frame<Bytes> {
        match self {
            UploadFrame::Data(data) => Frame::data(data),
            UploadFrame::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

impl Upload {
    pub(super) fn new(listener: &ListenerContext, stream: &Rc<Stream>, incoming: Body) -> Rc<Upload> {
        let empty = incoming.is_end_stream();
        stream.progress.uploads.set(false);
        if empty {
            stream.times.request_end.set(Some(stream.start));
        }
        let flow = BodyFlow::new(stream, Direction::Request, listener.buffered_body);
        let (limits, grace) = (&listener.config.limits, listener.config.timeouts.body_grace.0);
        let paced = !empty && limits.body_rate.0 > 0;
        Rc::new(Upload {
            stream: stream.clone(),
            empty,
            filtered: !empty && stream.chain.wants_body(Direction::Request),
            keeps_underscores: listener.config.header_underscores == HeaderUnderscores::Keep,
            max_trailers: listener.config.limits.header_bytes.0,
            source: RefCell::new(UploadSource { incoming, drained: empty, flow }),
            read_ahead: RefCell::default(),
            kept: RefCell::new(ReplayBuffer { frames: Vec::new(), bytes: 0, limit: 0, lost: true }),
            settled: Cell::new(false),
            begun: Cell::new(false),
            failure: Cell::new(None),
            ended: Cell::new(empty),
            promised: Cell::new(None),
            tee: RefCell::new(None),
            awaits_client: Cell::new(false),
            pace: paced.then(|| Rc::new(MinRate::new(limits.body_rate.0, grace))),
            limit: Some(limits.request_body.0).filter(|limit| *limit > 0),
            place: UsageGuard::default(),
        })
    }

    /// Returns whether there is no body.
    pub(super) fn is_empty(&self) -> bool {
        self.empty
    }

    /// Returns whether filters see the body.
    pub(super) fn is_filtered(&self) -> bool {
        self.filtered
    }

    /// Returns whether the proxy waits for the client to send more. It does not while received data waits for the
    /// upstream or a filter.
    pub(super) fn awaits_client(&self) -> bool {
        self.awaits_client.get()
    }

    /// Returns whether trailers have passed the filters or were added by them.
    pub(super) fn has_filtered_trailers(&self) -> bool {
        self.filtered
            && (self.source.borrow().flow.has_trailers()
                || self.read_ahead.borrow().has_trailers()
                || matches!(self.kept.borrow().frames.last(), Some(UploadFrame::Trailers(_))))
    }

    /// Returns whether the client has more to send.
    pub(super) fn is_unfinished(&self) -> bool {
        !self.empty && self.stream.times.request_end.get().is_none()
    }

    /// Holds a permit among the unfinished uploads until this one is finished.
    pub(super) fn hold(&self, place: ClientPermit) {
        if self.is_unfinished() {
            self.stream.progress.uploads.set(true);
            self.place.begin(place);
        }
    }

    /// Returns the guard that holds that permit.
    pub(super) fn place(&self) -> &UsageGuard {
        &self.place
    }

    /// Returns the minimum rate.
    pub(super) fn pace(&self) -> Option<Rc<MinRate>> {
        self.pace.clone()
    }

    /// Pauses the minimum rate while the body is not being read.
    pub(super) fn rests(&self) {
        if let Some(pace) = &self.pace {
            pace.rests();
        }
    }

    /// Returns whether the body is known to exceed its limit.
    pub(super) fn is_too_long(&self) -> bool {
        self.exceeds(&self.source.borrow().incoming)
    }

    fn exceeds(&self, incoming: &Body) -> bool {
        let Some(limit) = self.limit else { return false };
        let left = incoming.size_hint().exact().unwrap_or(0);
        left.saturating_add(self.stream.state.borrow().bytes[Direction::Request as usize]) > limit
    }

    /// Returns the reason why it ended early.
    pub(super) fn failure(&self) -> Option<LocalFailure> {
        self.failure.get()
    }

    /// Keeps up to this many bytes for another attempt.
    pub(super) fn keep(&self, limit: usize) {
        let mut kept = self.kept.borrow_mut();
        (kept.limit, kept.lost) = (limit, false);
    }

    /// Records that there will be no other attempt: kept parts are freed once sent.
    pub(super) fn settle(&self) {
        self.settled.set(true);
    }

    /// Returns whether another attempt could send the same body.
    pub(super) fn can_repeat(&self) -> bool {
        self.empty || !self.begun.get() || !self.kept.borrow().lost
    }

    /// Returns whether an attempt has read the whole body and all of it is kept, so that another attempt can read it at
    /// the same time.
    pub(super) fn is_wholly_kept(&self) -> bool {
        self.empty || (self.ended.get() && !self.kept.borrow().lost)
    }

    /// Copies everything read from now on to a mirror.
    pub(super) fn set_tee(&self, tee: MirrorTee) {
        *self.tee.borrow_mut() = Some(tee);
    }

    /// Sets the length announced in the next attempt's head. The client's own announcement is checked as its body is
    /// read; this one is for filters, which may announce or send a different length.
    pub(super) fn promise(&self, length: Option<u64>) {
        self.promised.set(length);
    }

    /// Returns the body for one attempt: first the parts read by earlier attempts, then the rest.
    pub(super) fn body(self: &Rc<Self>) -> Body {
        if self.empty {
            Body::Empty
        } else {
            Body::stream(UploadBody { upload: self.clone(), at: 0, left: self.promised.get() })
        }
    }

    /// Returns the replacement for `Content-Length` if the original can no longer be guaranteed: the filtered length if
    /// everything has passed the filters, no length if it has changed or may change. If filters cannot change it, the
    /// original is kept. Over HTTP/1.1 a body with a length has no trailers, so there is no length either if trailers
    /// are announced or present.
    pub(super) fn length(&self, fields: &HeaderMap) -> Option<Option<HeaderValue>> {
        if self.empty || !self.filtered || !fields.contains_key(header::CONTENT_LENGTH) {
            return None;
        }
        let source = self.source.borrow();
        let (length_in, length_out) = source.flow.lengths();
        match source.flow.has_ended() {
            true if source.flow.has_trailers() || self.read_ahead.borrow().has_trailers() => Some(None),
            true => Some(Some(length_out.into())),
            false if fields.contains_key(header::TRAILER) => Some(None),
            false => (length_in != length_out || self.stream.changes_body(Direction::Request)).then_some(None),
        }
    }

    /// Waits until a first part or everything has passed the filters, or nothing more will; or until a timeout expires,
    /// which is returned.
    pub(super) async fn prime(&self, deadline: &mut Deadline) -> Option<DeadlineKind> {
        std::future::poll_fn(|cx| {
            let mut source = self.source.borrow_mut();
            loop {
                if source.flow.is_ready() || source.flow.has_ended() || self.failure.get().is_some() {
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

    /// Reads the body before any upstream is involved: to its end if the length is known and at most `most`, or else
    /// what arrives soon. Returns a timeout if one expires.
    pub(super) async fn read_ahead(&self, most: usize, deadline: &mut Deadline) -> Option<DeadlineKind> {
        let length = self.source.borrow().incoming.size_hint().exact();
        if !self.is_unfinished() || length.is_some_and(|length| length > most as u64) {
            return None;
        }
        let mut patience = None;
        std::future::poll_fn(|cx| {
            loop {
                if self.failure.get().is_some()
                    || crate::chain::flow::is_interrupted(&self.stream)
                    || !self.read_ahead.borrow().has_room(most)
                {
                    return Poll::Ready(None);
                }
                match self.poll_source(cx) {
                    Poll::Ready(Some(Ok(part))) => self.read_ahead.borrow_mut().push(part),
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(None),
                    Poll::Ready(None) => {
                        self.read_ahead.borrow_mut().end();
                        return Poll::Ready(None);
                    }
                    Poll::Pending if length.is_some() => return deadline.poll(cx).map(Some),
                    Poll::Pending => {
                        let patience = patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
                        if poll_timer(patience.as_mut(), cx).is_ready() {
                            return Poll::Ready(None);
                        }
                        return deadline.poll(cx).map(Some);
                    }
                }
            }
        })
        .await
    }

    /// Moves one part from the client into the filters.
    fn poll_flow(
        &self,
        source: &mut UploadSource,
        until: Option<usize>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, BodyError>> {
        let UploadSource { incoming, drained, flow } = source;
        flow.resume(&self.stream, until).map_err(|e| self.fail(e.into(), e.into()))?;
        if *drained || (until.is_none() && flow.is_ready()) {
            self.stream.register(Direction::Request, cx);
            return if flow.is_ready() || flow.has_ended() { Poll::Ready(Ok(false)) } else { Poll::Pending };
        }
        let frame = match self.poll_incoming(incoming, cx) {
            Poll::Pending => {
                // A filter may resume what it holds before more arrives.
                self.stream.register(Direction::Request, cx);
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame,
        };
        let moved = match frame {
            None => {
                *drained = true;
                self.request_ended();
                if flow.has_ended() { Ok(false) } else { flow.data(&self.stream, Bytes::new(), true, until) }
            }
            Some(Err(e)) => return Poll::Ready(Err(self.fail_by(e))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
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

    /// Reads the next frame from the client, and checks its rate and the total length.
    fn poll_incoming(
        &self,
        incoming: &mut Body,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // Before anything is read, so that the client is not sent a 100 (Continue).
        if self.exceeds(incoming) {
            return Poll::Ready(Some(Err(BodyError::TooLong)));
        }
        let Poll::Ready(mut frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
            // Unread data on other streams may have exhausted the connection's flow-control window.
            let awaits = incoming.may_come(cx);
            self.awaits_client.set(awaits);
            if let Some(pace) = &self.pace {
                if awaits { pace.waits() } else { pace.rests() }
            }
            return Poll::Pending;
        };
        self.awaits_client.set(false);
        self.stream.touch();
        if let Some(Ok(part)) = &mut frame
            && let Some(trailers) = part.trailers_mut()
        {
            if measure(trailers).is_some_and(|size| size as u64 > self.max_trailers) {
                return Poll::Ready(Some(Err(BodyError::Downstream(Box::new(TrailersTooLarge)))));
            }
            clean_trailers(trailers, true, self.keeps_underscores);
            if trailers.is_empty() {
                frame = None;
            }
        }
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        let bytes = data.map_or(0, Bytes::len);
        if let Some(pace) = &self.pace {
            pace.received(bytes, self.stream.progress.active.get());
        }
        self.stream.state.borrow_mut().bytes[Direction::Request as usize] += bytes as u64;
        if self.exceeds(incoming) { Poll::Ready(Some(Err(BodyError::TooLong))) } else { Poll::Ready(frame) }
    }

    fn request_ended(&self) {
        if self.stream.times.request_end.get().is_none() {
            self.stream.times.request_end.set(Some(Instant::now()));
            self.place.end();
            self.stream.progress.uploads.set(false);
            // The response timeout starts now; wake the task to set it.
            self.stream.wake();
        }
    }

    /// Records that reading from the client failed.
    #[cold]
    fn fail_by(&self, error: BodyError) -> BodyError {
        let failure = match error {
            BodyError::TooLong => LocalFailure::RequestBodyLimit,
            _ if error.is_given_up() => LocalFailure::ClientReset,
            _ => LocalFailure::BadBody,
        };
        self.fail(failure, error)
    }

    #[cold]
    fn fail(&self, failure: LocalFailure, error: BodyError) -> BodyError {
        if let BodyError::Downstream(source) = &error {
            self.stream.downstream_failed(format!("the request's body: {}", chain_of(&**source)));
        }
        self.failure.set(Some(failure));
        self.stream.wake();
        error
    }

    /// Returns the next part, read ahead or not.
    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<UploadFrame, BodyError>>> {
        let ahead = self.read_ahead.borrow_mut().pop();
        match ahead {
            Some(part) => Poll::Ready(part.map(Ok)),
            None => self.poll_source(cx),
        }
    }

    /// Returns the next part from the client, through the filters.
    fn poll_source(&self, cx: &mut Context<'_>) -> Poll<Option<Result<UploadFrame, BodyError>>> {
        let mut source = self.source.borrow_mut();
        if !self.filtered {
            let frame = ready!(self.poll_incoming(&mut source.incoming, cx));
            return Poll::Ready(match frame {
                None => {
                    self.request_ended();
                    None
                }
                Some(Err(e)) => Some(Err(self.fail_by(e))),
                Some(Ok(frame)) => Some(Ok(match frame.into_data() {
                    Ok(data) => {
                        if source.incoming.is_end_stream() {
                            self.request_ended();
                        }
                        UploadFrame::Data(data)
                    }
                    Err(frame) => {
                        self.request_ended();
                        UploadFrame::Trailers(frame.into_trailers().unwrap_or_default())
                    }
                })),
            });
        }
        loop {
            match source.flow.pop() {
                Some(Passed::Data(data)) => return Poll::Ready(Some(Ok(UploadFrame::Data(data)))),
                Some(Passed::Trailers(trailers)) => return Poll::Ready(Some(Ok(UploadFrame::Trailers(trailers)))),
                None if source.flow.has_ended() => return Poll::Ready(None),
                None => {}
            }
            ready!(self.poll_flow(&mut source, None, cx))?;
        }
    }
}

impl BodyFeed for &Upload {
    type Error = LocalFailure;

    fn poll_feed(&mut self, nth: usize, cx: &mut Context<'_>) -> Poll<Result<bool, LocalFailure>> {
        let mut source = self.source.borrow_mut();
        self.poll_flow(&mut source, Some(nth), cx).map_err(|_| self.failure.get().unwrap_or(LocalFailure::BadBody))
    }

    fn release(&mut self, nth: usize, until: Option<usize>) -> Result<(), LocalFailure> {
        let mut source = self.source.borrow_mut();
        source.flow.release(&self.stream, nth, until).map_err(LocalFailure::from)
    }
}

/// The body of one attempt.
struct UploadBody {
    upload: Rc<Upload>,
    /// Number of kept frames already replayed.
    at: usize,
    /// Bytes still expected, if the head announced a length.
    left: Option<u64>,
}

impl UploadBody {
    /// Checks a part, or the end, against the announced length.
    fn check(&mut self, sent: Option<UploadFrame>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let data = if let Some(UploadFrame::Data(data)) = &sent { data.len() as u64 } else { 0 };
        let ends = !matches!(sent, Some(UploadFrame::Data(_))) || self.is_end_stream();
        if let Some(left) = self.left {
            match left.checked_sub(data).filter(|left| *left == 0 || !ends) {
                None => return Poll::Ready(Some(Err(self.upload.fail(LocalFailure::FilterLength, BodyError::Length)))),
                left => self.left = left,
            }
        }
        Poll::Ready(sent.map(|sent| Ok(sent.frame())))
    }
}

impl http_body::Body for UploadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let upload = self.upload.clone();
        upload.begun.set(true);
        let earlier = upload.kept.borrow().frames.get(self.at).cloned();
        if let Some(sent) = earlier {
            self.at += 1;
            return self.check(Some(sent));
        }
        if upload.settled.get() {
            let mut kept = upload.kept.borrow_mut();
            (kept.lost, kept.frames) = (true, Vec::new());
        }
        if upload.ended.get() {
            return self.check(None);
        }
        let next = ready!(upload.poll_next(cx));
        if let Some(tee) = upload.tee.borrow_mut().as_mut() {
            match &next {
                Some(Ok(UploadFrame::Data(data))) => tee.send(data.clone()),
                None => tee.end(),
                _ => {}
            }
        }
        let Some(sent) = next.transpose()? else {
            upload.ended.set(true);
            return self.check(None);
        };
        if matches!(sent, UploadFrame::Trailers(_)) {
            upload.ended.set(true);
        }
        let mut kept = upload.kept.borrow_mut();
        if !kept.lost {
            kept.bytes += sent.weight();
            if kept.bytes > kept.limit {
                kept.lost = true;
                kept.frames = Vec::new();
            } else {
                kept.frames.push(sent.clone());
                self.at += 1;
            }
        }
        drop(kept);
        self.check(Some(sent))
    }

    fn is_end_stream(&self) -> bool {
        self.upload.ended.get() && self.at >= self.upload.kept.borrow().frames.len()
    }

    fn size_hint(&self) -> SizeHint {
        // The head carries the length, and the sender enforces it.
        SizeHint::default()
    }
}
