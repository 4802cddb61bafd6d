//! What the current host call works on: the stream, and the contexts of its instance.

pub(super) mod call_scope;
pub(super) mod contexts;
pub(super) mod stream_ref;
