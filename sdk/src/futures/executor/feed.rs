//! A message's body on its way to the future that reads it.
//!
//! The host shows a body in a callback, and what a filter has held of it again with the next part; outside of these
//! callbacks it can neither be read nor changed. So a part goes to the future within the callback, and what comes while the
//! future waits for something else is copied.

use std::task::{Context, Poll, Waker};

use tollgate_abi::proxy_wasm::buffer;

use super::with_task;
use crate::{
    Late, TooLarge,
    sys::{self, types::Half},
};

/// What has come of a body.
#[derive(Default)]
pub(super) struct Feed {
    buffer: i32,
    /// Bytes that the host shows, or would show again.
    len: usize,
    /// So many of them the future has been given, or `copied` has.
    seen: usize,
    /// Where the part that the future was given last begins, if the host shows it now.
    shown: Option<usize>,
    /// Nothing more will come.
    end: bool,
    /// The host is in a callback for this body.
    open: bool,
    /// What came while the future waited for something else.
    copied: Vec<u8>,
    wants: Option<(Part, Waker)>,
}

/// How much a future waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Something.
    Next,
    /// Everything, if it is not more than this.
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

    /// Whether the future waits for the body.
    pub(super) fn is_wanted(&self) -> bool {
        self.wants.is_some()
    }

    /// Whether nothing of the body has come.
    pub(super) fn is_untouched(&self) -> bool {
        self.len == 0
    }

    /// The host shows `len` bytes. Returns whom to wake.
    pub(super) fn open(&mut self, len: usize, end: bool) -> Option<Waker> {
        (self.len, self.end, self.open) = (len, end, true);
        self.wants.as_ref().map(|(_, waker)| waker.clone())
    }

    /// The callback ends. Whether the host may let go what it has shown.
    pub(super) fn close(&mut self) -> bool {
        if self.wants.is_none() && self.seen < self.len {
            self.copied.extend(self.rest());
            self.seen = self.len;
        }
        (self.open, self.shown) = (false, None);
        self.release()
    }

    /// Whether the future waits for what comes next and has seen everything before; the host then begins anew.
    pub(super) fn release(&mut self) -> bool {
        let goes_on = matches!(self.wants, Some((Part::Next, _))) && self.seen == self.len;
        if goes_on {
            (self.len, self.seen) = (0, 0);
        }
        goes_on
    }

    fn rest(&self) -> Vec<u8> {
        sys::buffer_get(self.buffer, self.seen, self.len - self.seen)
    }

    fn take(&mut self, part: Part) -> Option<Result<Vec<u8>, TooLarge>> {
        let unseen = self.len.saturating_sub(self.seen);
        let there = self.copied.len() + unseen;
        match part {
            Part::Whole(limit) if there > limit => return Some(Err(TooLarge)),
            Part::Whole(_) if !self.end => return None,
            Part::Next if there == 0 && !self.end => return None,
            _ => {}
        }
        if unseen > 0 && !self.open {
            // Held by the host, which will show it again with more.
            return None;
        }
        // Only a part that lies in the host's hands as a whole can be changed there.
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

/// A part of the body of the task's message. `Next`: no bytes are its end.
pub(crate) fn poll_part(task: u32, part: Part, cx: &Context<'_>) -> Poll<Result<Vec<u8>, TooLarge>> {
    let waker = cx.waker().clone();
    let taken = with_task(task, |t| {
        let taken = t.feed.take(part);
        let wants = if taken.is_none() { Some((part, waker)) } else { None };
        // The one before is dropped outside.
        (taken, std::mem::replace(&mut t.feed.wants, wants))
    });
    match taken {
        Some((None, _)) => Poll::Pending,
        Some((Some(result), _)) => Poll::Ready(result),
        // The future has left its task.
        None => Poll::Ready(Ok(Vec::new())),
    }
}

/// The task's future waits no longer.
pub(crate) fn leave(task: u32) {
    let wants = with_task(task, |t| t.feed.wants.take());
    drop(wants);
}

/// Puts other bytes in the place of the part that the task was given last.
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
