//! Pending HTTP calls.

use std::task::{Context, Poll, Waker};

use tollgate_abi::proxy_wasm::{buffer, map};

use super::with;
use crate::{Answer, CallError, sys};

/// State of a call whose future still exists.
pub(super) enum Waiting {
    Sent(Option<Waker>),
    Answered(Result<Answer, CallError>),
}

/// Registers a call that was sent and whose answer will be polled.
pub(crate) fn sent(call: u32) {
    with(|e| e.calls.insert(call, Waiting::Sent(None)));
}

/// Removes a call whose future was dropped.
pub(crate) fn leave(call: u32) {
    let gone = with(|e| e.calls.remove(call));
    drop(gone);
}

/// Polls for the answer.
pub(crate) fn poll_answer(call: u32, cx: &Context<'_>) -> Poll<Result<Answer, CallError>> {
    let waker = cx.waker().clone();
    let before = with(|e| match e.calls.remove(call) {
        Some(Waiting::Sent(before)) => {
            e.calls.insert(call, Waiting::Sent(Some(waker)));
            Err(before)
        }
        Some(Waiting::Answered(answer)) => Ok(answer),
        // The answer was already taken; a second poll gets an error.
        None => Ok(Err(CallError::Reset)),
    });
    before.map_or(Poll::Pending, Poll::Ready)
}

/// Handles an answer; the host makes it available until the callback ends.
pub(crate) fn answered(call: u32, headers: usize, body_size: usize, trailers: usize) {
    let waker = with(|e| match e.calls.get_mut(call) {
        Some(Waiting::Sent(waker)) => waker.take(),
        _ => None,
    });
    // Late: its future is gone.
    if with(|e| e.calls.get_mut(call).is_none()) {
        return;
    }
    let answer = read(headers, body_size, trailers);
    with(|e| e.calls.insert(call, Waiting::Answered(answer)));
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Reads the answer that the host makes available.
pub(crate) fn read(headers: usize, body_size: usize, trailers: usize) -> Result<Answer, CallError> {
    if headers == 0 {
        return Err(sys::call_failure());
    }
    let body = match body_size {
        0 => Vec::new(),
        _ => sys::buffer_get(buffer::HTTP_CALL_RESPONSE_BODY, 0, body_size),
    };
    let trailers = if trailers == 0 { Vec::new() } else { sys::header_map(map::HTTP_CALL_RESPONSE_TRAILERS) };
    Ok(Answer::new(sys::header_map(map::HTTP_CALL_RESPONSE_HEADERS), body, trailers))
}
