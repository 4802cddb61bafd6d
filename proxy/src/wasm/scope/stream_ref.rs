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
        charge::Ledger,
        flow::failed_reply,
        limits::Place,
        network::{self, NetworkStream},
        stored::Stored,
        stream::{self, ConnectionInfo, Position},
    },
    observe::detail,
};

/// A stream of either kind.
#[derive(Clone)]
pub enum Subject {
    /// A request and its response.
    Http(Rc<Stream>),
    /// A TCP connection.
    Tcp(Rc<NetworkStream>),
}

/// The same, without keeping it.
pub enum WeakSubject {
    /// A request and its response.
    Http(Weak<Stream>),
    /// A TCP connection.
    Tcp(Weak<NetworkStream>),
}

impl WeakSubject {
    /// The stream, if it is still there.
    pub fn upgrade(&self) -> Option<Subject> {
        match self {
            WeakSubject::Http(stream) => stream.upgrade().map(Subject::Http),
            WeakSubject::Tcp(stream) => stream.upgrade().map(Subject::Tcp),
        }
    }
}

/// What filters leave with a stream.
pub struct Notes<'s> {
    /// Response flags, as bits of [`flag`].
    pub flags: &'s mut u32,
    /// Fields for the access log.
    pub log_fields: &'s mut Vec<(String, String)>,
    /// State and metadata.
    pub stored: &'s mut Stored,
    /// Places of limits.
    pub held: &'s mut SmallVec<[Place; 1]>,
}

impl Subject {
    /// The same, without keeping it.
    pub fn downgrade(&self) -> WeakSubject {
        match self {
            Subject::Http(stream) => WeakSubject::Http(Rc::downgrade(stream)),
            Subject::Tcp(stream) => WeakSubject::Tcp(Rc::downgrade(stream)),
        }
    }

    /// Whether both are the same stream.
    pub fn is(&self, other: &Subject) -> bool {
        match (self, other) {
            (Subject::Http(one), Subject::Http(other)) => Rc::ptr_eq(one, other),
            (Subject::Tcp(one), Subject::Tcp(other)) => Rc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Runs `f` on what the filter at a position knows of the stream.
    pub fn with_position<T>(&self, position: usize, f: impl FnOnce(&mut Position) -> T) -> T {
        match self {
            Subject::Http(stream) => f(&mut stream.state.borrow_mut().positions[position]),
            Subject::Tcp(stream) => f(&mut stream.state.borrow_mut().positions[position]),
        }
    }

    /// Runs `f` on what filters leave with the stream.
    pub fn with_notes<T>(&self, f: impl FnOnce(Notes<'_>) -> T) -> T {
        match self {
            Subject::Http(stream) => {
                let stream::State { flags, log_fields, stored, held, .. } = &mut *stream.state.borrow_mut();
                f(Notes { flags, log_fields, stored, held })
            }
            Subject::Tcp(stream) => {
                let network::State { flags, log_fields, stored, held, .. } = &mut *stream.state.borrow_mut();
                f(Notes { flags, log_fields, stored, held })
            }
        }
    }

    /// Charges a filter for so many bytes more in its log fields. Whether they may be added.
    pub fn owe(&self, ledger: &Arc<Ledger>, more: usize) -> bool {
        match self {
            Subject::Http(stream) => stream.state.borrow_mut().owe(ledger, more),
            Subject::Tcp(stream) => stream.state.borrow_mut().owe(ledger, more),
        }
    }

    /// The connection that it is, or came on.
    pub fn connection(&self) -> &ConnectionInfo {
        match self {
            Subject::Http(stream) => &stream.connection,
            Subject::Tcp(stream) => &stream.connection,
        }
    }

    /// The client's address, as far as it can be trusted.
    pub fn client(&self) -> SocketAddr {
        match self {
            Subject::Http(stream) => stream.client,
            Subject::Tcp(stream) => stream.connection.peer,
        }
    }

    /// Whether the filter at a position holds it.
    pub fn is_held_by(&self, position: usize) -> bool {
        match self {
            Subject::Http(_) => self.with_position(position, |p| p.paused[0] || p.paused[1]),
            Subject::Tcp(stream) => stream.is_held_by(position),
        }
    }

    /// Refuses it because a filter has failed.
    pub fn deny(&self) {
        match self {
            Subject::Http(stream) => {
                stream.flag(flag::FILTER_FAILED);
                stream.reply(failed_reply(), flag::FILTER_FAILED);
            }
            Subject::Tcp(stream) => stream.close(flag::FILTER_FAILED, detail::FILTER_FAILED),
        }
    }

    /// Ends it, because a filter wants that.
    pub fn close(&self) {
        match self {
            Subject::Http(stream) => stream.close(),
            Subject::Tcp(stream) => stream.close(flag::LOCAL_REPLY, detail::CLOSED_BY_FILTER),
        }
    }

    /// Wakes whoever works on it.
    pub fn wake(&self) {
        match self {
            Subject::Http(stream) => stream.wake(),
            Subject::Tcp(stream) => stream.wake(),
        }
    }
}
