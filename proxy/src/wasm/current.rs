//! Which stream the guest call under way on this thread works on.
//!
//! A store's data must be able to move between threads, and streams cannot; so they meet here. There is never more than one
//! guest call under way on a thread: the host does not re-enter a guest but for its allocator.

use std::{
    cell::RefCell,
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
};

use super::subject::{Notes, Subject, WeakSubject};
use crate::chain::{
    Stream,
    network::NetworkStream,
    stream::{Position, State},
};

/// A stream's context: the stream, the filter's position in its chain, and which of the instance's roots is its parent.
pub struct StreamContext {
    /// The stream.
    pub stream: WeakSubject,
    /// The filter's position in the stream's chain.
    pub position: usize,
    /// The filter, among those of the instance.
    pub root: usize,
}

/// The streams of an instance by their context ids.
pub type Contexts = RefCell<std::collections::HashMap<u32, StreamContext, BuildHasherDefault<IdHasher>>>;

/// Ids are given out one after the other, so they are spread well as they are.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 << 8) | u64::from(*b);
        }
    }
    fn write_u32(&mut self, id: u32) {
        // The table looks at the upper bits too.
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

struct Current {
    stream: Option<(Subject, usize)>,
    contexts: Rc<Contexts>,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// Sets what a guest call works on, until it is dropped.
pub struct Scope(());

impl Scope {
    /// The call works on this stream, as the filter at this position, or on none.
    pub fn enter(stream: Option<(Subject, usize)>, contexts: &Rc<Contexts>) -> Scope {
        CURRENT.set(Some(Current { stream, contexts: contexts.clone() }));
        Scope(())
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// Makes another stream the one that the call works on. The root that it belongs to; none: there is no such stream.
pub fn switch(context: u32) -> Option<usize> {
    CURRENT.with_borrow_mut(|current| {
        let current = current.as_mut()?;
        let contexts = current.contexts.borrow();
        let found = contexts.get(&context)?;
        current.stream = Some((found.stream.upgrade()?, found.position));
        Some(found.root)
    })
}

/// Makes the call work on no stream.
pub fn leave() {
    CURRENT.with_borrow_mut(|current| {
        if let Some(current) = current {
            current.stream = None;
        }
    });
}

/// Runs `f` on the stream that the call works on, of whichever kind, if there is one.
pub fn with_subject<T>(f: impl FnOnce(&Subject, usize) -> T) -> Option<T> {
    CURRENT.with_borrow(|current| {
        let (stream, position) = current.as_ref()?.stream.as_ref()?;
        Some(f(stream, *position))
    })
}

/// Runs `f` on the stream of HTTP that the call works on, if it works on one.
pub fn with_stream<T>(f: impl FnOnce(&Rc<Stream>, usize) -> T) -> Option<T> {
    with_subject(|subject, position| match subject {
        Subject::Http(stream) => Some(f(stream, position)),
        Subject::Tcp(_) => None,
    })?
}

/// Runs `f` on the state of the stream of HTTP that the call works on, if it works on one.
pub fn with_state<T>(f: impl FnOnce(&mut State) -> T) -> Option<T> {
    with_stream(|stream, _| f(&mut stream.state.borrow_mut()))
}

/// Runs `f` on the TCP connection that the call works on, if it works on one.
pub fn with_network<T>(f: impl FnOnce(&Rc<NetworkStream>, usize) -> T) -> Option<T> {
    with_subject(|subject, position| match subject {
        Subject::Tcp(stream) => Some(f(stream, position)),
        Subject::Http(_) => None,
    })?
}

/// Runs `f` on what filters leave with the stream that the call works on, if there is one.
pub fn with_notes<T>(f: impl FnOnce(Notes<'_>) -> T) -> Option<T> {
    with_subject(|subject, _| subject.with_notes(f))
}

/// Runs `f` on what this filter knows of the stream, if there is one.
pub fn with_position<T>(f: impl FnOnce(&mut Position) -> T) -> Option<T> {
    with_subject(|subject, position| subject.with_position(position, f))
}
