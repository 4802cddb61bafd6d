//! Simulations of the balancers, in simulated time and with a seed: `cargo test -p tollgate --lib simulation -- --nocapture`
//! prints what they measure, which docs/balancing.md quotes.
//!
//! Requests arrive at a constant rate. With `n` workers, `n` requests arrive at the same moment, and none of them sees the
//! others' choice: that is all that distinguishes workers, since they share the balancers' state.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use super::{
    candidates::mix,
    tests::{HASHES, NOW, POLICIES, Picker, await_table, balancer, config, index, members},
    *,
};
use crate::upstream::ActiveGuard;

const WORKERS: [usize; 3] = [1, 2, 16];

/// A request's answer: after this many microseconds, and whether it is a failure.
type Answer = (u64, bool);

/// A cluster in simulated time.
struct Cluster {
    config: model::Balancer,
    members: Vec<Member>,
    balancer: Arc<Balancer>,
    picker: Picker,
    /// In microseconds.
    now: u64,
    /// Requests in flight: the time at which each ends, and its number.
    ends: BinaryHeap<Reverse<(u64, u64)>>,
    active: HashMap<u64, (ActiveGuard, u64, bool)>,
    number: u64,
}

/// What happened in a time.
#[derive(Default)]
struct Outcome {
    /// Requests by endpoint.
    counts: Vec<u64>,
    failures: u64,
    /// In microseconds.
    latencies: Vec<u64>,
}

impl Outcome {
    fn share(&self, endpoint: usize) -> f64 {
        self.counts[endpoint] as f64 * 100.0 / self.counts.iter().sum::<u64>() as f64
    }

    /// The largest and the smallest count, relative to the mean.
    fn extremes(&self) -> (f64, f64) {
        let mean = self.counts.iter().sum::<u64>() as f64 / self.counts.len() as f64;
        let [most, least] = [self.counts.iter().max(), self.counts.iter().min()].map(|n| *n.unwrap() as f64 / mean);
        (least, most)
    }

    fn percentile(&mut self, percent: usize) -> f64 {
        self.latencies.sort_unstable();
        self.latencies[(self.latencies.len() * percent / 100).min(self.latencies.len() - 1)] as f64 / 1e3
    }
}

impl Cluster {
    fn new(config: model::Balancer, weights: &[u32]) -> Cluster {
        fastrand::seed(7);
        NOW.set(1_000);
        let members = members(weights);
        let balancer = balancer(&config, &members);
        let (ends, active) = (BinaryHeap::new(), HashMap::new());
        Cluster { config, members, balancer, picker: Picker::new(), now: 1_000_000, ends, active, number: 0 }
    }

    fn at(&mut self, now: u64) {
        self.now = now;
        NOW.set(now / 1_000);
    }

