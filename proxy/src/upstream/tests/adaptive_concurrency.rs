//! Simulations of adaptive concurrency, in simulated time and with a seed: `cargo test -p tollgate --lib
//! adaptive_concurrency -- --nocapture` prints what they measure, which docs/overload.md quotes.
//!
//! An upstream serves a number of requests at a time and queues the others, in the order of their arrival. Requests arrive at a
//! constant rate, whatever became of those before. With `n` workers, `n` requests arrive at the same moment, and each worker
//! handles responses once per millisecond, at a moment of its own.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{Barrier, atomic::Ordering::SeqCst},
};

use serde_json::{Value, json};

use super::*;

const WORKERS: [usize; 3] = [1, 2, 16];

const SECOND: u64 = 1_000_000;

/// A client gives up after this time.
const PATIENCE: u64 = SECOND;

/// The mean of [`service`].
const SERVICE: u64 = 10_000;

fn adaptive(config: Value) -> AdaptiveConcurrency {
    AdaptiveConcurrency::new(&serde_json::from_value(config).unwrap(), None)
}

/// A service time of 10 ms on average: 5 ms, and an exponentially distributed part.
fn service() -> u64 {
    5_000 + (-fastrand::f64().max(1e-9).ln() * 5_000.0) as u64
}

struct World {
    limit: Option<AdaptiveConcurrency>,
    workers: usize,
    /// When each of the upstream's places is free again.
    places: BinaryHeap<Reverse<u64>>,
    /// Requests in flight: when their worker handles the response, and their number.
    ends: BinaryHeap<Reverse<(u64, u64)>>,
    in_flight: HashMap<u64, (u64, u64, Option<ConcurrencyPermit>)>,
    now: u64,
    number: u64,
}

/// What happened in a time.
#[derive(Default)]
struct Outcome {
    offered: u64,
    refused: u64,
    /// Responses within the clients' patience.
    good: u64,
    late: u64,
    latencies: Vec<u64>,
    limits: Vec<u64>,
}

impl Outcome {
    /// The good responses in percent of what this many places can serve in `seconds`.
    fn goodput(&self, places: usize, seconds: u64) -> f64 {
        self.good as f64 * 100.0 / (places as u64 * seconds * SECOND / SERVICE) as f64
    }

    fn median(values: &mut [u64]) -> u64 {
        values.sort_unstable();
        values[values.len() / 2]
    }
}

impl World {
    fn new(limit: Option<AdaptiveConcurrency>, workers: usize, places: usize) -> World {
        fastrand::seed(7);
        World {
            limit,
            workers,
            places: (0..places).map(|_| Reverse(0)).collect(),
            ends: BinaryHeap::new(),
            in_flight: HashMap::new(),
            now: SECOND,
            number: 0,
        }
    }

    /// Changes the number of requests that the upstream serves at a time.
    fn resize(&mut self, places: usize) {
        while self.places.len() > places {
            self.places.pop();
        }
        while self.places.len() < places {
            self.places.push(Reverse(self.now));
        }
    }

    /// Lets requests arrive, `rate` a second, for this many seconds.
    fn run(&mut self, rate: u64, seconds: u64) -> Outcome {
        let mut outcome = Outcome::default();
        let end = self.now + seconds * SECOND;
        while self.now < end {
            for worker in 0..self.workers {
                self.arrive(worker as u64, &mut outcome);
            }
            let next = self.now + SECOND * self.workers as u64 / rate;
            while let Some(Reverse((at, number))) = self.ends.peek().copied().filter(|Reverse((at, _))| *at <= next) {
                self.ends.pop();
                self.answer(at, number, &mut outcome);
            }
            self.now = next;
            outcome.limits.extend(self.limit.as_ref().map(|limit| limit.status().limit));
        }
        outcome
    }

