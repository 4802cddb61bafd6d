//! What the module need not do itself, because the host does it: these are the places where `portable` does something.

use super::{Due, types::Half};
use crate::doc;

/// A callback begins that acts on this context.
#[inline]
pub(crate) fn enter(_context: u32) {}

/// A context is gone.
#[inline]
pub(crate) fn leave(_context: u32) {}

/// A response has come, before the filter sees it.
#[inline]
pub(crate) fn begin_response() {}

/// The filter may change the length of the body that follows this head.
#[inline]
pub(crate) fn body_may_change(_half: Half) {}

/// The tick of this context is due, and what else is.
#[inline]
pub(crate) fn tick(root: u32, mut due: impl FnMut(Due)) {
    due(Due::Tick(root));
}

/// What of a route cannot be done.
#[inline]
pub(crate) fn not_for_routes(_route: &doc::Route) -> Option<&'static str> {
    None
}
