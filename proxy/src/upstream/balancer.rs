//! Load balancing: chooses one of a cluster's endpoints without locks or allocation. Everything that depends on weights
//! is computed when the configuration is loaded.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{endpoint::Endpoint, membership::Member};
use crate::config::{model, units::Address};

/// Maximum length of a round-robin sequence. If the sum of the weights (divided by their greatest common divisor) is
/// larger, they are scaled down to it, so shares are exact to about 1/4096. It is exceeded only if there are more
/// endpoints.
const MAX_SEQUENCE: u64 = 4096;

/// Maximum number of round-robin turns skipped for one request, and of repeated draws, because the chosen endpoints
/// must not be used. After that, all endpoints are searched.
const MAX_PASSED_OVER: usize = 16;

/// A balancer over the endpoints with a non-zero weight.
#[derive(Debug)]
pub struct Balancer {
    targets: Box<[Candidate]>,
    /// Sum of the weights.
    total: u64,
    policy: Policy,
}

#[derive(Debug)]
struct Candidate {
    endpoint: Arc<Endpoint>,
    weight: u64,
    /// Sum of the weights before this one: the candidate owns the draws from `start` to `start + weight`.
    start: u64,
    /// Hash of the address. The same in every process, so that several proxies map a key to the same endpoint.
    hash: u64,
}

/// Endpoints that must not be chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Excluded<'a> {
    /// Endpoints that the request has already tried: chosen only if there is no other.
    pub tried: &'a [Arc<Endpoint>],
    /// Whether to exclude unhealthy endpoints.
    pub unhealthy: bool,
}

impl Excluded<'_> {
    fn is_nothing(&self) -> bool {
        self.tried.is_empty() && !self.unhealthy
    }
}

#[derive(Debug)]
enum Policy {
    /// Indices of candidates, in the order of smooth weighted round robin.
    RoundRobin(Box<[u32]>),
    LeastRequest,
    Random,
    /// Rendezvous hashing; with equal weights the logarithm in the score is unnecessary.
    Hash {
        equal_weights: bool,
    },
}

impl Balancer {
    /// Creates a balancer over the `members` whose weight is not 0.
    pub fn new(kind: model::Balancer, members: &[Member]) -> Self {
        let mut total = 0;
        let mut targets = Vec::new();
        for member in members.iter().filter(|m| m.weight > 0) {
            let weight = u64::from(member.weight);
            let hash = address_hash(&member.endpoint.address);
            targets.push(Candidate { endpoint: Arc::clone(&member.endpoint), weight, start: total, hash });
            total += weight;
        }
        let policy = match kind {
            model::Balancer::RoundRobin => Policy::RoundRobin(smooth_sequence(&targets)),
            model::Balancer::LeastRequest => Policy::LeastRequest,
            model::Balancer::Random => Policy::Random,
            model::Balancer::Hash => {
                Policy::Hash { equal_weights: targets.windows(2).all(|pair| pair[0].weight == pair[1].weight) }
            }
        };
        Balancer { targets: targets.into(), total, policy }
    }

    /// Picks an endpoint for a request; `None` if no endpoint has a weight, or all are unhealthy and that counts.
    /// `cursor` is the cluster's position in the round-robin sequence, `hash` the request's key (used by
    /// [`model::Balancer::Hash`] only).
    pub fn pick(&self, cursor: &AtomicU64, hash: Option<u64>, avoid: Excluded<'_>) -> Option<&Arc<Endpoint>> {
        if self.targets.is_empty() {
            return None;
        }
        let mut index = self.choose(cursor, hash, &avoid);
        if index.is_none() && !avoid.tried.is_empty() {
            index = self.choose(cursor, hash, &Excluded { tried: &[], ..avoid });
        }
        Some(&self.targets[index?].endpoint)
    }

    /// Picks an endpoint, but never one that the request has already tried.
    pub fn pick_another(&self, cursor: &AtomicU64, hash: Option<u64>, avoid: Excluded<'_>) -> Option<&Arc<Endpoint>> {
        if self.targets.is_empty() {
            return None;
        }
        self.choose(cursor, hash, &avoid).map(|index| &self.targets[index].endpoint)
    }

    fn choose(&self, cursor: &AtomicU64, hash: Option<u64>, avoid: &Excluded<'_>) -> Option<usize> {
        match (&self.policy, hash) {
            (Policy::RoundRobin(sequence), _) => self.next_in(sequence, cursor, avoid),
            (Policy::Hash { equal_weights }, Some(key)) => self.rendezvous(key, *equal_weights, avoid),
            (Policy::LeastRequest, _) => self.less_busy_of_two(avoid),
            (Policy::Random | Policy::Hash { .. }, _) => self.draw_but(avoid, None),
        }
    }

