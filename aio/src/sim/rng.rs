//! Randomness and hashing of the simulated machine.
//!
//! Invariant: both depend only on their inputs, so that a run replays from its seed on every machine.

/// Adds this before each output; an odd constant close to 2^64 divided by the golden ratio.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// A small generator (splitmix64): every 64-bit seed gives another sequence.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(mix(STEP, seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        scramble(self.0)
    }

    /// A number in `0..bound`; the bias is below `bound` / 2^64.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below zero");
        self.next() % bound
    }

    /// An index into `len` elements.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }

    /// True with a probability of `percent` in 100.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Spreads every input bit over all output bits; a bijection.
fn scramble(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Folds one word into a running hash.
pub(crate) fn mix(hash: u64, word: u64) -> u64 {
    scramble(hash.rotate_left(5) ^ word.wrapping_mul(STEP)).wrapping_add(hash)
}

/// Hash of some bytes and their number.
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    // Four independent lanes, since each step waits for the multiplication before it.
    let mut lanes = [1, 2, 3, 4];
    let mut chunks = bytes.chunks_exact(32);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().expect("chunks of 8"));
            *lane = (*lane ^ word).wrapping_mul(STEP);
            *lane ^= *lane >> 29;
        }
    }
    // The length is in the hash, so the last word may be filled up with zeros.
    let words = chunks.remainder().chunks(8).map(|part| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(word)
    });
    scramble(lanes.into_iter().chain(words).fold(bytes.len() as u64, mix))
}
