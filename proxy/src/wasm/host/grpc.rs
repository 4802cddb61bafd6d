//! A guest's gRPC calls as the host functions see them: open calls, commands and events. `vm/grpc.rs` executes the
//! commands.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use http::HeaderMap;

use crate::{
    chain::{RequestHead, charge::MemoryCharge},
    upstream::ClusterHandle,
};

/// A call that has not ended, from the guest's side.
#[derive(Debug, Clone, Copy)]
pub struct OpenCall {
    /// Whether it is a stream of messages rather than a unary call.
    pub streams: bool,
    /// Whether the guest has half-closed it.
    pub closed: bool,
}

/// A guest's command for its calls. At most one command per call does nothing but end it.
#[derive(Debug)]
pub enum CallCommand {
    /// Starts a call.
    Open(Box<GrpcCall>),
    /// Sends a message, already framed; the flag marks the last one.
    Send(u32, Bytes, bool),
    /// Half-closes the call.
    Close(u32),
    /// Cancels the call.
    Cancel(u32),
}

/// A call.
#[derive(Debug)]
pub struct GrpcCall {
    /// The guest's handle.
    pub id: u32,
    /// The filter or variant that made the call, as the number of its `RootIdentity`.
    pub caller: u32,
    /// The destination.
    pub cluster: ClusterHandle,
    /// The head: the path, and the guest's metadata.
    pub head: RequestHead,
    /// The message of a unary call, already framed.
    pub message: Option<Bytes>,
    /// The timeout for the whole call.
    pub timeout: Option<Duration>,
    /// The memory charge for the call and its response, until it has ended.
    pub charge: MemoryCharge,
}

/// An event of a call, while the guest's callback for it runs.
#[derive(Debug)]
pub enum CallEvent {
    /// The response's headers; streams only.
    Initial(HeaderMap),
    /// A message.
    Message(Bytes),
    /// The response's trailers; streams only.
    Trailing(HeaderMap),
    /// The end, with status and message. For a unary call, only if it failed.
    Closed(u32, String),
}

/// Calls that the other side has ended. As in Envoy, a guest may close each of them once more, in its close callback or
/// later. Only the latest are recorded, because guests need not do that.
#[derive(Debug, Default)]
pub struct EndedCalls(pub(crate) VecDeque<u32>);

impl EndedCalls {
    /// The number of calls recorded.
    pub(crate) const MOST: usize = 1024;

    /// Records that the other side has ended a call.
    pub fn add(&mut self, id: u32) {
        if self.0.len() == Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back(id);
    }

    /// Removes a call. Returns whether it was recorded.
    pub fn take(&mut self, id: u32) -> bool {
        let at = self.0.iter().position(|known| *known == id);
        at.and_then(|at| self.0.remove(at)).is_some()
    }
}