    fn arrive(&mut self, worker: u64, outcome: &mut Outcome) {
        outcome.offered += 1;
        let permit = match &self.limit {
            None => None,
            Some(limit) => match limit.try_acquire() {
                Some(permit) => Some(permit),
                None => return outcome.refused += 1,
            },
        };
        let Reverse(free) = self.places.pop().unwrap();
        let served = free.max(self.now) + service();
        self.places.push(Reverse(served));
        // The worker's next turn.
        let turn = (served + worker * 61).next_multiple_of(1_000) - worker * 61;
        self.number += 1;
        self.in_flight.insert(self.number, (self.now, turn, permit));
        self.ends.push(Reverse((turn, self.number)));
    }

    fn answer(&mut self, at: u64, number: u64, outcome: &mut Outcome) {
        let (start, end, permit) = self.in_flight.remove(&number).unwrap();
        assert_eq!(end, at);
        if let Some(limit) = &self.limit {
            limit.observe(start, end, Duration::from_micros(end - start));
        }
        drop(permit);
        match end - start {
            latency @ ..=PATIENCE => {
                outcome.good += 1;
                outcome.latencies.push(latency);
            }
            _ => outcome.late += 1,
        }
    }
}

/// At twice the capacity, almost all of the capacity is used for requests that clients still wait for, and latency stays low.
/// Without a limit, everything is too late.
#[test]
fn goodput_at_twice_the_capacity() {
    const PLACES: usize = 20;
    println!("20 requests at a time, 10 ms each: 2,000 a second; 4,000 arrive, for 180 s");
    for workers in WORKERS {
        let mut world = World::new(Some(adaptive(json!({}))), workers, PLACES);
        world.run(4_000, 5);
        let mut outcome = world.run(4_000, 180);
        let goodput = outcome.goodput(PLACES, 180);
        let (latency, limit) = (Outcome::median(&mut outcome.latencies), Outcome::median(&mut outcome.limits));
        println!(
            "{workers} workers: goodput {goodput:.1} %, {} of {} refused, median latency {:.1} ms, median limit {limit}",
            outcome.refused,
            outcome.offered,
            latency as f64 / 1e3
        );
        assert!(goodput >= 95.0 && outcome.late == 0, "{goodput}");
        assert!((20..=45).contains(&limit), "{limit}");
        assert!(latency < 25_000, "{latency}");
    }
    let mut world = World::new(None, 1, PLACES);
    world.run(4_000, 5);
    let outcome = world.run(4_000, 180);
    println!("without: goodput {:.1} %, {} too late", outcome.goodput(PLACES, 180), outcome.late);
    assert_eq!(outcome.good, 0);
}

#[test]
fn limit_follows_the_capacity() {
    println!("median limit in the last 10 s of 30 s, and goodput in these 10 s");
    for workers in WORKERS {
        let mut world = World::new(Some(adaptive(json!({}))), workers, 40);
        let mut line = String::new();
        let mut limits = Vec::new();
        for places in [40, 20, 40] {
            world.resize(places);
            world.run(8_000, 20);
            let mut outcome = world.run(8_000, 10);
            let (limit, goodput) = (Outcome::median(&mut outcome.limits), outcome.goodput(places, 10));
            line += &format!(" {places} places: limit {limit}, {goodput:.1} %;");
            assert!(goodput >= 90.0, "{workers} workers:{line}");
            limits.push(limit);
        }
        println!("{workers} workers:{line}");
        assert!((40..=75).contains(&limits[0]) && (20..=45).contains(&limits[1]), "{limits:?}");
        assert!(limits[0].abs_diff(limits[2]) <= limits[0] / 5, "{limits:?}");
    }
}

#[test]
fn nothing_is_refused_within_the_capacity_except_while_min_rtt_is_measured() {
    for workers in WORKERS {
        let mut world = World::new(Some(adaptive(json!({}))), workers, 20);
        world.run(1_000, 5);
        let outcome = world.run(1_000, 50);
        assert_eq!(outcome.refused, 0, "{workers} workers");
        let outcome = world.run(1_000, 20);
        println!("{workers} workers: {} of 20,000 refused in 20 s with a measurement", outcome.refused);
        assert!((1..1_000).contains(&outcome.refused), "{workers} workers: {}", outcome.refused);
    }
}

