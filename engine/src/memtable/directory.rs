//! The addresses of an arena's chunks, by number. It grows without moving its entries.
//!
//! Invariant: an entry is written once, before any reference into its chunk exists, so the holder of such a reference
//! finds it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Entries in the first part, which is enough for most tables; each further part is as large as all before it together.
const FIRST: usize = 64;

/// Number of further parts: enough for every 32-bit number.
const PARTS: usize = 25;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Directory {
    /// Stored in place, without an indirection, since every step in a tree reads it.
    first: [ChunkEntry; FIRST],
    parts: [OnceLock<Box<[ChunkEntry]>>; PARTS],
}

/// Address and length of a chunk.
#[derive(Debug, Default)]
struct ChunkEntry {
    base: AtomicPtr<u8>,
    bytes: AtomicUsize,
}

impl Default for Directory {
    fn default() -> Directory {
        Directory { first: std::array::from_fn(|_| ChunkEntry::default()), parts: Default::default() }
    }
}

impl Directory {
    /// Sets the entry of a chunk. Called by one thread at a time.
    pub(super) fn set(&self, number: usize, base: *mut u8, bytes: usize) {
        let entry = self.first.get(number).unwrap_or_else(|| {
            let (part, index) = split(number);
            let entries = (0..FIRST << part).map(|_| ChunkEntry::default());
            &self.parts[part - 1].get_or_init(|| entries.collect())[index]
        });
        entry.bytes.store(bytes, Ordering::Release);
        entry.base.store(base, Ordering::Release);
    }

    /// The address of the chunk; null for a number that was not set.
    #[inline]
    pub(super) fn base(&self, number: usize) -> *mut u8 {
        self.entry(number).map_or(std::ptr::null_mut(), |entry| entry.base.load(Ordering::Acquire))
    }

    /// The length of the chunk in bytes; 0 for a number that was not set.
    pub(super) fn bytes(&self, number: usize) -> usize {
        self.entry(number).map_or(0, |entry| entry.bytes.load(Ordering::Acquire))
    }

    #[inline]
    fn entry(&self, number: usize) -> Option<&ChunkEntry> {
        self.first.get(number).or_else(|| self.far_entry(number))
    }

    #[cold]
    fn far_entry(&self, number: usize) -> Option<&ChunkEntry> {
        let (part, index) = split(number);
        self.parts[part - 1].get()?.get(index)
    }
}

/// The part that has this number, counted from 0, and the index in it.
fn split(number: usize) -> (usize, usize) {
    let number = number + FIRST;
    let part = (number / FIRST).ilog2() as usize;
    (part, number - (FIRST << part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_an_entry_of_its_own() {
        assert_eq!(
            [0, FIRST - 1, FIRST, 3 * FIRST - 1, 3 * FIRST].map(split),
            [(0, 0), (0, FIRST - 1), (1, 0), (1, 2 * FIRST - 1), (2, 0)]
        );
        assert!(split(u32::MAX as usize >> 1).0 <= PARTS);
        let directory = Directory::default();
        assert!(directory.base(1000).is_null());
        for number in 0..1000 {
            directory.set(number, std::ptr::without_provenance_mut(number + 1), number);
        }
        assert!((0..1000).all(|number| directory.base(number).addr() == number + 1));
        assert!((0..1000).all(|number| directory.bytes(number) == number));
        assert_eq!(directory.bytes(5000), 0);
    }
}
