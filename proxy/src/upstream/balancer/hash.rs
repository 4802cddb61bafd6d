//! The policies that place keys: `hash` (rendezvous), `ring_hash` and `maglev`. A key stays with one endpoint while that
//! endpoint is available; requests without a key are distributed at random.
//!
//! State: none for `hash`. `ring_hash` and `maglev` need a table, which is built when the first key is placed after the
//! endpoints have changed, once for all workers. All placements depend only on addresses and weights, so all workers and all
//! proxies agree.

use std::sync::Arc;

use super::{
    Balancer, PickContext,
    bounded_load::BoundedLoad,
    candidates::mix,
    candidates::{Candidates, GOLDEN},
    rendezvous,
    table::{LazyTable, Table, TableKind},
};
use crate::config::model::{self, BalancerPolicy};

/// Maximum number of endpoints that are tried for a key in a table before one is chosen in another way.
const MOST_PROBES: u64 = 16;

/// A policy that places keys.
#[derive(Debug)]
pub(super) struct HashPolicy {
    /// `None`: rendezvous hashing, which needs no table.
    table: Option<LazyTable>,
    bound: Option<BoundedLoad>,
}

impl HashPolicy {
    pub(super) fn new(
        config: &model::Balancer,
        candidates: &Candidates,
        previous: Option<&Arc<Balancer>>,
    ) -> HashPolicy {
        let kind = match config.policy {
            BalancerPolicy::RingHash => {
                let (least, most) = config.ring_size();
                Some(TableKind::Ring { least, most })
            }
            BalancerPolicy::Maglev => Some(TableKind::Maglev { size: config.table_size() }),
            _ => None,
        };
        let table = kind.map(|kind| LazyTable::new(kind, candidates, previous));
        HashPolicy { table, bound: config.hash_balance_factor.map(BoundedLoad::new) }
    }

    pub(super) fn table(&self) -> Option<&LazyTable> {
        self.table.as_ref()
    }

    pub(super) fn choose(&self, balancer: &Arc<Balancer>, key: u64, context: &PickContext<'_>) -> Option<usize> {
        let candidates = &balancer.candidates;
        let was_tried = |i: usize| candidates.is_among(context.tried, i);
        let slots = self.bound.as_ref().map(|bound| bound.slots(context.in_flight, candidates));
        let load = |i: usize| slots.as_ref().map_or(0.0, |slots| slots.load(candidates, i));
        let Some(table) = &self.table else { return rendezvous::place(candidates, key, was_tried, load) };
        let chosen = match table.get(balancer) {
            Some(table) => probe(table, key, was_tried, load),
            // The endpoint of before, until the table is built.
            None => table.previous_owner(key, candidates).filter(|i| !was_tried(*i) && load(*i) < 1.0),
        };
        chosen.or_else(|| rendezvous::place(candidates, key, was_tried, load))
    }
}

/// Looks a key up, and if its endpoint has been tried or is overloaded, other keys that are derived from it. If all are
/// overloaded, the least loaded one is chosen.
fn probe(table: &Table, key: u64, was_tried: impl Fn(usize) -> bool, load: impl Fn(usize) -> f64) -> Option<usize> {
    let mut least: Option<(f64, usize)> = None;
    for n in 0..MOST_PROBES {
        let candidate = table.owner(mix(key.wrapping_add(GOLDEN.wrapping_mul(n))));
        if was_tried(candidate) {
            continue;
        }
        let load = load(candidate);
        if load < 1.0 {
            return Some(candidate);
        }
        if least.is_none_or(|(least, _)| load < least) {
            least = Some((load, candidate));
        }
    }
    least.map(|(_, candidate)| candidate)
}
