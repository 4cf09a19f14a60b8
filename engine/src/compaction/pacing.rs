//! When a write goes on, waits or pays a delay: pure functions over a few numbers.
//!
//! Simple for now: a short delay that grows with the number of young runs, and a wait only when the memtables are
//! full. Pacing by debt comes with its own issue.

use std::time::Duration;

use crate::compaction::picker::MAX_YOUNG_RUNS;

/// What a writer must do before it may reserve a place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Go on.
    Go,
    /// Freeze the largest active memtable, then go on.
    Freeze,
    /// Wait until a flush has freed memory.
    Wait,
}

/// The memtables' memory right now and its limits, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) active: u64,
    pub(crate) frozen: u64,
    /// Active tables are frozen above this.
    pub(crate) freeze_at: u64,
    /// All together.
    pub(crate) limit: u64,
}

/// Decides by memory. One freeze beyond the limit is never made: active and frozen tables stay below `limit` and one
/// record for each writer.
pub(crate) fn admit(memory: Memory) -> Admission {
    if memory.active < memory.freeze_at {
        Admission::Go
    } else if memory.frozen + memory.freeze_at <= memory.limit {
        Admission::Freeze
    } else {
        Admission::Wait
    }
}

/// How long a write waits so that compaction keeps up: nothing up to twice the young runs that the picker wants,
/// then more with every run, at most a millisecond.
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
        let memory = |active, frozen| Memory { active, frozen, freeze_at: 50, limit: 100 };
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
