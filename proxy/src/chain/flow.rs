//! Moves a message's head past the filters of a chain.
//!
//! It is polled rather than awaited: while a filter pauses it, it is pending until the stream is resumed, and the same
//! task continues with its other work.

use std::{
    rc::Rc,
    task::{Context, Poll, ready},
};

use http::StatusCode;
use tollgate_abi::fast::flag;

use super::{
    Action, Direction, HeadersPause, LocalReply, OnFailure, Stream, body_bit, headers_bit, stream::StreamState,
};
use crate::observe::detail;

/// The progress of a head.
#[derive(Debug)]
pub struct HeadFlow {
    direction: Direction,
    /// How many filters it has passed.
    passed: usize,
    /// The next filter holds it.
    paused: bool,
    /// How many filters process it in total.
    last: usize,
}

/// The body of a message whose head is on its way, for a filter that holds the head and subscribes to the body.
pub trait BodyFeed {
    /// Why the body cannot be fed.
    type Error;

    /// Passes the next part to filter `nth`, which holds the head. Returns whether that filter releases the head.
    fn poll_feed(&mut self, nth: usize, cx: &mut Context<'_>) -> Poll<Result<bool, Self::Error>>;

    /// Releases the parts of the body that filter `nth` holds, after it has released the head. They go as far as filter
    /// `until`, if one holds the head now.
    fn release(&mut self, nth: usize, until: Option<usize>) -> Result<(), Self::Error>;
}

/// How a head's way through the chain ended.
#[derive(Debug)]
pub enum Outcome {
    /// It has passed all filters.
    Done,
    /// A filter sent a local reply, or failed with the policy to deny. For a request, `passed` filters have seen it.
    Reply(LocalReply),
    /// A filter ended the stream without a response.
    Closed,
}

/// The response to a request whose filter has failed.
pub fn failed_reply() -> LocalReply {
    LocalReply {
        status: StatusCode::SERVICE_UNAVAILABLE,
        details: detail::FILTER_FAILED.into(),
        ..LocalReply::default()
    }
}

impl HeadFlow {
    /// Starts a head's way through the whole chain.
    pub fn new(stream: &Stream, direction: Direction) -> HeadFlow {
        HeadFlow { direction, passed: 0, paused: false, last: stream.chain.filters().len() }
    }

    /// Starts a local reply's way back through the filters that have seen the request, except the first `skip`, counted
    /// from the upstream's end.
    pub fn reply(stream: &Stream, skip: usize) -> HeadFlow {
        HeadFlow { passed: skip, ..HeadFlow::new(stream, Direction::Response) }
    }

    /// How many filters the head has passed.
    pub fn passed(&self) -> usize {
        self.passed
    }

    /// How many filters the head has passed or is held by.
    pub fn seen(&self) -> usize {
        (self.passed + 1).min(self.last)
    }

    /// The filter that holds the head, if any: its number in this direction.
    pub fn held_by(&self) -> Option<usize> {
        self.paused.then_some(self.passed)
    }

    /// Whether the filter that holds the head receives the body meanwhile.
    pub fn feeds_body(&self, stream: &Stream) -> bool {
        let filter = || stream.filter(stream.chain.position(self.direction, self.passed));
        self.paused && filter().headers_pause() == HeadersPause::HoldHeaders && stream.chain.wants_body(self.direction)
    }

    /// Notifies the filter that held the head until the timeout, if it subscribes to a body and received none of it.
    pub fn stalled(&self, stream: &Stream) {
        let filter = stream.filter(stream.chain.position(self.direction, self.passed));
        let wants_body = filter.phases() & body_bit(self.direction) != 0;
        if wants_body && filter.headers_pause() == HeadersPause::StopAll {
            filter.on_stall(self.direction);
        }
    }

    /// Notes that a request has reached the filters that it has passed, if these had no callback.
    fn reach(&self, state: &mut StreamState) {
        if self.direction == Direction::Request {
            state.reached = self.passed;
        }
    }

    /// Releases the head from the filter that holds it.
    fn release(&mut self) {
        self.passed += 1;
        self.paused = false;
    }

    /// Proceeds as far as filters allow, and feeds the body to a filter that holds the head and subscribes to the body. `body`:
    /// `None` if no body follows.
    pub fn poll_with<B: BodyFeed>(
        &mut self,
        stream: &Rc<Stream>,
        body: Option<&mut B>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Outcome, B::Error>> {
        let Some(body) = body else { return self.poll(stream, true, cx).map(Ok) };
        loop {
            let held = self.held_by();
            let progress = self.poll(stream, false, cx);
            if let Some(nth) = held
                && self.held_by() != held
            {
                body.release(nth, self.held_by())?;
            }
            if let Poll::Ready(outcome) = progress {
                return Poll::Ready(Ok(outcome));
            }
            let Some(nth) = self.held_by().filter(|_| self.feeds_body(stream)) else { return Poll::Pending };
            if ready!(body.poll_feed(nth, cx))? {
                self.release();
                body.release(nth, None)?;
            }
        }
    }

    /// Proceeds as far as filters allow. `end`: no body follows.
    pub fn poll(&mut self, stream: &Rc<Stream>, end: bool, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            let mut state = stream.state.borrow_mut();
            if let Some(outcome) = taken(&mut state) {
                return Poll::Ready(outcome);
            }
            if self.passed == self.last || !stream.chain.wants_head(self.direction) {
                self.passed = self.last;
                self.reach(&mut state);
                return Poll::Ready(Outcome::Done);
            }
            let position = stream.chain.position(self.direction, self.passed);
            let filter = stream.chain.table().get(position, &state.choices);
            let p = &mut state.filters[position];
            if self.paused {
                if !std::mem::take(&mut p.resumed[self.direction as usize]) && !p.gone {
                    drop(state);
                    stream.register(self.direction, cx);
                    return Poll::Pending;
                }
                p.paused[self.direction as usize] = false;
                drop(state);
                self.release();
                continue;
            }
            if filter.phases() & headers_bit(self.direction) == 0 {
                self.passed += 1;
                self.reach(&mut state);
                continue;
            }
            if p.gone {
                drop(state);
                if let (_, true) = stream.gone(position) {
                    return Poll::Ready(Outcome::Reply(failed_reply()));
                }
                self.passed += 1;
                self.reach(&mut stream.state.borrow_mut());
                continue;
            }
            p.begin(self.direction as usize);
            drop(state);
            match filter.on_headers(self.direction, stream, position, end) {
                Action::Continue | Action::Failed(OnFailure::Bypass) => self.passed += 1,
                Action::Pause => {
                    stream.state.borrow_mut().filters[position].paused[self.direction as usize] = true;
                    self.paused = true;
                }
                Action::Failed(OnFailure::Deny) => {
                    stream.flag(flag::FILTER_FAILED);
                    return Poll::Ready(Outcome::Reply(failed_reply()));
                }
            }
        }
    }
}

/// Whether [`interrupted`] would return an outcome; does not take it.
pub fn is_interrupted(stream: &Stream) -> bool {
    let state = stream.state.borrow();
    state.closed || state.reply.is_some()
}

/// Takes the outcome if a filter (in a callback, timer or callout) has interrupted the stream with a reply or by
/// closing it.
pub fn interrupted(stream: &Stream) -> Option<Outcome> {
    taken(&mut stream.state.borrow_mut())
}

fn taken(state: &mut StreamState) -> Option<Outcome> {
    if state.closed {
        return Some(Outcome::Closed);
    }
    let (reply, flag) = state.reply.take()?;
    // The flag is set only now: a reply that comes too late has no effect.
    state.flags |= flag;
    Some(Outcome::Reply(reply))
}
