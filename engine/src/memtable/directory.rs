//! Where an arena's chunks begin, by number; grows without moving what is there.
//!
//! Invariant: a place is written once, before any reference into its chunk exists, so whoever holds such a reference
//! finds it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Places in the first part, which is enough for most tables; each further part is as large as all before it and this
/// once more.
const FIRST: usize = 64;

/// Enough for every 32-bit number, without the first.
const PARTS: usize = 25;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Directory {
    /// At hand, since every step in a tree comes by here.
    first: [Place; FIRST],
    parts: [OnceLock<Box<[Place]>>; PARTS],
}

/// Where a chunk begins, and how long it is.
#[derive(Debug, Default)]
struct Place {
    base: AtomicPtr<u8>,
    bytes: AtomicUsize,
}

impl Default for Directory {
    fn default() -> Directory {
        Directory { first: std::array::from_fn(|_| Place::default()), parts: Default::default() }
    }
}

impl Directory {
    /// By one thread at a time.
    pub(super) fn set(&self, number: usize, base: *mut u8, bytes: usize) {
        let place = self.first.get(number).unwrap_or_else(|| {
            let (part, index) = split(number);
            let places = (0..FIRST << part).map(|_| Place::default());
            &self.parts[part - 1].get_or_init(|| places.collect())[index]
        });
        place.bytes.store(bytes, Ordering::Release);
        place.base.store(base, Ordering::Release);
    }

    /// Where the chunk begins; null for a number that was not set.
    #[inline]
    pub(super) fn base(&self, number: usize) -> *mut u8 {
        self.place(number).map_or(std::ptr::null_mut(), |place| place.base.load(Ordering::Acquire))
    }

    /// How long the chunk is; 0 for a number that was not set.
    pub(super) fn bytes(&self, number: usize) -> usize {
        self.place(number).map_or(0, |place| place.bytes.load(Ordering::Acquire))
    }

    #[inline]
    fn place(&self, number: usize) -> Option<&Place> {
        self.first.get(number).or_else(|| self.far_place(number))
    }

    #[cold]
    fn far_place(&self, number: usize) -> Option<&Place> {
        let (part, index) = split(number);
        self.parts[part - 1].get()?.get(index)
    }
}

/// The part, from 0 for the first, and the index in it.
fn split(number: usize) -> (usize, usize) {
    let number = number + FIRST;
    let part = (number / FIRST).ilog2() as usize;
    (part, number - (FIRST << part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_place_of_its_own() {
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
