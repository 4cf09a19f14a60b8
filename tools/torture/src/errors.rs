//! `errors`: the k-th call of a workload fails, for every k, once and permanently, in every way that a call can fail; and
//! the same for every call of a recovery.
//!
//! Invariants: `k` rises until a run ends without its fault having struck, so no index is left out. A run differs from the
//! run without a fault in the fault only, so the calls before it are the same.

mod ways;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use aio::sim::{DiskImage, EventKind, Fault};
use aio::{Backend as _, SimBackend};
use esker::Error;
use parking_lot::Mutex;

use crate::check::compare;
use crate::model::{Acks, Bounds, Model, Prefix};
use crate::report::{Check, Counts, Failure, Tally};
use crate::runner::Settings;
use crate::workload::{Generator, KINDS, Level, Mix, Op, Write};
use crate::world::{Outcome, World};
use ways::{LATE, Strike, WAYS};

/// Names of the counts, other than the ways to fail.
const COUNTED: [&str; 9] = [
    "runs",
    "error_indexes",
    "recovery_error_indexes",
    "loops",
    "loops_cut_short",
    "reopens",
    "runs_that_halted",
    "opens_refused",
    "cases",
];

/// Which calls fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Which {
    /// This one only.
    pub(crate) at: Option<u64>,
    /// Every call from this one on.
    pub(crate) first: u64,
    /// Every n-th, at least 1. Only 1 covers every index.
    pub(crate) step: u64,
}

/// The number of ways to fail.
pub(crate) fn ways() -> u64 {
    WAYS.len() as u64
}

/// All cases of so many workloads in an order drawn from the seed. Each way to fail comes once, then each once more, and so
/// on, so that a shortened run tries all of them.
pub(crate) fn order(settings: &Settings, workloads: u64) -> Vec<u64> {
    let mut turns = [0; WAYS.len()];
    let turn = |number| {
        let turn: &mut u64 = &mut turns[case(number).1];
        *turn += 1;
        (*turn, number)
    };
    let mut order: Vec<(u64, u64)> = settings.shuffled(workloads * ways()).into_iter().map(turn).collect();
    order.sort_by_key(|(turn, _)| *turn);
    order.into_iter().map(|(_, number)| number).collect()
}

/// The number of a workload, and the way of failing that is tried on it.
pub(crate) fn case(number: u64) -> (u64, usize) {
    (number / ways(), usize::try_from(number % ways()).unwrap_or(0))
}

/// Runs the workload of this seed, failing in one way, until `is_over`.
pub(crate) fn workload(seed: u64, way: usize, which: Which, is_over: &dyn Fn() -> bool) -> Check<Tally> {
    let mut case = Case::new(seed)?;
    let way = &WAYS[way];
    let step = way.step(which.step);
    let which = Which { first: which.first % step, step, ..which };
    for (for_ever, recovery) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut k = which.at.unwrap_or(which.first);
        case.counts.add("loops", 1);
        // A sample must not begin behind the last call.
        while !case.guarded(Strike { way, k, for_ever }, recovery)? && k > 0 && which.at.is_none() {
            k /= 2;
        }
        k += which.step;
        while which.at.is_none() && case.guarded(Strike { way, k, for_ever }, recovery)? {
            k += which.step;
            if is_over() {
                case.counts.add("loops_cut_short", 1);
                break;
            }
        }
    }
    case.counts.add("cases", 1);
    Ok(Tally { counts: case.counts, operations: case.operations })
}

/// A workload, and its results without a fault.
struct Case {
    seed: u64,
    config: usize,
    ops: Vec<Op>,
    /// The disks for recoveries: after the death of the process, and after a power cut.
    left: Vec<(DiskImage, Acks)>,
    model: Model,
    /// Calls and time of the run without a fault.
    calls: u64,
    counts: Counts,
    operations: Counts,
}

/// How far a run got.
struct Ran {
    world: World,
    /// The syncs of the incarnation in which the fault struck first.
    syncs: Syncs,
    /// The store is open.
    is_open: bool,
    has_halted: bool,
}

