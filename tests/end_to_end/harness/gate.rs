//! What holds threads of a test up.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::wait_until;

/// Holds upstreams up until a test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Lets everybody through from now on.
    pub fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits for it to be opened.
    pub fn wait(&self) {
        wait_until("the gate to open", || self.0.load(Ordering::Relaxed));
    }
}
