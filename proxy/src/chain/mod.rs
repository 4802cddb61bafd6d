//! The filter chain: which filters process a stream (a request and its response), in which order, and the effect of
//! their actions. It is independent of WebAssembly: a filter is anything that implements [`Filter`].
//!
//! The request passes the filters in order, the response in reverse order. [`stream`] holds the state they work on,
//! [`flow`] moves heads past them, and [`body`] moves bodies and trailers.

pub mod body;
pub mod charge;
pub mod flow;
pub mod head;
pub mod interim;
pub mod interner;
pub mod limits;
pub mod network;
pub mod retry;
pub mod route;
pub mod slot;
pub mod stored;
pub mod stream;
#[cfg(test)]
pub(crate) mod tests;
pub mod variants;

use std::rc::Rc;

use tollgate_abi::fast::phase;

pub use self::{
    head::{Headers, RequestHead, ResponseHead},
    route::{Route, SelectedRoute},
    stream::{LocalReply, Stream},
    variants::{FilterTable, Variants},
};

/// The direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the upstream.
    Request = 0,
    /// From the upstream to the client.
    Response = 1,
}

/// A callback's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The message proceeds.
    Continue,
    /// The message is held until the filter resumes the stream.
    Pause,
    /// The filter could not run (trap, timeout, memory, no instance); its policy applies.
    Failed(OnFailure),
}

pub use crate::config::model::{HeadersPause, OnFailure};

/// A filter on one worker.
///
/// A filter changes the [`Stream`] itself, at its `position`; the returned action only specifies how to proceed.
pub trait Filter {
    /// Its name.
    fn name(&self) -> &str;
    /// Its variants: the same filter with other configurations.
    fn variants(&self) -> Variants<dyn Filter> {
        Vec::new()
    }
    /// The callbacks that it subscribes to, as bits of [`phase`].
    fn phases(&self) -> u32;
    /// What pausing in the header phase means for it.
    fn headers_pause(&self) -> HeadersPause;
    /// Whether it has subscribed to the bodies of this direction and may therefore change them. Standard filters never
    /// subscribe; one that changes a body's length must remove `content-length` itself.
    fn changes_body(&self, direction: Direction) -> bool;
    /// Called when the message's head is in the stream. `end`: no body follows.
    fn on_headers(&self, direction: Direction, stream: &Rc<Stream>, position: usize, end: bool) -> Action;
    /// Called when the stream's buffer holds a part of the body. `end`: it is the last part.
    fn on_body(&self, direction: Direction, stream: &Rc<Stream>, position: usize, len: usize, end: bool) -> Action;
    /// Called when the message's trailers are in the stream.
    fn on_trailers(&self, direction: Direction, stream: &Rc<Stream>, position: usize) -> Action;
    /// Called at the end of the stream, whose heads can still be read.
    fn on_end(&self, stream: &Rc<Stream>, position: usize);
    /// Called when the filter has paused a message's head until the timeout, subscribes to bodies, and received none
    /// meanwhile.
    fn on_stall(&self, _direction: Direction) {}
}

/// The filters of a listener on one worker.
pub struct Chain {
    table: FilterTable<dyn Filter>,
    /// The callbacks that any filter subscribes to, or a variant of it.
    phases: u32,
}

impl Chain {
    /// Creates a chain of these filters, in request order.
    pub fn new(filters: Vec<Rc<dyn Filter>>) -> Chain {
        let table = FilterTable::new(filters, |filter| (filter.name(), filter.variants()));
        let phases = table.all().fold(0, |all, f| all | f.phases());
        Chain { table, phases }
    }

    /// The filters in request order.
    pub fn filters(&self) -> &[Rc<dyn Filter>] {
        self.table.filters()
    }

    /// The filters with their variants.
    pub(crate) fn table(&self) -> &FilterTable<dyn Filter> {
        &self.table
    }

    /// Whether any filter subscribes to heads of this direction.
    pub fn wants_head(&self, direction: Direction) -> bool {
        self.phases & headers_bit(direction) != 0
    }

    /// Whether any filter subscribes to bodies or trailers of this direction.
    pub fn wants_body(&self, direction: Direction) -> bool {
        let bits = match direction {
            Direction::Request => phase::REQUEST_BODY | phase::REQUEST_TRAILERS,
            Direction::Response => phase::RESPONSE_BODY | phase::RESPONSE_TRAILERS,
        };
        self.phases & bits != 0
    }

    /// Whether any filter may read a response's head after the header callbacks.
    pub fn looks_back(&self) -> bool {
        self.phases & (phase::RESPONSE_BODY | phase::RESPONSE_TRAILERS | phase::LOG | phase::LIFECYCLE) != 0
    }

    /// The position of the `nth` filter in this direction.
    fn position(&self, direction: Direction, nth: usize) -> usize {
        match direction {
            Direction::Request => nth,
            Direction::Response => self.filters().len() - 1 - nth,
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