impl Case {
    /// Makes the workload, and runs it without a fault.
    fn new(seed: u64) -> Check<Case> {
        let mut counts = Counts::of(&COUNTED);
        for way in &WAYS {
            counts.add(way.name, 0);
        }
        let mut case = Case {
            seed,
            config: usize::try_from(seed % 4).unwrap_or(0),
            ops: operations(seed),
            left: Vec::new(),
            model: Model::new(),
            calls: 0,
            counts,
            operations: Counts::of(&KINDS),
        };
        let mut ran = case.run(None)?;
        case.calls = ran.world.sim.calls();
        let (disk, acks) = (ran.world.sim.snapshot(), ran.world.acks());
        case.left = vec![(disk.process_crash(seed), acks), (disk.power_cut_random(seed), acks.cut())];
        let _ = ran.world.crash(crate::workload::CrashKind::Process, seed);
        case.model = ran.world.model;
        Ok(case)
    }

    /// Runs with a fault. Returns whether it struck.
    fn guarded(&mut self, strike: Strike, recovery: bool) -> Check<bool> {
        let place = if recovery { "recovery" } else { "workload" };
        let run = || if recovery { self.recover(strike) } else { self.strike(strike) };
        catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|panic| Err(Failure::new(format!("panic: {}", crate::runner::message(&*panic)))))
            .map_err(|failure| failure.at(format!("{place} with {strike} (--at {})", strike.k)))
    }

    /// Runs the workload with a fault, and checks all of its possible remains.
    fn strike(&mut self, strike: Strike) -> Check<bool> {
        let ran = self.run(Some(strike))?;
        if ran.world.sim.faults_struck() == 0 {
            self.end(ran.world);
            return Ok(false);
        }
        self.counts.add(strike.way.name, 1);
        self.counts.add("error_indexes", 1);
        self.counts.add("runs_that_halted", u64::from(ran.has_halted));
        self.aftermath(ran, strike)?;
        Ok(true)
    }

    /// Stops the machine without any further I/O.
    fn end(&self, mut world: World) {
        let _ = world.crash(crate::workload::CrashKind::Process, self.seed);
    }

    /// Runs the workload until its end, or until the store does not open.
    fn run(&mut self, strike: Option<Strike>) -> Check<Ran> {
        self.counts.add("runs", 1);
        let world = World::new(self.seed, self.config);
        let syncs = watch_syncs(&world.sim);
        if let Some(strike) = strike {
            world.sim.fail(strike.plan());
            world.sim.crash_after_calls(self.calls * 20 + 10_000);
        }
        let mut ran = Ran { world, syncs, is_open: false, has_halted: false };
        let bounds = Bounds::exactly(Prefix::default());
        let driven = self.drive(&mut ran, strike, &bounds);
        ran.world.sim.stop_observing();
        if ran.world.sim.has_crashed() {
            return Err(Failure::new("hang: the machine was asked far more often than without a fault"));
        }
        driven?;
        if let Some(strike) = strike {
            check_time(&ran.world.sim, strike, self.calls)?;
            if strike.way.on == [EventKind::Sync] && ran.world.sim.faults_struck() > 0 {
                check_syncs(&ran.syncs.lock(), strike.k)?;
            }
        }
        Ok(ran)
    }

    fn drive(&mut self, ran: &mut Ran, strike: Option<Strike>, bounds: &Bounds) -> Check {
        if !self.open(ran, strike, bounds)? {
            return Ok(());
        }
        for op in &self.ops.clone() {
            if let Op::Reopen { config } | Op::DropAll { config } = op {
                if matches!(op, Op::Reopen { .. })
                    && let Err(error) = ran.world.close()?
                {
                    judge(strike, &error)?;
                }
                ran.world.let_go();
                ran.world.end_doubt();
                Case::config_of(&mut ran.world, *config);
                let mut acks = ran.world.acks();
                if strike.is_some_and(|strike| !strike.spares_ring()) {
                    acks.process = acks.power;
                }
                if !self.open(ran, strike, &acks.after_process_crash())? {
                    return Ok(());
                }
                self.operations.add(op.kind(), 1);
                continue;
            }
            self.step(ran, strike, op).map_err(|failure| failure.at(format!("{op:?}")))?;
        }
        Ok(())
    }

    fn config_of(world: &mut World, config: usize) {
        world.config = &crate::config::CONFIGS[config];
    }

    /// Returns whether the store is open. If it is not, the fault must explain that.
    fn open(&mut self, ran: &mut Ran, strike: Option<Strike>, bounds: &Bounds) -> Check<bool> {
        ran.is_open = false;
        ran.has_halted = false;
        if ran.world.sim.faults_struck() > 0 {
            // A later incarnation may sync again the data that it has read.
            ran.world.sim.stop_observing();
        }
        match ran.world.open(bounds).and_then(|found| ran.world.settle(found)) {
            Ok(()) => {
                ran.is_open = true;
                Ok(true)
            }
            Err(failure) => {
                let Some(error) = failure.refused() else { return Err(failure) };
                judge(strike, error).map_err(|unfit| unfit.at("open"))?;
                self.counts.add("opens_refused", 1);
                ran.world.let_go();
                Ok(false)
            }
        }
    }

    /// Runs one operation on the open store. If a sync of log, manifest or a folder failed in it, the store must have halted.
    fn step(&mut self, ran: &mut Ran, strike: Option<Strike>, op: &Op) -> Check {
        let before = ran.world.sim.faults_struck();
        self.answer(ran, strike, op)?;
        let Some(strike) = strike else { return Ok(()) };
        if before > 0 || ran.world.sim.faults_struck() == 0 {
            return Ok(());
        }
        let path = match strike.way.on {
            [EventKind::Sync] => promised(&ran.syncs.lock(), strike.k),
            // An open store syncs one only for new files in it.
            [EventKind::SyncDir] => Some(strike.way.path.into()),
            _ => None,
        };
        match path {
            Some(path) if ran.world.db()?.metrics().halted.is_none() => {
                Err(Failure::new(format!("the sync of {} failed, and the store goes on", path.display())))
            }
            _ => Ok(()),
        }
    }

    fn answer(&mut self, ran: &mut Ran, strike: Option<Strike>, op: &Op) -> Check {
        let is_write = matches!(op, Op::Put { .. } | Op::Delete { .. } | Op::Batch { .. });
        let is_upkeep = matches!(
            op,
            Op::Sync
                | Op::Flush
                | Op::Compact
                | Op::Freeze
                | Op::Hold { .. }
                | Op::Verify
                | Op::Create { .. }
                | Op::Drop { .. }
        );
        let before = ran.world.model.end().commits;
        let outcome = match ran.world.run(op) {
            Ok(outcome) => outcome,
            Err(failure) => match failure.refused() {
                Some(error) => Outcome::Refused(error.clone()),
                None => return Err(failure),
            },
        };
        match outcome {
            Outcome::Done => {
                self.operations.add(op.kind(), 1);
                if is_write && ran.has_halted && ran.world.model.end().commits > before {
                    return Err(Failure::new("a write was taken after the store had halted"));
                }
            }
            Outcome::Skipped => {}
            Outcome::Refused(error) => {
                judge(strike, &error)?;
                let is_halted = matches!(error, Error::Halted { .. });
                if is_halted && !is_write && !is_upkeep {
                    return Err(Failure::new(format!("a read says that the store has halted: {error}")));
                }
                if is_write && ran.has_halted && !is_halted {
                    return Err(Failure::new(format!("after the store had halted a write says: {error}")));
                }
                ran.has_halted |= is_halted;
            }
        }
        Ok(())
    }

    /// Called after the fault is over. The open store must work or have halted, and its remains must open.
    fn aftermath(&mut self, mut ran: Ran, strike: Strike) -> Check {
        let world = &mut ran.world;
        world.sim.clear_faults();
        world.end_doubt();
        let (disk, acks) = (world.sim.snapshot(), world.acks());
        let seed = self.seed ^ strike.k;
        let cut = if strike.k % 4 < 2 { disk.power_cut_none() } else { disk.power_cut_random(seed) };
        self.reopen(&SimBackend::from_image(cut, seed), &ran.world, &acks.after_power_cut())
            .map_err(|failure| failure.at("then a power cut"))?;
        if strike.k.is_multiple_of(2) {
            let image = disk.process_crash(seed);
            self.reopen(&SimBackend::from_image(image, seed), &ran.world, &acks.after_process_crash())
                .map_err(|failure| failure.at("then the death of the process"))?;
            self.end(ran.world);
            return Ok(());
        }
        if ran.is_open {
            Case::go_on(&mut ran).map_err(|failure| failure.at("when the fault was gone"))?;
        }
        ran.world.let_go();
        let acks = ran.world.acks();
        let found = self
            .reopen(&ran.world.sim, &ran.world, &acks.after_process_crash())
            .map_err(|failure| failure.at("then another open"))?;
        // Everything that an open has shown is durable, even after a failed sync that the kernel has forgotten.
        let cut = ran.world.sim.snapshot().power_cut_none();
        self.reopen(&SimBackend::from_image(cut, seed), &ran.world, &Bounds::exactly(found))
            .map_err(|failure| failure.at("then another open, then a power cut"))?;
        Ok(())
    }

    /// A store that has not halted accepts writes again and can be closed.
    fn go_on(ran: &mut Ran) -> Check {
        let db = ran.world.db()?;
        let halted = db.metrics().halted.is_some();
        if !halted {
            for op in [put(0, "after", 100, Level::Power), Op::Flush, Op::Compact, Op::Verify] {
                if let Outcome::Refused(error) = ran.world.run(&op)? {
                    return Err(Failure::from(error).at(format!("{op:?}")));
                }
            }
        }
        match ran.world.close()? {
            Err(error) if !halted => Err(Failure::from(error).at("close")),
            _ => Ok(()),
        }
    }

    fn reopen(&mut self, sim: &SimBackend, world: &World, bounds: &Bounds) -> Check<Prefix> {
        self.counts.add("reopens", 1);
        let db = world.config.open(sim).map_err(|error| Failure::new(format!("open: {error}")))?;
        let found =
            compare(&db, &world.model, bounds).map_err(|failure| Failure::new(failure.to_string()))?;
        sim.crash();
        Ok(found)
    }

    /// Opens the remains of the workload, with a fault in the recovery.
    fn recover(&mut self, strike: Strike) -> Check<bool> {
        let mut struck = false;
        for (image, acks) in self.left.clone() {
            self.counts.add("runs", 1);
            let sim = SimBackend::from_image(image, self.seed);
            sim.fail(strike.plan());
            sim.crash_after_calls(self.calls * 20 + 10_000);
            struck |= self.recover_one(&sim, strike, acks)?;
        }
        if struck {
            self.counts.add(strike.way.name, 1);
            self.counts.add("recovery_error_indexes", 1);
        }
        Ok(struck)
    }

    fn recover_one(&mut self, sim: &SimBackend, strike: Strike, acks: Acks) -> Check<bool> {
        let mut world = World::new(0, self.config);
        world.sim = sim.clone();
        world.model = self.model.clone();
        let mut may_hold = [acks.after_process_crash(), acks.after_power_cut()];
        let expected = if strike.spares_ring() { &may_hold[0] } else { &may_hold[1] };
        let opened = match world.open(expected) {
            Ok(found) => {
                // Everything that an open has shown is durable.
                may_hold = [Bounds::exactly(found), Bounds::exactly(found)];
                true
            }
            Err(failure) => {
                let Some(error) = failure.refused() else { return Err(failure) };
                strike.judge(error)?;
                self.counts.add("opens_refused", 1);
                false
            }
        };
        if sim.has_crashed() {
            return Err(Failure::new("hang: the machine was asked far more often than without a fault"));
        }
        check_time(sim, strike, self.calls)?;
        let struck = sim.faults_struck() > 0;
        if struck {
            sim.clear_faults();
            let disk = sim.snapshot();
            let (image, bounds) = if strike.k.is_multiple_of(2) {
                (disk.process_crash(self.seed), &may_hold[0])
            } else {
                (disk.power_cut_random(strike.k), &may_hold[1])
            };
            let what = if opened { "then, opened" } else { "then, refused" };
            self.reopen(&SimBackend::from_image(image, strike.k), &world, bounds)
                .map_err(|failure| failure.at(what))?;
        }
        self.end(world);
        Ok(struck)
    }
}

