//! One writer at full speed, a flush and a merge in virtual time, on two cores: the real controller and the real picker, with
//! the costs of an entry as they were measured.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::compaction::pacing::{Admission, MemtableUsage, admit, rate_by_memory};
use crate::compaction::picker::{RunShape, pick};

/// Bytes of an entry.
const ENTRY: u64 = 116;

/// Nanoseconds of one core for an entry.
const PUT_NS: u64 = 900;
const FLUSH_NS: u64 = 480;
const MERGE_NS: u64 = 500;

const TICK_NS: u64 = 250_000;
const CORES: f64 = 1.9;

const MIB: u64 = 1 << 20;

/// A young run: its stamp, and the bytes that were written for it.
type Young = (u64, f64);

/// Puts that are simulated together.
const GROUP: u64 = 10;

/// A job that needs so many nanoseconds of a core.
struct Work {
    begun_ns: u64,
    left_ns: f64,
}

/// A merge under way.
struct Merging {
    /// All of the work, of which `left_ns` is left.
    work_ns: f64,
    left_ns: f64,
    /// Bytes that it reads and writes.
    bytes_in: f64,
    bytes_out: f64,
    /// When the pace was told last, and the bytes that had been moved and written by then.
    told: (u64, u64, u64),
    inputs: std::ops::Range<usize>,
    /// Young runs when it began.
    young: usize,
}

struct Machine {
    /// Live bytes, all of which are in the bottom run.
    live: f64,
    limit: u64,
    pace: Pace,
    speeds: Speeds,
    active: u64,
    frozen: VecDeque<u64>,
    young: Vec<Young>,
    next_stamp: u64,
    flush: Option<Work>,
    merge: Option<Merging>,
    seen: Seen,
}

/// The outcome.
#[derive(Debug, Default)]
struct Seen {
    puts: u64,
    slept: u64,
    longest_wait_ns: u64,
    bottom_merges: u64,
    most_runs: usize,
    most_space: f64,
    space: f64,
    ticks: u32,
    by_second: Vec<u64>,
}

impl Machine {
    fn new(live_bytes: u64, budget_bytes: u64) -> Machine {
        Machine {
            live: live_bytes as f64,
            limit: budget_bytes / 4,
            pace: Pace::new(),
            speeds: Speeds::new(None),
            active: 0,
            frozen: VecDeque::new(),
            young: Vec::new(),
            next_stamp: 1,
            flush: None,
            merge: None,
            seen: Seen::default(),
        }
    }

    fn memory(&self) -> MemtableUsage {
        let frozen = self.frozen.iter().sum();
        MemtableUsage { active: self.active, frozen, freeze_at: self.limit / 5 * 3, limit: self.limit }
    }

    /// The bytes that are left of `written` bytes of overwrites: each key once.
    fn distinct(&self, written: f64) -> f64 {
        self.live * -(-written / self.live).exp_m1()
    }

    fn shape(&self, written: f64) -> RunShape {
        let bytes = whole(self.distinct(written));
        RunShape { bytes, entries: bytes / ENTRY, tombstones: 0 }
    }

    fn shapes(&self) -> Vec<RunShape> {
        let bottom = RunShape { bytes: whole(self.live), entries: whole(self.live) / ENTRY, tombstones: 0 };
        self.young.iter().map(|&(_, written)| self.shape(written)).chain([bottom]).collect()
    }

    fn adjust(&self) {
        let standing = || {
            let young =
                self.young.iter().map(|&(stamp, written)| (Seq::new(stamp), self.shape(written).bytes));
            Standing { young: young.collect(), bottom_bytes: whole(self.live) }
        };
        self.pace.adjust(standing, self.limit / 5 * 3, self.speeds.merge_rate(), |_| {});
    }

