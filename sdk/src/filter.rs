//! The trait that a filter implements, and what its callbacks answer.

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

/// A filter: made once from its configuration, and then asked about every stream (a request and its response).
///
/// One instance serves many streams at a time; what belongs to one of them is kept in [`Filter::Stream`]. A filter that asks
/// other services, or waits for more than one thing, is better an [`AsyncFilter`](crate::AsyncFilter).
pub trait Filter: Sized + 'static {
    /// The configuration, read from the JSON in the proxy's configuration. Put `#[serde(deny_unknown_fields)]` on it, so
    /// that mistakes are found. Times are [`units::Duration`](crate::units::Duration) in it. A value that is blank (`null`) is
    /// refused wherever it is, unless this is [`serde_json::Value`]: an `Option` would take it for a field that was left out.
    /// With `()` the module needs no code for JSON, and any configuration is a mistake.
    type Config: DeserializeOwned + 'static;
    /// What is kept for one stream from one callback to the next. With `()` the host is spared three calls for each stream.
    type Stream: Default + 'static;
    /// The callbacks that the host shall make; the others cost nothing.
    const PHASES: Phases;

    /// Makes the filter. Whatever can be computed before the first request is computed here.
    fn configure(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError>;

    /// The request's head has come.
    fn on_request(&self, _request: &Request, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// A part of the request's body has come; after [`Flow::Pause`], all that has come so far.
    fn on_request_body(&self, _body: &Body, _request: &Request, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// The response's head has come, from an upstream, another filter or the proxy.
    fn on_response(&self, _response: &Response, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// A part of the response's body has come; after [`Flow::Pause`], all that has come so far.
    fn on_response_body(&self, _body: &Body, _response: &Response, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// The time of a [`Flow::Wait`] is over; `token` is the one given there.
    fn on_timer(&self, _token: u32, _request: &Request, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// The answer to a [`Call::ask`](crate::Call::ask) has come; `token` is the one given there.
    fn on_answer(
        &self,
        _token: u32,
        _answer: Result<Answer, CallError>,
        _request: &Request,
        _stream: &mut Self::Stream,
    ) -> Flow {
        Flow::Continue
    }

    /// The answer to a [`GrpcCall::ask`](crate::GrpcCall::ask) has come.
    fn on_grpc_answer(
        &self,
        _token: u32,
        _answer: Result<Vec<u8>, GrpcError>,
        _request: &Request,
        _stream: &mut Self::Stream,
    ) -> Flow {
        Flow::Continue
    }

    /// The tick set by [`Setup::tick`] is due. Each worker has its own.
    fn on_tick(&self) {}

    /// A message has come in a queue of [`Setup::queue`]. It acts on no stream. Each message is given to one worker.
    fn on_queue(&self, _queue: Queue, _message: Vec<u8>) {}

    /// The stream has ended. Its headers can be read for the last time.
    fn on_end(&self, _request: &Request, _response: &Response, _stream: &mut Self::Stream) {}

    /// Whether this is an [`AsyncFilter`](crate::AsyncFilter), which gets its callbacks by the two functions below.
    #[doc(hidden)]
    const ASYNC: bool = false;

    /// Something has happened to a stream.
    #[doc(hidden)]
    fn drive(self: &Rc<Self>, _event: Event, _stream: &mut Self::Stream) -> Flow {
        Flow::Continue
    }

    /// Something has happened that belongs to no stream.
    #[doc(hidden)]
    fn drive_root(self: &Rc<Self>, _root: u32, _event: RootEvent) {}
}