fn judge(strike: Option<Strike>, error: &Error) -> Check {
    match strike {
        Some(strike) => strike.judge(error),
        None => Err(Failure::from(error.clone()).at("without a fault")),
    }
}

/// No wait is much longer than the delay of the fault.
fn check_time(sim: &SimBackend, strike: Strike, calls: u64) -> Check {
    let per_call = if matches!(strike.way.fault, Fault::Delay(_)) { LATE } else { Duration::from_millis(1) };
    // Each refused call is followed by a pause of at most 50 ms before it is made again.
    let pauses = match strike.way.fault {
        Fault::Errno(errno) if errno.is_not_now() => sim.faults_struck(),
        _ => 0,
    };
    let times = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let most = Duration::from_mins(1) + per_call * times(calls) + Duration::from_millis(50) * times(pauses);
    let took = sim.now();
    if took > most { Err(Failure::new(format!("took {took:?}, at most {most:?} were due"))) } else { Ok(()) }
}

/// Creations and syncs of files, in order, and the allocations by which a file begins or a log file of an earlier life is used
/// again.
type Syncs = Arc<Mutex<Vec<(EventKind, std::path::PathBuf)>>>;

fn watch_syncs(sim: &SimBackend) -> Syncs {
    let syncs = Syncs::default();
    let seen = Arc::clone(&syncs);
    sim.on_event(move |event, _| {
        if matches!(event.kind, EventKind::Sync | EventKind::Create | EventKind::Allocate) {
            seen.lock().push((event.kind, event.path.to_owned()));
        }
    });
    syncs
}

