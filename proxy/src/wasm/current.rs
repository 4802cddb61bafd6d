//! Which stream the guest call under way on this thread works on.
//!
//! A store's data must be able to move between threads, and streams cannot; so they meet here. There is never more than one
//! guest call under way on a thread: the host does not re-enter a guest but for its allocator.

use std::{
    cell::RefCell,
    hash::{BuildHasherDefault, Hasher},
    rc::{Rc, Weak},
};

use crate::chain::{
    Stream,
    stream::{Position, State},
};

/// The streams of an instance by their context ids.
pub type Contexts = RefCell<std::collections::HashMap<u32, (Weak<Stream>, usize), BuildHasherDefault<IdHasher>>>;

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
    stream: Option<(Rc<Stream>, usize)>,
    contexts: Rc<Contexts>,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// Sets what a guest call works on, until it is dropped.
pub struct Scope(());

impl Scope {
    /// The call works on this stream, as the filter at this position, or on none.
    pub fn enter(stream: Option<(Rc<Stream>, usize)>, contexts: &Rc<Contexts>) -> Scope {
        CURRENT.set(Some(Current { stream, contexts: contexts.clone() }));
        Scope(())
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// Makes another stream the one that the call works on. Whether there is such a stream.
pub fn switch(context: u32) -> bool {
    CURRENT.with_borrow_mut(|current| {
        let Some(current) = current else { return false };
        let found = current.contexts.borrow().get(&context).and_then(|(s, position)| Some((s.upgrade()?, *position)));
        current.stream = found;
        current.stream.is_some()
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

/// Runs `f` on the stream that the call works on, if there is one.
pub fn with_stream<T>(f: impl FnOnce(&Rc<Stream>, usize) -> T) -> Option<T> {
    CURRENT.with_borrow(|current| {
        let (stream, position) = current.as_ref()?.stream.as_ref()?;
        Some(f(stream, *position))
    })
}

/// Runs `f` on the state of the stream that the call works on, if there is one.
pub fn with_state<T>(f: impl FnOnce(&mut State) -> T) -> Option<T> {
    with_stream(|stream, _| f(&mut stream.state.borrow_mut()))
}

/// Runs `f` on what this filter knows of the stream, if there is one.
pub fn with_position<T>(f: impl FnOnce(&mut Position) -> T) -> Option<T> {
    with_stream(|stream, position| f(&mut stream.state.borrow_mut().positions[position]))
}
