//! Chooses the runs to merge: a pure function over their sizes.
//!
//! Lazy leveling over whole runs: young runs of similar size collect above one bottom run. Six young runs are merged into
//! one. When the young runs together reach a *part* of the bottom run, they are merged into it. So a read visits at most
//! [`MAX_YOUNG_RUNS`] runs and the bottom run where merges keep up, and an entry is rewritten a few times.
//!
//! Merging into the bottom run is for the space of dead entries. So the part follows the share of entries that such merges
//! have dropped: a third of the bottom run where young entries replace old ones, the whole where all keys are new.
//!
//! Filters follow the same shape. A filter bit costs memory for each key of its run, and saves reads for every lookup in the
//! run. So runs with few keys get more bits per key and the bottom run gets fewer. All filters together take no more memory
//! than 14 bits for every key would ([`filter_bits`]). Source: Dayan and others, "Monkey: optimal navigable key-value store", SIGMOD 2017.

use std::ops::Range;

/// The number of young runs at which a merge is due.
/// More runs would cost reads and few merges less: at 4 entries are merged 2.9 times in a random load, at 6 twice.
pub(crate) const MAX_YOUNG_RUNS: usize = 6;

/// The part of the bottom run, in percent, at which young runs are merged into it, before such a merge has been counted.
pub(crate) const FIRST_PART_PERCENT: u64 = 50;

/// The sizes of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunShape {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) tombstones: u64,
}

/// The part of the bottom run, in percent, for a keyspace whose last merge into it dropped `dropped` entries for `young`
/// young ones.
pub(crate) fn part_percent(dropped: u64, young: u64) -> u64 {
    (100 * young / (young + 2 * dropped).max(1)).clamp(33, 100)
}

/// The neighbouring runs to merge, as indexes into `runs` (newest first); `None` if no merge is due. Young runs
/// are merged into the bottom run at `part_percent` of it.
pub(crate) fn pick(runs: &[RunShape], part_percent: u64) -> Option<Range<usize>> {
    let (bottom, young) = runs.split_last()?;
    let young_bytes: u64 = young.iter().map(|run| run.bytes).sum();
    // A bottom run may consist of tombstones only: deletes of keys that had no older entry.
    let mostly_dead = |run: &RunShape| run.tombstones * 2 > run.entries;
    if young.len() < MAX_YOUNG_RUNS {
        return mostly_dead(bottom).then_some(0..runs.len());
    }
    if young_bytes >= bottom.bytes / 100 * part_percent {
        return Some(0..runs.len());
    }
    Some(similar(young))
}

/// The longest prefix of the young runs in which no run is larger than all newer ones together, but at least two runs.
/// This merge costs little for each run that it removes.
fn similar(young: &[RunShape]) -> Range<usize> {
    let mut total = 0;
    let mut len = 0;
    for run in young {
        if len >= 2 && run.bytes > total {
            break;
        }
        total += run.bytes;
        len += 1;
    }
    0..len
}

/// Filter bits for each key of the bottom run.
const BOTTOM_FILTER_BITS: u32 = 13;
/// Filter bits of a young run, while all young runs have at most a third of the bottom run's entries.
const YOUNG_FILTER_BITS: u32 = 17;
/// Filter bits of a young run that is made when they have more: the mean of the two others.
const MEAN_FILTER_BITS: u32 = 14;

/// The entries of a keyspace after a new run is added.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layers {
    /// Entries of all young runs, the new one included. 0 if the new run is the bottom run.
    pub(crate) young_entries: u64,
    pub(crate) bottom_entries: u64,
}

impl Layers {
    /// Adds a new run in front of runs with these numbers of entries, newest first.
    pub(crate) fn before(new_entries: u64, runs: impl DoubleEndedIterator<Item = u64>) -> Layers {
        let mut oldest_first = runs.rev();
        let Some(bottom_entries) = oldest_first.next() else { return Layers::default() };
        Layers { young_entries: new_entries + oldest_first.sum::<u64>(), bottom_entries }
    }
}

