//! `sim`: crashes at every event of many workloads, and of every short sequence.
//!
//! A workload is several incarnations of one store. Each runs some operations and ends with a crash during or after them;
//! the next one continues on the remains. Every event of every incarnation is a crash point, those of its recovery
//! included. A short sequence is one or two operations from a small alphabet, on an empty store and on one that has every
//! structure; there every subset of the unsynced units is tried.

use aio::sim::DiskImage;
use fastrand::Rng;

use crate::config::CONFIGS;
use crate::explore::{Cuts, Distinct, Explorer};
use crate::model::{Acks, Bounds, Prefix};
use crate::report::{Check, Counts, Failure, Tally};
use crate::runner::Settings;
use crate::workload::{CrashKind, Generator, KINDS, Level, Mix, Op, Write};
use crate::world::{CrashPoint, Outcome, Points, World};

/// One workload in this many runs twice, to compare the traces.
const TWICE: u64 = 8;

/// Random power cuts at each point of a workload.
const RANDOM_CUTS: usize = 5;

/// Runs a workload and explores its crashes.
pub(crate) fn workload(case: u64, settings: &Settings, distinct: &Distinct) -> Check<Tally> {
    let seed = settings.case_seed(case);
    let mut explorer = Explorer::new(settings, distinct, Cuts::Random(RANDOM_CUTS), seed);
    let mut tally = Tally { operations: Counts::of(&KINDS), ..Tally::default() };
    let hash = play(seed, &mut tally, &mut |points, world| explorer.explore(points, &world.model))?;
    tally.counts.merge(&explorer.counts);
    tally.counts.add("workloads", 1);
    if case.is_multiple_of(TWICE) {
        let again = play(seed, &mut Tally::default(), &mut |_, _| Ok(()))?;
        if again != hash {
            return Err(Failure::new(format!("the same seed gave the traces {hash:#x} and {again:#x}")));
        }
        tally.counts.add("traces_repeated", 1);
    }
    Ok(tally)
}

/// Runs the incarnations of a workload; `explore` gets the crash points of each piece. Returns the hash of all traces.
fn play(seed: u64, tally: &mut Tally, explore: &mut dyn FnMut(&[CrashPoint], &World) -> Check) -> Check<u64> {
    let mut rng = Rng::with_seed(seed);
    let mix = Mix {
        writes: rng.u64(60..80),
        reads: 4,
        upkeep: 10,
        crashes: false,
        keys: *rng.choice([3, 12, 40].iter()).unwrap_or(&12),
        value_bytes: *rng.choice([20, 120, 400].iter()).unwrap_or(&120),
        configs: CONFIGS.len(),
    };
    let mut generator = Generator::new(rng.u64(..), mix);
    let mut config = rng.usize(..CONFIGS.len());
    let mut world = World::new(rng.u64(..), config);
    let points = Points::default();
    world.watch(&points);
    let mut is_cut = false;
    let mut hash = 0;
    for _ in 0..rng.usize(1..5) {
        tally.counts.add("incarnations", 1);
        let bounds = world.acks().after_process_crash();
        let found = world.open(&bounds).map_err(|failure| failure.at("opening an incarnation"))?;
        tally.counts.add("log_files_kept", world.log_files());
        explore(&recovery_points(&points, is_cut.then_some(found)), &world)?;
        world.settle(found)?;
        let futures = generator.futures();
        for op in futures.into_iter().chain(generator.sequence(rng.usize(3..40))) {
            run(&mut world, &op, tally)?;
        }
        let mut incarnation = std::mem::take(&mut *points.lock());
        incarnation.push(end_of(&world));
        explore(&incarnation, &world)?;
        hash = u64::rotate_left(hash, 7) ^ world.sim.trace_hash();
        let chosen = if rng.u8(..4) == 0 { incarnation.len() - 1 } else { rng.usize(..incarnation.len()) };
        is_cut = rng.bool();
        if rng.bool() {
            // Otherwise the next incarnation may use the log files again: they have its size.
            config = rng.usize(..CONFIGS.len());
        }
        crash(&mut world, &incarnation[chosen], is_cut, config, &mut rng);
        points.lock().clear();
    }
    tally.counts.add("futures", world.held.futures);
    tally.counts.add("futures_pending", world.held.pending);
    Ok(hash)
}

/// Continues on the remains of a crash at this point.
fn crash(world: &mut World, point: &CrashPoint, is_cut: bool, config: usize, rng: &mut Rng) {
    let seed = rng.u64(..);
    let _ = world.crash(CrashKind::Process, seed);
    let image: DiskImage =
        if is_cut { point.image.power_cut_random(seed) } else { point.image.process_crash(seed) };
    world.set_acks(if is_cut { point.acks.cut() } else { point.acks });
    world.restart(image, seed, config);
}

