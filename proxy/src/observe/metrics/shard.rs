//! Shards: every figure that traffic changes is kept once for each worker, on a cache line of its own, and summed up
//! when it is read. Two workers that count requests then never wait for each other's cache line.

use std::{cell::Cell, sync::Arc};

/// Which thread's part of a figure is meant. A shard may be written by any thread (the additions are atomic), but it is
/// fast only if one thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shard(usize);

impl Shard {
    /// The control thread, and every thread that never called [`set_shard`].
    pub const CONTROL: Shard = Shard(0);

    /// The worker with this index, from 0.
    pub const fn worker(index: usize) -> Shard {
        Shard(index + 1)
    }

    /// Its place among the shards: 0 is the control thread.
    pub const fn index(self) -> usize {
        self.0
    }
}

thread_local! {
    static CURRENT: Cell<Shard> = const { Cell::new(Shard::CONTROL) };
}

/// This thread's shard, for call sites that have no worker at hand.
pub fn shard() -> Shard {
    CURRENT.get()
}

/// Says which shard this thread writes to; once, when the thread starts.
pub fn set_shard(shard: Shard) {
    CURRENT.set(shard);
}

/// A value alone on its cache line; two lines, because x86-64 fetches lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// One `T` for each shard, behind a handle that is cheap to clone.
#[derive(Debug)]
pub(in crate::observe) struct PerShard<T>(Arc<[Padded<T>]>);

impl<T> Clone for PerShard<T> {
    fn clone(&self) -> Self {
        PerShard(Arc::clone(&self.0))
    }
}

impl<T: Default> PerShard<T> {
    /// `shards` of them, and at least the control thread's.
    pub(in crate::observe) fn new(shards: usize) -> Self {
        PerShard((0..shards.max(1)).map(|_| Padded::default()).collect())
    }
}

impl<T> PerShard<T> {
    /// The shard's own. One that nobody made room for shares the control thread's: slower, and still correct.
    #[inline]
    pub(in crate::observe) fn at(&self, shard: Shard) -> &T {
        match self.0.get(shard.0) {
            Some(own) => &own.0,
            None => &self.0[0].0,
        }
    }

    /// Where they lie: the same for all clones of the handle.
    pub(in crate::observe) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    pub(in crate::observe) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &padded.0)
    }
}
