//! Forwarding of a response to the client: through the filters, within its deadlines.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use tollgate_abi::fast::flag;

use super::{
    ListenerContext, Tunnel,
    deadline::{Deadline, DeadlineKind},
    grpc,
    outcome::{ResponseGuards, ServedResponse, StreamClosed, UpstreamBody, UpstreamResponse, closed, is_bodiless},
    reply::LocalFailure,
    stream_guard::StreamGuard,
};
use crate::{
    chain::{
        Direction, LocalReply, ResponseHead, Stream,
        body::{BodyAborted, BodyFlow, FilteredFrame as Passed},
        flow::{BodyFeed, HeadFlow, Outcome, interrupted, is_interrupted},
    },
    h1::violation::length,
    http::{
        body::{Body, BodyError},
        fields::{Present, add_via, clean_trailers, remove_hop_by_hop},
    },
    upstream::{Download, PooledBody, Upgrading, UpstreamBodyError},
};

/// The source of a response's body.
struct ResponseSource {
    origin: Origin,
    /// Whether everything was read.
    drained: bool,
}

enum Origin {
    Upstream(PooledBody),
    Local(Option<Bytes>),
}

impl ResponseSource {
    fn new(origin: Origin) -> ResponseSource {
        let mut source = ResponseSource { origin, drained: false };
        source.drained = source.is_end();
        source
    }

    fn is_end(&self) -> bool {
        match &self.origin {
            Origin::Upstream(body) => body.is_end_stream(),
            Origin::Local(data) => data.is_none(),
        }
    }

    /// Returns the total length, if known.
    fn length(&self) -> Option<u64> {
        match &self.origin {
            Origin::Upstream(body) => body.size_hint().exact(),
            Origin::Local(data) => Some(data.as_ref().map_or(0, |data| data.len() as u64)),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match &mut self.origin {
            Origin::Upstream(body) => {
                let mut frame = ready!(Pin::new(body).poll_frame(cx));
                if let Some(Ok(part)) = &mut frame
                    && let Some(trailers) = part.trailers_mut()
                {
                    clean_trailers(trailers, false, true);
                    if trailers.is_empty() {
                        frame = None;
                    }
                }
                frame.map(|frame| frame.map_err(BodyError::Upstream))
            }
            Origin::Local(data) => data.take().map(|data| Ok(Frame::data(data))),
        };
        self.drained = !matches!(&frame, Some(Ok(f)) if f.is_data()) || self.is_end();
        Poll::Ready(frame)
    }

    /// Records that a part of the body has just arrived.
    fn moved(&self, stream: &Stream) {
        stream.touch();
        if self.drained && matches!(self.origin, Origin::Upstream(_)) {
            stream.times.response_end.set(Some(stream.progress.active.get()));
        }
    }
}

/// Forwards an upstream's response.
pub(super) async fn from_upstream(
    listener: &Rc<ListenerContext>,
    stream_guard: StreamGuard,
    from: UpstreamResponse,
    head_only: bool,
) -> Result<ServedResponse, StreamClosed> {
    let UpstreamResponse { parts, body, deadline, guards } = from;
    let received = parts.version;
    let stream = stream_guard.stream().clone();
    let mut head = ResponseHead { status: parts.status, fields: parts.headers };
    let present = Present::of(&head.fields);
    remove_hop_by_hop(&mut head.fields, present);
    if let Some(selected) = &stream.state.borrow().route {
        selected.route.response_headers.apply(&mut head.fields);
    }
    let (origin, switched) = match body {
        UpstreamBody::Body(body) => (Origin::Upstream(body), None),
        UpstreamBody::Switched(upstream) => (Origin::Local(None), Some(upstream)),
    };
    let source = ResponseSource::new(origin);
    if source.drained {
        stream.times.response_end.set(stream.times.response_start.get());
    }
    let (deadline, guards) = (Some(deadline), Some(guards));
    let pending = PendingResponse { listener, stream_guard, head_only, received, switched, deadline, guards };
    pending.send(head, source, HeadFlow::new(&stream, Direction::Response)).await
}

/// Sends a local reply of the proxy or a filter. The `seen` filters that have seen the request also see its response.
pub(super) async fn local(
    listener: &Rc<ListenerContext>,
    stream_guard: StreamGuard,
    reply: LocalReply,
    seen: usize,
    head_only: bool,
) -> Result<ServedResponse, StreamClosed> {
    let stream = stream_guard.stream().clone();
    let skip = stream.chain.filters().len() - seen.min(stream.chain.filters().len());
    let (head, source) = taken_apart(&stream, reply);
    let deadline = Some(Deadline::idle(listener, &stream));
    let pending = PendingResponse {
        listener,
        stream_guard,
        head_only,
        received: Version::HTTP_11,
        switched: None,
        deadline,
        guards: None,
    };
    pending.send(head, source, HeadFlow::reply(&stream, skip)).await
}

fn taken_apart(stream: &Stream, reply: LocalReply) -> (ResponseHead, ResponseSource) {
    let LocalReply { status, details, mut fields, body, grpc_status } = reply;
    {
        let mut state = stream.state.borrow_mut();
        state.details = details;
        // Apply the route's response headers: without them (CORS) a browser reports a different error. The response is
        // new, so no header is duplicated.
        if let Some(selected) = &state.route {
            selected.route.response_headers.apply(&mut fields);
        }
    }
    if stream.grpc.get().is_some() {
        return (grpc::local(status, grpc_status, fields, &body), ResponseSource::new(Origin::Local(None)));
    }
    if !is_bodiless(status, false) {
        fields.insert(header::CONTENT_LENGTH, body.len().into());
    }
    (ResponseHead { status, fields }, ResponseSource::new(Origin::Local((!body.is_empty()).then_some(body))))
}

/// A response that is about to be sent.
struct PendingResponse<'s> {
    listener: &'s Rc<ListenerContext>,
    stream_guard: StreamGuard,
    head_only: bool,
    /// The HTTP version that the response was received in.
    received: Version,
    /// The upgraded upstream connection, if the protocol is switched.
    switched: Option<Upgrading>,
    deadline: Option<Deadline>,
    guards: Option<ResponseGuards>,
}