/// Filter bits for each key of a new run.
pub(crate) fn filter_bits(layers: Layers) -> u32 {
    let Layers { young_entries, bottom_entries } = layers;
    if young_entries == 0 {
        BOTTOM_FILTER_BITS
    } else if young_entries.saturating_mul(3) <= bottom_entries {
        YOUNG_FILTER_BITS
    } else {
        MEAN_FILTER_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For young runs of any size and in any order.
    #[test]
    fn filters_never_take_more_than_the_mean_for_each_key() {
        let bottom_entries = 3000;
        for first in [1, 10, 300, 1000, 1001, 5000] {
            for second in [1, 500, 700, 1000, 9000] {
                let (mut keys, mut bits) = (bottom_entries, 0);
                bits += bottom_entries * u64::from(filter_bits(Layers { young_entries: 0, bottom_entries }));
                let mut young_entries = 0;
                for run in [first, second, first, second] {
                    young_entries += run;
                    bits += run * u64::from(filter_bits(Layers { young_entries, bottom_entries }));
                    keys += run;
                }
                assert!(bits <= keys * u64::from(MEAN_FILTER_BITS), "{bits} bits for {keys} keys");
            }
        }
        let tiny = Layers { young_entries: 10, bottom_entries: 1000 };
        assert_eq!(filter_bits(tiny), YOUNG_FILTER_BITS);
    }

    fn check(sizes: &[u64], expected: impl Into<Option<Range<usize>>>) {
        let runs: Vec<RunShape> =
            sizes.iter().map(|&bytes| RunShape { bytes, entries: bytes, tombstones: 0 }).collect();
        assert_eq!(pick(&runs, 33), expected.into(), "{sizes:?}");
    }

    #[test]
    fn few_runs_are_left_alone() {
        check(&[], None);
        check(&[10], None);
        check(&[1, 1, 1, 1, 1, 100], None);
    }

    #[test]
    fn young_runs_merge_into_the_bottom_when_they_are_a_third_of_it() {
        check(&[10, 10, 10, 10, 10, 10, 180], 0..7);
        check(&[10, 10, 10, 10, 10, 10, 10], 0..7);
    }

    #[test]
    fn small_young_runs_merge_among_themselves() {
        check(&[10, 10, 10, 10, 10, 10, 1000], 0..6);
        check(&[10, 10, 10, 10, 10, 200, 1000], 0..5);
        check(&[1, 50, 60, 70, 80, 90, 9000], 0..2);
    }

    #[test]
    fn a_bottom_of_tombstones_is_rewritten() {
        let dead = RunShape { bytes: 10, entries: 10, tombstones: 9 };
        assert_eq!(pick(&[dead], FIRST_PART_PERCENT), Some(0..1));
    }

    #[test]
    fn the_part_follows_the_dead_entries_that_a_merge_finds() {
        for (dropped, young, percent) in [(0, 100, 100), (50, 100, 50), (100, 100, 33), (500, 100, 33)] {
            assert_eq!(part_percent(dropped, young), percent, "{dropped} of {young}");
        }
    }

    #[test]
    fn merging_until_nothing_is_due_bounds_the_runs() {
        let mut runs: Vec<RunShape> = Vec::new();
        let mut written = 0;
        for _ in 0..500 {
            runs.insert(0, RunShape { bytes: 100, entries: 100, tombstones: 0 });
            while let Some(range) = pick(&runs, 33) {
                let bytes = runs.drain(range.clone()).map(|run| run.bytes).sum();
                written += bytes;
                runs.insert(range.start, RunShape { bytes, entries: bytes, tombstones: 0 });
            }
            assert!(runs.len() <= MAX_YOUNG_RUNS + 1);
        }
        assert!(written < 500 * 100 * 12, "write amplification {}", written / 50_000);
    }
}
