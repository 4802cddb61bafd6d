//! Blocks threads of a test.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::wait_until;

/// Blocks upstreams until a test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Lets all threads through from now on.
    pub fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits until the gate is open.
    pub fn wait(&self) {
        wait_until("the gate to open", || self.0.load(Ordering::Relaxed));
    }
}
