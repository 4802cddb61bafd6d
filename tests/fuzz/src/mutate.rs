//! Mutates inputs: a few small changes at a time, so that most of an input stays valid.

use fastrand::Rng;

/// Boundary values for lengths and counts.
const ODD_NUMBERS: [u32; 12] = [0, 1, 2, 3, 4, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, u32::MAX];

/// Generates inputs from existing ones.
pub struct Mutator<'a> {
    random: Rng,
    words: &'a [&'a [u8]],
    max_len: usize,
}

impl<'a> Mutator<'a> {
    /// Creates a mutator for inputs of at most `max_len` bytes that inserts these words.
    pub fn new(random: Rng, words: &'a [&'a [u8]], max_len: usize) -> Mutator<'a> {
        Mutator { random, words, max_len }
    }

    /// Returns a new input: half of the time from the first `given` inputs, which are valid, else from any.
    pub fn next(&mut self, inputs: &[Vec<u8>], given: usize) -> Vec<u8> {
        let random = &mut self.random;
        let from = if random.bool() { &inputs[..given] } else { inputs };
        let mut input = random.choice(from).cloned().unwrap_or_default();
        self.mutate(&mut input, inputs);
        input
    }

    /// Mutates an input; pieces may come from `others`.
    pub fn mutate(&mut self, input: &mut Vec<u8>, others: &[Vec<u8>]) {
        // Usually one change, sometimes many.
        let changes = 1 << self.random.u32(..5).min(self.random.u32(..5));
        for _ in 0..changes {
            self.change(input, others);
        }
        input.truncate(self.max_len);
    }

    fn change(&mut self, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let random = &mut self.random;
        let at = random.usize(..=input.len());
        let end = at + short(random, input.len() - at);
        match random.u8(..12) {
            0 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            1 if at < input.len() => input[at] = random.u8(..),
            2 if at < input.len() => input[at] = input[at].wrapping_add(random.u8(..3)).wrapping_sub(1),
            3 => input.insert(at, random.u8(..)),
            4 => _ = input.drain(at..end),
            5 => input.truncate(at),
            // Repeats a piece, once or many times.
            6 => {
                let times = short(random, 64).max(1);
                let piece = input[at..end].repeat(times);
                input.splice(at..at, piece);
            }
            7 => {
                let word = random.choice(self.words).copied().unwrap_or_default();
                input.splice(at..at, word.iter().copied());
            }
            8 => {
                let word = random.choice(self.words).copied().unwrap_or_default();
                let end = (at + word.len()).min(input.len());
                input.splice(at..end, word.iter().copied());
            }
            // The beginning of this input and the end of another, or a piece of another inserted into this one.
            9 => {
                let other = random.choice(inputs).map_or(&[][..], Vec::as_slice);
                let from = random.usize(..=other.len());
                let until = if random.bool() { other.len() } else { from + short(random, other.len() - from) };
                let replaced = if until == other.len() { at..input.len() } else { at..end };
                input.splice(replaced, other[from..until].iter().copied());
            }
            10 => {
                let number = *random.choice(&ODD_NUMBERS).unwrap_or(&0);
                write_number(random, input, at, number);
            }
            // An existing number, slightly changed.
            _ => {
                let before = input.get(at..at + 2).map_or(0, |b| u32::from(u16::from_be_bytes([b[0], b[1]])));
                let number = before.wrapping_add(random.u32(..9)).wrapping_sub(4);
                write_number(random, input, at, number);
            }
        }
    }
}

/// Returns a number from 0 to `max`, usually small.
fn short(random: &mut Rng, max: usize) -> usize {
    let bound = if random.u8(..8) == 0 { max } else { max.min(16) };
    random.usize(..=bound)
}

/// Writes a number as one to four bytes in either byte order.
fn write_number(random: &mut Rng, input: &mut [u8], at: usize, number: u32) {
    let len = random.usize(1..=4);
    let mut bytes = number.to_le_bytes();
    if random.bool() {
        bytes[..len].reverse();
    }
    if let Some(place) = input.get_mut(at..at + len) {
        place.copy_from_slice(&bytes[..len]);
    }
}
