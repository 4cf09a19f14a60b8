//! The places of one segment's blocks in the cache: one word and one mark for each block.
//!
//! Invariant: what stands in them changes under the lock of its shard only (`policy`); anybody may load it.

use std::fmt;
use std::sync::atomic::AtomicU8;

use super::hazard::{Counted, Held, Slot};
use crate::base::prefetch::prefetch;

/// What asks for a value to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A point read: what was thrown out a short while ago is wanted again.
    Point,
    /// A scan, whose blocks come by once: they never push out what point reads want.
    Scan,
    /// A compaction that brings again what was hot before: it stays as what was wanted twice.
    Warm,
}

/// The places of one segment's blocks.
pub(crate) struct Slots<V: Counted> {
    pub(super) values: Box<[Slot<V>]>,
    /// How often each was used of late, and whether it was thrown out unused: see `policy`.
    pub(super) marks: Box<[AtomicU8]>,
    /// Moves segments with few blocks to different shards.
    pub(super) salt: usize,
}

impl<V: Counted> Slots<V> {
    /// What one place takes.
    pub(crate) const BYTES_EACH: usize = size_of::<Slot<V>>() + size_of::<AtomicU8>();

    /// None is filled; `salt` tells segments apart.
    pub(crate) fn new(blocks: usize, salt: u64) -> Slots<V> {
        Slots {
            salt: usize::try_from(salt).unwrap_or(0),
            values: (0..blocks).map(|_| Slot::empty()).collect(),
            marks: (0..blocks).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// What they take, without the values.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.values.len() * Self::BYTES_EACH
    }

    /// Soon somebody will look for this block.
    pub(crate) fn prefetch(&self, block: usize) {
        self.values.get(block).into_iter().for_each(prefetch);
        self.marks.get(block).into_iter().for_each(prefetch);
    }

    /// Shows the value, if it is there, to somebody who leaves no trace.
    #[inline]
    pub(crate) fn look(&self, block: usize, see: impl FnOnce(&V)) {
        if let Some(slot) = self.values.get(block)
            && let Some(value) = slot.load().as_ref()
        {
            see(value);
        }
    }

    /// Whether there is a value. It may be gone in the next moment.
    pub(crate) fn is_taken(&self, block: usize) -> bool {
        self.values.get(block).is_some_and(Slot::is_some)
    }

    /// The value, neither marked nor counted: for scans that shall leave no trace.
    pub(crate) fn peek(&self, block: usize) -> Option<V> {
        Held::into_inner(self.values.get(block)?.load())
    }
}

impl<V: Counted> fmt::Debug for Slots<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slots({} blocks)", self.values.len())
    }
}
