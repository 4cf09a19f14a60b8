//! Proves without a read that a key is not in a segment: a Bloom filter whose probes of one key are in one cache line.
//!
//! ```text
//!   OFFSET  SIZE  FIELD OF A LINE (all integers little-endian)
//!        0    64  512 bits, as eight 64-bit words
//! ```
//!
//! The top (`top.rs`) has the kind and the number of lines; filter blocks (`pages.rs`) have the lines, 60 in each. In memory a
//! pinned filter is the sequence of its lines.
//!
//! A key with hash `h` (`key::key_hash`) belongs to line `(h >> 32) * b >> 32` of `b` lines. Its 7 bits in that line are the first
//! seven 9-bit fields, from the low end, of `mix(h)`. Both are part of the format.
//!
//! Invariant: a key that was added is always found. The rate of false positives is about 0.29, 0.20 and 0.08 % with 13, 14 and
//! 17 bits per key.
#![deny(clippy::indexing_slicing)]

use crate::base::planted::{Bug, planted};
use crate::base::prefetch::prefetch;

/// The byte of this kind of filter.
pub(super) const KIND_BLOCKED_BLOOM: u8 = 1;
const LINE_WORDS: usize = 8;
/// Bytes of a line.
pub(super) const LINE_BYTES: usize = 64;
const LINE_BITS: u64 = 512;
/// Probes for one key: the best number for 14 bits per key, and the most that fit into one 64-bit word.
const PROBES: u32 = 7;

/// Spreads a hash once more, so that the bits in a line do not depend on the choice of the line.
fn mix(hash: u64) -> u64 {
    let bits = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The bits of one key, as (word, mask) in its line.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let bits = mix(hash);
    (0..PROBES).map(move |probe| {
        let bit = bits >> (9 * probe) & (LINE_BITS - 1);
        (usize::try_from(bit / 64).expect("below 8"), 1 << (bit % 64))
    })
}

/// A line, as it is in memory.
pub(super) type Line = [u64; LINE_WORDS];

/// The line of a hash among so many.
pub(super) fn line_of(hash: u64, lines: usize) -> usize {
    let scaled = ((hash >> 32) * lines as u64) >> 32;
    usize::try_from(scaled).expect("below the number of lines")
}

/// Whether a key with this hash may be in its line.
pub(super) fn may_be_in(line: &Line, hash: u64) -> bool {
    if planted(Bug::FilterForgetsKeys) && hash.is_multiple_of(61) {
        return false;
    }
    probes(hash).all(|(word, mask)| line.get(word).is_some_and(|word| word & mask != 0))
}

/// A line from its bytes.
pub(super) fn line_from(chunk: &[u8; LINE_BYTES]) -> Line {
    let mut line = [0; LINE_WORDS];
    for (word, bytes) in line.iter_mut().zip(chunk.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    line
}

/// A filter over key hashes.
#[derive(Debug)]
pub(super) struct Filter {
    lines: Box<[Line]>,
}

impl Filter {
    /// A filter for keys with these hashes, with about `bits_per_key` bits per key.
    pub(super) fn build(hashes: &[u64], bits_per_key: u32) -> Filter {
        let bits = (hashes.len() as u64).saturating_mul(u64::from(bits_per_key));
        let lines = bits.div_ceil(LINE_BITS).clamp(1, u64::from(u32::MAX));
        let lines = usize::try_from(lines).expect("a filter fits into memory");
        let mut filter = Filter { lines: vec![[0; LINE_WORDS]; lines].into() };
        for &hash in hashes {
            let line = filter.line(hash);
            let line = filter.lines.get_mut(line).expect("scaled below the number of lines");
            for (word, mask) in probes(hash) {
                *line.get_mut(word).expect("a line has 512 bits") |= mask;
            }
        }
        filter
    }

    /// Prefetches the line of a hash that is looked up soon.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        if let Some(line) = self.lines.get(self.line(hash)) {
            prefetch(line);
        }
    }

    /// Whether a key with this hash may have been added.
    #[inline]
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        self.lines.get(self.line(hash)).is_none_or(|line| may_be_in(line, hash))
    }

    /// All lines of the filter.
    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// A filter of these lines. There must be at least one.
    pub(super) fn of(lines: Vec<Line>) -> Filter {
        Filter { lines: lines.into() }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        (self.lines.len() * LINE_BYTES + size_of::<Filter>()) as u64
    }

    fn line(&self, hash: u64) -> usize {
        line_of(hash, self.lines.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::key::key_hash;

    fn hashes(from: u32, count: u32) -> Vec<u64> {
        (from..from + count).map(|i| key_hash(&i.to_le_bytes())).collect()
    }

    #[test]
    fn every_key_is_found_and_few_others() {
        for (bits, most_in_million) in [(13, 3500), (14, 2400), (17, 1000)] {
            for count in [1, 10, 1000, 100_000] {
                let present = hashes(0, count);
                let filter = Filter::build(&present, bits);
                assert!(present.iter().all(|&hash| filter.may_contain(hash)));
                if count >= 1000 {
                    let others = hashes(1 << 30, 1_000_000);
                    let found = others.iter().filter(|&&hash| filter.may_contain(hash)).count();
                    println!("{bits} bits, {count} keys: {found} false positives in a million");
                    assert!(found < most_in_million, "{found} with {bits} bits and {count} keys");
                }
            }
        }
    }

    #[test]
    fn no_keys_give_an_empty_filter() {
        let filter = Filter::build(&[], 14);
        assert!(hashes(0, 1000).iter().all(|&hash| !filter.may_contain(hash)));
    }
}
