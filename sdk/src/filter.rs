//! The trait that a filter implements, and what its callbacks answer.

use std::{rc::Rc, time::Duration};

use serde::de::DeserializeOwned;
use tollgate_abi::fast::phase;

use crate::{
    Answer, Body, CallError, ConfigError, GrpcError, Queue, Reply, Request, Response, Setup,
    call::Asked,
    dispatch::{Event, RootEvent},
};

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

/// What becomes of the stream after a callback.
#[derive(Debug)]
pub enum Flow {
    /// It goes on.
    Continue,
    /// It is held. In a body callback: until there is more of the body.
    Pause,
    /// It is held for this long, without holding a thread, then [`Filter::on_timer`] is called with the token. In request
    /// and response header callbacks only.
    Wait(Duration, u32),
    /// It is held until the answer to a call comes; see [`Call::ask`](crate::Call::ask) and
    /// [`GrpcCall::ask`](crate::GrpcCall::ask). In request and response header callbacks, and in those for timers and answers.
    Ask(Asked),
    /// The request is answered with this; no upstream sees it (or, in a response callback: this replaces the response).
    Respond(Box<Reply>),
}

/// A set of callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases(u32);

impl Phases {
    /// [`Filter::on_request`].
    pub const REQUEST_HEADERS: Phases = Phases(phase::REQUEST_HEADERS);
    /// [`Filter::on_request_body`].
    pub const REQUEST_BODY: Phases = Phases(phase::REQUEST_BODY);
    /// [`Filter::on_response`].
    pub const RESPONSE_HEADERS: Phases = Phases(phase::RESPONSE_HEADERS);
    /// [`Filter::on_response_body`].
    pub const RESPONSE_BODY: Phases = Phases(phase::RESPONSE_BODY);
    /// [`Filter::on_end`].
    pub const END: Phases = Phases(phase::LOG);
    /// [`Filter::on_answer`] and [`Filter::on_grpc_answer`]. The host makes these for whoever calls; without this, the module
    /// has no code for them.
    pub const ANSWERS: Phases = Phases(1 << 31);

    /// Both sets.
    pub const fn and(self, other: Phases) -> Phases {
        Phases(self.0 | other.0)
    }

    /// Whether one of these callbacks is among them.
    pub(crate) const fn has(self, other: Phases) -> bool {
        self.0 & other.0 != 0
    }

    /// The bits for the host.
    pub(crate) const fn bits(self) -> u32 {
        // A body may end with trailers instead of a last part.
        const TRAILERS: u32 = phase::REQUEST_TRAILERS / phase::REQUEST_BODY;
        let host = self.0 & !Phases::ANSWERS.0;
        host | ((host & (phase::REQUEST_BODY | phase::RESPONSE_BODY)) * TRAILERS)
    }

    /// These, and the heads of the bodies among them.
    pub(crate) const fn with_heads(self) -> Phases {
        const BODY: u32 = phase::REQUEST_BODY / phase::REQUEST_HEADERS;
        Phases(self.0 | ((self.0 & (phase::REQUEST_BODY | phase::RESPONSE_BODY)) / BODY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_bring_what_belongs_to_them() {
        let both = Phases::REQUEST_BODY.and(Phases::RESPONSE_BODY);
        let trailers = phase::REQUEST_TRAILERS | phase::RESPONSE_TRAILERS;
        assert_eq!(both.bits(), both.0 | trailers);
        assert_eq!(both.with_heads(), both.and(Phases::REQUEST_HEADERS).and(Phases::RESPONSE_HEADERS));
        assert_eq!(Phases::REQUEST_HEADERS.with_heads().bits(), phase::REQUEST_HEADERS);
        assert_eq!(Phases::REQUEST_HEADERS.and(Phases::ANSWERS).bits(), phase::REQUEST_HEADERS);
    }
}
