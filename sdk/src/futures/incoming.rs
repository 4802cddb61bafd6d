//! A message of an [`AsyncFilter`](crate::AsyncFilter): its headers, and its body as it arrives.

use std::{future::poll_fn, ops::Deref};

use super::executor::{
    self,
    feed::{self, Part},
};
use crate::message::body::{Late, TooLarge};

/// A request or response whose headers were received. Read and change the headers as in [`Request`](crate::Request) and
/// [`Response`](crate::Response).
///
/// The body arrives only after the headers have continued: as soon as a future waits for the body, the proxy passes the
/// headers to the next filter (unless this filter's `headers_pause` in the proxy's configuration is `hold_headers`).
/// Change headers before that. The proxy contacts an upstream, or sends the client its response, once a first part of
/// the body has passed all filters. A filter that waits for the whole body can therefore still decide, but the headers
/// of a response without `content-length` may already have been sent by then.
#[derive(Debug)]
pub struct Incoming<M> {
    message: M,
    task: u32,
    /// Whether the host makes the body available, or the message has no body.
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

    /// Reads the whole body, or the rest that has not been read yet, into a copy. Meanwhile the proxy holds the
    /// original, at most the listener's `limits.buffered_body` of it.
    ///
    /// # Errors
    /// As soon as the body exceeds `limit` bytes. It can still be read part by part.
    ///
    /// # Panics
    /// If the filter's `PHASES` lack the message's body ([`Phases::REQUEST_BODY`](crate::Phases::REQUEST_BODY) or
    /// [`RESPONSE_BODY`](crate::Phases::RESPONSE_BODY)).
    pub async fn body(&mut self, limit: usize) -> Result<Vec<u8>, TooLarge> {
        self.part(Part::Whole(limit)).await
    }

    /// Returns the next part of the body, in the size in which it arrives; `None` at the end. A part continues when the
    /// next one is awaited.
    ///
    /// # Panics
    /// If the filter's `PHASES` lack the message's body ([`Phases::REQUEST_BODY`](crate::Phases::REQUEST_BODY) or
    /// [`RESPONSE_BODY`](crate::Phases::RESPONSE_BODY)).
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let bytes = self.part(Part::Next).await.unwrap_or_default();
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Replaces the bytes that [`body`](Self::body) or [`chunk`](Self::chunk) returned last. The proxy adjusts the
    /// message's length.
    ///
    /// # Errors
    /// If the future has awaited something else since then, or the part arrived while it did: the proxy can change a
    /// part only during its callback. Call other services first, then read. A message without a body accepts only an
    /// empty replacement.
    pub fn replace_body(&self, bytes: &[u8]) -> Result<(), Late> {
        feed::replace(self.task, bytes)
    }

    async fn part(&mut self, part: Part) -> Result<Vec<u8>, TooLarge> {
        /// Marks that the future no longer waits for the body if it is dropped.
        struct Waiting(u32);
        impl Drop for Waiting {
            fn drop(&mut self) {
                feed::leave(self.0);
            }
        }
        assert!(self.fed, "a filter that reads a body must list it in its `PHASES`");
        let waiting = Waiting(self.task);
        poll_fn(|cx| feed::poll_part(waiting.0, part, cx)).await
    }
}
