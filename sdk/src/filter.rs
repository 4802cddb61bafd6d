//! The trait that filters implement.

mod asks;
pub(crate) mod async_filter;
#[doc(hidden)]
pub mod dispatch;
mod export;

use std::rc::Rc;

use serde::de::DeserializeOwned;

use crate::{
    Answer, Body, CallError, ConfigError, GrpcError, Queue, Request, Response, Setup, message::flow::Flow,
    sys::types::Phases,
};

use self::dispatch::{Event, RootEvent};

/// A filter: created once from its configuration, then called for every stream (a request and its response).
///
/// One instance serves many concurrent streams; per-stream state is kept in [`Filter::Stream`]. To call other services,
/// or to wait for more than one thing, prefer an [`AsyncFilter`](crate::AsyncFilter).
pub trait Filter: Sized + 'static {
    /// The configuration, deserialized from the JSON in the proxy's configuration. Add `#[serde(deny_unknown_fields)]`
    /// so that mistyped fields are reported. Use [`units::Duration`](crate::units::Duration) for times. A blank value
    /// (`null`) is rejected wherever it occurs, unless this type is [`serde_json::Value`]: an `Option` would treat it
    /// as an omitted field. With `()`, the module contains no JSON code and any configuration is an error.
    type Config: DeserializeOwned + 'static;
    /// State kept per stream between callbacks. With `()`, the host saves three calls per stream.
    type Stream: Default + 'static;
    /// The callbacks that the host makes; others cost nothing.
    const PHASES: Phases;

    /// Creates the filter. Compute here whatever can be computed before the first request.
    fn configure(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError>;

    /// Called when the request's headers were received.
    fn on_request(&self, _request: &Request, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// Called for a part of the request's body; after [`Flow::Pause`], for everything received so far.
    fn on_request_body(&self, _body: &Body, _request: &Request, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// Called when the response's headers are available, from an upstream, another filter or the proxy.
    fn on_response(&self, _response: &Response, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// Called for a part of the response's body; after [`Flow::Pause`], for everything received so far.
    fn on_response_body(&self, _body: &Body, _response: &Response, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// Called when the time of a [`Flow::Wait`] has passed; `token` is the one given there.
    fn on_timer(&self, _token: u32, _request: &Request, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// Called with the answer to a [`Call::ask`](crate::Call::ask); `token` is the one given there.
    fn on_answer(
        &self,
        _token: u32,
        _answer: Result<Answer, CallError>,
        _request: &Request,
        _stream: &mut Self::Stream,
    ) -> Flow {
        Flow::Continue
    }

    /// Called with the answer to a [`GrpcCall::ask`](crate::GrpcCall::ask).
    fn on_grpc_answer(
        &self,
        _token: u32,
        _answer: Result<Vec<u8>, GrpcError>,
        _request: &Request,
        _stream: &mut Self::Stream,
    ) -> Flow {
        Flow::Continue
    }

    /// Called at the interval set by [`Setup::tick`], on each worker.
    fn on_tick(&self) {}

    /// Called for a message in a queue opened with [`Setup::queue`]. It cannot act on a stream. Each message is
    /// delivered to one worker.
    fn on_queue(&self, _queue: Queue, _message: Vec<u8>) {}

    /// Called when the stream has ended. Its headers can be read for the last time.
    fn on_end(&self, _request: &Request, _response: &Response, _stream: &mut Self::Stream) {}

    /// Whether this is an [`AsyncFilter`](crate::AsyncFilter), which receives its callbacks through the two functions
    /// below.
    #[doc(hidden)]
    const ASYNC: bool = false;

    /// Handles an event of a stream.
    #[doc(hidden)]
    fn drive(self: &Rc<Self>, _event: Event, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// Handles an event that belongs to no stream.
    #[doc(hidden)]
    fn drive_root(self: &Rc<Self>, _root: u32, _event: RootEvent) {}
}
