//! The pace of the writes to one keyspace, and the speeds of jobs that it follows from.
//!
//! Writers read two atomics. Everything else is behind locks that jobs take when they begin and end, and a merge at each step
//! in between: so a long merge counts while it runs.
//!
//! A [`Pace`] has a virtual clock. A writer that finds it ahead of the time sleeps. The clock counts the writes of its keyspace
//! only, even where the memory of all memtables sets the rate: a keyspace with few writes does not sleep for a busy one.

use std::time::Duration;

use crate::base::clock::{Clock, time_of};
use crate::base::events::Pressure;
use crate::base::key::Seq;
use crate::base::sync::Ordering;
use crate::base::sync::shared::{AtomicU64, Mutex};
use crate::compaction::pacing::{
    ANY_RATE, LONGEST_SLEEP, MOST_CREDIT, MOST_PRESSURE, Runs, pressure, rate_by_pressure, sleep_time,
};
use crate::compaction::picker::{FIRST_PART_PERCENT, part_percent};

/// Bytes that merges write for one byte of a user, before they have been measured.
const FIRST_AMPLIFICATION: u64 = 5;

/// Bytes that merges write for one byte of a user, at most: a merge that takes long must not stop writers.
const MOST_AMPLIFICATION: u64 = 40;

/// Full memtables over whose bytes the amplification is measured. A merge into the bottom run takes the time of many flushes:
/// over 8 of them the rate follows that of the flushes themselves, and falls to a fourth of what it does over 32.
const FLUSHES: u64 = 32;

/// Merges into the bottom run over which their yield is measured.
const MERGES: u64 = 8;

/// The bytes that a merge reads and writes between two reports of its progress. Jobs that move less say nothing about speed:
/// most of their time are syncs.
pub(crate) const STEP_BYTES: u64 = 1 << 20;

/// The pace of one keyspace.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes per second, or [`ANY_RATE`].
    rate: AtomicU64,
    clock: Clock,
    state: Mutex<PaceState>,
    /// The pressure as the listener knows it. Held while it is told, so that it hears of the changes in their order. Taken
    /// before `state`, which is free then: metrics do not wait for a listener.
    told: Mutex<Pressure>,
}

#[derive(Debug)]
struct PaceState {
    /// The newest and the oldest stamp of the merge that is under way.
    merging: Option<(Seq, Seq)>,
    /// The part of `merged_bytes` that it has written.
    merging_bytes: u64,
    /// The last merge failed, perhaps since the disk has no room for its output, and no other has made progress since.
    has_failed: bool,
    /// See [`Pace::part_percent`].
    part_percent: u64,
    /// Bytes of entries that were flushed, as operations: of the newest [`FLUSHES`] full memtables, more or less.
    flushed_bytes: u64,
    /// Bytes that merges wrote in that time, or in that part of a longer time.
    merged_bytes: u64,
    pressure: u64,
}

impl Pace {
    pub(crate) fn new() -> Pace {
        let state = PaceState {
            merging: None,
            merging_bytes: 0,
            has_failed: false,
            part_percent: FIRST_PART_PERCENT,
            flushed_bytes: 0,
            merged_bytes: 0,
            pressure: 0,
        };
        let clock = Clock::new(MOST_CREDIT, LONGEST_SLEEP);
        let told = Mutex::new(Pressure::None);
        Pace { rate: AtomicU64::new(ANY_RATE), clock, state: Mutex::new(state), told }
    }

    /// The rate of writes in bytes per second, or [`ANY_RATE`].
    #[inline]
    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Counts a write of `len_bytes` at `rate`, and returns how long the writer is to sleep.
    pub(crate) fn charge(&self, now: Duration, len_bytes: u64, rate: u64) -> Duration {
        sleep_time(self.clock.charge(now, len_bytes, rate), time_of(len_bytes, rate))
    }

    /// A merge of the runs from stamp `newest` to stamp `oldest` begins.
    pub(crate) fn merging(&self, newest: Seq, oldest: Seq) {
        let mut state = self.state.lock();
        state.merging = Some((newest, oldest));
        state.merging_bytes = 0;
    }

    /// The merge under way has ended. What one that failed has written does not count: its work is done again.
    pub(crate) fn ended(&self, has_failed: bool) {
        let mut state = self.state.lock();
        state.merging = None;
        state.has_failed = has_failed;
        if has_failed {
            state.merged_bytes = state.merged_bytes.saturating_sub(state.merging_bytes);
        }
    }