/// The crash points of an open. Everything that recovery read after a power cut was durable, so each recovery must find the
/// same.
fn recovery_points(points: &Points, found: Option<Prefix>) -> Vec<CrashPoint> {
    let mut points = std::mem::take(&mut *points.lock());
    if let Some(found) = found {
        for point in &mut points {
            point.acks = Acks::exactly(found);
        }
    }
    points
}

fn end_of(world: &World) -> CrashPoint {
    CrashPoint { image: world.sim.snapshot(), acks: world.acks(), event: None }
}

/// Runs an operation that must not fail.
fn run(world: &mut World, op: &Op, tally: &mut Tally) -> Check {
    match world.run(op)? {
        Outcome::Done => tally.operations.add(op.kind(), 1),
        Outcome::Skipped => {}
        Outcome::Refused(error) => return Err(Failure::from(error).at(format!("{op:?}"))),
    }
    Ok(())
}

/// The number of short sequences: on each base none, each operation, and each pair.
pub(crate) fn short_sequences() -> u64 {
    let len = alphabet().len() as u64;
    2 * (1 + len + len * len)
}

/// Runs a short sequence and explores the crashes of its last operation. Shorter sequences cover the others.
pub(crate) fn short_sequence(case: u64, settings: &Settings, distinct: &Distinct) -> Check<Tally> {
    let alphabet = alphabet();
    let len = alphabet.len();
    let number = usize::try_from(case / 2).map_err(|_| Failure::new("no such sequence"))?;
    let ops: Vec<Op> = match number {
        0 => Vec::new(),
        _ if number <= len => vec![alphabet[number - 1].clone()],
        _ => {
            let pair = number - 1 - len;
            let first = alphabet.get(pair / len).ok_or_else(|| Failure::new("no such sequence"))?;
            vec![first.clone(), alphabet[pair % len].clone()]
        }
    };
    let base = if case.is_multiple_of(2) { Vec::new() } else { base() };
    let mut explorer = Explorer::new(settings, distinct, Cuts::Exhaustive, settings.case_seed(case));
    let mut tally = Tally { operations: Counts::of(&KINDS), ..Tally::default() };
    // All use the same machine, so that longer sequences begin exactly like shorter ones.
    let mut world = World::new(settings.seed, 0);
    let points = Points::default();
    world.watch(&points);
    let found = world.open(&Bounds::exactly(Prefix::default()))?;
    world.settle(found)?;
    for op in base.iter().chain(&ops[..ops.len().saturating_sub(1)]) {
        run(&mut world, op, &mut tally)?;
    }
    if !ops.is_empty() {
        points.lock().clear();
    }
    if let Some(last) = ops.last() {
        run(&mut world, last, &mut tally)?;
    }
    let mut incarnation = std::mem::take(&mut *points.lock());
    incarnation.push(end_of(&world));
    explorer.explore(&incarnation, &world.model).map_err(|failure| failure.at(format!("{ops:?}")))?;
    tally.counts.merge(&explorer.counts);
    if !settings.is_over() {
        tally.counts.add("short_sequences", 1);
    }
    Ok(tally)
}

/// The operations of short sequences.
fn alphabet() -> Vec<Op> {
    let put = |key: &'static str, len: usize, level| Op::Put {
        slot: 0,
        key: key.into(),
        value: vec![b'0' + u8::try_from(len % 10).unwrap_or(0); len].into(),
        level,
    };
    let write = |slot, key: &'static str, value: Option<&'static str>| Write {
        slot,
        key: key.into(),
        value: value.map(Into::into),
    };
    let batch = |level| Op::Batch {
        writes: vec![write(0, "k1", Some("batch")), write(1, "k1", Some("a")), write(1, "k2", None)],
        level,
    };
    vec![
        put("k1", 1, Level::Power),
        put("k1", 2, Level::Process),
        put("k2", 903, Level::Power),
        put("k3", 704, Level::Process),
        Op::Delete { slot: 0, key: "k1".into(), level: Level::Power },
        batch(Level::Power),
        batch(Level::Process),
        Op::Sync,
        Op::Flush,
        Op::Compact,
        Op::Create { slot: 1 },
        Op::Drop { slot: 1 },
        Op::Reopen { config: 0 },
        Op::DropAll { config: 1 },
    ]
}

/// Leaves data in segments, in the log on the disk, and in the ring only.
fn base() -> Vec<Op> {
    let put = |slot, key: &'static str, len, level| Op::Put {
        slot,
        key: key.into(),
        value: vec![b'b'; len].into(),
        level,
    };
    vec![
        Op::Create { slot: 1 },
        put(0, "k1", 30, Level::Power),
        put(1, "k2", 30, Level::Process),
        Op::Flush,
        put(0, "k4", 300, Level::Power),
        Op::Delete { slot: 1, key: "k2".into(), level: Level::Power },
        Op::Flush,
        put(0, "k3", 40, Level::Power),
        put(1, "k1", 40, Level::Process),
    ]
}
