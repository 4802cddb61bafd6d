//! Shards: every metric that traffic updates has one value per worker, on its own cache line, and is summed up
//! when it is read. So workers never contend for a cache line.

use std::{
    cell::Cell,
    sync::{Arc, OnceLock, Weak},
};

/// A thread's part of a metric. Any thread can write to a shard (additions are atomic), but it is
/// fast only if a single thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shard(usize);

impl Shard {
    /// The shard of the control thread, and of every thread that never called [`set_shard`].
    pub const CONTROL: Shard = Shard(0);

    /// The shard of the worker with this index, counted from 0.
    pub const fn worker(index: usize) -> Shard {
        Shard(index + 1)
    }

    /// The shard's index; 0 is the control thread's.
    pub const fn index(self) -> usize {
        self.0
    }
}

thread_local! {
    static CURRENT: Cell<Shard> = const { Cell::new(Shard::CONTROL) };
}

/// The current thread's shard, for callers without access to their worker.
pub fn shard() -> Shard {
    CURRENT.get()
}

/// Sets the current thread's shard; called once, when the thread starts.
pub fn set_shard(shard: Shard) {
    CURRENT.set(shard);
}

/// A value that has its cache line to itself; two lines, because x86-64 fetches lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// One `T` per shard, behind a handle that is cheap to clone.
#[derive(Debug)]
pub(in crate::observe) struct PerShard<T>(Arc<[Padded<T>]>);

impl<T> Clone for PerShard<T> {
    fn clone(&self) -> Self {
        PerShard(Arc::clone(&self.0))
    }
}

impl<T: Default> PerShard<T> {
    /// Creates `shards` values, at least one (the control thread's).
    pub(in crate::observe) fn new(shards: usize) -> Self {
        PerShard((0..shards.max(1)).map(|_| Padded::default()).collect())
    }
}

impl<T> PerShard<T> {
    /// The shard's value. A shard out of range uses the control thread's value, which is slower but correct.
    #[inline]
    pub(in crate::observe) fn at(&self, shard: Shard) -> &T {
        match self.0.get(shard.0) {
            Some(own) => &own.0,
            None => &self.0[0].0,
        }
    }

    /// The address of the values, equal for all clones of the handle.
    pub(in crate::observe) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    pub(in crate::observe) fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.0.iter().map(|padded| &padded.0)
    }

    /// A reference that does not keep the values.
    pub(in crate::observe) fn downgrade(&self) -> WeakPerShard<T> {
        WeakPerShard(Arc::downgrade(&self.0))
    }
}

/// A reference to the values of a [`PerShard`] that does not keep them.
#[derive(Debug)]
pub(in crate::observe) struct WeakPerShard<T>(Weak<[Padded<T>]>);

impl<T> WeakPerShard<T> {
    /// The values, if they still exist.
    pub(in crate::observe) fn upgrade(&self) -> Option<PerShard<T>> {
        self.0.upgrade().map(PerShard)
    }
}

/// One `T` per shard, each allocated when its thread first uses it: for values of which there may be thousands, most of
/// them unused.
#[derive(Debug)]
pub struct LazyShards<T>(Box<[OnceLock<Box<Padded<T>>>]>);

impl<T: Default> LazyShards<T> {
    /// Creates room for `shards` values, at least one (the control thread's).
    pub fn new(shards: usize) -> Self {
        LazyShards((0..shards.max(1)).map(|_| OnceLock::new()).collect())
    }

    /// The shard's value. A shard out of range uses the control thread's value, which is slower but correct.
    #[inline]
    pub fn at(&self, shard: Shard) -> &T {
        let cell = self.0.get(shard.0).unwrap_or(&self.0[0]);
        &cell.get_or_init(Box::default).0
    }
}

impl<T> LazyShards<T> {
    /// The values that are in use.
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.0.iter().filter_map(|cell| cell.get()).map(|padded| &padded.0)
    }
}