    fn begin_jobs(&mut self, now_ns: u64) {
        if self.flush.is_none()
            && let Some(&bytes) = self.frozen.front()
        {
            self.flush = Some(Work { begun_ns: now_ns, left_ns: (bytes / ENTRY * FLUSH_NS) as f64 });
        }
        if self.merge.is_none()
            && let Some(inputs) = pick(&self.shapes(), self.pace.part_percent())
        {
            let bytes_in: u64 = self.shapes()[inputs.clone()].iter().map(|run| run.bytes).sum();
            let last = self.young.get(inputs.end - 1).map_or(0, |&(stamp, _)| stamp);
            self.pace.merging(Seq::new(self.young[inputs.start].0), Seq::new(last));
            self.adjust();
            let work_ns = (bytes_in / ENTRY * MERGE_NS) as f64;
            let bytes_out = if inputs.end > self.young.len() {
                self.live
            } else {
                self.distinct(self.young[inputs.clone()].iter().map(|&(_, written)| written).sum())
            };
            let young = self.young.len();
            let (bytes_in, told) = (bytes_in as f64, (now_ns, 0, 0));
            self.merge =
                Some(Merging { work_ns, left_ns: work_ns, bytes_in, bytes_out, told, inputs, young });
        }
    }

    /// As the job does it: at each step, and at the end.
    fn tell_progress(&mut self, now_ns: u64) {
        let Some(merge) = &mut self.merge else { return };
        let done = (1.0 - merge.left_ns / merge.work_ns).min(1.0);
        let (moved, written) =
            (whole(done * (merge.bytes_in + merge.bytes_out)), whole(done * merge.bytes_out));
        let (then_ns, moved_then, written_then) = merge.told;
        if moved < moved_then + STEP_BYTES && merge.left_ns > 0.0 {
            return;
        }
        merge.told = (now_ns, moved, written);
        self.speeds.merged(written - written_then, Duration::from_nanos(now_ns - then_ns));
        self.pace.merged(written - written_then);
        self.adjust();
    }

    fn end_jobs(&mut self, now_ns: u64) {
        if let Some(work) = self.flush.take_if(|work| work.left_ns <= 0.0) {
            let bytes = self.frozen.pop_front().unwrap();
            self.young.insert(0, (self.next_stamp, bytes as f64));
            self.next_stamp += 1;
            self.speeds.flushed(bytes, Duration::from_nanos(now_ns - work.begun_ns));
            self.pace.flushed(bytes, self.limit / 5 * 3);
            self.adjust();
        }
        self.tell_progress(now_ns);
        if let Some(Merging { inputs, young, .. }) = self.merge.take_if(|merge| merge.left_ns <= 0.0) {
            // Flushes have put runs in front.
            let newer = self.young.len() - young;
            let is_bottom = inputs.end > young;
            let inputs = newer + inputs.start..(newer + inputs.end).min(self.young.len());
            let stamp = self.young[inputs.start].0;
            let written: f64 = self.young.drain(inputs.clone()).map(|(_, written)| written).sum();
            if is_bottom {
                let young_entries = whole(self.distinct(written)) / ENTRY;
                self.pace.dropped(young_entries, young_entries);
                self.seen.bottom_merges += 1;
            } else {
                self.young.insert(inputs.start, (stamp, written));
            }
            self.pace.ended(false);
            self.adjust();
        }
    }

    /// Puts until `until_ns`, from `from_ns` on; returns the time to which the last sleep goes.
    fn put_until(&mut self, from_ns: u64, until_ns: u64, put_ns: u64) -> u64 {
        let mut now_ns = from_ns;
        while now_ns < until_ns {
            match admit(self.memory()) {
                Admission::Go => {}
                Admission::Freeze => {
                    self.frozen.push_back(std::mem::take(&mut self.active));
                    continue;
                }
                Admission::Wait => return until_ns,
            }
            self.active += GROUP * ENTRY;
            self.seen.puts += GROUP;
            now_ns += GROUP * put_ns;
            let now = Duration::from_nanos(now_ns);
            let rate = self.pace.rate().min(rate_by_memory(self.memory(), self.speeds.flush_rate()));
            if rate == ANY_RATE {
                continue;
            }
            let sleep = self.pace.charge(now, GROUP * ENTRY, rate);
            if !sleep.is_zero() {
                self.seen.slept += 1;
                now_ns += u64::try_from(sleep.as_nanos()).unwrap() + 60_000;
            }
        }
        now_ns
    }

