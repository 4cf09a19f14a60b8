//! The slots of one segment's blocks in the cache: one word and one mark for each block.
//!
//! Invariant: a slot is filled and emptied only under the lock of its shard (`policy`); any thread may load it.

use std::fmt;
use std::sync::atomic::AtomicU8;

use super::hazard::{Counted, Protected, Slot};
use crate::base::prefetch::prefetch;

/// The purpose for which a value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A point read: a value that was evicted a short while ago is requested again.
    Point,
    /// A scan, which uses each block once: its blocks never evict the hot blocks of point reads.
    Scan,
    /// A compaction that brings back hot blocks: they stay as if they had been used twice.
    Warm,
}

/// The slots of one segment's blocks.
pub(crate) struct Slots<V: Counted> {
    pub(super) values: Box<[Slot<V>]>,
    /// The recent uses of each block, and whether it was evicted unused: see `policy`.
    pub(super) marks: Box<[AtomicU8]>,
    /// Moves segments with few blocks to different shards.
    pub(super) salt: usize,
}

impl<V: Counted> Slots<V> {
    /// Memory of one slot and its mark.
    pub(crate) const BYTES_EACH: usize = size_of::<Slot<V>>() + size_of::<AtomicU8>();

    /// Makes empty slots. `salt` differs between segments.
    pub(crate) fn new(blocks: usize, salt: u64) -> Slots<V> {
        Slots {
            salt: usize::try_from(salt).unwrap_or(0),
            values: (0..blocks).map(|_| Slot::empty()).collect(),
            marks: (0..blocks).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// Memory of the slots, without the values.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.values.len() * Self::BYTES_EACH
    }

    /// Prefetches the slot of a block that is looked up soon.
    #[inline]
    pub(crate) fn prefetch(&self, block: usize) {
        self.values.get(block).into_iter().for_each(prefetch);
        self.marks.get(block).into_iter().for_each(prefetch);
    }

    /// The value, if there is one, without a mark.
    #[inline]
    pub(crate) fn look(&self, block: usize, see: impl FnOnce(&V)) {
        if let Some(slot) = self.values.get(block)
            && let Some(value) = slot.load().as_ref()
        {
            see(value);
        }
    }

    /// Whether there is a value. Another thread may evict it at any moment.
    pub(crate) fn is_taken(&self, block: usize) -> bool {
        self.values.get(block).is_some_and(Slot::is_some)
    }

    /// The value, without a mark and without counting the look-up. For scans, which must not change the order of eviction.
    pub(crate) fn peek(&self, block: usize) -> Option<V> {
        Protected::into_inner(self.values.get(block)?.load())
    }
}

impl<V: Counted> fmt::Debug for Slots<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slots({} blocks)", self.values.len())
    }
}
