//! Which stream the current guest call on this thread works on.
//!
//! A store's data must be `Send` and streams are not, so the link between them is a thread-local. There is never more
//! than one guest call in progress on a thread: the host re-enters a guest only for its allocator.

use std::{cell::RefCell, mem::ManuallyDrop, rc::Rc};

use super::{
    contexts::Contexts,
    stream_ref::{StreamNotes, StreamRef},
};
use crate::{
    chain::{
        Stream,
        network::NetworkStream,
        stream::{FilterState, StreamState},
    },
    wasm::host::plugin_info::RootIdentity,
};

struct CurrentCall {
    stream: Option<(StreamRef, usize)>,
    contexts: Option<Rc<RefCell<Contexts>>>,
}

thread_local! {
    // It is empty when a thread ends and need not be dropped; registering a destructor would cost time on each access.
    static CURRENT: RefCell<ManuallyDrop<CurrentCall>> =
        const { RefCell::new(ManuallyDrop::new(CurrentCall { stream: None, contexts: None })) };
}

/// Sets what a guest call works on, until it is dropped.
pub struct CallScope(());

impl CallScope {
    /// Enters a call on this stream, as the filter at this position, or on no stream.
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
        // This may be the last reference to a stream, whose `drop` must not find the cell borrowed.
        let _last = CURRENT.with_borrow_mut(|current| (current.stream.take(), current.contexts.take()));
    }
}

/// Switches the call to another stream (`proxy_set_effective_context`). Returns the filter that the context belongs to;
/// `None` if there is no such stream, and nothing changes.
pub fn switch(context: u32) -> Option<Rc<RootIdentity>> {
    CURRENT.with_borrow_mut(|current| {
        let contexts = current.contexts.clone()?;
        let contexts = contexts.borrow();
        let found = contexts.get(context)?;
        current.stream = Some((found.stream.upgrade()?, found.position));
        Some(found.root.clone())
    })
}

/// Detaches the call from its stream.
pub fn leave() {
    CURRENT.with_borrow_mut(|current| current.stream = None);
}

/// Runs `f` on the stream of the current call, HTTP or TCP, if there is one.
pub fn with_subject<T>(f: impl FnOnce(&StreamRef, usize) -> T) -> Option<T> {
    CURRENT.with_borrow(|current| {
        let (stream, position) = current.stream.as_ref()?;
        Some(f(stream, *position))
    })
}

/// Drops the route of the current call's stream, if there is a stream.
pub fn clear_route() -> Option<()> {
    with_subject(|subject, position| subject.select(position, None))
}

/// Runs `f` on the HTTP stream of the current call, if there is one.
pub fn with_stream<T>(f: impl FnOnce(&Rc<Stream>, usize) -> T) -> Option<T> {
    with_subject(|subject, position| match subject {
        StreamRef::Http(stream) => Some(f(stream, position)),
        StreamRef::Tcp(_) => None,
    })?
}

/// Runs `f` on the state of the current call's HTTP stream, if there is one.
pub fn with_state<T>(f: impl FnOnce(&mut StreamState) -> T) -> Option<T> {
    with_stream(|stream, _| f(&mut stream.state.borrow_mut()))
}

/// Runs `f` on the TCP connection of the current call, if there is one.
pub fn with_network<T>(f: impl FnOnce(&Rc<NetworkStream>, usize) -> T) -> Option<T> {
    with_subject(|subject, position| match subject {
        StreamRef::Tcp(stream) => Some(f(stream, position)),
        StreamRef::Http(_) => None,
    })?
}

/// Runs `f` on the notes (flags, log fields, metadata) of the current call's stream, if there is one.
pub fn with_notes<T>(f: impl FnOnce(StreamNotes<'_>) -> T) -> Option<T> {
    with_subject(|subject, _| subject.with_notes(f))
}

/// Runs `f` on this filter's state of the stream, if there is one.
pub fn with_position<T>(f: impl FnOnce(&mut FilterState) -> T) -> Option<T> {
    with_subject(|subject, position| subject.with_position(position, f))
}
