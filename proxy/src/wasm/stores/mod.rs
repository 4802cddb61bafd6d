//! State that filters share across instances and workers: shared data, queues, token buckets, and their owners.

pub mod bucket;

pub mod env;
pub mod known_names;
pub(super) mod queue;
pub(super) mod shared_data;
pub(super) mod undo_log;
mod zeroed_atomics;
