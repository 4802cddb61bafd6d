//! Calls of a [`Filter`](crate::Filter) whose answers are delivered to its callbacks.

use std::cell::RefCell;

use crate::{
    Answer, CallError, GrpcError,
    message::flow::{Asked, Begun},
    sys::types::Half,
    table::borrow,
};

/// Pending calls.
pub(crate) struct Asks(RefCell<Vec<Ask>>);

/// The stream and token that a call was made for.
pub(crate) struct Ask {
    call: u32,
    is_grpc: bool,
    pub(crate) context: u32,
    pub(crate) half: Half,
    pub(crate) token: u32,
}

/// The outcome of a call.
pub(crate) enum Answered {
    Http(Result<Answer, CallError>),
    Grpc(Result<Vec<u8>, GrpcError>),
}

impl Asks {
    pub(crate) const fn new() -> Asks {
        Asks(RefCell::new(Vec::new()))
    }

    /// Records a call. Returns its outcome if that is already known.
    pub(crate) fn add(&self, context: u32, half: Half, asked: Asked) -> Option<(u32, Answered)> {
        let token = asked.token;
        let (call, is_grpc) = match asked.begun {
            Begun::Http(Ok(call)) => (call, false),
            Begun::Grpc(Ok(call)) => (call, true),
            Begun::Http(Err(error)) => return Some((token, Answered::Http(Err(error)))),
            Begun::Grpc(Err(error)) => return Some((token, Answered::Grpc(Err(error)))),
        };
        borrow(&self.0).push(Ask { call, is_grpc, context, half, token });
        None
    }

    /// Takes the entry of a call; `None` if its stream has ended.
    pub(crate) fn take(&self, call: u32, is_grpc: bool) -> Option<Ask> {
        let mut asks = borrow(&self.0);
        let at = asks.iter().position(|ask| ask.call == call && ask.is_grpc == is_grpc)?;
        Some(asks.swap_remove(at))
    }

    /// Discards the calls of a stream.
    pub(crate) fn leave(&self, context: u32) {
        borrow(&self.0).retain(|ask| ask.context != context);
    }
}
