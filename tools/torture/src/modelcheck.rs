//! `model`: random operations on a store and on the model, with every public operation, under random options.
//!
//! Each list of operations runs on two configurations drawn from all. Every answer of the store is compared with the model,
//! so the configurations must also agree with each other. A failing list is shortened by leaving operations out.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fastrand::Rng;

use crate::config::CONFIGS;
use crate::model::Bounds;
use crate::report::{Check, Counts, Failure, Tally};
use crate::shapes;
use crate::workload::{KINDS, Op};
use crate::world::{Outcome, World};

/// One list in this many runs on every configuration.
const EVERYWHERE: u64 = 50;

/// The most runs for shortening a failing list: a second or two.
const MOST_TRIES: usize = 300;

/// Runs one list of operations.
pub(crate) fn sequence(seed: u64) -> Check<Tally> {
    let mut rng = Rng::with_seed(seed);
    let (ops, config) = shapes::list(&mut rng);
    let mut tally = Tally { operations: Counts::of(&KINDS), ..Tally::default() };
    let configs: Vec<usize> = if seed.is_multiple_of(EVERYWHERE) {
        tally.counts.add("lists_on_every_configuration", 1);
        (0..CONFIGS.len()).collect()
    } else {
        vec![config]
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
    // Compares the whole store once more at the end, and again after a close.
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

/// Leaves out operations that are not needed for any failure: halves first, single ones at last.
fn shorten(mut ops: Vec<Op>, machine: u64, config: usize, mut failure: Failure) -> (Vec<Op>, Failure) {
    let mut len = ops.len().div_ceil(2);
    let mut tries = MOST_TRIES;
    loop {
        let mut end = ops.len();
        while end > 0 && tries > 0 {
            tries -= 1;
            let start = end.saturating_sub(len);
            let mut fewer = ops.clone();
            fewer.drain(start..end);
            let result =
                catch_unwind(AssertUnwindSafe(|| run(&fewer, machine, config, &mut Tally::default())));
            if let Err(other) = result.unwrap_or_else(|_| Err(Failure::new("panic"))) {
                (ops, failure) = (fewer, other);
            }
            end = start;
        }
        if len <= 1 || tries == 0 {
            return (ops, failure);
        }
        len = len.div_ceil(2);
    }
}

/// The number of sequences in which everything should have happened.
pub(crate) const ENOUGH_TO_JUDGE: u64 = 4000;

/// Checks a whole run: every kind of operation happened, and sequences were long enough.
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
