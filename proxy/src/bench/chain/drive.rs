//! Passes one request through a chain, as `exchange` does: the request's head and body, the route, the response's head and
//! body, or a local reply on its way back, and the end.
//!
//! Only the filters are measured here, so the rest of `exchange` (sockets, attempts, deadlines) is left out:
//! the upstream's response is available immediately, and nothing is awaited. If a filter holds a message until a timer fires or
//! a callout is answered, the request ends there and is counted as held.

use std::{
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use crate::chain::{
    Direction, LocalReply, ResponseHead, Route, SelectedRoute, Stream,
    body::{BodyAborted, BodyFlow},
    flow::{BodyFeed, HeadFlow, Outcome, failed_reply, interrupted},
    stream::StreamState,
};

/// The size of a body part, in bytes: as much as is read from a connection at a time.
const FRAME: usize = 64 << 10;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// With the upstream's response, which finally has this status.
    Response(u16),
    /// With a reply of a filter or of the proxy itself.
    Reply(u16),
    /// Without a response: a filter closed the stream.
    Closed,
    /// Not at all: the filter at this position of the chain holds the message.
    Held(usize),
}

/// The reason why a message did not get through.
enum Stop {
    /// This reply is sent instead; the number of filters that have seen the message.
    Reply(Box<LocalReply>, usize),
    Closed,
    Held(usize),
}

/// Settings that are the same for all requests.
pub(super) struct Driver {
    /// The maximum size of a body that a filter can buffer, in bytes.
    pub(super) buffered_body: usize,
    /// The route of requests that no filter has routed.
    pub(super) default_route: Option<Arc<Route>>,
    /// The trailers of bodies, if any.
    pub(super) trailers: Option<HeaderMap>,
}

impl Driver {
    /// Passes a request from the first filter to the end of its stream. `response` is the upstream's response, whose head is
    /// taken. It is a reference, because moving it would be part of the measured time.
    pub(super) fn run(&self, stream: &Rc<Stream>, body: &Bytes, response: (&mut ResponseHead, &Bytes)) -> Ending {
        let ending = match self.exchange(stream, body, response) {
            Ok(ending) => ending,
            Err(Stop::Reply(reply, _)) => Ending::Reply(reply.status.as_u16()),
            Err(Stop::Closed) => Ending::Closed,
            Err(Stop::Held(position)) => Ending::Held(position),
        };
        stream.end();
        ending
    }

    fn exchange(
        &self,
        stream: &Rc<Stream>,
        request_body: &Bytes,
        (head, body): (&mut ResponseHead, &Bytes),
    ) -> Result<Ending, Stop> {
        let head_only = stream.state.borrow().request.method == Method::HEAD;
        let (mut flow, mut reply) = match self.request(stream, request_body) {
            Ok(()) => {
                let StreamState { route, response, .. } = &mut *stream.state.borrow_mut();
                let head = response.insert(std::mem::take(head));
                if let Some(selected) = route {
                    selected.route.response_headers.apply(&mut head.fields);
                }
                (HeadFlow::new(stream, Direction::Response), None)
            }
            Err(Stop::Reply(reply, seen)) => {
                (HeadFlow::reply(stream, stream.chain.filters().len() - seen), Some(reply))
            }
            Err(stop) => return Err(stop),
        };
        let nothing = Bytes::new();
        // A filter that replies, or one that fails, replaces this response with another one.
        loop {
            let replied = reply.map(|reply| {
                let (head, body) = taken_apart(*reply);
                let status = head.status.as_u16();
                stream.state.borrow_mut().response = Some(head);
                (status, body)
            });
            let body = match &replied {
                _ if head_only => &nothing,
                Some((_, body)) => body,
                None => body,
            };
            let mut message = Message::new(self, stream, Direction::Response, flow, body);
            match message.head().and_then(|()| message.rest()) {
                Ok(()) => {
                    let status = stream.state.borrow().response.as_ref().map_or(0, |r| r.status.as_u16());
                    return Ok(replied.map_or(Ending::Response(status), |(status, _)| Ending::Reply(status)));
                }
                Err(Stop::Reply(another, seen)) => (flow, reply) = (HeadFlow::reply(stream, seen), Some(another)),
                Err(stop) => return Err(stop),
            }
        }
    }

    fn request(&self, stream: &Rc<Stream>, body: &Bytes) -> Result<(), Stop> {
        let flow = HeadFlow::new(stream, Direction::Request);
        let mut message = Message::new(self, stream, Direction::Request, flow, body);
        message.head()?;
        {
            let mut state = stream.state.borrow_mut();
            if state.route.is_none() {
                let Some(route) = &self.default_route else {
                    return Err(Stop::Reply(Box::new(empty(StatusCode::NOT_FOUND)), message.flow.seen()));
                };
                state.route = Some(SelectedRoute::new(route, 0, 0, 0));
            }
            let state = &mut *state;
            if let Some(selected) = &state.route {
                selected.route.rewrite(&mut state.request);
            }
        }
        message.rest()
    }
}

fn empty(status: StatusCode) -> LocalReply {
    LocalReply { status, ..LocalReply::default() }
}