impl PendingResponse<'_> {
    async fn send(
        mut self,
        mut head: ResponseHead,
        mut source: ResponseSource,
        mut flow: HeadFlow,
    ) -> Result<ServedResponse, StreamClosed> {
        let stream = self.stream_guard.stream().clone();
        let limit = self.listener.buffered_body;
        let body_past = |flow: &HeadFlow| BodyFlow::new(&stream, Direction::Response, limit).skipping(flow.passed());
        let mut body_flow = body_past(&flow);
        // A filter that replies instead, or that fails, replaces this response.
        let had_body = loop {
            let bodiless = is_bodiless(head.status, self.head_only) || source.drained;
            stream.state.borrow_mut().response = Some(head);
            if let Some(reply) = self.past_filters(&stream, &mut flow, &mut body_flow, &mut source, bodiless).await? {
                (self.guards, self.switched) = (None, None);
                self.deadline = Some(Deadline::idle(self.listener, &stream));
                flow = HeadFlow::reply(&stream, flow.seen());
                body_flow = body_past(&flow);
                (head, source) = taken_apart(&stream, reply);
                continue;
            }
            break !bodiless;
        };
        let (status, mut fields) = {
            let mut state = stream.state.borrow_mut();
            let eventual = std::mem::take(&mut state.eventual);
            // Keep the filters' version if the access log or a filter needs it.
            let response = state.response.get_or_insert_default();
            eventual.into_iter().for_each(|(name, value)| {
                response.fields.append(name, value);
            });
            let log = self.listener.access_log.as_ref();
            let wanted = stream.chain.looks_back() || log.is_some_and(|log| log.format().response_headers());
            let fields = if wanted { response.fields.clone() } else { std::mem::take(&mut response.fields) };
            (response.status, fields)
        };
        let without_body = self.head_only || status == StatusCode::NOT_MODIFIED;
        if without_body && stream.sees_body(Direction::Response) {
            // The length would be that of the response with a body (RFC 9110 section 8.6), which filters might have
            // changed.
            fields.remove(header::CONTENT_LENGTH);
        }
        grpc::note(&stream, &fields);
        add_via(&mut fields, self.listener.via.of(self.received));
        advertise(self.listener, &stream, &mut fields);
        if let Some(upstream) = self.switched
            && let Some(guards) = self.guards.take()
        {
            let mut response = Response::new(Body::Empty);
            (*response.status_mut(), *response.headers_mut()) = (status, fields);
            let idle = self.deadline.as_ref().and_then(Deadline::idle_timeout);
            let tunnel = Tunnel {
                upstream,
                stream_guard: self.stream_guard,
                idle,
                ends: self.deadline.as_ref().and_then(Deadline::oldest),
                guards,
            };
            return Ok(ServedResponse { response, tunnel: Some(tunnel) });
        }
        let bodiless = is_bodiless(status, self.head_only);
        let body = ResponseBody {
            first: None,
            promised: None,
            sent: 0,
            filtered: !bodiless && had_body && stream.chain.wants_body(Direction::Response),
            flow: body_flow,
            source,
            deadline: self.deadline,
            guards: self.guards,
            stream_guard: self.stream_guard,
            over: false,
            held: None,
            passed: None,
        };
        let response = body.into_response(status, fields, bodiless).await?;
        Ok(ServedResponse { response, tunnel: None })
    }

    /// Passes the head through the filters. Returns a local reply if one replaces this response.
    async fn past_filters(
        &mut self,
        stream: &Rc<Stream>,
        flow: &mut HeadFlow,
        body: &mut BodyFlow,
        source: &mut ResponseSource,
        bodiless: bool,
    ) -> Result<Option<LocalReply>, StreamClosed> {
        let mut feed = ResponseFeed { stream, source, flow: body };
        let outcome = poll_fn(|cx| {
            match flow.poll_with(stream, (!bodiless).then_some(&mut feed), cx) {
                Poll::Ready(Ok(outcome)) => return Poll::Ready(Ok(outcome)),
                Poll::Ready(Err(BodyError::Filter(e))) => return Poll::Ready(Err(response_fault(e))),
                Poll::Ready(Err(error)) => {
                    note_broken(stream, self.guards.as_ref(), &error);
                    return Poll::Ready(Err(LocalFailure::Reset));
                }
                Poll::Pending => {}
            }
            let passed = self.deadline.as_mut().map_or(Poll::Pending, |d| d.poll(cx));
            if passed.is_ready() && !bodiless {
                flow.stalled(stream);
            }
            match passed {
                Poll::Ready(passed) if self.guards.is_some() => Poll::Ready(Err(passed.failure(false))),
                // Another local reply would be held as well.
                Poll::Ready(_) => {
                    stream.flag(flag::IDLE_TIMEOUT);
                    Poll::Ready(Ok(Outcome::Closed))
                }
                Poll::Pending => Poll::Pending,
            }
        });
        match outcome.await {
            Ok(Outcome::Done) => Ok(None),
            Ok(Outcome::Reply(reply)) => Ok(Some(reply)),
            Ok(Outcome::Closed) => Err(closed(stream)),
            Err(failure) => Ok(Some(failure.reply(stream))),
        }
    }
}

