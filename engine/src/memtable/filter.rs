//! Proves with one cache line that a key is missing: a Bloom filter in which all bits of a key are in one word.
//!
//! At 16 bits per key about one missing key in a hundred passes. With the bits of a key spread over a whole line fewer would
//! pass, but the bits in one word are set by one atomic operation.
//!
//! Invariant: a key whose insert has returned is always found. Its bits were set before it was linked into the tree, bits are
//! never cleared, and a reader that knows of the return is ordered after it. So relaxed order is enough. A reader that runs
//! during the insert may miss the bits, as it may miss the entry.

use crate::base::prefetch::prefetch;
use crate::base::sync::{AtomicU64, Ordering};

/// Keys that share a word, on average.
const KEYS_PER_WORD: usize = 4;

/// Bits that a key sets.
const BITS_PER_KEY: u32 = 4;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct MemtableFilter {
    words: Box<[AtomicU64]>,
}

impl MemtableFilter {
    /// A filter for this number of keys, of at most `limit_bytes`. With more keys more missing keys pass, but every key is
    /// found.
    pub(super) fn new(keys: usize, limit_bytes: usize) -> MemtableFilter {
        let words = (keys / KEYS_PER_WORD).min(limit_bytes / size_of::<u64>()).max(1);
        MemtableFilter { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn size_bytes(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// Prefetches the word of a key that is added soon.
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(self.word(hash));
    }

    /// Adds a key. Called before the key is linked into the tree.
    pub(super) fn insert(&self, hash: u64) {
        let bits = bits(hash);
        let word = self.word(hash);
        // In a table of keys that are overwritten often, most bits are set already, and a load is cheap.
        if word.load(Ordering::Relaxed) & bits != bits {
            word.fetch_or(bits, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        let bits = bits(hash);
        self.word(hash).load(Ordering::Relaxed) & bits == bits
    }

    /// The upper half of the hash chooses the word, the lower half the bits.
    #[inline]
    fn word(&self, hash: u64) -> &AtomicU64 {
        let index = ((hash >> 32) as usize * self.words.len()) >> 32;
        &self.words[index]
    }
}

#[inline]
fn bits(hash: u64) -> u64 {
    (0..BITS_PER_KEY).fold(0, |bits, index| bits | 1 << ((hash >> (6 * index)) & 63))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::key::key_hash;

    fn hash(key: u32) -> u64 {
        key_hash(&key.to_le_bytes())
    }

    #[test]
    fn no_key_is_missed_and_few_others_pass() {
        const KEYS: u32 = 100_000;
        let filter = MemtableFilter::new(KEYS as usize, usize::MAX);
        assert_eq!(filter.size_bytes(), 2 * KEYS as usize);
        (0..KEYS).for_each(|key| filter.insert(hash(key)));
        assert!((0..KEYS).all(|key| filter.may_contain(hash(key))));
        let passed = (KEYS..2 * KEYS).filter(|&key| filter.may_contain(hash(key))).count();
        assert!(passed < KEYS as usize / 50, "{passed}");
    }

    #[test]
    fn the_smallest_filter_works() {
        let filter = MemtableFilter::new(0, 0);
        assert!(!filter.may_contain(hash(1)));
        filter.insert(hash(1));
        assert!(filter.may_contain(hash(1)));
    }
}
