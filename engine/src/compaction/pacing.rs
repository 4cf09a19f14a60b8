//! Decides when a write may proceed, must wait, or is delayed: pure functions over a few numbers.
//!
//! A write is delayed briefly by the number of young runs, and waits only when the memtables are full. The compaction debt
//! is not taken into account.

use std::time::Duration;

use crate::compaction::picker::MAX_YOUNG_RUNS;

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
    /// The limit for frozen tables and those that are full, at the moment of a freeze.
    pub(crate) limit: u64,
}

/// Decides by memory. A table is frozen only if `frozen + freeze_at` is within `limit`. So frozen tables stay within `limit`,
/// and all tables within `limit + freeze_at`, each plus one record for each writer.
pub(crate) fn admit(memory: MemtableUsage) -> Admission {
    if memory.active < memory.freeze_at {
        Admission::Go
    } else if memory.frozen + memory.freeze_at <= memory.limit {
        Admission::Freeze
    } else {
        Admission::Wait
    }
}

/// The delay of a write, so that compaction keeps up. It is zero up to `2 * MAX_YOUNG_RUNS` runs, and then grows with every
/// run to at most one millisecond.
pub(crate) fn delay(most_runs: usize) -> Duration {
    const STEP: Duration = Duration::from_micros(50);
    const MOST: Duration = Duration::from_millis(1);
    let excess = most_runs.saturating_sub(2 * MAX_YOUNG_RUNS);
    MOST.min(STEP * u32::try_from(excess).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_freeze_while_there_is_room_and_wait_when_there_is_none() {
        let memory = |active, frozen| MemtableUsage { active, frozen, freeze_at: 50, limit: 100 };
        assert_eq!(admit(memory(49, 100)), Admission::Go);
        assert_eq!(admit(memory(50, 0)), Admission::Freeze);
        assert_eq!(admit(memory(50, 50)), Admission::Freeze);
        assert_eq!(admit(memory(50, 51)), Admission::Wait);
    }

    #[test]
    fn the_delay_grows_smoothly_and_is_bounded() {
        assert_eq!(delay(8), Duration::ZERO);
        assert_eq!(delay(9), Duration::from_micros(50));
        assert_eq!(delay(10), Duration::from_micros(100));
        assert_eq!(delay(usize::MAX), Duration::from_millis(1));
    }
}
