//! Pending gRPC calls and streams.

use std::{
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

use tollgate_abi::proxy_wasm::{buffer, map};

use super::with;
use crate::{
    sys::code,
    sys::{self, types::GrpcError},
};

/// Data received for a call.
pub(super) struct Grpc {
    is_stream: bool,
    /// In the host's encoding.
    initial: Vec<u8>,
    trailing: Vec<u8>,
    messages: VecDeque<Vec<u8>>,
    /// Set once the call has ended.
    end: Option<Result<(), GrpcError>>,
    waker: Option<Waker>,
}

/// An event of a call. The host makes its data available until the callback ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum News {
    Metadata {
        trailing: bool,
    },
    /// A message of this many bytes.
    Message(usize),
    /// The end, with a status.
    Close(u32),
}

/// Registers a call that was started and whose events will be polled.
pub(crate) fn begun(call: u32, is_stream: bool) {
    let (initial, trailing, messages) = (Vec::new(), Vec::new(), VecDeque::new());
    with(|e| {
        e.grpc_news = Some(came);
        e.grpc.insert(call, Grpc { is_stream, initial, trailing, messages, end: None, waker: None });
    });
}

/// Removes a call whose future or stream was dropped.
pub(crate) fn leave(call: u32) {
    let gone = with(|e| e.grpc.remove(call));
    if gone.as_ref().is_some_and(|call| call.end.is_none()) {
        sys::grpc_cancel(call);
    }
}

/// Reports whether further events are possible.
pub(crate) fn is_open(call: u32) -> bool {
    with(|e| e.grpc.get_mut(call).is_some_and(|call| call.end.is_none()))
}

/// Polls for the next message; `None` after a successful end.
pub(crate) fn poll_message(call: u32, cx: &Context<'_>) -> Poll<Result<Option<Vec<u8>>, GrpcError>> {
    let waker = cx.waker().clone();
    let before = with(|e| {
        let Some(call) = e.grpc.get_mut(call) else {
            return Ok(Err(GrpcError::new(code::CANCELLED, "the call was cancelled")));
        };
        match (call.messages.pop_front(), &call.end) {
            (Some(message), _) => Ok(Ok(Some(message))),
            (None, Some(end)) => Ok(end.clone().map(|()| None)),
            (None, None) => Err(call.waker.replace(waker)),
        }
    });
    before.map_or(Poll::Pending, Poll::Ready)
}

pub(crate) fn metadata<T>(call: u32, trailing: bool, f: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    with(|e| e.grpc.get_mut(call).and_then(|call| f(if trailing { &call.trailing } else { &call.initial })))
}

fn came(call: u32, news: News) {
    // Read first: no borrow is held while the host is called.
    let metadata = |which| Some(sys::header_map(which));
    let (bytes, end) = match news {
        News::Metadata { trailing: false } => (metadata(map::GRPC_INITIAL_METADATA), None),
        News::Metadata { trailing: true } => (metadata(map::GRPC_TRAILING_METADATA), None),
        News::Message(size) => (Some(read(size)), None),
        News::Close(code::OK) => (None, Some(Ok(()))),
        News::Close(status) => (None, Some(Err(GrpcError::new(status, sys::status_message())))),
    };
    let waker = with(|e| {
        // `None` if the call was dropped.
        let call = e.grpc.get_mut(call)?;
        match (news, bytes) {
            (News::Metadata { trailing: false }, Some(map)) => call.initial = map,
            (News::Metadata { trailing: true }, Some(map)) => call.trailing = map,
            (_, Some(message)) => {
                call.messages.push_back(message);
                // A unary call ends with its message.
                if !call.is_stream {
                    call.end = Some(Ok(()));
                }
            }
            _ => call.end = end,
        }
        call.waker.take()
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Reads the message that the host makes available.
pub(crate) fn read(size: usize) -> Vec<u8> {
    if size == 0 { Vec::new() } else { sys::buffer_get(buffer::GRPC_CALL_MESSAGE, 0, size) }
}
