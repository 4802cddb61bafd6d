//! Priorities: how a cluster's requests are shared among levels of endpoints, given the health of each level.
//!
//! As in Envoy, a level whose healthy endpoints, times the overprovisioning factor, are 100 % gets all requests that the
//! levels above it leave; otherwise, it gets that percentage, and the levels below get the rest. A level is in panic if less than
//! the threshold of its endpoints are healthy and all levels together are too few: then its unhealthy endpoints are used, too.
//!
//! Everything is computed when endpoints or their health change. A request of a cluster with one level pays for none of it.

use std::sync::Arc;

use super::{
    balancer::{Balancer, PickContext},
    endpoint::Endpoint,
};

/// The levels of a cluster at one moment, the first one with the highest priority.
#[derive(Debug)]
pub(super) struct PrioritySet(Box<[Level]>);

/// The endpoints of one level that are in use.
#[derive(Debug)]
struct Level {
    /// The percentage of requests that get an endpoint of this level or of one above.
    end: u32,
    balancer: Arc<Balancer>,
}

/// The health of one level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LevelHealth {
    pub(super) healthy: usize,
    /// Both without endpoints of weight 0.
    pub(super) all: usize,
}

/// What one level gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LevelLoad {
    /// The percentage of the requests.
    pub(super) percent: u32,
    /// Its unhealthy endpoints are used, too.
    pub(super) is_panicking: bool,
}

impl LevelHealth {
    /// The percentage of its share of requests that a level or locality can bear.
    pub(super) fn availability(self, overprovisioning_factor: u32) -> u32 {
        match self.all {
            0 => 0,
            all => (overprovisioning_factor as usize * self.healthy / all).min(100) as u32,
        }
    }

    fn is_below(self, threshold: u32) -> bool {
        self.healthy * 100 < self.all * threshold as usize || (self.all == 0 && threshold > 0)
    }
}

/// Distributes requests among levels. The percentages add up to 100.
pub(super) fn loads(levels: &[LevelHealth], overprovisioning_factor: u32, panic_threshold: u32) -> Vec<LevelLoad> {
    let available: Vec<_> = levels.iter().map(|level| level.availability(overprovisioning_factor)).collect();
    let total = available.iter().sum::<u32>().min(100);
    let panics = |level: &LevelHealth| total < 100 && level.is_below(panic_threshold);
    let is_total_panic = levels.iter().all(panics);
    let shares: Vec<u32> = match is_total_panic {
        // Whatever is healthy is not enough: all endpoints are alike.
        true => levels.iter().map(|level| level.all as u32).collect(),
        false => available,
    };
    let sum = if is_total_panic { shares.iter().sum() } else { total };
    let mut left = 100;
    let mut loads: Vec<_> = levels
        .iter()
        .zip(&shares)
        .map(|(level, share)| {
            let percent = (u64::from(*share) * 100).checked_div(sum.into()).unwrap_or(0).min(left.into()) as u32;
            left -= percent;
            LevelLoad { percent, is_panicking: panics(level) }
        })
        .collect();
    // What rounding has left, or everything if no endpoint can be used.
    let first = shares.iter().position(|share| *share > 0).unwrap_or(0);
    if let Some(load) = loads.get_mut(first) {
        load.percent += left;
    }
    loads
}

impl PrioritySet {
    /// Creates a set of levels with these percentages and balancers.
    pub(super) fn new(levels: impl IntoIterator<Item = (u32, Arc<Balancer>)>) -> PrioritySet {
        let mut end = 0;
        let level = |(percent, balancer)| {
            end += percent;
            Level { end, balancer }
        };
        PrioritySet(levels.into_iter().map(level).collect())
    }

    /// The balancer of a level.
    pub(super) fn balancer(&self, level: usize) -> Option<&Arc<Balancer>> {
        self.0.get(level).map(|level| &level.balancer)
    }

    /// Takes over that endpoints have become healthy.
    pub(super) fn refresh(&self) {
        self.0.iter().for_each(|level| level.balancer.refresh());
    }

    /// Picks an endpoint; one that the request has tried only if there is no other, of any level.
    pub(super) fn pick(&self, context: &PickContext<'_>) -> Option<&Arc<Endpoint>> {
        match &*self.0 {
            [only] => only.balancer.pick(context),
            levels => {
                let chosen = self.choose(context);
                let untried = self.pick_another_from(chosen, context);
                untried.or_else(|| levels.get(chosen)?.balancer.pick(context))
            }
        }
    }

    /// Picks an endpoint, but never one that the request has tried.
    pub(super) fn pick_another(&self, context: &PickContext<'_>) -> Option<&Arc<Endpoint>> {
        match &*self.0 {
            [only] => only.balancer.pick_another(context),
            _ => self.pick_another_from(self.choose(context), context),
        }
    }

    /// Picks from this level; if all of its endpoints have been tried, from the others in order.
    fn pick_another_from(&self, chosen: usize, context: &PickContext<'_>) -> Option<&Arc<Endpoint>> {
        let others = (0..self.0.len()).filter(|level| *level != chosen);
        std::iter::once(chosen).chain(others).find_map(|level| self.0.get(level)?.balancer.pick_another(context))
    }

    /// Chooses a level by the percentages. A key has the same level each time while these stay the same.
    fn choose(&self, context: &PickContext<'_>) -> usize {
        match self.0.first() {
            Some(first) if first.end >= 100 => 0,
            _ => {
                let point = match context.hash {
                    // Other bits of the key than those that choose the endpoint.
                    Some(key) => (key.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 % 100,
                    None => fastrand::u32(..100),
                };
                self.0.partition_point(|level| level.end <= point).min(self.0.len().saturating_sub(1))
            }
        }
    }
}

#[cfg(test)]
#[path = "tests/priority.rs"]
mod tests;
