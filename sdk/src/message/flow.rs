//! What a callback returns to the host.

use std::time::Duration;

use crate::{GrpcError, Reply, sys::types::CallError};

/// A call whose answer comes to a callback; `token` says to it what was asked.
#[derive(Debug)]
pub struct Asked {
    pub(crate) token: u32,
    pub(crate) begun: Begun,
}

/// A call that was begun, or why it was not.
#[derive(Debug)]
pub(crate) enum Begun {
    Http(Result<u32, CallError>),
    Grpc(Result<u32, GrpcError>),
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
