//! The pace of the writes to one keyspace, and the speeds of jobs that it follows from.
//!
//! Writers read two atomics. Everything else is behind locks that only jobs take, when they begin and end.
//!
//! A [`Pace`] has a virtual clock. A writer that finds it ahead of the time sleeps.

use std::time::Duration;

use crate::base::clock::Clock;
use crate::base::events::Pressure;
use crate::base::key::Seq;
use crate::base::sync::Ordering;
use crate::base::sync::shared::{AtomicU64, Mutex};
use crate::compaction::pacing::{ANY_RATE, LONGEST_SLEEP, MOST_PRESSURE, Runs, pressure, rate_by_pressure};
use crate::compaction::picker::{FIRST_PART_PERCENT, part_percent};

/// Bytes that merges write for one byte of a user, before they have been measured.
const FIRST_AMPLIFICATION: u64 = 5;

/// Flushes, and merges into the bottom run, over which a ratio is measured.
const MEMORY: u64 = 8;

/// The pace of one keyspace.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes per second, or [`ANY_RATE`].
    rate: AtomicU64,
    clock: Clock,
    state: Mutex<PaceState>,
}

#[derive(Debug)]
struct PaceState {
    /// The newest and the oldest stamp of the merge that is under way.
    merging: Option<(Seq, Seq)>,
    /// See [`Pace::part_percent`].
    part_percent: u64,
    /// Bytes of memtables that were flushed, the newest [`MEMORY`] flushes counting most.
    flushed_bytes: u64,
    /// Bytes that merges wrote in that time.
    merged_bytes: u64,
    pressure: u64,
}

impl Pace {
    pub(crate) fn new() -> Pace {
        let state = PaceState {
            merging: None,
            part_percent: FIRST_PART_PERCENT,
            flushed_bytes: 0,
            merged_bytes: 0,
            pressure: 0,
        };
        Pace { rate: AtomicU64::new(ANY_RATE), clock: Clock::new(), state: Mutex::new(state) }
    }

    /// The rate of writes in bytes per second, or [`ANY_RATE`].
    #[inline]
    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Counts a write of `len_bytes` at `rate`, and returns how far the writers are ahead of `now`.
    pub(crate) fn charge(&self, now: Duration, len_bytes: u64, rate: u64) -> Duration {
        self.clock.charge(now, len_bytes, rate, LONGEST_SLEEP)
    }

    /// A merge of the runs from stamp `newest` to stamp `oldest` begins, or (`None`) the one under way has ended.
    pub(crate) fn merging(&self, stamps: Option<(Seq, Seq)>) {
        self.state.lock().merging = stamps;
    }

    /// Memtables of this many bytes are in segments now.
    pub(crate) fn flushed(&self, table_bytes: u64) {
        let mut state = self.state.lock();
        if state.flushed_bytes == 0 {
            state.flushed_bytes = MEMORY * table_bytes;
            state.merged_bytes = MEMORY * table_bytes * FIRST_AMPLIFICATION;
        }
        state.flushed_bytes = state.flushed_bytes / MEMORY * (MEMORY - 1) + table_bytes;
        state.merged_bytes = state.merged_bytes / MEMORY * (MEMORY - 1);
    }

    /// A merge has written this many bytes.
    pub(crate) fn merged(&self, bytes_out: u64) {
        self.state.lock().merged_bytes += bytes_out;
    }

    /// A merge into the bottom run dropped `dropped` entries while it took in `young` young ones.
    pub(crate) fn dropped(&self, dropped: u64, young: u64) {
        let mut state = self.state.lock();
        state.part_percent = (state.part_percent * (MEMORY - 1) + part_percent(dropped, young)) / MEMORY;
    }

    /// The part of the bottom run at which young runs are merged into it.
    pub(crate) fn part_percent(&self) -> u64 {
        self.state.lock().part_percent
    }

    /// The pressure on this keyspace.
    pub(crate) fn pressure_percent(&self) -> u64 {
        self.state.lock().pressure
    }

    /// Computes pressure and rate anew. `young` are the stamps and bytes of the young runs. Returns the pressure for the
    /// listener, if it has changed.
    pub(crate) fn adjust(
        &self,
        young: impl Iterator<Item = (Seq, u64)>,
        bottom_bytes: u64,
        flush_bytes: u64,
        merge_rate: u64,
    ) -> Option<Pressure> {
        let mut state = self.state.lock();
        let mut runs =
            Runs { waiting: 0, young_bytes: 0, bottom_bytes, part_percent: state.part_percent, flush_bytes };
        for (stamp, bytes) in young {
            let is_input = state.merging.is_some_and(|(newest, oldest)| (oldest..=newest).contains(&stamp));
            runs.waiting += usize::from(!is_input);
            runs.young_bytes += bytes;
        }
        let pressure = pressure(runs);
        let sustained = if state.flushed_bytes > 0 {
            let merged_kib = (state.merged_bytes >> 10).max(state.flushed_bytes >> 10).max(1);
            merge_rate / 1000 * (state.flushed_bytes >> 10).saturating_mul(1000) / merged_kib
        } else {
            merge_rate / FIRST_AMPLIFICATION
        };
        self.rate.store(rate_by_pressure(pressure, sustained), Ordering::Relaxed);
        let (before, now) = (level(state.pressure), level(pressure));
        state.pressure = pressure;
        (before != now).then_some(now)
    }
}

