//! The shapes of the lists that `model` runs. Most are a mix of everything; the others reach states that a mix does not.
//!
//! * *laps*: hundreds of small records of one size, seldom durable, with crashes between them: the ring wraps, log files
//!   are recycled, and records of an earlier lap or incarnation stand where the next record is expected;
//! * *layers*: a bottom run of hundreds of keys under many small young runs with deletes, so that merges leave the bottom
//!   out, and filters and indexes have an effect;
//! * *held*: a mix with much upkeep, so that frozen memtables stay while writes, reads and crashes go on.
//!
//! Invariant: a list depends on the given generator only.

use bytes::Bytes;
use fastrand::Rng;

use crate::config::CONFIGS;
use crate::workload::{CrashKind, Generator, Level, Mix, Op, SLOTS, Write};

/// Operations of a mixed list. Some are skipped, because they need a keyspace or a held object that does not exist.
const LENGTHS: std::ops::RangeInclusive<usize> = 10..=60;

/// A list of operations, and the configuration that it begins with.
pub(crate) fn list(rng: &mut Rng) -> (Vec<Op>, usize) {
    let config = rng.usize(..CONFIGS.len());
    let ops = match rng.u8(..32) {
        0..3 => return laps(rng),
        3 => layers(rng),
        4..8 => mixed(rng, 30),
        _ => mixed(rng, 9),
    };
    (ops, config)
}

/// A mix of everything, with this percentage of upkeep.
fn mixed(rng: &mut Rng, upkeep: u64) -> Vec<Op> {
    let crashes = rng.bool();
    let writes = rng.u64(30..50);
    let mix = Mix {
        writes,
        reads: 94 - upkeep - writes,
        upkeep,
        crashes,
        keys: *rng.choice([4, 15, 60].iter()).unwrap_or(&15),
        value_bytes: *rng.choice([20, 120, 400].iter()).unwrap_or(&120),
        configs: CONFIGS.len(),
    };
    let created = (1..SLOTS.len()).filter(|_| rng.bool()).map(|slot| Op::Create { slot });
    let mut ops: Vec<Op> = created.collect();
    let len = rng.usize(LENGTHS);
    ops.extend(Generator::new(rng.u64(..), mix).sequence(len));
    ops
}

fn laps(rng: &mut Rng) -> (Vec<Op>, usize) {
    // Mostly one of those whose ring wraps between two flushes.
    let config = if rng.u8(..4) > 0 {
        rng.usize(CONFIGS.len() - 4..CONFIGS.len())
    } else {
        rng.usize(..CONFIGS.len())
    };
    let len = rng.usize(80..300);
    let value_bytes = *rng.choice([4, 12, 30, 60, 80].iter()).unwrap_or(&4);
    let durable_percent = *rng.choice([0, 0, 2, 20].iter()).unwrap_or(&0);
    let crash_permille = *rng.choice([5, 15, 40].iter()).unwrap_or(&15);
    let mut ops = vec![Op::Create { slot: 1 }];
    for number in 0..len {
        let is_durable = rng.u32(..100) < durable_percent;
        let op = match rng.u32(..1000) {
            at if at < crash_permille => Op::Crash {
                kind: *rng
                    .choice([CrashKind::Process, CrashKind::Power].iter())
                    .unwrap_or(&CrashKind::Process),
                seed: rng.u64(..),
                // A ring of unchanged size is used on.
                config: if rng.u8(..4) > 0 { config } else { rng.usize(..CONFIGS.len()) },
            },
            at if at < crash_permille + 10 => Op::Freeze,
            at if at < crash_permille + 15 => Op::Hold { held: rng.bool() },
            at if at < crash_permille + 20 => Op::Sync,
            _ => Op::Put {
                slot: rng.usize(..2),
                key: Bytes::from(format!("k{}", rng.u8(..8))),
                value: Bytes::from(format!("{number:0value_bytes$}")),
                level: if is_durable { Level::Power } else { Level::Process },
            },
        };
        ops.push(op);
    }
    (ops, config)
}

fn layers(rng: &mut Rng) -> Vec<Op> {
    let (keys, salt) = (rng.u32(100..300), rng.u32(..9000));
    let key = |number: u32| Bytes::from(format!("key/{:05}", salt + number));
    let value = |rng: &mut Rng, len: usize| -> Bytes { (0..len).map(|_| rng.u8(..)).collect() };
    let mut ops = Vec::new();
    for first in (0..keys).step_by(4) {
        let write = |number| Write { slot: 0, key: key(number), value: Some(value(rng, 90)) };
        ops.push(Op::Batch { writes: (first..first + 4).map(write).collect(), level: Level::Process });
    }
    ops.push(Op::Compact);
    for _ in 0..rng.usize(4..12) {
        for _ in 0..rng.usize(1..4) {
            let (key, level) = (key(rng.u32(..keys)), Level::Process);
            ops.push(if rng.bool() {
                Op::Delete { slot: 0, key, level }
            } else {
                Op::Put { slot: 0, key, value: value(rng, 20), level }
            });
        }
        ops.push(if rng.bool() { Op::Flush } else { Op::Freeze });
        ops.push(Op::Get { slot: 0, key: key(rng.u32(..keys)) });
    }
    ops
}