/// Advertises HTTP/3 to a client that could use it, unless `Alt-Svc` is already set.
fn advertise(listener: &ListenerContext, stream: &Stream, fields: &mut http::HeaderMap) {
    if let Some(alt_svc) = &listener.alt_svc
        && stream.connection.tls.is_some()
        && stream.version != Version::HTTP_3
    {
        fields.entry(header::ALT_SVC).or_insert_with(|| alt_svc.clone());
    }
}

/// Records why an upstream's response ended early, if the upstream caused it.
fn note_broken(stream: &Stream, guards: Option<&ResponseGuards>, error: &BodyError) {
    if let (BodyError::Upstream(error), Some(guards)) = (error, guards) {
        let bytes = stream.state.borrow().bytes[Direction::Response as usize];
        guards.broken(stream, error, bytes);
    }
}

fn response_fault(stopped: BodyAborted) -> LocalFailure {
    match stopped {
        BodyAborted::TooLarge => LocalFailure::ResponseTooLarge,
        BodyAborted::Crowded => LocalFailure::HeldBodies,
        BodyAborted::FilterFailed => LocalFailure::FilterFailed,
    }
}

/// A response's body, for a filter that holds the head.
struct ResponseFeed<'a> {
    stream: &'a Rc<Stream>,
    source: &'a mut ResponseSource,
    flow: &'a mut BodyFlow,
}

impl BodyFeed for ResponseFeed<'_> {
    type Error = BodyError;

    fn poll_feed(&mut self, nth: usize, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        // The end has passed: no part is left that could change the filter's mind.
        if self.flow.has_ended() {
            return Poll::Pending;
        }
        poll_into(self.stream, self.source, self.flow, Some(nth), cx)
    }

    fn release(&mut self, nth: usize, until: Option<usize>) -> Result<(), BodyError> {
        self.flow.release(self.stream, nth, until).map_err(BodyError::from)
    }
}

