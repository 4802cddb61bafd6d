//! The filter chain: which filters see a stream (a request and its response), in which order, and what their answers do.
//! It knows nothing of WebAssembly: a filter is anything that implements [`Filter`].
//!
//! The request goes through the filters in order, the response in the reverse order; [`stream`] holds what they work on,
//! [`flow`] moves heads, bodies and trailers past them.

pub mod body;
pub mod charge;
pub mod flow;
pub mod head;
pub mod interim;
pub mod limits;
pub mod network;
pub mod route;
pub mod stored;
pub mod stream;

use std::rc::Rc;

use tollgate_abi::fast::phase;

pub use self::{
    head::{Headers, RequestHead, ResponseHead},
    route::{Route, SelectedRoute},
    stream::{LocalReply, Stream},
};

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the upstream.
    Request = 0,
    /// From the upstream to the client.
    Response = 1,
}

/// What a filter answers to a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The message goes on.
    Continue,
    /// It is held until the filter resumes the stream.
    Pause,
    /// The filter could not answer (trap, time, memory, no instance); its policy decides.
    Failed(OnFailure),
}

pub use crate::config::model::{HeadersPause, OnFailure};

/// A filter, as one worker has it.
///
/// Everything a filter does to a stream it does to the [`Stream`] itself, at `position`; the action only says how to go on.
pub trait Filter {
    /// Its name.
    fn name(&self) -> &str;
    /// The callbacks it wants, as bits of [`phase`].
    fn phases(&self) -> u32;
    /// What it means by pausing in the header phase.
    fn headers_pause(&self) -> HeadersPause;
    /// Whether it has asked for the bodies that go this way, and so may well change them. A filter of the standard never
    /// asks; one that changes a body's length is known to change `content-length` itself.
    fn changes_body(&self, direction: Direction) -> bool;
    /// The message's head is in the stream. `end`: no body follows.
    fn on_headers(&self, direction: Direction, stream: &Rc<Stream>, position: usize, end: bool) -> Action;
    /// The stream's buffer holds a part of the body. `end`: nothing follows.
    fn on_body(&self, direction: Direction, stream: &Rc<Stream>, position: usize, len: usize, end: bool) -> Action;
    /// The message's trailers are in the stream.
    fn on_trailers(&self, direction: Direction, stream: &Rc<Stream>, position: usize) -> Action;
    /// The stream is over; its heads can be read for the last time.
    fn on_end(&self, stream: &Rc<Stream>, position: usize);
    /// It has held a message's head until the time was over. It wants to see bodies, and was shown none meanwhile.
    fn on_stall(&self, _direction: Direction) {}
}

/// The filters of a listener, as one worker has them.
pub struct Chain {
    filters: Box<[Rc<dyn Filter>]>,
    /// The callbacks that any of them wants.
    phases: u32,
}

impl Chain {
    /// A chain of these filters, in the order in which they see a request.
    pub fn new(filters: Vec<Rc<dyn Filter>>) -> Chain {
        let phases = filters.iter().fold(0, |all, f| all | f.phases());
        Chain { filters: filters.into(), phases }
    }

    /// The filters in the order in which they see a request.
    pub fn filters(&self) -> &[Rc<dyn Filter>] {
        &self.filters
    }

    /// Whether any filter wants to see the heads that go this way.
    pub fn wants_head(&self, direction: Direction) -> bool {
        self.phases & headers_bit(direction) != 0
    }

    /// Whether any filter wants to see bodies or trailers that go this way.
    pub fn wants_body(&self, direction: Direction) -> bool {
        let bits = match direction {
            Direction::Request => phase::REQUEST_BODY | phase::REQUEST_TRAILERS,
            Direction::Response => phase::RESPONSE_BODY | phase::RESPONSE_TRAILERS,
        };
        self.phases & bits != 0
    }

    /// Whether any filter sees bodies that go this way, and so may change their length.
    pub fn sees_body(&self, direction: Direction) -> bool {
        self.phases & body_bit(direction) != 0
    }

    /// Whether any filter may look at a response's head after it has passed the head callbacks.
    pub fn looks_back(&self) -> bool {
        self.phases & (phase::RESPONSE_BODY | phase::RESPONSE_TRAILERS | phase::LOG | phase::LIFECYCLE) != 0
    }

    /// Whether a body that goes this way must be expected to change its length.
    pub fn changes_body(&self, direction: Direction) -> bool {
        self.filters.iter().any(|f| f.changes_body(direction))
    }

    /// The position of the `nth` filter that sees a message going this way.
    fn position(&self, direction: Direction, nth: usize) -> usize {
        match direction {
            Direction::Request => nth,
            Direction::Response => self.filters.len() - 1 - nth,
        }
    }
}

/// The bit of the body callback.
fn body_bit(direction: Direction) -> u32 {
    match direction {
        Direction::Request => phase::REQUEST_BODY,
        Direction::Response => phase::RESPONSE_BODY,
    }
}

/// The bit of the trailers callback.
fn trailers_bit(direction: Direction) -> u32 {
    match direction {
        Direction::Request => phase::REQUEST_TRAILERS,
        Direction::Response => phase::RESPONSE_TRAILERS,
    }
}

/// The bit of the headers callback.
fn headers_bit(direction: Direction) -> u32 {
    match direction {
        Direction::Request => phase::REQUEST_HEADERS,
        Direction::Response => phase::RESPONSE_HEADERS,
    }
}
