//! The rule by which a flush or compaction keeps an entry: some reader can still see it.
//!
//! A reader at `S` sees of each key the newest entry with `seq < S`. The readers are the pinned snapshots and all later
//! readers. A later reader sees every entry of the inputs, since a memtable is flushed only when all of it is visible. So an
//! entry with a newer neighbour is needed only by snapshots between the two. A tombstone in the lowest output is needed only
//! if an entry under it is kept.
//!
//! A read without a pin takes its `S` from the visible position. Suppose that a write, a flush and a compaction pass after it
//! took `S` and before it takes the layers: it misses the entry that was dropped, and does not see the one that replaced it.
//! So such a read takes its layers first (`Tree::view`).
//!
//! Invariant: at each `S` of the list, and at all later ones, a read of the output and a read of the inputs have the same
//! result.

use crate::base::key::{Entry, Seq};
use crate::base::planted::{Bug, planted};

/// Whether a tombstone may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tombstones {
    /// Older entries of the key may exist outside the inputs, so it must go on hiding them.
    Keep,
    /// No older entry of the inputs' keys exists outside the inputs: nothing lies below.
    Drop,
}

/// Decides entry by entry, in the order of a merge.
#[derive(Debug)]
pub(crate) struct Retain {
    /// Ascending.
    snapshots: Vec<Seq>,
    tombstones: Tombstones,
    key: Vec<u8>,
    /// The `Seq` of the entry before. If that has the same key, it is the key's next newer entry.
    newer: Option<Seq>,
}

impl Retain {
    /// `snapshots` must have been read (see [`crate::tree::pins::Pins::retained`]) after the inputs were
    /// chosen: any snapshot pinned later sees all of the inputs.
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
        let seen = if planted(Bug::NewestVersionDropped) {
            newer.is_some() || !entry.seq.get().is_multiple_of(96)
        } else {
            seen
        };
        seen && !self.is_needless_tombstone(entry)
    }

    /// Whether some snapshot sees `older` and not `newer`: `older < S <= newer`.
    fn snapshot_in(&self, older: Seq, newer: Seq) -> bool {
        let at = self.snapshots.partition_point(|snapshot| *snapshot <= older);
        self.snapshots.get(at).is_some_and(|snapshot| *snapshot <= newer)
    }

    /// Whether the tombstone has no entry to hide: nothing lies below the output, and no snapshot at or below the tombstone
    /// keeps an older entry of its key. (With such a snapshot an older entry may follow. That is known only later, and to
    /// keep the tombstone is always right.)
    fn is_needless_tombstone(&self, entry: &Entry<'_>) -> bool {
        entry.is_tombstone()
            && self.tombstones == Tombstones::Drop
            && self.snapshots.first().is_none_or(|oldest| *oldest > entry.seq)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::base::key::Kind;
    use crate::read::cursor_contract::{Owned, any_entries, runner};

    /// The value that a reader at `snapshot` gets, by a search of all entries.
    fn read(entries: &[Owned], key: &[u8], snapshot: Seq) -> Option<Vec<u8>> {
        let versions = entries.iter().filter(|entry| entry.key == key && entry.seq < snapshot);
        let newest = versions.max_by_key(|entry| entry.seq)?;
        newest.as_entry().value_seen().map(<[u8]>::to_vec)
    }

    fn retained(inputs: &[Owned], snapshots: &[Seq], tombstones: Tombstones) -> Vec<Owned> {
        let mut retain = Retain::new(snapshots.to_vec(), tombstones);
        inputs.iter().filter(|entry| retain.keep(&entry.as_entry())).cloned().collect()
    }

    fn any_snapshots() -> impl Strategy<Value = Vec<Seq>> {
        vec((0..45_u64).prop_map(Seq::new), 0..5)
    }

    /// Inputs hold the newer half of the entries or all of them; below them lies the rest, and a tombstone
    /// may go only in the latter case. Every snapshot, and all later readers, must read the same before and
    /// after.
    #[test]
    fn every_reader_reads_the_same_before_and_after() {
        let cases = (any_entries(40), any_snapshots(), any::<bool>());
        runner(4000)
            .run(&cases, |(entries, snapshots, is_lowest)| {
                let (tombstones, lowest_input) =
                    if is_lowest { (Tombstones::Drop, 0) } else { (Tombstones::Keep, 20) };
                let (inputs, below): (Vec<_>, Vec<_>) =
                    entries.iter().cloned().partition(|entry| entry.seq.get() >= lowest_input);
                let mut after = retained(&inputs, &snapshots, tombstones);
                after.extend(below);
                let now = [Seq::new(41), Seq::new(u64::MAX)];
                for snapshot in snapshots.iter().chain(&now) {
                    for entry in &entries {
                        assert_eq!(
                            read(&after, &entry.key, *snapshot),
                            read(&entries, &entry.key, *snapshot),
                            "{:?} at {snapshot:?}",
                            entry.key
                        );
                    }
                }
                Ok(())
            })
            .unwrap();
    }

    /// Nothing more than needed is kept: without the entry some reader would read something else, or it is a
    /// tombstone.
    #[test]
    fn every_value_that_is_kept_has_a_reader() {
        let cases = (any_entries(40), any_snapshots());
        runner(1000)
            .run(&cases, |(inputs, snapshots)| {
                for entry in retained(&inputs, &snapshots, Tombstones::Drop) {
                    let sees_it = |snapshot: &Seq| {
                        let mut newer =
                            inputs.iter().filter(|other| other.key == entry.key && other.seq > entry.seq);
                        entry.seq < *snapshot && newer.all(|newer| newer.seq >= *snapshot)
                    };
                    let now = Seq::new(u64::MAX);
                    let needed = snapshots.iter().chain([&now]).any(sees_it);
                    assert!(needed, "{entry:?} has no reader");
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn text_table() {
        // Versions of one key, newest first, P put and D delete; snapshots; the versions that are kept; those that are kept
        // in the lowest output.
        let table = "
            P9 P5 P1 | -    | P9       | P9
            P9 P5 P1 | 9    | P9 P5    | P9 P5
            P9 P5 P1 | 5    | P9 P1    | P9 P1
            P9 P5 P1 | 1    | P9       | P9
            P9 P5 P1 | 10   | P9       | P9
            P9 P5 P1 | 2,6  | P9 P5 P1 | P9 P5 P1
            D9 P5    | -    | D9       |
            D9 P5    | 6    | D9 P5    | D9 P5
            D9 P5    | 10   | D9       |
            P9 D5 P1 | 7    | P9 D5    | P9
            P9 D5 P1 | 3,7  | P9 D5 P1 | P9 D5 P1
            D9       | 4    | D9       | D9
            ";
        for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let columns: Vec<&str> = line.split('|').map(str::trim).collect();
            let inputs: Vec<Owned> = columns[0].split_whitespace().map(version).collect();
            let snapshots: Vec<Seq> =
                columns[1].split(',').filter_map(|seq| seq.parse().ok()).map(Seq::new).collect();
            for (tombstones, expected) in [(Tombstones::Keep, columns[2]), (Tombstones::Drop, columns[3])] {
                let expected: Vec<Owned> = expected.split_whitespace().map(version).collect();
                assert_eq!(retained(&inputs, &snapshots, tombstones), expected, "{line}: {tombstones:?}");
            }
        }
    }

    fn version(text: &str) -> Owned {
        let (kind, seq) = text.split_at(1);
        let kind = if kind == "P" { Kind::Put } else { Kind::Delete };
        Owned { key: b"k".to_vec(), seq: Seq::new(seq.parse().unwrap()), kind, value: Vec::new() }
    }
}