    /// Entries of this many bytes, as operations, are in segments now. A full memtable has `flush_bytes`. Flushes count by
    /// their bytes: hundreds of small ones must not drown a large one.
    pub(crate) fn flushed(&self, entry_bytes: u64, flush_bytes: u64) {
        let mut state = self.state.lock();
        let most = FLUSHES * flush_bytes.max(1);
        if state.flushed_bytes == 0 {
            state.flushed_bytes = most;
            state.merged_bytes += most * FIRST_AMPLIFICATION;
        }
        let sum = state.flushed_bytes + entry_bytes;
        state.flushed_bytes = sum.min(most);
        if sum > most {
            state.merged_bytes = scaled(state.merged_bytes, most, sum);
            state.merging_bytes = scaled(state.merging_bytes, most, sum);
        }
    }

    /// A merge, which may be under way, has written this many bytes more.
    pub(crate) fn merged(&self, bytes_out: u64) {
        let mut state = self.state.lock();
        state.has_failed = false;
        let most = MOST_AMPLIFICATION * state.flushed_bytes;
        let counted = bytes_out.min(most.saturating_sub(state.merged_bytes));
        state.merging_bytes += counted;
        state.merged_bytes += counted;
    }

    /// A merge into the bottom run dropped `dropped` entries while it took in `young` young ones.
    pub(crate) fn dropped(&self, dropped: u64, young: u64) {
        let mut state = self.state.lock();
        state.part_percent = (state.part_percent * (MERGES - 1) + part_percent(dropped, young)) / MERGES;
    }

    /// The part of the bottom run at which young runs are merged into it.
    pub(crate) fn part_percent(&self) -> u64 {
        self.state.lock().part_percent
    }

    /// Bytes that merges write for a byte that was flushed, in percent.
    pub(crate) fn amplification_percent(&self) -> u64 {
        self.state.lock().amplification_percent()
    }

    /// The pressure on this keyspace.
    pub(crate) fn pressure_percent(&self) -> u64 {
        self.state.lock().pressure
    }

    /// Computes pressure and rate anew, and tells the listener of the pressure, if it has changed.
    ///
    /// `standing` is called under the lock of this pace: so of two jobs that end at once the last one computes from what both
    /// have left.
    pub(crate) fn adjust(
        &self,
        standing: impl FnOnce() -> Standing,
        flush_bytes: u64,
        merge_rate: u64,
        tell: impl FnOnce(Pressure),
    ) {
        let mut told = self.told.lock();
        let now = level(self.compute(standing, flush_bytes, merge_rate));
        if *told != now {
            *told = now;
            tell(now);
        }
    }

    /// Returns the pressure.
    fn compute(&self, standing: impl FnOnce() -> Standing, flush_bytes: u64, merge_rate: u64) -> u64 {
        let mut state = self.state.lock();
        let Standing { young, bottom_bytes } = standing();
        let is_input =
            |stamp: Seq| state.merging.is_some_and(|(newest, oldest)| (oldest..=newest).contains(&stamp));
        state.pressure = pressure(Runs {
            young: young.len(),
            waiting: young.iter().filter(|&&(stamp, _)| !is_input(stamp)).count(),
            is_merging: state.merging.is_some(),
            young_bytes: young.iter().map(|&(_, bytes)| bytes).sum(),
            bottom_bytes,
            part_percent: state.part_percent,
            flush_bytes,
        });
        let sustained = merge_rate * 100 / state.amplification_percent();
        // While merges fail, to wait for them would bring nothing.
        let rate = if state.has_failed { ANY_RATE } else { rate_by_pressure(state.pressure, sustained) };
        self.rate.store(rate, Ordering::Relaxed);
        state.pressure
    }
}

/// `bytes` times `part` / `whole`.
fn scaled(bytes: u64, part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(part) / u128::from(whole)).unwrap_or(u64::MAX)
}

/// The runs of a keyspace, as they stand above each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// The stamps and bytes of the young runs.
    pub(crate) young: Vec<(Seq, u64)>,
    pub(crate) bottom_bytes: u64,
}

impl PaceState {
    /// Bytes that merges write for a byte of a user, in percent.
    fn amplification_percent(&self) -> u64 {
        let percent = (100 * self.merged_bytes).checked_div(self.flushed_bytes);
        percent.unwrap_or(100 * FIRST_AMPLIFICATION).clamp(100, 100 * MOST_AMPLIFICATION)
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
    /// The most that merges can write per second.
    most_merged: u64,
    /// That of `flush`, for writers.
    flush_rate: AtomicU64,
}

/// Bytes, and the time that they took.
#[derive(Clone, Copy, Debug)]
struct Speed {
    bytes: u64,
    busy_ns: u64,
}

/// Jobs count as long as they lie within this much time of work.
const WINDOW_NS: u64 = 4_000_000_000;

impl Speed {
    /// Counts as a quarter of a second, so that the first job corrects it.
    fn guessed(bytes_per_second: u64) -> Speed {
        Speed { bytes: bytes_per_second / 4, busy_ns: 250_000_000 }
    }

