//! Feeds a message's body to the future that reads it.
//!
//! The host makes a body available in a callback, and again with the next part as long as the filter holds it; outside
//! of these callbacks it can be neither read nor changed. So each part is handed to the future within the callback, and
//! whatever arrives while the future waits for something else is copied.

use std::task::{Context, Poll, Waker};

use tollgate_abi::proxy_wasm::buffer;

use super::with_task;
use crate::{
    Late, TooLarge,
    sys::{self, types::Half},
};

/// The received part of a body.
#[derive(Default)]
pub(super) struct Feed {
    buffer: i32,
    /// Bytes that the host makes available now or would in the next callback.
    len: usize,
    /// How many of these the future, or `copied`, has received.
    seen: usize,
    /// Start of the part that the future received last, if the host makes it available now.
    shown: Option<usize>,
    /// The body is complete.
    end: bool,
    /// The host is in a callback for this body.
    open: bool,
    /// Bytes that arrived while the future waited for something else.
    copied: Vec<u8>,
    wants: Option<(Part, Waker)>,
}

/// How much of the body a future waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Any part.
    Next,
    /// The whole body, of at most this many bytes.
    Whole(usize),
}

impl Feed {
    pub(super) fn new(half: Half, end: bool) -> Feed {
        let buffer = match half {
            Half::Request => buffer::HTTP_REQUEST_BODY,
            Half::Response => buffer::HTTP_RESPONSE_BODY,
        };
        Feed { buffer, end, ..Feed::default() }
    }

    /// Reports whether the future waits for the body.
    pub(super) fn is_wanted(&self) -> bool {
        self.wants.is_some()
    }

    /// Reports whether nothing of the body was received.
    pub(super) fn is_untouched(&self) -> bool {
        self.len == 0
    }

    /// Begins a callback in which the host makes `len` bytes available. Returns the waker of the waiting future.
    pub(super) fn open(&mut self, len: usize, end: bool) -> Option<Waker> {
        (self.len, self.end, self.open) = (len, end, true);
        self.wants.as_ref().map(|(_, waker)| waker.clone())
    }

    /// Ends the callback. Returns whether the host may release the bytes.
    pub(super) fn close(&mut self) -> bool {
        if self.wants.is_none() && self.seen < self.len {
            self.copied.extend(self.rest());
            self.seen = self.len;
        }
        (self.open, self.shown) = (false, None);
        self.release()
    }

    /// Reports whether the future waits for the next part and has seen everything before; the host then starts from 0
    /// again.
    pub(super) fn release(&mut self) -> bool {
        let released = matches!(self.wants, Some((Part::Next, _))) && self.seen == self.len;
        if released {
            (self.len, self.seen) = (0, 0);
        }
        released
    }

    fn rest(&self) -> Vec<u8> {
        sys::buffer_get(self.buffer, self.seen, self.len - self.seen)
    }

    fn take(&mut self, part: Part) -> Option<Result<Vec<u8>, TooLarge>> {
        let unseen = self.len.saturating_sub(self.seen);
        let available = self.copied.len() + unseen;
        match part {
            Part::Whole(limit) if available > limit => return Some(Err(TooLarge)),
            Part::Whole(_) if !self.end => return None,
            Part::Next if available == 0 && !self.end => return None,
            _ => {}
        }
        if unseen > 0 && !self.open {
            // The host holds it and will present it again together with more.
            return None;
        }
        // The host can only change a part that it holds completely.
        self.shown = (self.open && self.copied.is_empty()).then_some(self.seen);
        let mut bytes = std::mem::take(&mut self.copied);
        if unseen > 0 {
            match bytes.is_empty() {
                true => bytes = self.rest(),
                false => bytes.extend(self.rest()),
            }
            self.seen = self.len;
        }
        Some(Ok(bytes))
    }
}

/// Polls for a part of the body of the task's message. For `Next`, an empty part is the end.
pub(crate) fn poll_part(task: u32, part: Part, cx: &Context<'_>) -> Poll<Result<Vec<u8>, TooLarge>> {
    let waker = cx.waker().clone();
    let taken = with_task(task, |t| {
        let taken = t.feed.take(part);
        let wants = if taken.is_none() { Some((part, waker)) } else { None };
        // The previous waker is dropped outside of the borrow.
        (taken, std::mem::replace(&mut t.feed.wants, wants))
    });
    match taken {
        Some((None, _)) => Poll::Pending,
        Some((Some(result), _)) => Poll::Ready(result),
        // The future has left its task.
        None => Poll::Ready(Ok(Vec::new())),
    }
}

/// Marks that the task's future no longer waits.
pub(crate) fn leave(task: u32) {
    let wants = with_task(task, |t| t.feed.wants.take());
    drop(wants);
}

/// Replaces the part that the task received last.
pub(crate) fn replace(task: u32, bytes: &[u8]) -> Result<(), Late> {
    let replaced = with_task(task, |t| {
        let feed = &mut t.feed;
        if bytes.is_empty() && feed.len == 0 && feed.copied.is_empty() {
            return Some(());
        }
        let start = feed.shown?;
        sys::buffer_set(feed.buffer, start, feed.seen - start, bytes);
        feed.seen = start + bytes.len();
        feed.len = feed.seen;
        Some(())
    });
    replaced.flatten().ok_or(Late)
}