    fn is_avoided(&self, index: usize, avoid: &Excluded<'_>) -> bool {
        let endpoint = &self.targets[index].endpoint;
        (avoid.unhealthy && !endpoint.is_healthy()) || avoid.tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint))
    }

    fn next_in(&self, sequence: &[u32], cursor: &AtomicU64, avoid: &Excluded<'_>) -> Option<usize> {
        let step = || (cursor.fetch_add(1, Relaxed) % sequence.len() as u64) as usize;
        let mut at = step();
        if avoid.unhealthy {
            // Skip the turns of unhealthy endpoints: that spreads their share over all others instead of the next in
            // line.
            let mut passed_over = 0;
            while passed_over < MAX_PASSED_OVER && !self.targets[sequence[at] as usize].endpoint.is_healthy() {
                at = step();
                passed_over += 1;
            }
        }
        // Search from here for this request only: advancing the cursor for each endpoint it has tried would distort the
        // other shares.
        let from_here = sequence[at..].iter().chain(&sequence[..at]).map(|i| *i as usize);
        from_here.into_iter().find(|i| !self.is_avoided(*i, avoid))
    }

    fn rendezvous(&self, key: u64, equal_weights: bool, avoid: &Excluded<'_>) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for (i, target) in self.targets.iter().enumerate() {
            if self.is_avoided(i, avoid) {
                continue;
            }
            // A number in (0, 1) that is random but fixed for the pair. With u uniform, -ln(u)/weight is exponentially
            // distributed, and the probability of being the smallest of several is proportional to the weight.
            let u = ((mix(key ^ target.hash) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            let score = if equal_weights { -u } else { -u.ln() / target.weight as f64 };
            if best.is_none_or(|(least, _)| score < least) {
                best = Some((score, i));
            }
        }
        best.map(|(_, i)| i)
    }

    /// Draws two different candidates by weight and picks the one with fewer active requests relative to its weight. A
    /// tie goes to the first, so that an idle cluster's requests are also distributed by weight.
    fn less_busy_of_two(&self, avoid: &Excluded<'_>) -> Option<usize> {
        let first = self.draw_but(avoid, None)?;
        let second = if avoid.is_nothing() { self.draw_other(first) } else { self.draw_but(avoid, Some(first)) };
        let Some(second) = second else { return Some(first) };
        let (a, b) = (&self.targets[first], &self.targets[second]);
        // a/weight <= b/weight, without the divisions.
        let first_is_less_busy = a.endpoint.active() * b.weight <= b.endpoint.active() * a.weight;
        Some(if first_is_less_busy { first } else { second })
    }

    /// Draws by weight a candidate that is neither excluded nor `other`.
    fn draw_but(&self, avoid: &Excluded<'_>, other: Option<usize>) -> Option<usize> {
        let allowed = |i: &usize| Some(*i) != other && !self.is_avoided(*i, avoid);
        // Usually most candidates are allowed.
        let drawn = (0..MAX_PASSED_OVER).map(|_| self.draw()).find(allowed);
        drawn.or_else(|| self.draw_among(|i| allowed(&i)))
    }

    /// Draws a candidate by weight.
    fn draw(&self) -> usize {
        self.owner(fastrand::u64(..self.total))
    }

    /// Draws a candidate other than `first` by weight.
    fn draw_other(&self, first: usize) -> Option<usize> {
        let Candidate { weight, start, .. } = self.targets[first];
        if self.total == weight {
            return None;
        }
        let draw = fastrand::u64(..self.total - weight);
        Some(self.owner(if draw >= start { draw + weight } else { draw }))
    }

    /// Draws by weight among the candidates that `allowed` accepts. Linear in the number of candidates.
    fn draw_among(&self, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let candidates = || (0..self.targets.len()).filter(|i| allowed(*i));
        let total: u64 = candidates().map(|i| self.targets[i].weight).sum();
        let mut left = fastrand::u64(..total.max(1));
        let found = candidates().find(|i| {
            let weight = self.targets[*i].weight;
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        });
        // A candidate may have become unhealthy since the weights were added up.
        found.or_else(|| candidates().next_back())
    }

    fn owner(&self, draw: u64) -> usize {
        self.targets.partition_point(|target| target.start <= draw).saturating_sub(1)
    }
}

/// Computes nginx's smooth weighted round robin as a sequence: at each step every candidate gains its weight; the one
/// with the most is next and loses the sum of all weights. Weights 5, 1, 1 give `a a b a c a a`, not `a a a a a b c`.
fn smooth_sequence(targets: &[Candidate]) -> Box<[u32]> {
    let divisor = targets.iter().fold(0, |a, target| gcd(a, target.weight)).max(1);
    let mut weights: Vec<i64> = targets.iter().map(|target| (target.weight / divisor) as i64).collect();
    let sum = weights.iter().sum::<i64>() as f64;
    if sum > MAX_SEQUENCE as f64 {
        for weight in &mut weights {
            *weight = ((*weight as f64 * MAX_SEQUENCE as f64 / sum).round() as i64).max(1);
        }
    }
    let total: i64 = weights.iter().sum();
    let mut current = vec![0; weights.len()];
    let step = |_| {
        let mut best = 0;
        for i in 0..current.len() {
            current[i] += weights[i];
            if current[i] > current[best] {
                best = i;
            }
        }
        current[best] -= total;
        best as u32
    };
    (0..total).map(step).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The finisher of splitmix64: each bit of the input flips each bit of the output with probability 1/2.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn address_hash(address: &Address) -> u64 {
    let address = match address {
        Address::Inet(address) => address,
        Address::Unix(path) => {
            let bytes = path.as_os_str().as_encoded_bytes();
            return bytes.iter().fold(0x9e37_79b9_7f4a_7c15, |hash, byte| mix(hash ^ u64::from(*byte)));
        }
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let high = mix((ip >> 64) as u64 ^ 0x9e37_79b9_7f4a_7c15);
    mix(mix(high ^ ip as u64) ^ u64::from(address.port()))
}

#[cfg(test)]
#[path = "tests/balancer.rs"]
mod tests;
