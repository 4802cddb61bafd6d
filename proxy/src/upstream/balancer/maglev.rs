//! `maglev`: Google's consistent hashing (Eisenbud et al., NSDI 2016, section 3.4), with weights as in Envoy. Each endpoint
//! fills places of a table in an order of its own, in turn with the others, so that all have their fair share almost exactly.
//! A pick is one access to the table.
//!
//! The price is that a few keys move between endpoints that stay. The table has one, two or four bytes per place, depending on
//! the number of endpoints.

use super::candidates::{Candidates, GOLDEN, mix};

/// A table of places. Its size is a prime number.
#[derive(Debug)]
pub(super) enum Maglev {
    Bytes(Box<[u8]>),
    Shorts(Box<[u16]>),
    Words(Box<[u32]>),
}

/// A candidate while the table is filled.
struct Filler {
    candidate: u32,
    /// Its next place, and the step to the one after.
    place: u64,
    step: u64,
    weight: f64,
    /// It has a turn in the rounds at which `round * weight` has reached this.
    due: f64,
}

impl Maglev {
    pub(super) fn new(candidates: &Candidates, size: u64) -> Maglev {
        let places = fill(candidates, size);
        match candidates.len() {
            0..=0x100 => Maglev::Bytes(places.iter().map(|i| *i as u8).collect()),
            0x101..=0x1_0000 => Maglev::Shorts(places.iter().map(|i| *i as u16).collect()),
            _ => Maglev::Words(places.into()),
        }
    }

    pub(super) fn owner(&self, hash: u64) -> usize {
        match self {
            Maglev::Bytes(places) => places[(hash % places.len() as u64) as usize] as usize,
            Maglev::Shorts(places) => places[(hash % places.len() as u64) as usize] as usize,
            Maglev::Words(places) => places[(hash % places.len() as u64) as usize] as usize,
        }
    }
}

fn fill(candidates: &Candidates, size: u64) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let largest = candidates.list().iter().map(|candidate| candidate.weight).max().unwrap_or(1) as f64;
    let filler = |(index, candidate): (u32, &super::candidates::Candidate)| Filler {
        candidate: index,
        place: candidate.hash % size,
        step: mix(candidate.hash ^ GOLDEN) % (size - 1) + 1,
        weight: candidate.weight as f64,
        due: 0.0,
    };
    let mut fillers: Vec<Filler> = (0..).zip(candidates.list()).map(filler).collect();
    // The order must not depend on the order in which the endpoints are listed.
    fillers.sort_by_key(|filler| candidates.list()[filler.candidate as usize].hash);
    let mut places = vec![FREE; size as usize];
    let mut left = size;
    for round in 1.. {
        for filler in &mut fillers {
            if left == 0 {
                return places;
            }
            // The largest weight has a turn in every round, half of it in every other round.
            if f64::from(round) * filler.weight < filler.due {
                continue;
            }
            filler.due += largest;
            while places[filler.place as usize] != FREE {
                filler.place = (filler.place + filler.step) % size;
            }
            places[filler.place as usize] = filler.candidate;
            left -= 1;
        }
    }
    places
}
