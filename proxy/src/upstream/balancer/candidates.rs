//! The endpoints among which a balancer chooses, with their weights, and draws by weight.

use std::{net::IpAddr, sync::Arc};

use crate::{
    config::units::Address,
    upstream::{endpoint::Endpoint, membership::Member},
};

/// The endpoints with a weight.
#[derive(Debug)]
pub(super) struct Candidates {
    list: Box<[Candidate]>,
    /// Sum of the weights.
    total: u64,
    /// Whether all have the same weight.
    are_even: bool,
}

#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) weight: u64,
    /// Sum of the weights before this one: the candidate owns the draws from `start` to `start + weight`.
    start: u64,
    /// Hash of the address. The same in every process, so that several proxies map a key to the same endpoint.
    pub(super) hash: u64,
}

impl Candidates {
    pub(super) fn new(members: &[Member]) -> Candidates {
        let mut total = 0;
        let weighted = members.iter().filter(|member| member.weight > 0);
        let list: Box<[Candidate]> = weighted
            .map(|member| {
                let (weight, start) = (u64::from(member.weight), total);
                total += weight;
                let hash = address_hash(&member.endpoint.address);
                Candidate { endpoint: Arc::clone(&member.endpoint), weight, start, hash }
            })
            .collect();
        let are_even = list.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        Candidates { list, total, are_even }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn list(&self) -> &[Candidate] {
        &self.list
    }

    pub(super) fn endpoint(&self, index: usize) -> &Arc<Endpoint> {
        &self.list[index].endpoint
    }

    pub(super) fn weight(&self, index: usize) -> u64 {
        self.list[index].weight
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn are_even(&self) -> bool {
        self.are_even
    }

    /// The index of an endpoint. Linear in the number of candidates.
    pub(super) fn index_of(&self, endpoint: &Arc<Endpoint>) -> Option<usize> {
        self.list.iter().position(|candidate| Arc::ptr_eq(&candidate.endpoint, endpoint))
    }

    /// Whether a candidate is among the endpoints that a request has tried.
    pub(super) fn is_among(&self, tried: &[Arc<Endpoint>], index: usize) -> bool {
        tried.iter().any(|tried| Arc::ptr_eq(tried, self.endpoint(index)))
    }

    /// Whether keys are placed alike among these candidates and others: their addresses and weights are the same, in the same
    /// order.
    pub(super) fn place_like(&self, others: &Candidates) -> bool {
        let is_like = |(one, other): (&Candidate, &Candidate)| {
            one.weight == other.weight && one.endpoint.address == other.endpoint.address
        };
        self.len() == others.len() && self.list.iter().zip(&others.list).all(is_like)
    }

    /// Draws a candidate by weight.
    pub(super) fn draw(&self) -> usize {
        match self.are_even {
            true => fastrand::usize(..self.list.len()),
            false => self.owner(fastrand::u64(..self.total)),
        }
    }

    /// Draws a candidate other than `first` by weight.
    pub(super) fn draw_other(&self, first: usize) -> Option<usize> {
        if self.list.len() == 1 {
            return None;
        }
        if self.are_even {
            let drawn = fastrand::usize(..self.list.len() - 1);
            return Some(if drawn >= first { drawn + 1 } else { drawn });
        }
        let Candidate { weight, start, .. } = self.list[first];
        let draw = fastrand::u64(..self.total - weight);
        Some(self.owner(if draw >= start { draw + weight } else { draw }))
    }

    /// Draws by weight among the candidates that `is_allowed` accepts. Linear in the number of candidates.
    pub(super) fn draw_among(&self, is_allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let candidates = || (0..self.list.len()).filter(|i| is_allowed(*i));
        let total: u64 = candidates().map(|i| self.list[i].weight).sum();
        let mut left = fastrand::u64(..total.max(1));
        candidates().find(|i| {
            let weight = self.list[*i].weight;
            let is_owner = left < weight;
            left = left.saturating_sub(weight);
            is_owner
        })
    }

    fn owner(&self, draw: u64) -> usize {
        self.list.partition_point(|candidate| candidate.start <= draw).saturating_sub(1)
    }
}

/// The finisher of splitmix64: each bit of the input flips each bit of the output with probability 1/2.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 2^64 divided by the golden ratio: its multiples are spread evenly over all numbers.
pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn bytes_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(GOLDEN, |hash, byte| mix(hash ^ u64::from(*byte)))
}

pub(super) fn address_hash(address: &Address) -> u64 {
    let address = match address {
        Address::Inet(address) => address,
        Address::Unix(path) => {
            return bytes_hash(path.as_os_str().as_encoded_bytes());
        }
        Address::Host(name, port) => return mix(bytes_hash(name.as_bytes()) ^ u64::from(*port)),
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let high = mix((ip >> 64) as u64 ^ GOLDEN);
    mix(mix(high ^ ip as u64) ^ u64::from(address.port()))
}