/// The pressure as a listener is told of it.
fn level(pressure: u64) -> Pressure {
    if pressure >= MOST_PRESSURE {
        Pressure::Most
    } else if pressure > 0 {
        Pressure::Slowed
    } else {
        Pressure::None
    }
}

/// The speeds of the jobs of a store, as sums over the last seconds that they were busy.
#[derive(Debug)]
pub(crate) struct Speeds {
    flush: Mutex<Speed>,
    merge: Mutex<Speed>,
    /// That of `flush`, for writers.
    flush_rate: AtomicU64,
}

/// Bytes, and the time that they took.
#[derive(Clone, Copy, Debug)]
struct Speed {
    bytes: u64,
    busy_us: u64,
}

/// Jobs count as long as they lie within this much time of work.
const WINDOW_US: u64 = 4_000_000;

impl Speed {
    /// Counts as a quarter of a second, so that the first job corrects it.
    fn guessed(bytes_per_second: u64) -> Speed {
        Speed { bytes: bytes_per_second / 4, busy_us: 250_000 }
    }

    fn add(&mut self, bytes: u64, took: Duration) {
        self.bytes += bytes;
        self.busy_us += u64::try_from(took.as_micros()).unwrap_or(WINDOW_US);
        if self.busy_us > WINDOW_US {
            self.bytes = self.rate() / 1_000_000 * WINDOW_US;
            self.busy_us = WINDOW_US;
        }
    }

    /// Bytes per second: at least a million, since work that took no time or brought nothing says little.
    fn rate(self) -> u64 {
        let rate = u128::from(self.bytes) * 1_000_000 / u128::from(self.busy_us.max(1));
        u64::try_from(rate).unwrap_or(u64::MAX).clamp(1_000_000, 100_000_000_000)
    }
}

impl Speeds {
    pub(crate) fn new() -> Speeds {
        // Guesses, until jobs have been timed.
        let (flush, merge) = (Speed::guessed(100_000_000), Speed::guessed(200_000_000));
        let flush_rate = AtomicU64::new(flush.rate());
        Speeds { flush: Mutex::new(flush), merge: Mutex::new(merge), flush_rate }
    }

    /// A flush took in `table_bytes` of memtables.
    pub(crate) fn flushed(&self, table_bytes: u64, took: Duration) {
        let mut flush = self.flush.lock();
        flush.add(table_bytes, took);
        self.flush_rate.store(flush.rate(), Ordering::Relaxed);
    }

    /// A merge has written `bytes_out`.
    pub(crate) fn merged(&self, bytes_out: u64, took: Duration) {
        self.merge.lock().add(bytes_out, took);
    }

    /// Bytes of memtables that a flush takes in, per second.
    #[inline]
    pub(crate) fn flush_rate(&self) -> u64 {
        self.flush_rate.load(Ordering::Relaxed)
    }

    /// Bytes that a merge writes, per second.
    pub(crate) fn merge_rate(&self) -> u64 {
        self.merge.lock().rate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjust(pace: &Pace, runs: u64) -> Option<Pressure> {
        let young = (0..runs).rev().map(|nth| (Seq::new(100 + nth), 8));
        pace.adjust(young, 1000, 8, 50_000_000)
    }

    #[test]
    fn the_listener_hears_of_the_edges_only() {
        let pace = Pace::new();
        assert_eq!((adjust(&pace, 6), pace.rate()), (None, ANY_RATE));
        assert_eq!((adjust(&pace, 10), pace.rate()), (Some(Pressure::Slowed), 10_100_000));
        assert_eq!(adjust(&pace, 11), None);
        assert_eq!(adjust(&pace, 20), Some(Pressure::Most));
        assert_eq!(adjust(&pace, 3), Some(Pressure::None));
    }

    #[test]
    fn runs_that_a_merge_takes_in_do_not_press() {
        let pace = Pace::new();
        pace.merging(Some((Seq::new(110), Seq::ZERO)));
        assert_eq!((adjust(&pace, 17), pace.rate()), (None, ANY_RATE));
        pace.merging(None);
        assert_eq!(adjust(&pace, 17), Some(Pressure::Most));
    }

    #[test]
    fn the_rate_follows_the_bytes_that_merges_write_for_a_byte() {
        let rate_at = |merged_bytes: u64| {
            let pace = Pace::new();
            for _ in 0..100 {
                pace.flushed(1 << 20);
                pace.merged(merged_bytes);
            }
            adjust(&pace, 10);
            pace.rate()
        };
        let (twice, eightfold) = (rate_at(2 << 20), rate_at(8 << 20));
        assert!((390..410).contains(&(100 * twice / eightfold)), "{twice} {eightfold}");
        assert_eq!(rate_at(0), 50_500_000, "at least one byte for one");
    }

    #[test]
    fn speeds_follow_the_jobs_of_the_last_seconds() {
        let speeds = Speeds::new();
        speeds.merged(50_000_000, Duration::from_secs(1));
        assert!((60_000_000..100_000_000).contains(&speeds.merge_rate()), "{}", speeds.merge_rate());
        for _ in 0..10 {
            speeds.merged(50_000_000, Duration::from_secs(1));
            speeds.flushed(30_000_000, Duration::from_secs(1));
        }
        assert!((49_000_000..51_000_000).contains(&speeds.merge_rate()));
        assert!((29_000_000..31_000_000).contains(&speeds.flush_rate()));
        speeds.merged(1, Duration::ZERO);
        assert!(speeds.merge_rate() < 51_000_000);
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
#[expect(clippy::cast_precision_loss, reason = "a model of a machine, with a logarithm in it")]
mod simulated;
