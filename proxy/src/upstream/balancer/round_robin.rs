//! `round_robin`: every endpoint in turn, as often as its weight says, with its turns spread evenly.
//!
//! With equal weights, the turns are the list of endpoints. Otherwise they are computed from the position, as by gRPC's
//! static stride scheduler, so that no sequence has to be stored: in round `r`, an endpoint of weight `w` has a turn if
//! `(r·w + phase) mod longest ≥ longest − w`, where `longest` is the largest weight. That is true exactly `w` times in
//! `longest` rounds, at even distances. An endpoint with more than twice the mean weight has several entries, so that at
//! least a third of all entries have a turn; entries of large and small weights are interleaved, so that those without a turn
//! do not follow each other. An entry has eight bytes, and there are at most half as many more entries than endpoints.
//!
//! State: the position is shared by all workers (one atomic addition per turn), so any number of consecutive turns is
//! shared out alike with 1, 2 and 16 workers. It survives a membership change as a number; which endpoint is next after one
//! is arbitrary.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{
    candidates::{Candidates, GOLDEN},
    draw::{Draw, MOST_REDRAWS},
};

/// Weighted round robin.
#[derive(Debug)]
pub(super) struct RoundRobin(Option<Turns>);

/// The entries of endpoints with different weights.
#[derive(Debug)]
struct Turns {
    entries: Box<[Entry]>,
    /// The largest weight of an entry.
    longest: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    candidate: u32,
    weight: u16,
    phase: u16,
}

impl RoundRobin {
    pub(super) fn new(candidates: &Candidates) -> RoundRobin {
        RoundRobin((!candidates.are_even()).then(|| Turns::new(candidates)))
    }

    pub(super) fn choose(&self, draw: &Draw<'_>, cursor: &AtomicU64) -> Option<usize> {
        if self.0.is_none() && draw.is_plain() {
            return Some((cursor.fetch_add(1, Relaxed) % draw.candidates.len() as u64) as usize);
        }
        let mut position;
        let mut cold = 0;
        let chosen = loop {
            position = cursor.fetch_add(1, Relaxed);
            if let Some(chosen) = self.at(draw.candidates, position) {
                if draw.is_warm(chosen) || cold == MOST_REDRAWS {
                    break chosen;
                }
                cold += 1;
            }
        };
        if draw.tried.is_empty() || !draw.was_tried(chosen) {
            return Some(chosen);
        }
        // Search from here for this request only: advancing the cursor for each endpoint it has tried would distort the
        // other shares.
        let following = (1..64).filter_map(|n| self.at(draw.candidates, position.wrapping_add(n)));
        let found = following.into_iter().find(|i| !draw.was_tried(*i));
        found.or_else(|| draw.candidates.draw_among(|i| !draw.was_tried(i)))
    }

    /// The candidate that has its turn at this position, if any.
    fn at(&self, candidates: &Candidates, position: u64) -> Option<usize> {
        match &self.0 {
            None => Some((position % candidates.len() as u64) as usize),
            Some(turns) => turns.at(position),
        }
    }
}

impl Turns {
    fn new(candidates: &Candidates) -> Turns {
        let divisor = candidates.list().iter().fold(0, |a, candidate| gcd(a, candidate.weight)).max(1);
        let weights = || candidates.list().iter().map(|candidate| candidate.weight / divisor);
        let twice_the_mean = (2 * weights().sum::<u64>()).div_ceil(candidates.len() as u64);
        let mut parts: Vec<(u32, u64)> = Vec::with_capacity(candidates.len());
        for (candidate, weight) in (0..).zip(weights()) {
            let count = weight.div_ceil(twice_the_mean);
            parts.extend((0..count).map(|n| (candidate, weight / count + u64::from(n < weight % count))));
        }
        let longest = parts.iter().map(|(_, weight)| *weight).max().unwrap_or(1);
        // Only if one address is listed several times can a weight exceed 16 bits.
        let scale = |weight: u64| match longest {
            0..=0xffff => weight,
            _ => (weight * 0xffff / longest).max(1),
        };
        let longest = scale(longest);
        parts.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
        let (count, step) = (parts.len(), stride(parts.len()));
        let entry = |n: usize| {
            let (candidate, weight) = parts[n * step % count];
            let phase = (u128::from(GOLDEN.wrapping_mul(n as u64 + 1)) * u128::from(longest)) >> 64;
            Entry { candidate, weight: scale(weight) as u16, phase: phase as u16 }
        };
        Turns { entries: (0..count).map(entry).collect(), longest }
    }

    fn at(&self, position: u64) -> Option<usize> {
        let count = self.entries.len() as u64;
        let Entry { candidate, weight, phase } = self.entries[(position % count) as usize];
        let (weight, round) = (u64::from(weight), position / count % self.longest);
        let has_turn = (round * weight + u64::from(phase)) % self.longest + weight >= self.longest;
        has_turn.then_some(candidate as usize)
    }
}

/// A step that visits all of `count` places before it returns to the first, and any few of them at even distances.
fn stride(count: usize) -> usize {
    let golden = (count as f64 * 0.618).round().max(1.0) as usize;
    (golden..).find(|step| gcd(*step as u64, count as u64) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