/// Moves one part of a body into the filters. Returns whether the filter that holds the head lets it go.
fn poll_into(
    stream: &Rc<Stream>,
    source: &mut ResponseSource,
    flow: &mut BodyFlow,
    until: Option<usize>,
    cx: &mut Context<'_>,
) -> Poll<Result<bool, BodyError>> {
    flow.resume(stream, until)?;
    if flow.has_ended() || (until.is_none() && flow.is_ready()) {
        return Poll::Ready(Ok(false));
    }
    if source.drained {
        // A filter holds the end of the body.
        stream.register(Direction::Response, cx);
        return Poll::Pending;
    }
    let frame = match source.poll_frame(cx) {
        Poll::Pending => {
            stream.register(Direction::Response, cx);
            return Poll::Pending;
        }
        Poll::Ready(frame) => frame,
    };
    source.moved(stream);
    Poll::Ready(match frame {
        None => flow.data(stream, Bytes::new(), true, until).map_err(BodyError::from),
        Some(frame) => match frame?.into_data() {
            Ok(data) => flow.data(stream, data, source.drained, until).map_err(BodyError::from),
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                flow.trailers(stream, trailers, until).map_err(BodyError::from)
            }
        },
    })
}

/// A response's body.
struct ResponseBody {
    /// A part that arrived before the head was sent.
    first: Option<Result<Frame<Bytes>, BodyError>>,
    source: ResponseSource,
    flow: BodyFlow,
    filtered: bool,
    /// The length announced in the head.
    promised: Option<u64>,
    sent: u64,
    deadline: Option<Deadline>,
    guards: Option<ResponseGuards>,
    over: bool,
    /// A guard that allows this response to be evicted if its client does not read it.
    held: Option<Download>,
    /// The timeout that expired.
    passed: Option<DeadlineKind>,
    stream_guard: StreamGuard,
}

