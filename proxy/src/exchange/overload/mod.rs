//! Load shedding of a listener: while the proxy itself is overloaded, because a worker runs late ([`lag`]) or memory runs
//! short ([`memory`]), a share of the requests and TCP connections is refused at once. The others are then served in time.
//!
//! The *pressure* is the use of a resource relative to its bound. From `scaling_threshold` to the bound, the share that is
//! shed grows from none to all, so that an overload settles in between instead of swinging.

mod lag;
mod memory;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    task::spawn_local,
    time::{Instant, sleep},
};

use crate::{
    config::model,
    observe::{self, Counter, Histogram, target},
};

/// What the proxy has too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// The worker's time.
    Lag,
    /// Memory.
    Memory,
}

impl Resource {
    /// All resources, with their names in metrics.
    pub const ALL: [(Resource, &'static str); 2] = [(Resource::Lag, "lag"), (Resource::Memory, "memory")];
}

/// The load shedding of a listener on a worker.
pub struct Overload {
    listener: Arc<str>,
    max_lag: Option<Duration>,
    /// In bytes.
    max_memory: Option<u64>,
    /// The pressure from which requests are shed.
    threshold: f32,
    exempt: Box<[String]>,
    shedding: Arc<Shedding>,
}

impl Overload {
    /// Creates it from its configuration.
    pub fn new(listener: &str, config: &model::Overload, shedding: Arc<Shedding>) -> Overload {
        let share = config.max_memory_percent.and_then(|percent| Some(memory::limit()? / 100 * u64::from(percent)));
        let max_memory = config.max_memory.map(|size| size.0).into_iter().chain(share).min();
        if max_memory.is_some() {
            memory::start();
        }
        Overload {
            listener: listener.into(),
            max_lag: config.max_lag.map(|lag| lag.0),
            max_memory,
            threshold: config.scaling_threshold as f32 / 100.0,
            exempt: config.exempt_paths.clone().into(),
            shedding,
        }
    }

    /// Decides whether to shed a request for this path (with query), and counts it if so. Must be called on a worker.
    pub(super) fn sheds_request(&self, path: &[u8]) -> bool {
        let path = path.split(|byte| *byte == b'?').next().unwrap_or(path);
        !self.exempt.iter().any(|exempt| exempt.as_bytes() == path) && self.sheds()
    }

    /// Decides whether to shed a TCP connection, and counts it if so. Must be called on a worker.
    pub fn sheds(&self) -> bool {
        let (resource, pressure) = self.pressure();
        let sheds = share(pressure, self.threshold) > fastrand::f32();
        if sheds {
            self.shedding.note(&self.listener, resource, pressure);
        }
        sheds
    }

    /// The higher pressure of the two resources.
    fn pressure(&self) -> (Resource, f32) {
        let lag = self.max_lag.map(|most| lag::of_worker(&self.shedding.lag).as_secs_f32() / most.as_secs_f32());
        let in_use = self.max_memory.and_then(|most| Some((memory::in_use(std::time::Instant::now())?, most)));
        match (lag.unwrap_or(0.0), in_use.map_or(0.0, |(bytes, most)| bytes as f32 / most as f32)) {
            (lag, memory) if memory > lag => (Resource::Memory, memory),
            (lag, _) => (Resource::Lag, lag),
        }
    }
}

/// The share of requests that is shed at a pressure.
fn share(pressure: f32, threshold: f32) -> f32 {
    ((pressure - threshold) / (1.0 - threshold)).clamp(0.0, 1.0)
}

/// How long nothing must have been shed until an overload is over.
const OVER: Duration = Duration::from_secs(5);

/// What a listener has shed, over all workers: metrics, and a log line when it begins and when it ends.
#[derive(Debug)]
pub struct Shedding {
    /// Requests and connections, by [`Resource`].
    shed: [Counter; 2],
    /// How late workers were.
    lag: Histogram,
    is_active: AtomicBool,
    /// The number since it began, and of these, how many had been counted when the log last looked.
    count: AtomicU64,
}

impl Shedding {
    /// Nothing has been shed yet.
    pub fn new(shed: [Counter; 2], lag: Histogram) -> Shedding {
        Shedding { shed, lag, is_active: AtomicBool::new(false), count: AtomicU64::new(0) }
    }

    fn note(self: &Arc<Self>, listener: &Arc<str>, resource: Resource, pressure: f32) {
        self.shed[resource as usize].inc(observe::shard());
        self.count.fetch_add(1, Relaxed);
        if !self.is_active.load(Relaxed) && !self.is_active.swap(true, Relaxed) {
            let percent = (pressure * 100.0) as u32;
            let what = match resource {
                Resource::Lag => "the lag of a worker",
                Resource::Memory => "memory",
            };
            tracing::warn!(
                target: target::LISTENER,
                listener = &**listener, "overloaded, requests are shed: {what} is at {percent} % of its bound"
            );
            spawn_local(Arc::clone(self).until_over(Arc::clone(listener)));
        }
    }

    /// Logs the end of an overload.
    async fn until_over(self: Arc<Self>, listener: Arc<str>) {
        let start = Instant::now();
        let mut before = 0;
        loop {
            sleep(OVER).await;
            let count = self.count.load(Relaxed);
            if count == before {
                break;
            }
            before = count;
        }
        self.is_active.store(false, Relaxed);
        let (shed, time) = (self.count.swap(0, Relaxed), start.elapsed());
        tracing::info!(
            target: target::LISTENER,
            listener = &*listener, "no longer overloaded: {shed} requests and connections were shed in {time:.0?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_grows_from_the_threshold_to_the_bound() {
        for (pressure, expected) in [(0.0, 0.0), (0.8, 0.0), (0.9, 0.5), (0.95, 0.75), (1.0, 1.0), (7.0, 1.0)] {
            let share = share(pressure, 0.8);
            assert!((share - expected).abs() < 1e-5, "{pressure}: {share}");
        }
        assert!((share(0.25, 0.0) - 0.25).abs() < 1e-5);
    }
}
