//! What every test stands on: the proxy as a real process ([`Proxy`]), upstreams that do as they are told ([`Upstream`]),
//! and a client that sends any bytes ([`Client`]). All of it blocks; a test that needs several things at once uses threads.

mod client;
mod config;
mod entry;
pub mod envoy;
pub mod exchange;
pub mod frames;
mod gate;
pub mod guest;
mod metrics;
pub mod not_run;
pub mod peer;
pub mod pki;
mod ports;
mod proxy;
#[cfg(feature = "http3")]
pub mod quic;
mod secure;
mod settled;
mod upstream;
pub mod wasm;
mod wire;

use std::{
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

pub use self::{
    client::Client,
    config::{Config, Setup},
    entry::Entry,
    frames::H2,
    gate::Gate,
    metrics::Metrics,
    ports::reserve,
    proxy::{Proxy, Signal, run_in, tollgate},
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

/// Has something happen before a timer of the proxy's ends, which a busy machine does not always manage. `attempt` sets
/// the timer to so many milliseconds, and says `None` if it ended too soon to show anything; then the next attempt has
/// four times as long. A proxy that does the wrong thing does it however long the timer is.
pub fn in_time<T>(attempt: impl Fn(u32) -> Option<T>) -> T {
    [500, 2_000, 8_000, 32_000].into_iter().find_map(attempt).expect("not even half a minute is enough")
}

/// What threads of upstreams tell a test, and where it hears that.
pub fn telling<T: Send>() -> (impl Fn(T) + Send + Sync, mpsc::Receiver<T>) {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    // At the end of a test nobody listens.
    (move |what| _ = tell.lock().unwrap().send(what), told)
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut look: impl FnMut() -> bool) {
    wait_for(what, || look().then_some(()));
}

/// Holds an upstream up: each call of the function lasts until something is sent for it, or the sender is gone.
pub fn turnstile() -> (mpsc::Sender<()>, impl Fn() + Send + Sync) {
    let (go, told) = mpsc::channel();
    let told = Mutex::new(told);
    (go, move || _ = told.lock().unwrap().recv())
}
