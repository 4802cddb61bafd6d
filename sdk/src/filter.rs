//! The trait that a filter implements, and what its callbacks answer.

use std::time::Duration;

use serde::de::DeserializeOwned;
use tollgate_abi::fast::phase;

use crate::{Body, ConfigError, Request, Response, Setup};

/// A filter: made once from its configuration, and then asked about every stream (a request and its response).
///
/// One instance serves many streams at a time; what belongs to one of them is kept in [`Filter::Stream`].
pub trait Filter: Sized + 'static {
    /// The configuration, read from the JSON in the proxy's configuration. Put `#[serde(deny_unknown_fields)]` on it, so
    /// that mistakes are found.
    type Config: DeserializeOwned;
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

    /// The tick set by [`Setup::tick`] is due. Each worker has its own.
    fn on_tick(&self) {}

    /// The stream has ended. Its headers can be read for the last time.
    fn on_end(&self, _request: &Request, _response: &Response, _stream: &mut Self::Stream) {}
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
    /// The request is answered with this; no upstream sees it (or, in a response callback: this replaces the response).
    Respond(Box<Reply>),
}

/// A response made by a filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) details: String,
}

impl Reply {
    /// A response of this status (200 to 599), without a body.
    pub fn new(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    /// Adds a header field.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }

    /// Why there is a response: a word or two with underscores, for the access log. The client does not see it.
    pub fn details(mut self, details: impl Into<String>) -> Reply {
        self.details = details.into();
        self
    }
}

impl From<Reply> for Flow {
    fn from(reply: Reply) -> Flow {
        Flow::Respond(Box::new(reply))
    }
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

    /// Both sets.
    pub const fn and(self, other: Phases) -> Phases {
        Phases(self.0 | other.0)
    }

    /// The bits for the host. A filter with state for its streams must hear of their end.
    pub(crate) fn bits<F: Filter>() -> u32 {
        let keeps_state = size_of::<F::Stream>() > 0;
        F::PHASES.0 | if keeps_state { phase::LIFECYCLE } else { 0 }
    }
}
