//! gRPC calls and streams that somebody waits for.

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

/// What has come of a call.
pub(super) struct Grpc {
    is_stream: bool,
    /// As the host encodes them.
    initial: Vec<u8>,
    trailing: Vec<u8>,
    messages: VecDeque<Vec<u8>>,
    /// Nothing more will come.
    end: Option<Result<(), GrpcError>>,
    waker: Option<Waker>,
}

/// What the host tells of a call, and shows until its callback ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum News {
    Metadata {
        trailing: bool,
    },
    /// A message of so many bytes.
    Message(usize),
    /// The end, with a status.
    Close(u32),
}

/// A call has been begun, and somebody will ask for what comes of it.
pub(crate) fn begun(call: u32, is_stream: bool) {
    let (initial, trailing, messages) = (Vec::new(), Vec::new(), VecDeque::new());
    with(|e| {
        e.grpc_news = Some(came);
        e.grpc.insert(call, Grpc { is_stream, initial, trailing, messages, end: None, waker: None });
    });
}

/// Nobody waits any more.
pub(crate) fn leave(call: u32) {
    let gone = with(|e| e.grpc.remove(call));
    if gone.as_ref().is_some_and(|call| call.end.is_none()) {
        sys::grpc_cancel(call);
    }
}

/// Whether more may come.
pub(crate) fn is_open(call: u32) -> bool {
    with(|e| e.grpc.get_mut(call).is_some_and(|call| call.end.is_none()))
}

/// The next message, if it has come; `None`: there are no more, and all is well.
pub(crate) fn poll_message(call: u32, cx: &Context<'_>) -> Poll<Result<Option<Vec<u8>>, GrpcError>> {
    let waker = cx.waker().clone();
    let before = with(|e| {
        let Some(call) = e.grpc.get_mut(call) else {
            return Ok(Err(GrpcError::new(code::CANCELLED, "it was cancelled")));
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
    // Read first: nothing is held while the host is asked.
    let metadata = |which| Some(sys::header_map(which));
    let (bytes, end) = match news {
        News::Metadata { trailing: false } => (metadata(map::GRPC_INITIAL_METADATA), None),
        News::Metadata { trailing: true } => (metadata(map::GRPC_TRAILING_METADATA), None),
        News::Message(size) => (Some(read(size)), None),
        News::Close(code::OK) => (None, Some(Ok(()))),
        News::Close(status) => (None, Some(Err(GrpcError::new(status, sys::status_message())))),
    };
    let waker = with(|e| {
        // One that nobody waits for is not there.
        let call = e.grpc.get_mut(call)?;
        match (news, bytes) {
            (News::Metadata { trailing: false }, Some(map)) => call.initial = map,
            (News::Metadata { trailing: true }, Some(map)) => call.trailing = map,
            (_, Some(message)) => {
                call.messages.push_back(message);
                // Of a call that is no stream, this is all.
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

/// The message that the host shows.
pub(crate) fn read(size: usize) -> Vec<u8> {
    if size == 0 { Vec::new() } else { sys::buffer_get(buffer::GRPC_CALL_MESSAGE, 0, size) }
}
