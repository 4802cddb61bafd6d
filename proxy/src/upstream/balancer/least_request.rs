//! `least_request`: of a few endpoints drawn by weight, the one with the fewest active requests relative to its weight
//! ("the power of two choices"). A tie goes to the first, so that an idle cluster's requests are also shared by weight.
//!
//! With `active_request_bias`, none of the drawn endpoints is certain: each has a chance in proportion to
//! `1 / (active + 1)^bias`. Together with the draw by weight, that approaches Envoy's effective weight,
//! `weight / (active + 1)^bias`: 0 ignores the load, larger values avoid busy endpoints more.
//!
//! State: the counts of active requests, in the endpoints, shared by all workers. Requests that are balanced at the same
//! moment do not see each other; as each draws its own pair, 16 workers do not all choose the same endpoint.

use super::draw::Draw;
use crate::config::model;

/// The least active of several choices.
#[derive(Debug)]
pub(super) struct LeastRequest {
    choices: u32,
    bias: Option<f64>,
}

impl LeastRequest {
    pub(super) fn new(config: &model::Balancer) -> LeastRequest {
        LeastRequest { choices: config.choice_count(), bias: config.active_request_bias }
    }

    pub(super) fn choose(&self, draw: &Draw<'_>) -> Option<usize> {
        let first = draw.first()?;
        if let Some(bias) = self.bias {
            return Some(self.by_bias(draw, first, bias));
        }
        let mut best = first;
        for _ in 1..self.choices {
            let Some(next) = draw.other(best) else { break };
            if is_less_busy(draw, next, best) {
                best = next;
            }
        }
        Some(best)
    }

    fn by_bias(&self, draw: &Draw<'_>, first: usize, bias: f64) -> usize {
        let chance = |i: usize| (draw.candidates.endpoint(i).active() as f64 + 1.0).powf(-bias);
        let (mut chosen, mut total) = (first, chance(first));
        for _ in 1..self.choices {
            let Some(next) = draw.first() else { break };
            let next_chance = chance(next);
            total += next_chance;
            if fastrand::f64() * total < next_chance {
                chosen = next;
            }
        }
        chosen
    }
}

/// Whether `one` has fewer active requests than `other`, relative to the weights.
fn is_less_busy(draw: &Draw<'_>, one: usize, other: usize) -> bool {
    let active = |i: usize| draw.candidates.endpoint(i).active();
    match draw.warming {
        // one/weight < other/weight, without the divisions.
        None => active(one) * draw.candidates.weight(other) < active(other) * draw.candidates.weight(one),
        Some(_) => (active(one) as f64) * draw.weight(other) < (active(other) as f64) * draw.weight(one),
    }
}