    fn add(&mut self, bytes: u64, took: Duration) {
        self.bytes += bytes;
        self.busy_ns = self.busy_ns.saturating_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        if self.busy_ns > WINDOW_NS {
            // Exact: a step of a merge is a thousandth of the window, and some steps bring nothing.
            self.bytes = scaled(self.bytes, WINDOW_NS, self.busy_ns);
            self.busy_ns = WINDOW_NS;
        }
    }

    /// Bytes per second: at least a million, since work that took no time or brought nothing says little.
    fn rate(self) -> u64 {
        scaled(self.bytes, 1_000_000_000, self.busy_ns.max(1)).clamp(1_000_000, 100_000_000_000)
    }
}

impl Speeds {
    /// `background_rate`: the limit on the bytes that jobs read and write.
    pub(crate) fn new(background_rate: Option<u64>) -> Speeds {
        // Guesses, until jobs have been timed.
        let (flush, merge) = (Speed::guessed(100_000_000), Speed::guessed(200_000_000));
        let flush_rate = AtomicU64::new(flush.rate());
        // A merge reads at least as much as it writes.
        let most_merged = background_rate.map_or(u64::MAX, |rate| rate / 2);
        Speeds { flush: Mutex::new(flush), merge: Mutex::new(merge), most_merged, flush_rate }
    }

    /// Flushes took in entries of so many bytes, as operations.
    pub(crate) fn flushed(&self, entry_bytes: u64, took: Duration) {
        if entry_bytes < STEP_BYTES {
            return;
        }
        let mut flush = self.flush.lock();
        flush.add(entry_bytes, took);
        self.flush_rate.store(flush.rate(), Ordering::Relaxed);
    }

    /// A merge, which may be under way, has written `bytes_out` in this time.
    pub(crate) fn merged(&self, bytes_out: u64, took: Duration) {
        self.merge.lock().add(bytes_out, took);
    }

    /// Bytes of entries, as operations, that flushes take in per second.
    #[inline]
    pub(crate) fn flush_rate(&self) -> u64 {
        self.flush_rate.load(Ordering::Relaxed)
    }