impl ResponseBody {
    async fn into_response(
        mut self,
        status: StatusCode,
        mut fields: http::HeaderMap,
        bodiless: bool,
    ) -> Result<Response<Body>, StreamClosed> {
        if self.filtered && fields.contains_key(header::CONTENT_LENGTH) {
            // Wait for the first part, so that the head announces the correct length.
            match poll_fn(|cx| self.poll_prime(cx)).await {
                Some(Outcome::Closed) => return Err(closed(self.stream_guard.stream())),
                // Nothing has been sent yet, but the filters can no longer see another head.
                Some(Outcome::Reply(reply)) => return Ok(self.replaced(reply)),
                Some(Outcome::Done) | None => {}
            }
            let (length_in, length_out) = self.flow.lengths();
            let stream = self.stream_guard.stream();
            // Over HTTP/1.1 a body with a length has no trailers.
            let trailers = match self.flow.has_ended() {
                true => self.flow.has_trailers(),
                false => fields.contains_key(header::TRAILER),
            };
            if self.flow.has_ended() && !trailers {
                fields.insert(header::CONTENT_LENGTH, length_out.into());
            } else if trailers || length_in != length_out || stream.changes_body(Direction::Response) {
                fields.remove(header::CONTENT_LENGTH);
            }
        }
        if !bodiless && !self.stream_guard.stream().chain.filters().is_empty() {
            let announced = fields.get(header::CONTENT_LENGTH).and_then(|announced| length(announced.as_bytes()).ok());
            // The length announced by an upstream is checked as its body is read.
            self.promised = announced.filter(|announced| self.filtered || self.source.length() != Some(*announced));
        }
        self.stream_guard.set_due(self.deadline.as_ref());
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        let over = bodiless || (!self.filtered && self.source.drained) || self.flow.is_over();
        // A body that falls short of the length announced by a filter is aborted, even if it is empty.
        if over && self.promised.is_none_or(|promised| promised == 0) {
            self.stream_guard.complete();
            // An upstream's body that is not sent is not read further: its connection is closed, unless the body has
            // ended.
            return Ok(response);
        }
        // Take what arrived with the head: if that is everything, no state needs to be kept until it is sent.
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut self).poll_frame(cx))).await;
        *response.body_mut() = match first {
            Poll::Ready(Some(Ok(frame))) if self.is_end_stream() && frame.is_data() => {
                frame.into_data().map_or(Body::Empty, Body::full)
            }
            Poll::Ready(None) => Body::Empty,
            first => {
                if let Poll::Ready(first) = first {
                    self.first = first;
                }
                poll_fn(|cx| {
                    self.hold(cx);
                    Poll::Ready(())
                })
                .await;
                Body::stream(self)
            }
        };
        Ok(response)
    }

    /// Makes this response evictable while it waits for its client. Called by the task that sends it.
    fn hold(&mut self, cx: &Context<'_>) {
        let Some(guards) = self.guards.as_ref().filter(|_| !self.source.drained) else { return };
        let stream = self.stream_guard.stream();
        stream.progress.sender.set(Some(cx.waker().clone()));
        stream.progress.waits_since.set(self.first.is_some().then(|| stream.progress.active.get()));
        let (client, receiver) = (stream.client.ip(), stream.progress.clone());
        self.held = Some(self.stream_guard.listener().pools.download(guards.cluster(), client, receiver));
    }

    /// Replaces this response with another one.
    fn replaced(mut self, reply: LocalReply) -> Response<Body> {
        let (head, source) = taken_apart(self.stream_guard.stream(), reply);
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.fields.clone();
        grpc::note(self.stream_guard.stream(), &head.fields);
        add_via(response.headers_mut(), self.stream_guard.listener().via.of(Version::HTTP_11));
        advertise(self.stream_guard.listener(), self.stream_guard.stream(), response.headers_mut());
        self.stream_guard.stream().state.borrow_mut().response = Some(head);
        (self.source, self.filtered, self.promised) = (source, false, None);
        (self.deadline, self.guards) = (None, None);
        match self.source.drained {
            true => self.stream_guard.complete(),
            false => *response.body_mut() = Body::stream(self),
        }
        response
    }

    /// Ready when something has passed the filters, when nothing more will, or when a filter ends the response.
    fn poll_prime(&mut self, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        loop {
            if let Some(outcome) = interrupted(self.stream_guard.stream()) {
                return Poll::Ready(Some(outcome));
            }
            if self.flow.is_ready() || self.flow.has_ended() {
                return Poll::Ready(None);
            }
            match poll_into(self.stream_guard.stream(), &mut self.source, &mut self.flow, None, cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(BodyError::Filter(e))) => {
                    return Poll::Ready(Some(Outcome::Reply(response_fault(e).reply(self.stream_guard.stream()))));
                }
                Poll::Ready(Err(error)) => {
                    note_broken(self.stream_guard.stream(), self.guards.as_ref(), &error);
                    return Poll::Ready(Some(Outcome::Reply(LocalFailure::Reset.reply(self.stream_guard.stream()))));
                }
                Poll::Pending => {
                    let passed = self.deadline.as_mut().map_or(Poll::Pending, |d| d.poll(cx));
                    let reply = |passed: DeadlineKind| passed.failure(false).reply(self.stream_guard.stream());
                    return passed.map(|passed| Some(Outcome::Reply(reply(passed))));
                }
            }
        }
    }

    fn poll_through(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let stream = self.stream_guard.stream();
        if !self.filtered {
            // A filter without interest in bodies may still end the stream, for example from a timer.
            let watched = !stream.chain.filters().is_empty();
            if watched && is_interrupted(stream) {
                return Poll::Ready(Some(Err(BodyError::Closed)));
            }
            let frame = self.source.poll_frame(cx);
            if watched && frame.is_pending() {
                stream.register(Direction::Response, cx);
            }
            let frame = ready!(frame);
            self.source.moved(stream);
            return Poll::Ready(frame);
        }
        loop {
            // The head has been sent, so a filter can only abort the response.
            if is_interrupted(self.stream_guard.stream()) {
                return Poll::Ready(Some(Err(BodyError::Closed)));
            }
            match self.flow.pop() {
                Some(Passed::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Passed::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                None if self.flow.has_ended() => return Poll::Ready(None),
                None => {}
            }
            ready!(poll_into(self.stream_guard.stream(), &mut self.source, &mut self.flow, None, cx))?;
        }
    }

    #[cold]
    fn fail(&mut self, error: &BodyError) {
        self.over = true;
        let stream = self.stream_guard.stream();
        note_broken(stream, self.guards.as_ref(), error);
        let failure = match error {
            BodyError::Timeout => self.passed.map_or(LocalFailure::Idle, |bound| bound.failure(false)),
            BodyError::Filter(stopped) => response_fault(*stopped),
            BodyError::Length => LocalFailure::FilterLength,
            BodyError::Closed if stream.state.borrow().flags & flag::FILTER_FAILED != 0 => LocalFailure::FilterFailed,
            BodyError::Closed => LocalFailure::FilterClosed,
            BodyError::Upstream(UpstreamBodyError::Malformed(_) | UpstreamBodyError::TooLong(_)) => {
                LocalFailure::Protocol
            }
            _ => LocalFailure::Reset,
        };
        stream.flag(failure.flags());
        stream.state.borrow_mut().details = failure.details().into();
        grpc::note_cut(stream, error);
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let me = self.get_mut();
        if let Some(first) = me.first.take() {
            return Poll::Ready(Some(first));
        }
        if me.over {
            return Poll::Ready(None);
        }
        if me.held.is_some() {
            // The client has taken everything so far.
            me.stream_guard.stream().progress.waits_since.set(None);
        }
        let frame = me.poll_through(cx);
        let passed = match (&frame, &mut me.deadline) {
            (_, None) => None,
            (Poll::Pending, Some(deadline)) => match deadline.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(passed) => Some(passed),
            },
            // A part from an upstream that arrived too late is discarded. Its arrival time was recorded just now.
            (Poll::Ready(Some(Ok(frame))), Some(deadline)) if me.guards.is_some() && frame.is_data() => {
                deadline.passed(me.stream_guard.stream().progress.active.get())
            }
            (Poll::Ready(_), Some(_)) => None,
        };
        let frame = match (frame, passed) {
            (_, Some(passed)) => {
                me.passed = Some(passed);
                if let Some(trailers) = grpc::exceeded(me.stream_guard.stream()) {
                    // A client would take a reset for a fault of the proxy or the upstream.
                    me.fail(&BodyError::Timeout);
                    grpc::note(me.stream_guard.stream(), &trailers);
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Some(Err(BodyError::Timeout))
            }
            (Poll::Ready(frame), None) => frame,
            (Poll::Pending, None) => return Poll::Pending,
        };
        if me.held.is_some() {
            if me.source.drained {
                me.held = None;
            } else {
                let progress = &me.stream_guard.stream().progress;
                progress.waits_since.set(Some(progress.active.get()));
            }
        }
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    me.sent += data.len() as u64;
                    me.stream_guard.stream().state.borrow_mut().bytes[Direction::Response as usize] +=
                        data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    grpc::note(me.stream_guard.stream(), trailers);
                    if let Some(guards) = &me.guards {
                        grpc::ended(me.stream_guard.stream(), guards, trailers);
                    }
                }
                // The last part is always recognised as such.
                let is_wrong = |promised| me.sent > promised || (me.sent < promised && me.is_end_stream());
                if me.promised.is_some_and(is_wrong) {
                    me.fail(&BodyError::Length);
                    return Poll::Ready(Some(Err(BodyError::Length)));
                }
                // An HTTP/1.1 client that has the announced length may leave before the upstream reports the end.
                if me.is_end_stream() || (!me.filtered && me.source.length() == Some(0)) {
                    me.stream_guard.complete();
                }
            }
            Some(Err(error)) => me.fail(error),
            None if me.promised.is_some_and(|promised| me.sent != promised) => {
                me.fail(&BodyError::Length);
                return Poll::Ready(Some(Err(BodyError::Length)));
            }
            None => {
                me.over = true;
                me.stream_guard.complete();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        if self.first.is_some() {
            return false;
        }
        self.over || if self.filtered { self.flow.is_over() } else { self.source.drained }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source.origin, &self.first) {
            (Origin::Upstream(body), None) if !self.filtered => body.size_hint(),
            // With trailers the length must not be announced: over HTTP/1.1 they require chunked encoding.
            (Origin::Upstream(body), Some(Ok(first))) if !self.filtered && first.is_data() => {
                let first = first.data_ref().map_or(0, Bytes::len) as u64;
                body.size_hint().exact().map_or(SizeHint::default(), |left| SizeHint::with_exact(left + first))
            }
            _ => SizeHint::default(),
        }
    }
}