    fn run(mut self, seconds: u64) -> Seen {
        let (mut writer_ns, mut waits_since) = (0, None);
        let mut puts_before = 0;
        for tick in 1..=seconds * 1_000_000_000 / TICK_NS {
            let now_ns = tick * TICK_NS;
            self.begin_jobs(now_ns);
            let is_awake = writer_ns < now_ns;
            let busy =
                usize::from(is_awake) + usize::from(self.flush.is_some()) + usize::from(self.merge.is_some());
            let share = (CORES / busy.max(1) as f64).min(1.0);
            if is_awake {
                let before = self.seen.puts;
                writer_ns =
                    self.put_until(writer_ns.max(now_ns - TICK_NS), now_ns, whole(PUT_NS as f64 / share));
                if self.seen.puts > before {
                    waits_since = None;
                } else {
                    let since = *waits_since.get_or_insert(now_ns - TICK_NS);
                    self.seen.longest_wait_ns = self.seen.longest_wait_ns.max(now_ns - since);
                }
            }
            let done = share * TICK_NS as f64;
            self.flush.iter_mut().for_each(|work| work.left_ns -= done);
            self.merge.iter_mut().for_each(|merge| merge.left_ns -= done);
            self.end_jobs(now_ns);
            let young: f64 = self.young.iter().map(|&(_, written)| self.distinct(written)).sum();
            let seen = &mut self.seen;
            seen.most_runs = seen.most_runs.max(self.young.len());
            seen.most_space = seen.most_space.max(1.0 + young / self.live);
            seen.space += 1.0 + young / self.live;
            seen.ticks += 1;
            if now_ns.is_multiple_of(1_000_000_000) {
                seen.by_second.push(seen.puts - puts_before);
                puts_before = seen.puts;
            }
        }
        self.seen
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a simulation")]
fn whole(number: f64) -> u64 {
    number as u64
}

/// One row of the model, as an average.
#[derive(Debug)]
struct Row {
    puts_per_second: u64,
    worst_second: u64,
    slept_per_10_000: u64,
    longest_wait_ms: u64,
    bottom_merges: u64,
    most_runs: usize,
    space_percent: u64,
    most_space_percent: u64,
}

fn row(live_bytes: u64, budget_bytes: u64, seconds: u64) -> Row {
    let seen = Machine::new(live_bytes, budget_bytes).run(seconds);
    Row {
        puts_per_second: seen.puts / seconds,
        // The first seconds are free.
        worst_second: seen.by_second.iter().skip(5).min().copied().unwrap_or(0),
        slept_per_10_000: 10_000 * seen.slept / seen.puts,
        longest_wait_ms: seen.longest_wait_ns / 1_000_000,
        bottom_merges: seen.bottom_merges,
        most_runs: seen.most_runs,
        space_percent: whole(100.0 * seen.space / f64::from(seen.ticks)),
        most_space_percent: whole(100.0 * seen.most_space),
    }
}

/// Whole-run merges take long, so the figures are wide: ranged merges will narrow them.
#[test]
fn overwrites_at_full_speed_never_wait_and_keep_their_shape() {
    for (live_bytes, budget_bytes, seconds, (least, worst_part, most_runs)) in [
        (150 * MIB, 48 * MIB, 60, (350_000, 10, 15)),
        (350 * MIB, 64 * MIB, 60, (350_000, 10, 15)),
        (540 * MIB, 112 * MIB, 60, (400_000, 10, 15)),
        (10 << 30, 256 * MIB, 300, (350_000, 25, 40)),
    ] {
        let row = row(live_bytes, budget_bytes, seconds);
        let is_fast = row.puts_per_second >= least && row.worst_second * worst_part >= row.puts_per_second;
        // Above one in a hundred the 99th percentile of a put would be a sleep.
        let is_even = row.longest_wait_ms <= 50 && row.slept_per_10_000 < 50;
        let is_in_shape =
            row.most_runs <= most_runs && row.space_percent <= 150 && row.most_space_percent <= 175;
        // The last one takes 100 s for each merge into the bottom run.
        let is_whole = row.bottom_merges > 0;
        assert!(is_fast && is_even && is_in_shape && is_whole, "{} MiB: {row:?}", live_bytes / MIB);
    }
}
