//! Which entries a compaction keeps: those that some reader can still see.
//!
//! A reader at `S` sees of each key the newest entry with `seq < S`. The readers are the pinned snapshots, and those
//! that come later: they see every entry of the inputs, since a memtable is flushed only when all of it is visible.
//! So an entry that has a newer neighbour is needed only by snapshots between the two, and a tombstone in the lowest
//! output only if an entry under it is kept.
//!
//! Invariant: whatever `S` of the list, and for all later ones, a read of the output gives what a read of the inputs
//! gives.

use crate::key::{Entry, Kind, Seq};

/// What may become of a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tombstones {
    /// Older entries of the key may exist outside the inputs, so it must go on hiding them.
    Keep,
    /// The inputs hold every entry of their keys that is older than what they hold: nothing lies below.
    Drop,
}

/// Decides entry by entry, in the order of a merge.
#[derive(Debug)]
pub(crate) struct Retain {
    /// Ascending.
    snapshots: Vec<Seq>,
    tombstones: Tombstones,
    key: Vec<u8>,
    /// The entry before, if it has the same key, is that key's next newer one.
    newer: Option<Seq>,
}

impl Retain {
    /// `snapshots` must have been read (see [`crate::snapshots::Snapshots::retained`]) after the inputs were chosen:
    /// any snapshot pinned later sees all of the inputs.
    pub(crate) fn new(mut snapshots: Vec<Seq>, tombstones: Tombstones) -> Retain {
        snapshots.sort_unstable();
        Retain { snapshots, tombstones, key: Vec::new(), newer: None }
    }

    /// Whether `entry` goes into the output. Entries must come in internal order, all versions of a key.
    pub(crate) fn keep(&mut self, entry: &Entry<'_>) -> bool {
        let newer = self.newer.filter(|_| self.key == entry.key);
        debug_assert!(newer.is_none_or(|newer| entry.seq <= newer), "entries come newest first");
        if newer.is_none() {
            self.key.clear();
            self.key.extend_from_slice(entry.key);
        }
        self.newer = Some(entry.seq);
        let seen = newer.is_none_or(|newer| self.snapshot_in(entry.seq, newer));
        seen && !self.is_needless_tombstone(entry)
    }

    /// Whether some snapshot sees `older` and not `newer`: `older < S <= newer`.
    fn snapshot_in(&self, older: Seq, newer: Seq) -> bool {
        let at = self.snapshots.partition_point(|snapshot| *snapshot <= older);
        self.snapshots.get(at).is_some_and(|snapshot| *snapshot <= newer)
    }

    /// Nothing lies below the output, and without a snapshot at or below the tombstone every older entry of its key is
    /// dropped here, too: then no entry is left for it to hide. (With one, an older entry may be kept for it. Whether
    /// there is one is known only later; keeping the tombstone is always right.)
    fn is_needless_tombstone(&self, entry: &Entry<'_>) -> bool {
        entry.kind == Kind::Delete
            && self.tombstones == Tombstones::Drop
            && self.snapshots.first().is_none_or(|oldest| *oldest > entry.seq)
    }
}
