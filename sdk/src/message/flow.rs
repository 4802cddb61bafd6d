//! Return values of callbacks.

use std::time::Duration;

use crate::{GrpcError, Reply, sys::types::CallError};

/// A call whose answer is delivered to a callback; `token` identifies the question there.
#[derive(Debug)]
pub struct Asked {
    pub(crate) token: u32,
    pub(crate) begun: Begun,
}

/// A call that was started, or the reason why it could not be.
#[derive(Debug)]
pub(crate) enum Begun {
    Http(Result<u32, CallError>),
    Grpc(Result<u32, GrpcError>),
}

/// How a stream continues after a callback.
#[derive(Debug)]
pub enum Flow {
    /// The stream continues.
    Continue,
    /// The stream is held; in a body callback, until more of the body is received.
    Pause,
    /// The stream is held for this long, without occupying a thread; then [`Filter::on_timer`] is called with the
    /// token. Only in header callbacks of requests and responses.
    Wait(Duration, u32),
    /// The stream is held until the answer to a call arrives; see [`Call::ask`](crate::Call::ask) and
    /// [`GrpcCall::ask`](crate::GrpcCall::ask). Only in header callbacks of requests and responses, and in those for
    /// timers and answers.
    Ask(Asked),
    /// The client receives this response. From a request callback, no upstream sees the request; from a response
    /// callback, this replaces the response.
    Respond(Box<Reply>),
}
