//! `kvtorture`: breaks the store on a simulated machine, again and again, and compares what is left with a model.

#![forbid(unsafe_code)]

mod check;
mod config;
mod held;
mod model;
mod report;
mod workload;
mod world;

use crate::report::{complain, say};
use crate::workload::{Generator, KINDS, Mix};
use crate::world::{Outcome, World};

fn main() -> std::process::ExitCode {
    let mix =
        Mix { writes: 45, reads: 30, upkeep: 10, crashes: true, keys: 40, value_bytes: 300, configs: 12 };
    let mut counts = report::Counts::of(&KINDS);
    for seed in 0..2000u64 {
        let mut world = World::new(seed, 0);
        let bounds = model::Bounds::exactly(world.model.end());
        let mut run = || -> report::Check {
            let found = world.open(&bounds)?;
            world.settle(found)?;
            for op in Generator::new(seed, mix).sequence(40) {
                match world.run(&op)? {
                    Outcome::Done => counts.add(op.kind(), 1),
                    Outcome::Skipped => {}
                    Outcome::Refused(error) => return Err(report::Failure::from(error).at(op.kind())),
                }
            }
            Ok(())
        };
        if let Err(failure) = run() {
            complain(format!("seed {seed}: {failure}"));
            return std::process::ExitCode::FAILURE;
        }
    }
    say(counts.to_json());
    std::process::ExitCode::SUCCESS
}