    /// Bytes that a merge writes, per second.
    pub(crate) fn merge_rate(&self) -> u64 {
        self.merge.lock().rate().min(self.most_merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjust(pace: &Pace, runs: u64) -> Option<Pressure> {
        let young = (0..runs).rev().map(|nth| (Seq::new(100 + nth), 8)).collect();
        let mut told = None;
        let standing = || Standing { young, bottom_bytes: 1000 };
        pace.adjust(standing, 8, 50_000_000, |pressure| told = Some(pressure));
        told
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
        pace.merging(Seq::new(110), Seq::ZERO);
        assert_eq!((adjust(&pace, 17), pace.rate()), (None, ANY_RATE));
        pace.ended(false);
        assert_eq!(adjust(&pace, 17), Some(Pressure::Most));
    }

    #[test]
    fn a_merge_that_fails_slows_no_write_and_leaves_no_bytes() {
        let pace = Pace::new();
        (0..1000).for_each(|_| {
            pace.flushed(1 << 20, 1 << 20);
            pace.merged(5 << 20);
        });
        let ends = [false, true, false].map(|has_failed| {
            pace.merging(Seq::new(110), Seq::ZERO);
            pace.merged(if has_failed { 1 << 26 } else { 0 });
            // Bytes of the merge under way count less by and by, as all others do.
            (0..FLUSHES).filter(|_| has_failed).for_each(|_| pace.flushed(1 << 20, 1 << 20));
            pace.ended(has_failed);
            adjust(&pace, 10);
            (pace.rate() == ANY_RATE, pace.amplification_percent())
        });
        assert_eq!(ends, [(false, 515), (true, 192), (false, 192)]);
    }

    #[test]
    fn a_merge_after_one_that_failed_slows_writes_as_soon_as_it_makes_progress() {
        let pace = Pace::new();
        pace.ended(true);
        adjust(&pace, 10);
        assert_eq!(pace.rate(), ANY_RATE);
        pace.merging(Seq::new(90), Seq::ZERO);
        adjust(&pace, 10);
        assert_eq!(pace.rate(), ANY_RATE);
        pace.merged(STEP_BYTES);
        adjust(&pace, 10);
        assert_ne!(pace.rate(), ANY_RATE);
    }

    #[test]
    fn small_flushes_weigh_little() {
        let pace = Pace::new();
        let amplification = |flushes: u32, len_bytes: u64, merged_bytes: u64| {
            (0..flushes).for_each(|_| {
                pace.flushed(len_bytes, 100 << 20);
                pace.merged(merged_bytes);
            });
            pace.amplification_percent()
        };
        assert!((290..=310).contains(&amplification(1000, 100 << 20, 300 << 20)));
        assert!((290..=310).contains(&amplification(200, 10 << 10, 0)));
        assert!((250..=310).contains(&amplification(1, 100 << 20, 0)));
    }

    #[test]
    fn the_rate_follows_the_bytes_that_merges_write_for_a_byte() {
        let rate_at = |merged_bytes: u64| {
            let pace = Pace::new();
            for _ in 0..1000 {
                pace.flushed(1 << 20, 1 << 20);
                pace.merged(merged_bytes);
            }
            adjust(&pace, 10);
            pace.rate()
        };
        let (twice, eightfold) = (rate_at(2 << 20), rate_at(8 << 20));
        assert!((390..410).contains(&(100 * twice / eightfold)), "{twice} {eightfold}");
        assert_eq!(rate_at(0), 50_500_000, "at least one byte for one");
        assert_eq!(rate_at(1 << 30), 50_500_000 / 40, "at most 40");
    }

    /// Rates of writers as a share of the one that they should have, in percent.
    fn kept_percent(threads: u32, len_bytes: u64) -> u64 {
        const RATE: u64 = 8_000_000;
        let (pace, mut now, mut bytes) = (Pace::new(), Duration::ZERO, 0);
        let mut free_at = vec![Duration::ZERO; threads as usize];
        while now < Duration::from_secs(10) {
            let next = (0..free_at.len()).min_by_key(|&thread| free_at[thread]).unwrap();
            now = now.max(free_at[next]);
            free_at[next] = now + Duration::from_micros(1) + pace.charge(now, len_bytes, RATE);
            bytes += len_bytes;
        }
        bytes * 10 / RATE
    }

    #[test]
    fn writes_of_any_size_keep_to_the_rate() {
        for (threads, len_bytes) in [(1, 116), (1, 64 << 10), (1, 700 << 10), (8, 64 << 10), (64, 116)] {
            let percent = kept_percent(threads, len_bytes);
            assert!((95..=105).contains(&percent), "{threads} x {len_bytes}: {percent} %");
        }
    }

    #[test]
    fn a_small_write_sleeps_shortly_after_any_number_of_large_ones() {
        let clock = Pace::new();
        let now = Duration::from_secs(1);
        for _ in 0..1000 {
            clock.charge(now, 1 << 20, 1_000_000);
        }
        assert!(clock.charge(now, 116, 8_000_000) <= Duration::from_millis(4));
        let later = now + Duration::from_millis(101);
        assert_eq!(clock.charge(later, 116, 8_000_000), Duration::ZERO);
    }

    #[test]
    fn speeds_follow_the_jobs_of_the_last_seconds() {
        let speeds = Speeds::new(None);
        speeds.merged(50_000_000, Duration::from_secs(1));
        assert!((60_000_000..100_000_000).contains(&speeds.merge_rate()), "{}", speeds.merge_rate());
        for _ in 0..20 {
            speeds.merged(50_000_000, Duration::from_secs(1));
            speeds.flushed(30_000_000, Duration::from_secs(1));
        }
        assert!((49_000_000..51_000_000).contains(&speeds.merge_rate()));
        assert!((29_000_000..31_000_000).contains(&speeds.flush_rate()));
        speeds.merged(1, Duration::ZERO);
        assert!(speeds.merge_rate() < 51_000_000);
        (0..1000).for_each(|_| speeds.flushed(50_000, Duration::from_millis(30)));
        assert!(speeds.flush_rate() > 29_000_000, "flushes of other, small keyspaces are mostly syncs");
    }

    /// A merge reads in some steps and writes in others.
    #[test]
    fn the_speed_of_merges_follows_small_steps_up_and_down() {
        let speeds = Speeds::new(None);
        for megabytes in [20, 400, 30, 33] {
            for step in 0..10_000 {
                let bytes = if step % 3 == 0 { 3 * 3_000 * megabytes } else { 0 };
                speeds.merged(bytes, Duration::from_micros(if step % 2 == 0 { 2_001 } else { 3_999 }));
            }
            let rate = speeds.merge_rate() / 10_000;
            assert!((98 * megabytes..=102 * megabytes).contains(&rate), "{rate} for {megabytes}");
        }
    }

    #[test]
    fn merges_are_never_taken_for_faster_than_the_limit_lets_them_be() {
        let speeds = Speeds::new(Some(10_000_000));
        assert_eq!(speeds.merge_rate(), 5_000_000);
        speeds.merged(50_000_000, Duration::from_secs(1));
        assert_eq!(speeds.merge_rate(), 5_000_000);
        speeds.merged(8_000_000, Duration::from_secs(100));
        assert!((1_000_000..1_100_000).contains(&speeds.merge_rate()));
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
#[expect(clippy::cast_precision_loss, reason = "a model of a machine, with a logarithm in it")]
mod simulated;
