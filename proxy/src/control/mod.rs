//! Control: what happens beside the traffic, on a thread of its own, so that none of it is ever felt by a request.
//!
//! [`server`] starts everything, hears [`signals`] and stops; [`snapshot`] turns a configuration into what workers need;
//! [`reload`] puts another one in force, and [`changes`] says what is different about it; [`crew`] is where it is loaded;
//! [`watch`] notices changed files; [`rebuild`] replaces filters that failed; [`status`] is what the admin listener shows;
//! [`trial`] is what `tollgate check` looks at beyond making a snapshot.

pub mod certificates;
pub(crate) mod change;
mod configure;
pub mod diff;
pub(crate) mod load;
pub mod rebuild;
pub mod reload;
pub mod signals;
pub mod snapshot;
pub mod status;
pub(crate) mod successor;
pub mod threads;
mod unused;
pub mod watch;
