//! Hooks in which a `portable` module does work that Tollgate otherwise does for it; here they are empty.

use super::{Due, types::Half};
use crate::doc;

/// Called when a callback begins that acts on this context.
#[inline]
pub(crate) fn enter(_context: u32) {}

/// Called when a context was deleted.
#[inline]
pub(crate) fn leave(_context: u32) {}

/// Called when a response arrives, before the filter sees it.
#[inline]
pub(crate) fn begin_response() {}

/// Called if the filter may change the length of the body that follows these headers.
#[inline]
pub(crate) fn body_may_change(_half: Half) {}

/// Called on the tick of this context; runs whatever is due.
#[inline]
pub(crate) fn tick(root: u32, mut due: impl FnMut(Due)) {
    due(Due::Tick(root));
}

/// Names a field of the route that is not supported.
#[inline]
pub(crate) fn not_for_routes(_route: &doc::Route) -> Option<&'static str> {
    None
}
