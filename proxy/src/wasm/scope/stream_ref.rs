//! The stream that a guest call works on: an HTTP stream or a TCP connection. Most host functions apply to one of the
//! two; this file has what both share.

use std::{
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
};

use smallvec::SmallVec;
use tollgate_abi::fast::flag;

use crate::{
    chain::{
        SelectedRoute, Stream,
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

/// A weak reference to a stream of either kind.
pub enum WeakStreamRef {
    /// A request and its response.
    Http(Weak<Stream>),
    /// A TCP connection.
    Tcp(Weak<NetworkStream>),
}

impl WeakStreamRef {
    /// The stream, if it still exists.
    pub fn upgrade(&self) -> Option<StreamRef> {
        match self {
            WeakStreamRef::Http(stream) => stream.upgrade().map(StreamRef::Http),
            WeakStreamRef::Tcp(stream) => stream.upgrade().map(StreamRef::Tcp),
        }
    }
}

/// What filters attach to a stream.
pub struct StreamNotes<'s> {
    /// Response flags, as bits of [`flag`].
    pub flags: &'s mut u32,
    /// Fields for the access log.
    pub log_fields: &'s mut Vec<(String, String)>,
    /// Filter state and dynamic metadata.
    pub stored: &'s mut StreamMetadata,
    /// Permits of concurrency limits.
    pub held: &'s mut SmallVec<[Permit; 1]>,
}

impl StreamRef {
    /// A weak reference to the same stream.
    pub fn downgrade(&self) -> WeakStreamRef {
        match self {
            StreamRef::Http(stream) => WeakStreamRef::Http(Rc::downgrade(stream)),
            StreamRef::Tcp(stream) => WeakStreamRef::Tcp(Rc::downgrade(stream)),
        }
    }

    /// Whether both refer to the same stream.
    pub fn is(&self, other: &StreamRef) -> bool {
        match (self, other) {
            (StreamRef::Http(one), StreamRef::Http(other)) => Rc::ptr_eq(one, other),
            (StreamRef::Tcp(one), StreamRef::Tcp(other)) => Rc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Runs `f` on the state of the filter at a position.
    pub fn with_position<T>(&self, position: usize, f: impl FnOnce(&mut FilterState) -> T) -> T {
        match self {
            StreamRef::Http(stream) => f(&mut stream.state.borrow_mut().filters[position]),
            StreamRef::Tcp(stream) => f(&mut stream.state.borrow_mut().positions[position]),
        }
    }

    /// Runs `f` on what filters attach to the stream.
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

    /// Selects the stream's route, or drops it, as the filter at a position.
    pub fn select(&self, position: usize, selected: Option<SelectedRoute>) {
        match self {
            StreamRef::Http(stream) => stream.select(position, selected),
            StreamRef::Tcp(stream) => stream.select(position, selected),
        }
    }

    /// Charges a filter for `more` additional bytes of log fields. Returns whether they may be added.
    pub fn owe(&self, ledger: &Arc<MemoryBudget>, more: usize) -> bool {
        match self {
            StreamRef::Http(stream) => stream.state.borrow_mut().owe(ledger, more),
            StreamRef::Tcp(stream) => stream.state.borrow_mut().owe(ledger, more),
        }
    }

    /// The connection that it is, or that it arrived on.
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

    /// Whether the filter at a position pauses the stream.
    pub fn is_held_by(&self, position: usize) -> bool {
        match self {
            StreamRef::Http(_) => self.with_position(position, |p| p.paused[0] || p.paused[1]),
            StreamRef::Tcp(stream) => stream.is_held_by(position),
        }
    }

    /// Denies the stream because a filter failed.
    pub fn deny(&self) {
        match self {
            StreamRef::Http(stream) => {
                stream.flag(flag::FILTER_FAILED);
                stream.reply(failed_reply(), flag::FILTER_FAILED);
            }
            StreamRef::Tcp(stream) => stream.close(flag::FILTER_FAILED, detail::FILTER_FAILED),
        }
    }

    /// Ends the stream at a filter's request.
    pub fn close(&self) {
        match self {
            StreamRef::Http(stream) => stream.close(),
            StreamRef::Tcp(stream) => stream.close(flag::LOCAL_REPLY, detail::CLOSED_BY_FILTER),
        }
    }

    /// Wakes the task that drives the stream.
    pub fn wake(&self) {
        match self {
            StreamRef::Http(stream) => stream.wake(),
            StreamRef::Tcp(stream) => stream.wake(),
        }
    }
}