/// After the `k`-th sync failed, its file is not synced again unless it was created anew.
fn check_syncs(events: &[(EventKind, std::path::PathBuf)], k: u64) -> Check {
    let mut left = k;
    let mut failed = None;
    for (kind, path) in events {
        match (kind, failed) {
            (EventKind::Create, Some(bad)) if bad == path => return Ok(()),
            (EventKind::Sync, Some(bad)) if bad == path => {
                return Err(Failure::new(format!("the failed sync of {} was tried again", path.display())));
            }
            (EventKind::Sync, None) if left == 0 => failed = Some(path),
            (EventKind::Sync, None) => left -= 1,
            _ => {}
        }
    }
    Ok(())
}

/// The file of the `k`-th sync, if it belongs to the log or the manifest and was synced before in this use: then its
/// content was promised. (The first sync of a new file covers zeros only, that of a kept log file what is no more needed.)
fn promised(events: &[(EventKind, std::path::PathBuf)], k: u64) -> Option<std::path::PathBuf> {
    let mut syncs = events.iter().enumerate().filter(|(_, (kind, _))| *kind == EventKind::Sync);
    let (at, (_, path)) = syncs.nth(usize::try_from(k).ok()?)?;
    let name = path.to_string_lossy();
    let before = events.get(..at)?.iter().rev().find(|(_, other)| other == path)?;
    let is_used = before.0 == EventKind::Sync && (name.contains(".log") || name.contains("/manifest-"));
    is_used.then(|| path.clone())
}

