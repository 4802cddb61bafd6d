//! Control: what happens beside the traffic, on a thread of its own, so that none of it is ever felt by a request.
//!
//! [`snapshot`] turns a configuration into what workers need; [`server`] starts everything, applies changes and stops;
//! [`crew`] is where it is loaded; [`watch`] notices changed files; [`status`] is what the admin listener shows.

pub mod builtins;
pub mod certificates;
pub mod crew;
pub mod server;
pub mod snapshot;
pub mod status;
pub mod watch;
