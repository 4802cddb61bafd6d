//! Load balancing: chooses one of a cluster's endpoints for a request, without locks or allocation. Everything that
//! depends on the endpoints and their weights is computed when they change, not when a request arrives.
//!
//! One file per algorithm. All workers share what an algorithm learns: the position of round robin in the cluster's
//! statistics, the counts of active requests and the latencies in the endpoints. So a cluster behaves with 16 workers as it
//! does with one, apart from requests that are balanced at the same moment and do not see each other yet. What an algorithm
//! knows of an endpoint survives a change of the cluster's endpoints, because an endpoint stays the same while its address
//! does.

mod bounded_load;
mod candidates;
mod draw;
mod hash;
mod least_request;
mod maglev;
mod peak_ewma;
mod rendezvous;
mod ring_hash;
mod round_robin;
mod slow_start;
mod table;

use std::sync::{Arc, atomic::AtomicU64};

use self::{
    candidates::Candidates, draw::Draw, hash::HashPolicy, least_request::LeastRequest, round_robin::RoundRobin,
    slow_start::SlowStart,
};
pub(super) use self::{
    peak_ewma::{LatencyCell, PeakEwma},
    slow_start::JoinTime,
};
use super::{endpoint::Endpoint, membership::Member};
use crate::config::model::{self, BalancerPolicy};

/// A balancer over the endpoints with a non-zero weight.
#[derive(Debug)]
pub struct Balancer {
    candidates: Candidates,
    policy: Policy,
    slow_start: Option<SlowStart>,
}

/// What is known of the request for which an endpoint is chosen.
#[derive(Debug, Clone, Copy)]
pub struct PickContext<'a> {
    /// The position of round robin, which all workers share.
    pub cursor: &'a AtomicU64,
    /// The number of the cluster's requests in flight, including this one.
    pub in_flight: &'a AtomicU64,
    /// The request's key, for the policies that place keys.
    pub hash: Option<u64>,
    /// Endpoints that the request has already tried.
    pub tried: &'a [Arc<Endpoint>],
    /// Returns the time in milliseconds. Only read by policies that need it.
    pub clock: fn() -> u64,
}

#[derive(Debug)]
enum Policy {
    RoundRobin(RoundRobin),
    LeastRequest(LeastRequest),
    PeakEwma(PeakEwma),
    Random,
    Hash(Box<HashPolicy>),
}

impl Balancer {
    /// Creates a balancer over the `members` whose weight is not 0. `previous` is the balancer of the endpoints before: until
    /// the table of a policy that places keys is built, its table serves.
    pub fn new(config: &model::Balancer, members: &[Member], previous: Option<&Arc<Balancer>>) -> Arc<Balancer> {
        let candidates = Candidates::new(members);
        let policy = match config.policy {
            BalancerPolicy::RoundRobin => Policy::RoundRobin(RoundRobin::new(&candidates)),
            BalancerPolicy::LeastRequest => Policy::LeastRequest(LeastRequest::new(config)),
            BalancerPolicy::PeakEwma => Policy::PeakEwma(PeakEwma::new(config)),
            BalancerPolicy::Random => Policy::Random,
            BalancerPolicy::Hash | BalancerPolicy::RingHash | BalancerPolicy::Maglev => {
                Policy::Hash(Box::new(HashPolicy::new(config, &candidates, previous)))
            }
        };
        let slow_start = config.slow_start.as_ref().map(|config| SlowStart::new(config, &candidates));
        Arc::new(Balancer { candidates, policy, slow_start })
    }

    /// Picks an endpoint for a request; `None` if no endpoint has a weight. Endpoints that the request has already tried are
    /// chosen only if there is no other.
    pub fn pick(self: &Arc<Self>, context: &PickContext<'_>) -> Option<&Arc<Endpoint>> {
        self.pick_another(context).or_else(|| match context.tried {
            [] => None,
            _ => self.pick_another(&PickContext { tried: &[], ..*context }),
        })
    }

    /// Picks an endpoint, but never one that the request has already tried.
    pub fn pick_another(self: &Arc<Self>, context: &PickContext<'_>) -> Option<&Arc<Endpoint>> {
        if self.candidates.is_empty() {
            return None;
        }
        let warming = self.slow_start.as_ref().and_then(|slow_start| slow_start.in_progress(context.clock));
        let draw = Draw { candidates: &self.candidates, tried: context.tried, warming };
        let index = match (&self.policy, context.hash) {
            (Policy::RoundRobin(policy), _) => policy.choose(&draw, context.cursor),
            (Policy::LeastRequest(policy), _) => policy.choose(&draw),
            (Policy::PeakEwma(policy), _) => policy.choose(&draw, context.clock),
            (Policy::Hash(policy), Some(key)) => policy.choose(self, key, context),
            (Policy::Random | Policy::Hash(_), _) => draw.first(),
        };
        Some(self.candidates.endpoint(index?))
    }

    /// Takes over that endpoints have become healthy.
    pub fn refresh(&self) {
        if let Some(slow_start) = &self.slow_start {
            slow_start.refresh(&self.candidates);
        }
    }

    fn hash_policy(&self) -> Option<&HashPolicy> {
        match &self.policy {
            Policy::Hash(policy) => Some(policy),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "../tests/balancer.rs"]
mod tests;

#[cfg(test)]
#[path = "../tests/simulation.rs"]
mod simulation;
