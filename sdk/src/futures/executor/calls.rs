//! HTTP calls that wait for their answers.

use std::task::{Context, Poll, Waker};

use tollgate_abi::proxy_wasm::{buffer, map};

use super::with;
use crate::{Answer, CallError, sys};

/// A call that somebody waits for.
pub(super) enum Waiting {
    Sent(Option<Waker>),
    Answered(Result<Answer, CallError>),
}

/// A call has been sent, and somebody will ask for its answer.
pub(crate) fn sent(call: u32) {
    with(|e| e.calls.insert(call, Waiting::Sent(None)));
}

/// Nobody waits any more.
pub(crate) fn leave(call: u32) {
    let gone = with(|e| e.calls.remove(call));
    drop(gone);
}

/// The answer, if it has come.
pub(crate) fn poll_answer(call: u32, cx: &Context<'_>) -> Poll<Result<Answer, CallError>> {
    let waker = cx.waker().clone();
    let before = with(|e| match e.calls.remove(call) {
        Some(Waiting::Sent(before)) => {
            e.calls.insert(call, Waiting::Sent(Some(waker)));
            Err(before)
        }
        Some(Waiting::Answered(answer)) => Ok(answer),
        // It was taken already: whoever asks again is told what is true of it now.
        None => Ok(Err(CallError::Reset)),
    });
    before.map_or(Poll::Pending, Poll::Ready)
}

/// An answer has come; the host shows it until the callback ends.
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

/// The answer that the host shows.
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