/// A seeded sequence, with the operations between that every workload must have.
fn operations(seed: u64) -> Vec<Op> {
    let mix =
        Mix { writes: 40, reads: 44, upkeep: 6, crashes: false, keys: 10, value_bytes: 200, configs: 4 };
    let mut generator = Generator::new(seed, mix);
    let config = usize::try_from(seed % 4).unwrap_or(0);
    let write = |slot, key: &'static str, value: Option<&'static str>| Write {
        slot,
        key: key.into(),
        value: value.map(Into::into),
    };
    let must = [
        Op::Create { slot: 1 },
        put(0, "big", 800, Level::Power),
        Op::Batch {
            writes: vec![write(0, "user/0001", Some("batch")), write(1, "1", Some("a"))],
            level: Level::Power,
        },
        Op::TakeSnapshot,
        Op::Flush,
        Op::Delete { slot: 0, key: "user/0001".into(), level: Level::Process },
        Op::OpenIter { slot: 0, range: (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded) },
        put(1, "big", 900, Level::Process),
        Op::Compact,
        Op::Verify,
        Op::Reopen { config },
        // No block is in memory now, so these futures wait.
        Op::StartGets { slot: 0, keys: ["big", "5", "user/0006"].map(Into::into).to_vec() },
        Op::StartGets { slot: 0, keys: ["big", "user/0001"].map(Into::into).to_vec() },
        Op::PollGets { held: 1 },
        Op::DropGets { held: 1 },
        put(0, "5", 500, Level::Power),
        Op::FinishGets { held: 0 },
        Op::Sync,
        Op::Drop { slot: 1 },
        put(0, "user/0006", 60, Level::Process),
    ];
    let mut ops = Vec::new();
    for op in must {
        ops.push(op);
        ops.extend(generator.sequence(3));
    }
    // These test the error of a dropped keyspace. With a fault the store may report another error first.
    ops.retain(|op| !matches!(op, Op::UseDropped { .. }));
    ops
}

fn put(slot: usize, key: &'static str, len: usize, level: Level) -> Op {
    Op::Put { slot, key: key.into(), value: vec![b'e'; len].into(), level }
}