    fn finish_until(&mut self, time: u64) {
        let policy = PeakEwma::new(&self.config);
        while let Some(Reverse((end, number))) = self.ends.peek().copied().filter(|Reverse((end, _))| *end <= time) {
            self.ends.pop();
            self.at(end);
            let (guard, began, has_failed) = self.active.remove(&number).unwrap();
            let took = (end - began) as f32;
            let counted = if has_failed { took.max(policy.failure_penalty) } else { took };
            guard.endpoint().latency().observe(&policy, NOW.get(), counted);
            self.picker.in_flight.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
        self.at(time);
    }

    /// Lets requests arrive, `rate` a second, for this many milliseconds.
    fn run(&mut self, workers: usize, rate: u64, millis: u64, answer: impl Fn(usize) -> Answer) -> Outcome {
        let mut outcome = Outcome { counts: vec![0; self.members.len()], ..Outcome::default() };
        let end = self.now + millis * 1_000;
        let indices: HashMap<_, _> =
            self.members.iter().enumerate().map(|(i, m)| (Arc::as_ptr(&m.endpoint), i)).collect();
        while self.now < end {
            let picks: Vec<_> = (0..workers)
                .map(|_| {
                    self.number += 1;
                    let context = self.picker.context(Some(mix(self.number)), &[]);
                    (self.number, Arc::clone(self.balancer.pick(&context).expect("an endpoint")))
                })
                .collect();
            for (number, endpoint) in picks {
                let i = indices[&Arc::as_ptr(&endpoint)];
                let (takes, has_failed) = answer(i);
                outcome.counts[i] += 1;
                outcome.failures += u64::from(has_failed);
                outcome.latencies.push(takes);
                self.picker.in_flight.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                self.active.insert(number, (endpoint.start(), self.now, has_failed));
                self.ends.push(Reverse((self.now + takes, number)));
            }
            self.finish_until(self.now + 1_000_000 * workers as u64 / rate);
        }
        outcome
    }
}

/// A service time of 10 ms on average: 5 ms, and an exponentially distributed part.
fn usual() -> u64 {
    5_000 + (-fastrand::f64().max(1e-9).ln() * 5_000.0) as u64
}

#[test]
fn requests_are_distributed_evenly() {
    println!("least and most requests of an endpoint, relative to the mean; 20 requests per endpoint or more");
    for policy in POLICIES {
        for endpoints in [1, 2, 1_000] {
            let mut line = format!("{policy:?}, {endpoints} endpoints:");
            for workers in WORKERS {
                let mut cluster = Cluster::new(config(policy), &vec![1; endpoints]);
                let outcome = cluster.run(workers, 10_000, 2_000, |_| (usual(), false));
                let (least, most) = outcome.extremes();
                line += &format!(" {least:.2}–{most:.2}");
                let sigma = (endpoints as f64 / 20_000.0).sqrt();
                let (below, above) = match policy {
                    _ if endpoints == 1 => (0.0, 0.0),
                    BalancerPolicy::RoundRobin => (0.01, 0.01),
                    BalancerPolicy::RingHash => (5.0 * sigma + 0.2, 5.0 * sigma + 0.2),
                    // The endpoints that had lower latencies by chance are preferred for a while.
                    BalancerPolicy::PeakEwma => (1.0, 2.0),
                    _ => (5.0 * sigma + 0.02, 5.0 * sigma + 0.02),
                };
                assert!(least >= 1.0 - below && most <= 1.0 + above, "{policy:?}, {workers} workers, {line}");
            }
            println!("{line} (1, 2, 16 workers)");
        }
    }
}

#[test]
fn weights_are_kept() {
    println!("shares of endpoints with the weights 1, 2, 4 and 8 in percent (due: 6.7, 13.3, 26.7, 53.3)");
    for policy in POLICIES {
        for workers in WORKERS {
            let mut cluster = Cluster::new(config(policy), &[1, 2, 4, 8]);
            let outcome = cluster.run(workers, 10_000, 3_000, |_| (usual(), false));
            let shares: Vec<_> = (0..4).map(|i| outcome.share(i)).collect();
            println!("{policy:?}, {workers} workers: {shares:.1?}");
            for (share, weight) in shares.iter().zip([1.0, 2.0, 4.0, 8.0]) {
                let due = weight * 100.0 / 15.0;
                let tolerance = match policy {
                    BalancerPolicy::RoundRobin => 0.01,
                    BalancerPolicy::RingHash | BalancerPolicy::PeakEwma => 0.35,
                    _ => 0.1,
                };
                assert!((share / due - 1.0).abs() <= tolerance, "{policy:?}, {workers} workers: {shares:?}");
            }
        }
    }
}

/// The largest number of turns by which an endpoint is ahead of or behind its share, in 10,000 turns.
fn unevenness(turns: impl Iterator<Item = usize>, weights: &[u32]) -> f64 {
    let total: u32 = weights.iter().sum();
    let (mut counts, mut most) = (vec![0.0; weights.len()], 0.0f64);
    for (n, chosen) in (1..=10_000).zip(turns) {
        counts[chosen] += 1.0;
        for (count, weight) in counts.iter().zip(weights) {
            most = most.max((count - f64::from(n) * f64::from(*weight) / f64::from(total)).abs());
        }
    }
    most
}

/// nginx's smooth weighted round robin.
fn smooth(weights: &[u32]) -> impl Iterator<Item = usize> {
    let total: i64 = weights.iter().map(|w| i64::from(*w)).sum();
    let mut current = vec![0; weights.len()];
    std::iter::repeat_with(move || {
        current.iter_mut().zip(weights).for_each(|(c, w)| *c += i64::from(*w));
        let best = (0..current.len()).max_by_key(|i| (current[*i], Reverse(*i))).unwrap();
        current[best] -= total;
        best
    })
}

#[test]
fn round_robin_is_almost_as_smooth_as_the_smoothest() {
    println!("turns by which an endpoint was ahead of or behind its share at most: round robin, nginx, random");
    let thousand: Vec<u32> = (0..1_000).map(|n| 1 + n % 10).collect();
    let heavy: Vec<u32> = (0..100).map(|n| if n < 10 { 1_000 } else { 1 + n % 7 }).collect();
    for (name, weights) in [
        ("5, 1, 1", &[5, 1, 1][..]),
        ("1, 2, 3, 4, 5", &[1, 2, 3, 4, 5]),
        ("65535, 65521, 1", &[65_535, 65_521, 1]),
        ("1 to 10, 1,000 endpoints", &thousand),
        ("10 × 1000, 90 × 1 to 7", &heavy),
    ] {
        let turns = |policy| {
            let mut cluster = Cluster::new(config(policy), weights);
            let members = std::mem::take(&mut cluster.members);
            std::iter::repeat_with(move || {
                index(&members, cluster.balancer.pick(&cluster.picker.context(None, &[])).unwrap())
            })
        };
        let [ours, random] =
            [BalancerPolicy::RoundRobin, BalancerPolicy::Random].map(|p| unevenness(turns(p), weights));
        let nginx = unevenness(smooth(weights), weights);
        println!("{name}: {ours:.1}, {nginx:.1}, {random:.1}");
        assert!(ours < nginx + 4.0 && ours < random, "{name}: {ours} {nginx} {random}");
    }
}

/// How far round robin advances for a turn, and its memory.
#[test]
fn round_robin_takes_few_steps() {
    let skewed: Vec<u32> = (0..1_000).map(|n| if n % 100 == 0 { 65_535 } else { 1 + n % 7 }).collect();
    for (name, weights) in
        [("1 to 10", (0..1_000).map(|n| 1 + n % 10).collect()), ("skewed", skewed), ("two", vec![9, 2])]
    {
        let cluster = Cluster::new(config(BalancerPolicy::RoundRobin), &weights);
        let (mut before, mut most) = (0, 0);
        for _ in 0..100_000 {
            cluster.balancer.pick(&cluster.picker.context(None, &[])).unwrap();
            let at = cluster.picker.cursor.load(std::sync::atomic::Ordering::Relaxed);
            (before, most) = (at, most.max(at - before));
        }
        let mean = before as f64 / 1e5;
        println!("{name}: {mean:.2} steps per turn on average, {most} at most");
        assert!(mean <= 3.0 && most <= 40, "{name}: {mean} {most}");
    }
}

/// One of three endpoints becomes slow, then fails half of its requests at once, then does not answer within a second.
#[test]
fn peak_ewma_leaves_a_bad_endpoint_soonest() {
    println!(
        "one of three endpoints, 1,000 requests a second, 10 s each: its share in percent in the first second and in"
    );
    println!("the rest, and of all requests p50 and p99 in ms and failures in percent");
    let mut slow_p99 = HashMap::new();
    for workers in WORKERS {
        for policy in &POLICIES[..4] {
            let mut cluster = Cluster::new(config(*policy), &[1, 1, 1]);
            cluster.run(workers, 1_000, 10_000, |_| (usual(), false));
            let mut line = format!("{policy:?}, {workers} workers:");
            for phase in ["slow", "failing", "hanging"] {
                let answer = |i: usize| match phase {
                    _ if i != 0 => (usual(), false),
                    "slow" => (200_000 + usual(), false),
                    "failing" if fastrand::bool() => (1_000, true),
                    "failing" => (usual(), false),
                    _ => (1_000_000, true),
                };
                let first = cluster.run(workers, 1_000, 1_000, answer);
                let mut rest = cluster.run(workers, 1_000, 9_000, answer);
                let [soon, later] = [&first, &rest].map(|outcome| outcome.share(0));
                rest.latencies.extend(&first.latencies);
                let failures = (first.failures + rest.failures) as f64 / 100.0;
                let (p50, p99) = (rest.percentile(50), rest.percentile(99));
                line += &format!(" {phase} {soon:.1} {later:.1}, {p50:.0} {p99:.0}, {failures:.1};");
                if *policy == BalancerPolicy::PeakEwma {
                    assert!(soon < 5.0 && later < 2.0, "{line}");
                    assert!(failures < 1.5, "{line}");
                }
                if phase == "slow" {
                    slow_p99.insert((*policy, workers), p99);
                }
                // Back to normal, until the penalties are forgotten.
                cluster.run(workers, 160, 90_000, |_| (usual(), false));
            }
            println!("{line}");
        }
        let [ewma, least] =
            [BalancerPolicy::PeakEwma, BalancerPolicy::LeastRequest].map(|policy| slow_p99[&(policy, workers)]);
        assert!(ewma <= least / 2.0, "{workers} workers: {ewma} {least}");
    }
}

#[test]
fn peak_ewma_returns_to_an_endpoint_that_recovers() {
    let mut cluster = Cluster::new(config(BalancerPolicy::PeakEwma), &[1, 1, 1]);
    cluster.run(1, 1_000, 10_000, |i| if i == 0 { (205_000, false) } else { (usual(), false) });
    let shares: Vec<_> = (0..12).map(|_| cluster.run(1, 1_000, 5_000, |_| (usual(), false)).share(0)).collect();
    println!("share of an endpoint that took 205 ms, per 5 s after it recovered: {shares:.1?}");
    assert!(shares[0] < 10.0 && shares[8..].iter().sum::<f64>() / 4.0 > 15.0, "{shares:?}");
}

#[test]
fn few_keys_move_when_an_endpoint_leaves() {
    println!("keys that moved when one of n endpoints left, in percent: of it, and of the others");
    for policy in HASHES {
        for endpoints in [2, 3, 10, 100, 1_000] {
            let before = Cluster::new(config(policy), &vec![1; endpoints]);
            let after = Balancer::new(&before.config, &before.members[1..], Some(&before.balancer));
            await_table(&after);
            let (mut own, mut others) = (0.0, 0.0);
            for key in (0..20_000).map(mix) {
                let context = before.picker.context(Some(key), &[]);
                let [old, new] = [&before.balancer, &after].map(|balancer| balancer.pick(&context).unwrap());
                match Arc::ptr_eq(old, &before.members[0].endpoint) {
                    true => own += 1.0,
                    false if !Arc::ptr_eq(old, new) => others += 1.0,
                    false => {}
                }
            }
            let due = 20_000.0 / endpoints as f64;
            let percent = |keys: f64| keys / 200.0;
            println!(
                "{policy:?}, {endpoints} endpoints: {:.2} (due: {:.2}), {:.2}",
                percent(own),
                percent(due),
                percent(others)
            );
            assert!((own - due).abs() < 5.0 * due.sqrt() + 0.15 * due, "{policy:?} {endpoints}: {own}");
            match policy {
                BalancerPolicy::Maglev => assert!(others < 0.06 * 20_000.0, "{endpoints}: {others}"),
                _ => assert_eq!(others, 0.0, "{policy:?} {endpoints}"),
            }
        }
    }
}

/// The shares of many keys, so that those of the tables show, and not those of chance.
#[test]
fn tables_are_even() {
    println!("least and most keys of an endpoint, relative to the mean, 1,000 keys per endpoint");
    for policy in HASHES {
        for endpoints in [3, 10, 100] {
            let cluster = Cluster::new(config(policy), &vec![1; endpoints]);
            let mut outcome = Outcome { counts: vec![0; endpoints], ..Outcome::default() };
            for key in (0..1_000 * endpoints as u64).map(mix) {
                let picked = cluster.balancer.pick(&cluster.picker.context(Some(key), &[])).unwrap();
                outcome.counts[index(&cluster.members, picked)] += 1;
            }
            let (least, most) = outcome.extremes();
            println!("{policy:?}, {endpoints} endpoints: {least:.2}–{most:.2}");
            let tolerance = if policy == BalancerPolicy::RingHash { 0.25 } else { 0.15 };
            assert!(least >= 1.0 - tolerance && most <= 1.0 + tolerance, "{policy:?} {endpoints}: {least} {most}");
        }
    }
}

#[test]
fn no_endpoint_exceeds_its_bound() {
    println!("requests in flight of the busiest endpoint relative to the mean, half of all requests with one key");
    for policy in HASHES {
        for workers in WORKERS {
            let mut line = format!("{policy:?}, {workers} workers:");
            for factor in [None, Some(125), Some(200)] {
                let config = model::Balancer { hash_balance_factor: factor, ..config(policy) };
                let cluster = Cluster::new(config, &[1; 10]);
                let mut held = Vec::new();
                for number in (0..1_000).step_by(workers) {
                    let key = |n: u64| if n.is_multiple_of(2) { 7 } else { mix(n) };
                    let picks: Vec<_> = (number..number + workers as u64)
                        .map(|n| {
                            cluster.picker.in_flight.store(held.len() as u64 + 1, std::sync::atomic::Ordering::Relaxed);
                            Arc::clone(cluster.balancer.pick(&cluster.picker.context(Some(key(n)), &[])).unwrap())
                        })
                        .collect();
                    held.extend(picks.into_iter().map(Endpoint::start));
                }
                let most = cluster.members.iter().map(|m| m.endpoint.active()).max().unwrap();
                let ratio = most as f64 * 10.0 / held.len() as f64;
                line += &format!(" {factor:?} {ratio:.2}");
                let bound = factor.map_or(f64::MAX, |percent| f64::from(percent) / 100.0);
                assert!(ratio <= bound + (workers as f64 + 1.0) / 100.0, "{line}");
                assert!(factor.is_some() || ratio > 4.0, "without a bound, one endpoint has half: {line}");
            }
            println!("{line}");
        }
    }
}

#[test]
fn share_of_a_new_endpoint_grows() {
    println!("share of a new endpoint among ten in percent, per 5 s of a window of 30 s");
    for policy in &POLICIES[..4] {
        for (aggression, workers) in [(1.0, 1), (1.0, 16), (2.0, 1)] {
            let window = crate::config::units::Duration::secs(30);
            let slow_start = Some(model::SlowStart { window, aggression, min_weight_percent: 10 });
            let mut cluster = Cluster::new(model::Balancer { slow_start, ..config(*policy) }, &[1; 9]);
            cluster.run(workers, 2_000, 60_000, |_| (usual(), false));
            let weights = vec![1; 10];
            let newcomer = members(&weights).pop().unwrap();
            cluster.members.push(newcomer);
            cluster.balancer = Balancer::new(&cluster.config, &cluster.members, Some(&cluster.balancer));
            let shares: Vec<_> =
                (0..8).map(|_| cluster.run(workers, 2_000, 5_000, |_| (usual(), false)).share(9)).collect();
            println!("{policy:?}, aggression {aggression}, {workers} workers: {shares:.1?}");
            if *policy == BalancerPolicy::PeakEwma {
                // Its latency, unmeasured at first, counts as well.
                assert!(shares[0] < 3.0, "{shares:?}");
                continue;
            }
            for (n, share) in (0..8).zip(shares) {
                let age = f64::from(n) * 5.0 + 2.5;
                let factor = (age / 30.0).powf(1.0 / aggression).clamp(0.1, 1.0);
                let due = factor * 100.0 / (9.0 + factor);
                assert!((share - due).abs() < 1.2, "{policy:?}, after {age} s: {share}, not {due}");
            }
        }
    }
}