fn taken_apart(reply: LocalReply) -> (ResponseHead, Bytes) {
    (ResponseHead { status: reply.status, fields: reply.fields }, reply.body)
}

/// A message that passes through the filters.
struct Message<'a> {
    stream: &'a Rc<Stream>,
    direction: Direction,
    flow: HeadFlow,
    /// `None` without a body.
    body: Option<MessageBody<'a>>,
}

/// The body of a message.
struct MessageBody<'a> {
    stream: &'a Rc<Stream>,
    direction: Direction,
    flow: BodyFlow,
    /// The part that no filter has received yet.
    left: Bytes,
    trailers: Option<HeaderMap>,
}

impl<'a> Message<'a> {
    fn new(driver: &Driver, stream: &'a Rc<Stream>, direction: Direction, flow: HeadFlow, whole: &Bytes) -> Self {
        let body = || MessageBody {
            stream,
            direction,
            flow: BodyFlow::new(stream, direction, driver.buffered_body).skipping(flow.passed()),
            left: whole.clone(),
            trailers: driver.trailers.clone(),
        };
        Message { stream, direction, body: (!whole.is_empty()).then(body), flow }
    }

    /// Passes the head through the filters, and feeds the body to a filter that holds the head and subscribes to the body.
    fn head(&mut self) -> Result<(), Stop> {
        let mut cx = Context::from_waker(Waker::noop());
        match self.flow.poll_with(self.stream, self.body.as_mut(), &mut cx) {
            Poll::Ready(Ok(outcome)) => self.outcome(outcome),
            Poll::Ready(Err(aborted)) => Err(self.stopped(aborted)),
            Poll::Pending => Err(self.held(self.flow.held_by().unwrap_or(0))),
        }
    }

    /// Passes body and trailers through the filters, if any of them subscribes to them.
    fn rest(&mut self) -> Result<(), Stop> {
        let Some(body) = self.body.as_mut().filter(|_| self.stream.chain.wants_body(self.direction)) else {
            return Ok(());
        };
        loop {
            match body.feed(None) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(aborted) => return Err(self.stopped(aborted)),
            }
            if let Some(outcome) = interrupted(self.stream) {
                return self.outcome(outcome);
            }
        }
        if let Err(aborted) = body.flow.resume(self.stream, None) {
            return Err(self.stopped(aborted));
        }
        if !body.flow.has_ended() {
            let state = self.stream.state.borrow();
            let position = state.filters.iter().position(|p| p.paused[self.direction as usize]);
            return Err(Stop::Held(position.unwrap_or(0)));
        }
        Ok(())
    }

    fn outcome(&self, outcome: Outcome) -> Result<(), Stop> {
        match outcome {
            Outcome::Done => Ok(()),
            Outcome::Reply(reply) => Err(Stop::Reply(Box::new(reply), self.flow.seen())),
            Outcome::Closed => Err(Stop::Closed),
        }
    }

    /// Returns the stop for a message held by the `nth` filter in this direction.
    fn held(&self, nth: usize) -> Stop {
        Stop::Held(match self.direction {
            Direction::Request => nth,
            Direction::Response => self.stream.chain.filters().len() - 1 - nth,
        })
    }

    fn stopped(&self, stopped: BodyAborted) -> Stop {
        let reply = match (stopped, self.direction) {
            (BodyAborted::FilterFailed, _) => failed_reply(),
            (BodyAborted::Crowded, _) => empty(StatusCode::SERVICE_UNAVAILABLE),
            (BodyAborted::TooLarge, Direction::Request) => empty(StatusCode::PAYLOAD_TOO_LARGE),
            (BodyAborted::TooLarge, Direction::Response) => empty(StatusCode::INTERNAL_SERVER_ERROR),
        };
        Stop::Reply(Box::new(reply), self.flow.seen())
    }
}

impl MessageBody<'_> {
    /// Passes the next part to the filters, up to the one that holds the head. Returns whether that filter releases the head, or
    /// `None` if no part is left.
    fn feed(&mut self, until: Option<usize>) -> Result<Option<bool>, BodyAborted> {
        let released = if !self.left.is_empty() {
            let data = self.left.split_to(self.left.len().min(FRAME));
            let end = self.left.is_empty() && self.trailers.is_none();
            self.stream.state.borrow_mut().bytes[self.direction as usize] += data.len() as u64;
            self.flow.data(self.stream, data, end, until)?
        } else if let Some(trailers) = self.trailers.take() {
            self.flow.trailers(self.stream, trailers, until)?
        } else {
            return Ok(None);
        };
        while self.flow.pop().is_some() {}
        Ok(Some(released))
    }
}

impl BodyFeed for MessageBody<'_> {
    type Error = BodyAborted;

    fn poll_feed(&mut self, nth: usize, _: &mut Context<'_>) -> Poll<Result<bool, BodyAborted>> {
        self.feed(Some(nth)).transpose().map_or(Poll::Pending, Poll::Ready)
    }

    fn release(&mut self, nth: usize, until: Option<usize>) -> Result<(), BodyAborted> {
        self.flow.release(self.stream, nth, until)
    }
}
