//! Decides when a write may proceed, and how fast writes may go: pure functions over a few numbers.
//!
//! ```text
//!   bytes per second
//!   any |------+
//!       |      | 2 R/W                         R: bytes per second that merges write
//!       |      .  `-.                          W: bytes that merges write for one byte of a user
//!   R/W |      .     `-.                       so R/W is the rate that merges sustain
//!       |      .        `-.__________ R/W / 5
//!       +------+---------+-----+-------> pressure
//!              0 %      67 %  120 %
//! ```
//!
//! The *pressure* says how far the runs of a keyspace stand above the shape that the picker aims at. It is zero while the
//! picker has nothing to do, so a burst is free. A write pays for the keyspace that it writes to, and for no other. Besides,
//! writes slow down while the last quarter of the memtables' memory fills, so that they wait as a last resort only.
//!
//! Rejected: a rate by *debt*, the bytes that all due merges would write. It jumps with each flush, the pressure does not.

use std::time::Duration;

use crate::compaction::picker::MAX_YOUNG_RUNS;

/// No limit on the rate of writes, in bytes per second.
pub(crate) const ANY_RATE: u64 = u64::MAX;

/// The highest pressure, in percent: from here on writes have a fifth of the rate that merges sustain.
pub(crate) const MOST_PRESSURE: u64 = 120;

/// A writer sleeps only if it is at least this far ahead: so one write of 100 bytes in a hundred sleeps, and not each.
const PATIENCE: Duration = Duration::from_micros(500);

/// The longest sleep of a write whose bytes take little time. The rest is paid by later ones.
const SHORT_SLEEP: Duration = Duration::from_millis(4);

/// Large writes of so many threads side by side keep to the rate.
const LARGE_WRITES: u32 = 16;

/// The longest sleep of any write, and the most that the clock of writers may be ahead.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// The time for which the clock of writers may be behind: a pause earns no burst beyond it.
pub(crate) const MOST_CREDIT: Duration = Duration::from_millis(1);

/// The sleep of a write that has moved the clock of writers by `own`, so that it is `ahead` of the time.
pub(crate) fn sleep_time(ahead: Duration, own: Duration) -> Duration {
    let most = SHORT_SLEEP.max(LARGE_WRITES * own).min(LONGEST_SLEEP);
    if ahead < PATIENCE { Duration::ZERO } else { ahead.min(most) }
}

/// The action that a writer must take before it may reserve space in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Proceed.
    Go,
    /// Freeze the largest active memtable, then proceed.
    Freeze,
    /// Wait until a flush has freed memory.
    Wait,
}

/// The current memory of the memtables and its limits, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemtableUsage {
    pub(crate) active: u64,
    pub(crate) frozen: u64,
    /// The limit for active tables. Above it the largest one is frozen.
    pub(crate) freeze_at: u64,
    /// The limit for all tables.
    pub(crate) limit: u64,
}

/// Decides by memory. All tables stay within `limit`, plus one record for each writer.
pub(crate) fn admit(memory: MemtableUsage) -> Admission {
    let MemtableUsage { active, frozen, freeze_at, limit } = memory;
    if frozen > 0 && active + frozen >= limit {
        Admission::Wait
    } else if active >= freeze_at {
        Admission::Freeze
    } else {
        Admission::Go
    }
}

/// The rate that the memory of the memtables allows, in bytes per second: falling from twice the rate of flushes at three
/// quarters to a fiftieth of it, so that the waiting for a flush is spread over many writes.
pub(crate) fn rate_by_memory(memory: MemtableUsage, flush_rate: u64) -> u64 {
    let used = memory.active + memory.frozen;
    let begin = memory.limit - memory.limit / 4;
    if used <= begin {
        return ANY_RATE;
    }
    let free_percent = 100 * memory.limit.saturating_sub(used) / (memory.limit - begin).max(1);
    (flush_rate / 100 * (2 * free_percent).max(2)).max(1)
}

/// The runs of a keyspace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    /// Young runs.
    pub(crate) young: usize,
    /// Those that no merge takes in now.
    pub(crate) waiting: usize,
    /// Whether a merge is under way.
    pub(crate) is_merging: bool,
    /// Bytes of all young runs: those that a merge takes in keep their space until it ends.
    pub(crate) young_bytes: u64,
    pub(crate) bottom_bytes: u64,
    /// The part of the bottom run at which a merge into it is due.
    pub(crate) part_percent: u64,
    /// The size of a memtable.
    pub(crate) flush_bytes: u64,
}

/// The pressure on a keyspace, in percent.
pub(crate) fn pressure(runs: Runs) -> u64 {
    if runs.young < MAX_YOUNG_RUNS && !runs.is_merging {
        // No merge is due, so to wait would bring nothing.
        return 0;
    }
    let most_runs = MAX_YOUNG_RUNS as u64;
    let by_runs = 100 * (runs.waiting as u64).saturating_sub(most_runs) / most_runs;
    // No merge is due for fewer than these runs.
    let aim = (runs.bottom_bytes / 100 * runs.part_percent).max(most_runs * runs.flush_bytes).max(1);
    // Four times as steep as by runs: space is the promise that breaks first. At twice as steep the rate is a tenth
    // higher, and a store takes a tenth more.
    let by_space = runs.young_bytes.saturating_sub(aim).saturating_mul(400) / aim;
    by_runs.max(by_space).min(MOST_PRESSURE)
}

