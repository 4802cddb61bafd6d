//! What every test stands on: the proxy as a real process ([`Proxy`]), upstreams that do as they are told ([`Upstream`]),
//! and a client that sends any bytes ([`Client`]). All of it blocks; a test that needs several things at once uses threads.

mod client;
mod config;
pub mod envoy;
pub mod frames;
mod metrics;
pub mod peer;
pub mod pki;
mod proxy;
mod secure;
mod upstream;
pub mod wasm;
mod wire;

use std::{
    thread,
    time::{Duration, Instant},
};

pub use self::{
    client::Client,
    config::Config,
    frames::H2,
    metrics::Metrics,
    proxy::{Proxy, Signal, free_address, tollgate},
    secure::Secure,
    upstream::{Upstream, answer},
    wire::{Message, Wire},
};

/// Nothing that should happen takes this long, not even on a busy machine. A test that runs into it has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until there is something; `what` is said when there never is.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut look: impl FnMut() -> bool) {
    wait_for(what, || look().then_some(()));
}
