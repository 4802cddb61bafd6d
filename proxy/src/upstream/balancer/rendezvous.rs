//! `hash`: weighted rendezvous hashing. A key has a score for each endpoint, and goes to the best one. So exactly the keys of
//! an endpoint that leaves move, each to the endpoint with the next score, and the shares are those of chance.
//!
//! It needs no table, but looks at every endpoint for each request: for hundreds of endpoints, use `ring_hash` or `maglev`.

use super::candidates::{Candidates, mix};

/// The endpoint of a key that was not tried and is not overloaded (a load of 1 or more). If all are overloaded, overload does
/// not count.
pub(super) fn place(
    candidates: &Candidates,
    key: u64,
    was_tried: impl Fn(usize) -> bool,
    load: impl Fn(usize) -> f64,
) -> Option<usize> {
    let (mut best, mut best_overloaded) = (None::<(f64, usize)>, None::<(f64, usize)>);
    for (i, candidate) in candidates.list().iter().enumerate() {
        if was_tried(i) {
            continue;
        }
        // A number in (0, 1) that is random but fixed for the pair. With u uniform, -ln(u)/weight is exponentially
        // distributed, and the probability of being the smallest of several is proportional to the weight. With equal
        // weights the logarithm is unnecessary.
        let u = ((mix(key ^ candidate.hash) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let score = if candidates.are_even() { -u } else { -u.ln() / candidate.weight as f64 };
        if best.is_some_and(|(least, _)| score >= least) {
            continue;
        }
        match load(i) < 1.0 {
            true => best = Some((score, i)),
            false if best_overloaded.is_none_or(|(least, _)| score < least) => best_overloaded = Some((score, i)),
            false => {}
        }
    }
    best.or(best_overloaded).map(|(_, i)| i)
}