/// The rate of writes at a pressure, in bytes per second. `sustained` is the rate at which merges keep up.
pub(crate) fn rate_by_pressure(pressure: u64, sustained: u64) -> u64 {
    if pressure == 0 {
        return ANY_RATE;
    }
    let percent = 200_u64.saturating_sub(pressure * 3 / 2).max(20);
    (sustained / 100 * percent).max(1)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::compaction::picker::{RunShape, pick};
    use crate::read::cursor_contract::runner;

    fn memory(active: u64, frozen: u64) -> MemtableUsage {
        MemtableUsage { active, frozen, freeze_at: 60, limit: 100 }
    }

    #[test]
    fn writers_freeze_while_there_is_room_and_wait_when_there_is_none() {
        for (active, frozen, expected) in [
            (59, 0, Admission::Go),
            (59, 40, Admission::Go),
            (60, 0, Admission::Freeze),
            (120, 0, Admission::Freeze),
            (60, 39, Admission::Freeze),
            (40, 60, Admission::Wait),
            (0, 100, Admission::Wait),
        ] {
            assert_eq!(admit(memory(active, frozen)), expected, "{active} active, {frozen} frozen");
        }
    }

    #[test]
    fn a_small_write_sleeps_shortly_and_a_large_one_for_its_own_bytes() {
        const US: Duration = Duration::from_micros(1);
        for (ahead, own, expected) in [
            (499, 14, 0),
            (500, 14, 500),
            (3_000, 14, 3_000),
            (90_000, 14, 4_000),
            (8_000, 8_000, 8_000),
            (90_000, 8_000, 90_000),
            (90_000, 1_000, 16_000),
            (300_000, 200_000, 100_000),
            (60_000_000, 60_000_000, 100_000),
        ] {
            assert_eq!(sleep_time(ahead * US, own * US), expected * US, "{ahead} ahead, {own} by itself");
        }
    }

    #[test]
    fn the_last_quarter_of_the_memory_bends_the_rate() {
        for (used, expected) in
            [(0, ANY_RATE), (75, ANY_RATE), (76, 1920), (90, 800), (99, 80), (100, 20), (200, 20)]
        {
            assert_eq!(rate_by_memory(memory(used, 0), 1000), expected, "{used} used");
            assert_eq!(rate_by_memory(memory(0, used), 1000), expected, "{used} used");
        }
    }

    /// A merge into the bottom run is due at a third of it; a memtable has 8 bytes.
    fn runs(young: usize, young_bytes: u64, bottom_bytes: u64) -> Runs {
        Runs {
            young,
            waiting: young,
            is_merging: false,
            young_bytes,
            bottom_bytes,
            part_percent: 33,
            flush_bytes: 8,
        }
    }

    #[test]
    fn the_pressure_grows_with_runs_and_bytes() {
        for (runs, expected) in [
            (runs(6, 48, 1000), 0),
            (runs(6, 48, 8), 0),
            (runs(9, 72, 1000), 50),
            (runs(10, 80, 1000), 66),
            (runs(60, 80, 1000), 120),
            (runs(6, 330, 1000), 0),
            (runs(6, 363, 1000), 40),
            (runs(10, 363, 1000), 66),
            (runs(6, 500, 1000), 120),
            (runs(6, 54, 8), 50),
            (Runs { waiting: 0, is_merging: true, ..runs(5, 363, 1000) }, 40),
            (Runs { waiting: 0, is_merging: true, ..runs(20, 160, 1000) }, 0),
        ] {
            assert_eq!(pressure(runs), expected, "{runs:?}");
        }
    }

    /// For runs of all sizes, as merges, bursts and dropped entries leave them.
    #[test]
    fn the_pressure_is_zero_where_no_merge_is_due_and_none_is_under_way() {
        let size = prop_oneof![1..20_u64, 1..2000_u64, 1..2_000_000_u64];
        let cases = (vec(size, 0..16), 33..=100_u64, 1..1000_u64);
        let idle = Cell::new(0);
        runner(4000)
            .run(&cases, |(sizes, part_percent, flush_bytes)| {
                let shape = |&bytes: &u64| RunShape { bytes, entries: bytes, tombstones: 0 };
                let shapes: Vec<RunShape> = sizes.iter().map(shape).collect();
                let (&bottom_bytes, young) = sizes.split_last().unwrap_or((&0, &[]));
                let runs =
                    Runs { part_percent, flush_bytes, ..runs(young.len(), young.iter().sum(), bottom_bytes) };
                if pick(&shapes, part_percent).is_none() {
                    idle.set(idle.get() + 1);
                    assert_eq!(pressure(runs), 0, "{runs:?}");
                }
                Ok(())
            })
            .unwrap();
        assert!(idle.get() > 100);
    }

    #[test]
    fn the_rate_is_free_without_pressure_and_sustained_at_two_thirds() {
        assert_eq!(rate_by_pressure(0, 1_000_000), ANY_RATE);
        assert_eq!(rate_by_pressure(67, 1_000_000), 1_000_000);
        assert_eq!(rate_by_pressure(MOST_PRESSURE, 1_000_000), 200_000);
        assert_eq!(rate_by_pressure(MOST_PRESSURE, 0), 1);
        let rates: Vec<u64> = (0..=12).map(|tenth| rate_by_pressure(tenth * 10, 1_000_000)).collect();
        assert!(rates.is_sorted_by(|a, b| a > b), "{rates:?}");
    }
}
