//! A message of an [`AsyncFilter`](crate::AsyncFilter): its head, and its body as it comes.

use std::{future::poll_fn, ops::Deref};

use super::executor::{
    self,
    feed::{self, Part},
};
use crate::message::body::{Late, TooLarge};

/// A request or a response whose head has come. The head is read and changed as in [`Request`](crate::Request) and
/// [`Response`](crate::Response).
///
/// The body comes only when the head has gone on: as soon as a future waits for the body, the proxy lets the head pass to the
/// next filter (unless this filter's `headers_pause` in the proxy's configuration is `hold_headers`). Headers should be
/// changed before. An upstream is asked, and a client gets its response, when a first part of the body is through all
/// filters, so one that waits for the whole body still decides; but the head of a response without `content-length` may
/// have been sent by then.
#[derive(Debug)]
pub struct Incoming<M> {
    message: M,
    task: u32,
    /// The host shows the body, or there is none.
    fed: bool,
}

impl<M> Deref for Incoming<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.message
    }
}

impl<M> Incoming<M> {
    pub(crate) fn new(message: M, fed: bool, end: bool) -> Incoming<M> {
        Incoming { message, task: executor::current(), fed: fed || end }
    }

    /// The whole body, or what has not been read of it yet: a copy. The proxy holds the original meanwhile, at most the
    /// listener's `limits.buffered_body` of it.
    ///
    /// # Errors
    /// As soon as it is more than `limit` bytes. It can still be read part by part.
    ///
    /// # Panics
    /// If the filter's `PHASES` lack the message's body ([`Phases::REQUEST_BODY`](crate::Phases::REQUEST_BODY) or
    /// [`RESPONSE_BODY`](crate::Phases::RESPONSE_BODY)).
    pub async fn body(&mut self, limit: usize) -> Result<Vec<u8>, TooLarge> {
        self.part(Part::Whole(limit)).await
    }

    /// The next part of the body, in whatever size it comes; `None` at its end. A part goes on when the next one is waited
    /// for.
    ///
    /// # Panics
    /// If the filter's `PHASES` lack the message's body ([`Phases::REQUEST_BODY`](crate::Phases::REQUEST_BODY) or
    /// [`RESPONSE_BODY`](crate::Phases::RESPONSE_BODY)).
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let bytes = self.part(Part::Next).await.unwrap_or_default();
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Puts other bytes in the place of what [`body`](Self::body) or [`chunk`](Self::chunk) has returned last. The proxy
    /// sees to the message's length.
    ///
    /// # Errors
    /// If something else was waited for in between, or the part came while something else was: the proxy can change a part
    /// only while it shows it. Ask the other services first, then read. A message without a body can only be given an empty
    /// one.
    pub fn replace_body(&self, bytes: &[u8]) -> Result<(), Late> {
        feed::replace(self.task, bytes)
    }

    async fn part(&mut self, part: Part) -> Result<Vec<u8>, TooLarge> {
        /// Tells that nobody waits any more, if the future is dropped before.
        struct Waiting(u32);
        impl Drop for Waiting {
            fn drop(&mut self) {
                feed::leave(self.0);
            }
        }
        assert!(self.fed, "a filter that reads a body must have it in its `PHASES`");
        let waiting = Waiting(self.task);
        poll_fn(|cx| feed::poll_part(waiting.0, part, cx)).await
    }
}
