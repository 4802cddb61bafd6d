//! A guest's gRPC calls as the host functions see them: open calls, commands and events. `vm/grpc.rs` executes them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes};
use http::HeaderMap;

use crate::{
    chain::{RequestHead, charge::MemoryCharge},
    upstream::Cluster,
};

/// A message's header: whether it is compressed, and its length.
pub(crate) const HEADER: usize = 5;

/// A call that has not ended, as the guest has it.
#[derive(Debug, Clone, Copy)]
pub struct OpenCall {
    /// It is a stream of messages.
    pub streams: bool,
    /// No more messages come from here.
    pub closed: bool,
}

/// What the guest wants of its calls. Of each call, at most one of them is nothing but a wish to end it.
#[derive(Debug)]
pub enum CallCommand {
    /// A new one.
    Open(Box<GrpcCall>),
    /// Another message, as it is sent; and whether it is the last one.
    Send(u32, Bytes, bool),
    /// No more messages from here.
    Close(u32),
    /// Nothing more at all.
    Cancel(u32),
}

/// A call.
#[derive(Debug)]
pub struct GrpcCall {
    /// The guest's handle.
    pub id: u32,
    /// For which root context.
    pub root: usize,
    /// Where to.
    pub cluster: Arc<Cluster>,
    /// The head: the path, and the guest's metadata.
    pub head: RequestHead,
    /// The one message of a call that is no stream, as it is sent.
    pub message: Option<Bytes>,
    /// How long it may take, in all.
    pub timeout: Option<Duration>,
    /// For the call, until it has ended, and for what comes of its answer.
    pub charge: MemoryCharge,
}

/// What a call has brought, while the guest is told of it.
#[derive(Debug)]
pub enum CallEvent {
    /// The head of the answer; streams only.
    Initial(HeaderMap),
    /// A message.
    Message(Bytes),
    /// What comes after the last message; streams only.
    Trailing(HeaderMap),
    /// The end, with its status and message. For a call that is no stream only if it has failed.
    Closed(u32, String),
}

/// Calls that the other side has ended. A guest may end each of them once more, when it hears of it or later, as it may in
/// Envoy. The last ones are remembered: nobody has to.
#[derive(Debug, Default)]
pub struct EndedCalls(pub(crate) VecDeque<u32>);

impl EndedCalls {
    /// How many are remembered.
    pub(crate) const MOST: usize = 1024;

    /// The other side has ended a call.
    pub fn add(&mut self, id: u32) {
        if self.0.len() == Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back(id);
    }

    /// Forgets a call. Whether it was there.
    pub fn take(&mut self, id: u32) -> bool {
        let at = self.0.iter().position(|known| *known == id);
        at.and_then(|at| self.0.remove(at)).is_some()
    }
}

/// A message as it is sent (the gRPC protocol's `Length-Prefixed-Message`).
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + message.len());
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes
}
