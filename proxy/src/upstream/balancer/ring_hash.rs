//! `ring_hash`: consistent hashing on a ring (Ketama). Each endpoint owns points on a ring of hashes, in proportion to its
//! weight, and a key belongs to the next point. A pick is a binary search.
//!
//! An endpoint of average weight has 512 points or a little more, so shares differ by about 4 % (`1/√points`). The number of
//! points per unit of weight is a power of two, and hardly depends on the number of endpoints: so exactly the keys of an
//! endpoint that leaves move, unless the average weight crosses a power of two. (In Envoy all endpoints share
//! `minimum_ring_size` points, so the number for each, and with it many keys, change with every endpoint.) A larger
//! `minimum_ring_size` makes shares more even. A point takes eight bytes.

use super::candidates::{Candidates, GOLDEN, mix};

/// A ring of hashes.
#[derive(Debug)]
pub(super) struct Ring {
    /// In order, each with the index of its owner.
    points: Box<[(u32, u32)]>,
}

impl Ring {
    pub(super) fn new(candidates: &Candidates, least: u64, most: u64) -> Ring {
        let density = density(candidates, least, most);
        let mut points = Vec::with_capacity(Ring::size(candidates, least, most) as usize);
        for (owner, candidate) in (0..).zip(candidates.list()) {
            let point = |n: u64| (mix(candidate.hash ^ GOLDEN.wrapping_mul(n + 1)) >> 32) as u32;
            points.extend((0..count(candidate.weight, density)).map(|n| (point(n), owner)));
        }
        // Where two points meet, the order must not depend on the order of the endpoints.
        let hash = |owner: u32| candidates.list()[owner as usize].hash;
        points.sort_unstable_by_key(|(point, owner)| (*point, hash(*owner)));
        Ring { points: points.into() }
    }

    /// The number of points.
    pub(super) fn size(candidates: &Candidates, least: u64, most: u64) -> u64 {
        let density = density(candidates, least, most);
        candidates.list().iter().map(|candidate| count(candidate.weight, density)).sum()
    }

    pub(super) fn owner(&self, hash: u64) -> usize {
        let hash = (hash >> 32) as u32;
        let next = self.points.partition_point(|(point, _)| *point < hash);
        let (_, owner) = self.points.get(next).unwrap_or(&self.points[0]);
        *owner as usize
    }
}

/// The number of points of an endpoint of average weight, at least.
const POINTS: f64 = 512.0;

/// The number of points per unit of weight, a power of two (or its inverse).
fn density(candidates: &Candidates, least: u64, most: u64) -> f64 {
    let total = candidates.total().max(1) as f64;
    let smallest = candidates.list().iter().map(|candidate| candidate.weight).min().unwrap_or(1) as f64;
    let wanted = (POINTS * candidates.len() as f64).max(least as f64) / total;
    // The smallest weight needs a point as well.
    let density = wanted.max(1.0 / smallest).log2().ceil().exp2();
    density.min((most as f64 / total).log2().floor().exp2())
}

fn count(weight: u64, density: f64) -> u64 {
    ((weight as f64 * density).round() as u64).max(1)
}
