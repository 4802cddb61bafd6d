//! What filters share across instances and workers: shared data, queues, token buckets, and who owns them.

pub mod bucket;
pub(super) mod queue;
pub(super) mod shared_data;
pub(super) mod trial;
mod words;
pub mod world;
