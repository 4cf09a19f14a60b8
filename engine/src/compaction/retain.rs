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

use std::cmp::Ordering;

use crate::base::key::{Entry, Seq};
use crate::base::planted::{Bug, planted};
use crate::write::ops::Op;

/// Whether a tombstone may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tombstones {
    /// Older entries of the key may exist outside the inputs, so it must go on hiding them.
    Keep,
    /// No older entry of the inputs' keys exists outside the inputs: nothing lies below.
    Drop,
}

/// An entry that goes into the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// The first one of its key.
    NewKey,
    /// Another one of the same key is in the output already.
    SameKey,
}

/// Decides entry by entry, in the order of a merge.
#[derive(Debug)]
pub(crate) struct Retain {
    /// Ascending.
    snapshots: Vec<Seq>,
    tombstones: Tombstones,
    key: Vec<u8>,
    /// The `Seq` of the entry before, which has this key. `None` before the first entry.
    newer: Option<Seq>,
    /// An entry of this key is in the output.
    has_kept: bool,
    /// See [`Retain::judged_bytes`].
    judged_bytes: u64,
}

impl Retain {
    /// `snapshots` must have been read (see [`crate::tree::pins::Pins::retained`]) after the inputs were
    /// chosen: any snapshot pinned later sees all of the inputs.
    pub(crate) fn new(mut snapshots: Vec<Seq>, tombstones: Tombstones) -> Retain {
        snapshots.sort_unstable();
        Retain { snapshots, tombstones, key: Vec::new(), newer: None, has_kept: false, judged_bytes: 0 }
    }

    /// Bytes of all entries so far, as operations in records of the log: the unit in which writers are charged.
    pub(crate) fn judged_bytes(&self) -> u64 {
        self.judged_bytes
    }

    /// Whether `entry` goes into the output; `None`: no. Entries must come in internal order, all versions of a key.
    ///
    /// Besides the merge of the inputs, a job compares keys here only, once for each entry.
    ///
    /// # Panics
    /// If the order is broken: the output would be a segment in which searches fail.
    #[inline]
    pub(crate) fn judge(&mut self, entry: &Entry<'_>) -> Option<Kept> {
        let newer = match self.newer.map(|newer| (newer, entry.key.cmp(&self.key))) {
            None | Some((_, Ordering::Greater)) => None,
            Some((newer, Ordering::Equal)) => Some(newer),
            Some((_, Ordering::Less)) => panic!("keys fall"),
        };
        // Two equal entries come only from a bug that the torture plants.
        assert!(newer.is_none_or(|newer| entry.seq <= newer), "entries of one key come newest first");
        if newer.is_none() {
            self.key.clear();
            self.key.extend_from_slice(entry.key);
            self.has_kept = false;
        }
        self.newer = Some(entry.seq);
        self.judged_bytes += Op::bytes_of(entry) as u64;
        let seen = newer.is_none_or(|newer| self.snapshot_in(entry.seq, newer));
        let seen = if planted(Bug::NewestVersionDropped) {
            newer.is_some() || !entry.seq.get().is_multiple_of(96)
        } else {
            seen
        };
        if !seen || self.is_needless_tombstone(entry) {
            return None;
        }
        let has_kept = std::mem::replace(&mut self.has_kept, true);
        Some(if has_kept { Kept::SameKey } else { Kept::NewKey })
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
        inputs.iter().filter(|entry| retain.judge(&entry.as_entry()).is_some()).cloned().collect()
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
    fn the_first_kept_entry_of_a_key_is_told() {
        let mut retain = Retain::new(vec![Seq::new(3)], Tombstones::Drop);
        let mut judge = |key: &'static [u8], seq, kind| {
            retain.judge(&Entry { key, seq: Seq::new(seq), kind, value: b"" })
        };
        assert_eq!(judge(b"a", 9, Kind::Delete), Some(Kept::NewKey));
        assert_eq!(judge(b"a", 2, Kind::Put), Some(Kept::SameKey));
        assert_eq!(judge(b"b", 9, Kind::Put), Some(Kept::NewKey));
        assert_eq!(judge(b"b", 5, Kind::Put), None);
        assert_eq!(judge(b"b", 2, Kind::Put), Some(Kept::SameKey));
        assert_eq!(judge(b"c", 2, Kind::Delete), None);
        assert_eq!(judge(b"c", 1, Kind::Put), None);
        assert_eq!(judge(b"d", 1, Kind::Put), Some(Kept::NewKey));
    }

    fn judge_all(entries: &[(&[u8], u64)]) {
        let mut retain = Retain::new(Vec::new(), Tombstones::Keep);
        for &(key, seq) in entries {
            retain.judge(&Entry { key, seq: Seq::new(seq), kind: Kind::Put, value: b"" });
        }
    }

    #[test]
    #[should_panic(expected = "newest first")]
    fn versions_that_rise_are_refused() {
        judge_all(&[(b"key", 7), (b"key", 8)]);
    }

    #[test]
    #[should_panic(expected = "keys fall")]
    fn keys_that_fall_are_refused() {
        judge_all(&[(b"b", 7), (b"a", 9)]);
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
