//! What a guest call works on: a stream of HTTP, or a TCP connection. Most host functions are for one of the two; what is
//! the same for both is here.

use std::{
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
};

use smallvec::SmallVec;
use tollgate_abi::fast::flag;

use crate::{
    chain::{
        Stream,
        charge::MemoryBudget,
        flow::failed_reply,
        limits::Permit,
        network::{self, NetworkStream},
        stored::StreamMetadata,
        stream::{self, ConnectionInfo, FilterState},
    },
    observe::detail,
};

/// A stream of either kind.
#[derive(Clone)]
pub enum StreamRef {
    /// A request and its response.
    Http(Rc<Stream>),
    /// A TCP connection.
    Tcp(Rc<NetworkStream>),
}

/// The same, without keeping it.
pub enum WeakStreamRef {
    /// A request and its response.
    Http(Weak<Stream>),
    /// A TCP connection.
    Tcp(Weak<NetworkStream>),
}

impl WeakStreamRef {
    /// The stream, if it is still there.
    pub fn upgrade(&self) -> Option<StreamRef> {
        match self {
            WeakStreamRef::Http(stream) => stream.upgrade().map(StreamRef::Http),
            WeakStreamRef::Tcp(stream) => stream.upgrade().map(StreamRef::Tcp),
        }
    }
}

/// What filters leave with a stream.
pub struct StreamNotes<'s> {
    /// Response flags, as bits of [`flag`].
    pub flags: &'s mut u32,
    /// Fields for the access log.
    pub log_fields: &'s mut Vec<(String, String)>,
    /// State and metadata.
    pub stored: &'s mut StreamMetadata,
    /// Places of limits.
    pub held: &'s mut SmallVec<[Permit; 1]>,
}

impl StreamRef {
    /// The same, without keeping it.
    pub fn downgrade(&self) -> WeakStreamRef {
        match self {
            StreamRef::Http(stream) => WeakStreamRef::Http(Rc::downgrade(stream)),
            StreamRef::Tcp(stream) => WeakStreamRef::Tcp(Rc::downgrade(stream)),
        }
    }

    /// Whether both are the same stream.
    pub fn is(&self, other: &StreamRef) -> bool {
        match (self, other) {
            (StreamRef::Http(one), StreamRef::Http(other)) => Rc::ptr_eq(one, other),
            (StreamRef::Tcp(one), StreamRef::Tcp(other)) => Rc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Runs `f` on what the filter at a position knows of the stream.
    pub fn with_position<T>(&self, position: usize, f: impl FnOnce(&mut FilterState) -> T) -> T {
        match self {
            StreamRef::Http(stream) => f(&mut stream.state.borrow_mut().positions[position]),
            StreamRef::Tcp(stream) => f(&mut stream.state.borrow_mut().positions[position]),
        }
    }

    /// Runs `f` on what filters leave with the stream.
    pub fn with_notes<T>(&self, f: impl FnOnce(StreamNotes<'_>) -> T) -> T {
        match self {
            StreamRef::Http(stream) => {
                let stream::StreamState { flags, log_fields, stored, held, .. } = &mut *stream.state.borrow_mut();
                f(StreamNotes { flags, log_fields, stored, held })
            }
            StreamRef::Tcp(stream) => {
                let network::ConnectionState { flags, log_fields, stored, held, .. } = &mut *stream.state.borrow_mut();
                f(StreamNotes { flags, log_fields, stored, held })
            }
        }
    }

    /// Charges a filter for so many bytes more in its log fields. Whether they may be added.
    pub fn owe(&self, ledger: &Arc<MemoryBudget>, more: usize) -> bool {
        match self {
            StreamRef::Http(stream) => stream.state.borrow_mut().owe(ledger, more),
            StreamRef::Tcp(stream) => stream.state.borrow_mut().owe(ledger, more),
        }
    }

    /// The connection that it is, or came on.
    pub fn connection(&self) -> &ConnectionInfo {
        match self {
            StreamRef::Http(stream) => &stream.connection,
            StreamRef::Tcp(stream) => &stream.connection,
        }
    }

    /// The client's address, as far as it can be trusted.
    pub fn client(&self) -> SocketAddr {
        match self {
            StreamRef::Http(stream) => stream.client,
            StreamRef::Tcp(stream) => stream.connection.peer,
        }
    }

    /// Whether the filter at a position holds it.
    pub fn is_held_by(&self, position: usize) -> bool {
        match self {
            StreamRef::Http(_) => self.with_position(position, |p| p.paused[0] || p.paused[1]),
            StreamRef::Tcp(stream) => stream.is_held_by(position),
        }
    }

    /// Refuses it because a filter has failed.
    pub fn deny(&self) {
        match self {
            StreamRef::Http(stream) => {
                stream.flag(flag::FILTER_FAILED);
                stream.reply(failed_reply(), flag::FILTER_FAILED);
            }
            StreamRef::Tcp(stream) => stream.close(flag::FILTER_FAILED, detail::FILTER_FAILED),
        }
    }

    /// Ends it, because a filter wants that.
    pub fn close(&self) {
        match self {
            StreamRef::Http(stream) => stream.close(),
            StreamRef::Tcp(stream) => stream.close(flag::LOCAL_REPLY, detail::CLOSED_BY_FILTER),
        }
    }

    /// Wakes whoever works on it.
    pub fn wake(&self) {
        match self {
            StreamRef::Http(stream) => stream.wake(),
            StreamRef::Tcp(stream) => stream.wake(),
        }
    }
}
