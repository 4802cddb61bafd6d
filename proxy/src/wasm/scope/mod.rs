//! What the host call under way works on: the stream, and the contexts of its instance.

pub(super) mod contexts;
pub(super) mod current;
pub(super) mod subject;
