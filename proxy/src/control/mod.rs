//! The control plane: everything apart from traffic, on its own thread, so that requests are never affected.
//!
//! [`snapshot`] builds from a configuration what the workers need; [`reload`] loads another configuration, [`rollout`]
//! applies it, [`changes`] describes the difference, and [`diff`] what follows from it; [`history`] keeps the last configurations, and
//! [`pin`] holds one of them; [`source`] gets resources from
//! elsewhere, and [`discovery`] endpoints from DNS; [`threads`] runs the loading; [`watch`] detects changed files; [`signals`]
//! handles signals; [`health`] checks endpoints; [`rebuild`] replaces failed filter instances; [`status`] holds the state that the admin listener
//! shows, and [`cluster_metrics`] the metrics of clusters. [`crate::process`] starts and stops all of it.

pub mod certificates;
pub(crate) mod change;
pub(crate) mod changes;
pub(crate) mod cluster_metrics;
mod configure;
pub mod diff;
pub(crate) mod discovery;
pub(crate) mod health;
mod history;
pub(crate) mod load;
mod pin;
pub mod rebuild;
pub mod reload;
pub(crate) mod resources;
pub(crate) mod rollout;
mod selections;
pub mod signals;
pub mod snapshot;
pub mod source;
pub mod status;
pub mod store;
pub(crate) mod successor;
pub(crate) mod supplied;
pub mod threads;
mod unused;
mod vms;
pub mod watch;
