//! The basis of every test: the proxy as a real process ([`Proxy`]), scripted upstreams ([`Upstream`]), and a client
//! that sends any bytes ([`Client`]). Everything blocks; tests that need concurrency use threads.

mod client;
mod config;
#[cfg(feature = "consul")]
pub mod consul;
mod entry;
pub mod envoy;
pub mod exchange;
pub mod frames;
mod gate;
pub mod guest;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod metrics;
pub mod name_server;
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

/// Everything that should happen takes less than this, even on a busy machine. A test that exceeds it has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `look` returns something; `what` is part of the panic message at the deadline.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "timed out waiting for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Makes something happen before one of the proxy's timers expires, which does not always work on a busy machine.
/// `attempt` sets the timer to the given milliseconds and returns `None` if it expired too soon; the next attempt then
/// gets four times as long. A proxy with the wrong behaviour shows it however long the timer is.
pub fn in_time<T>(attempt: impl Fn(u32) -> Option<T>) -> T {
    [500, 2_000, 8_000, 32_000].into_iter().find_map(attempt).expect("not even half a minute is enough")
}

/// A channel by which threads of upstreams report to the test.
pub fn telling<T: Send>() -> (impl Fn(T) + Send + Sync, mpsc::Receiver<T>) {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    // At the end of a test the receiver is gone.
    (move |what| _ = tell.lock().unwrap().send(what), told)
}

/// Waits until a condition is true.
pub fn wait_until(what: &str, mut look: impl FnMut() -> bool) {
    wait_for(what, || look().then_some(()));
}

/// Blocks an upstream: each call of the function lasts until something is sent for it, or the sender is dropped.
pub fn turnstile() -> (mpsc::Sender<()>, impl Fn() + Send + Sync) {
    let (go, told) = mpsc::channel();
    let told = Mutex::new(told);
    (go, move || _ = told.lock().unwrap().recv())
}