#[test]
fn threads_share_the_limit_exactly() {
    // The measurement never ends, so that the limit stays the same.
    let limit = adaptive(json!({"min_rtt_calc_params": {"min_concurrency": 5, "request_count": 1_000_000_000}}));
    let (held, most, admitted) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let start = Barrier::new(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                start.wait();
                for n in 0..2_000 {
                    let Some(permit) = limit.try_acquire() else { continue };
                    most.fetch_max(held.fetch_add(1, SeqCst) + 1, SeqCst);
                    limit.observe(n, n + 1, Duration::from_micros(1));
                    admitted.fetch_add(1, SeqCst);
                    std::thread::yield_now();
                    held.fetch_sub(1, SeqCst);
                    drop(permit);
                }
            });
        }
    });
    let status = limit.status();
    assert!((1..=5).contains(&most.load(SeqCst)), "{most:?}");
    assert_eq!((status.active, status.limit), (0, 5));
    assert_eq!(status.refused + admitted.load(SeqCst), 16 * 2_000);
}

#[test]
fn attempts_from_before_a_measurement_do_not_count() {
    let limit = adaptive(json!({"min_rtt_calc_params": {"request_count": 2, "jitter": 0}}));
    let ms = Duration::from_millis;
    limit.observe(1, 2, ms(10));
    limit.observe(1, 2, ms(10));
    assert!(!limit.status().is_measuring);
    let next = 61 * SECOND;
    limit.observe(next - 1_000, next, ms(1));
    assert!(limit.status().is_measuring);
    (0..5).for_each(|_| limit.observe(next - 1, next + 1, ms(500)));
    assert!(limit.status().is_measuring, "they began before");
    (0..2).for_each(|_| limit.observe(next, next + 1, ms(20)));
    let status = limit.status();
    assert!(!status.is_measuring);
    let min_rtt = status.min_rtt.unwrap();
    assert!(min_rtt >= ms(20) && min_rtt < ms(22), "{min_rtt:?}");
}

#[test]
fn failures_count_only_if_they_took_long() {
    let limit = adaptive(json!({"min_rtt_calc_params": {"request_count": 3}}));
    let (now, ms) = (Instant::now(), Duration::from_millis);
    (0..10).for_each(|_| limit.waited(now, now, ms(50)));
    assert!(limit.status().is_measuring, "nothing is known yet");
    (0..3).for_each(|_| limit.answered(now, now, ms(10)));
    assert!(!limit.status().is_measuring);
    let later = now + ms(200);
    (0..10).for_each(|_| limit.waited(now, later, ms(1)));
    assert_eq!(limit.status().sample_rtt, None, "soon");
    limit.waited(now, later, ms(40));
    let status = limit.status();
    assert!(status.sample_rtt.unwrap() >= ms(40), "{status:?}");
    assert!(status.gradient < 0.6, "{status:?}");
}

#[test]
fn a_changed_cluster_keeps_its_permits_and_its_limit() {
    let config: model::AdaptiveConcurrency =
        serde_json::from_value(json!({"min_rtt_calc_params": {"request_count": 1}})).unwrap();
    let before = AdaptiveConcurrency::new(&config, None);
    let permits: Vec<_> = (0..3).map(|_| before.try_acquire().unwrap()).collect();
    before.observe(1, 2, Duration::from_millis(10));
    let after = AdaptiveConcurrency::new(&config, Some(&before));
    assert!(after.try_acquire().is_none());
    assert_eq!(after.status().active, 3);
    assert!(after.status().min_rtt.is_some());
    drop(permits);
    assert_eq!((after.status().active, after.status().refused), (0, 1));
}
