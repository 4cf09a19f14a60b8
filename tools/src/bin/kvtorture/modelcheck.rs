//! `model`: random operations on a store and on the model, with every public operation, under random options.
//!
//! Each list of operations runs on two configurations drawn from all; whatever the store says is compared with the model,
//! so they must agree with each other, too. A list that fails is shortened by leaving operations out.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fastrand::Rng;

use crate::config::CONFIGS;
use crate::model::Bounds;
use crate::report::{Check, Counts, Failure, Tally};
use crate::workload::{Generator, KINDS, Mix, Op, SLOTS};
use crate::world::{Outcome, World};

/// One in so many lists runs on every configuration.
const EVERYWHERE: u64 = 50;

/// Operations of a list; some are skipped, since what they need does not exist.
const LENGTHS: std::ops::RangeInclusive<usize> = 10..=60;

/// Runs one list of operations.
pub(crate) fn sequence(seed: u64) -> Check<Tally> {
    let mut rng = Rng::with_seed(seed);
    let crashes = rng.bool();
    let writes = rng.u64(30..50);
    let mix = Mix {
        writes,
        reads: 85 - writes,
        upkeep: 9,
        crashes,
        keys: *rng.choice([4, 15, 60].iter()).unwrap_or(&15),
        value_bytes: *rng.choice([20, 120, 400].iter()).unwrap_or(&120),
        configs: CONFIGS.len(),
    };
    let created = (1..SLOTS.len()).filter(|_| rng.bool()).map(|slot| Op::Create { slot });
    let mut ops: Vec<Op> = created.collect();
    ops.extend(Generator::new(rng.u64(..), mix).sequence(rng.usize(LENGTHS)));
    let mut tally = Tally { operations: Counts::of(&KINDS), ..Tally::default() };
    let configs: Vec<usize> = if seed.is_multiple_of(EVERYWHERE) {
        tally.counts.add("lists_on_every_configuration", 1);
        (0..CONFIGS.len()).collect()
    } else {
        vec![rng.usize(..CONFIGS.len())]
    };
    let machine = rng.u64(..);
    for config in configs {
        if let Err(failure) = run(&ops, machine, config, &mut tally) {
            let (shortest, failure) = shorten(ops, machine, config, failure);
            let steps: Vec<String> = shortest.iter().map(|op| format!("{op:?}")).collect();
            return Err(failure.at(format!("configuration {config}, shortened to\n{}\n", steps.join("\n"))));
        }
        tally.counts.add("sequences", 1);
    }
    Ok(tally)
}

fn run(ops: &[Op], machine: u64, config: usize, tally: &mut Tally) -> Check {
    let mut world = World::new(machine, config);
    let found = world.open(&Bounds::exactly(world.model.end()))?;
    world.settle(found)?;
    for op in ops {
        match world.run(op)? {
            Outcome::Done => tally.operations.add(op.kind(), 1),
            Outcome::Skipped => tally.counts.add("skipped", 1),
            Outcome::Refused(error) => return Err(Failure::from(error).at(format!("{op:?}"))),
        }
    }
    // The whole store once more at the end, and what a close leaves of it.
    let everything = Bounds::exactly(world.model.end());
    crate::check::compare(world.db()?, &world.model, &everything)
        .map_err(|failure| failure.at("at the end"))?;
    if machine.is_multiple_of(4) {
        world.close()?.map_err(Failure::from)?;
    } else {
        world.sim.crash();
    }
    Ok(())
}

/// Leaves out every operation that is not needed for a failure, whichever it is.
fn shorten(mut ops: Vec<Op>, machine: u64, config: usize, mut failure: Failure) -> (Vec<Op>, Failure) {
    let mut at = ops.len();
    while at > 0 {
        at -= 1;
        let mut fewer = ops.clone();
        fewer.remove(at);
        let result = catch_unwind(AssertUnwindSafe(|| run(&fewer, machine, config, &mut Tally::default())));
        match result.unwrap_or_else(|_| Err(Failure::new("panic"))) {
            Ok(()) => {}
            Err(other) => (ops, failure) = (fewer, other),
        }
    }
    (ops, failure)
}

/// What must hold of a whole run: every kind of operation happened, and sequences were long enough.
pub(crate) fn judge(tally: &Tally) -> Check {
    let zeros = tally.operations.zeros();
    if !zeros.is_empty() {
        return Err(Failure::new(format!("never happened: {zeros:?}; run longer")));
    }
    let (sequences, operations) = (tally.counts.get("sequences"), tally.operations.total());
    if operations < 20 * sequences {
        return Err(Failure::new(format!(
            "{operations} operations in {sequences} sequences: fewer than 20 each"
        )));
    }
    Ok(())
}
