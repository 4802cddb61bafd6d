//! Which stream the guest call under way on this thread works on.
//!
//! A store's data must be able to move between threads, and streams cannot; so they meet here. There is never more than one
//! guest call under way on a thread: the host does not re-enter a guest but for its allocator.

use std::{cell::RefCell, mem::ManuallyDrop, rc::Rc};

use super::{
    contexts::Contexts,
    stream_ref::{StreamNotes, StreamRef},
};
use crate::chain::{
    Stream,
    network::NetworkStream,
    stream::{FilterState, StreamState},
};

struct CurrentCall {
    stream: Option<(StreamRef, usize)>,
    contexts: Option<Rc<RefCell<Contexts>>>,
}

thread_local! {
    // Nothing is left in it when a thread ends, so it need not be dropped; to look whether it must be would cost time.
    static CURRENT: RefCell<ManuallyDrop<CurrentCall>> =
        const { RefCell::new(ManuallyDrop::new(CurrentCall { stream: None, contexts: None })) };
}

/// Sets what a guest call works on, until it is dropped.
pub struct CallScope(());

impl CallScope {
    /// The call works on this stream, as the filter at this position, or on none.
    pub fn enter(stream: Option<(&StreamRef, usize)>, contexts: &Rc<RefCell<Contexts>>) -> CallScope {
        CURRENT.with_borrow_mut(|current| {
            current.stream = stream.map(|(stream, position)| (stream.clone(), position));
            current.contexts = Some(contexts.clone());
        });
        CallScope(())
    }
}

impl Drop for CallScope {
    fn drop(&mut self) {
        // What is dropped may be the last of a stream, whose drop must not find this borrowed.
        let _last = CURRENT.with_borrow_mut(|current| (current.stream.take(), current.contexts.take()));
    }
}

/// Makes another stream the one that the call works on. The root that it belongs to; none: there is no such stream, and nothing
/// changes.
pub fn switch(context: u32) -> Option<usize> {
    CURRENT.with_borrow_mut(|current| {
        let contexts = current.contexts.clone()?;
        let contexts = contexts.borrow();
        let found = contexts.get(context)?;
        current.stream = Some((found.stream.upgrade()?, found.position));
        Some(found.root)
    })
}

/// Makes the call work on no stream.
pub fn leave() {
    CURRENT.with_borrow_mut(|current| current.stream = None);
}

/// Runs `f` on the stream that the call works on, of whichever kind, if there is one.
pub fn with_subject<T>(f: impl FnOnce(&StreamRef, usize) -> T) -> Option<T> {
    CURRENT.with_borrow(|current| {
        let (stream, position) = current.stream.as_ref()?;
        Some(f(stream, *position))
    })
}

/// Runs `f` on the stream of HTTP that the call works on, if it works on one.
pub fn with_stream<T>(f: impl FnOnce(&Rc<Stream>, usize) -> T) -> Option<T> {
    with_subject(|subject, position| match subject {
        StreamRef::Http(stream) => Some(f(stream, position)),
        StreamRef::Tcp(_) => None,
    })?
}

/// Runs `f` on the state of the stream of HTTP that the call works on, if it works on one.
pub fn with_state<T>(f: impl FnOnce(&mut StreamState) -> T) -> Option<T> {
    with_stream(|stream, _| f(&mut stream.state.borrow_mut()))
}

/// Runs `f` on the TCP connection that the call works on, if it works on one.
pub fn with_network<T>(f: impl FnOnce(&Rc<NetworkStream>, usize) -> T) -> Option<T> {
    with_subject(|subject, position| match subject {
        StreamRef::Tcp(stream) => Some(f(stream, position)),
        StreamRef::Http(_) => None,
    })?
}

/// Runs `f` on what filters leave with the stream that the call works on, if there is one.
pub fn with_notes<T>(f: impl FnOnce(StreamNotes<'_>) -> T) -> Option<T> {
    with_subject(|subject, _| subject.with_notes(f))
}

/// Runs `f` on what this filter knows of the stream, if there is one.
pub fn with_position<T>(f: impl FnOnce(&mut FilterState) -> T) -> Option<T> {
    with_subject(|subject, position| subject.with_position(position, f))
}
