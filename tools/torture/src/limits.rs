//! `limits`: an errand on the real kernel with limits on files, handles and memory, full, frozen and read-only disks, large
//! sectors, storms of signals, and stops.
//!
//! ```text
//!   errand   | works | gets errors, waits, or dies    | continues     |
//!   parent           | sets a limit, fills the disk   | takes it back | kills it, opens the store, compares
//! ```
//!
//! Each trial has a required result: the errand continues after the limit is removed, does not notice it, or may die. In all
//! cases there is no panic, no hang and no error that blames the files, and a healthy process finds everything that was
//! acknowledged and verifies it.
//!
//! Trials that this machine cannot run are skipped, and the report names them. Limits are set for the errand alone. Slots
//! of asynchronous I/O belong to the whole machine, so that trial runs only if its name is given.

mod disk;
mod places;
mod terms;
mod trials;

use std::path::{Path, PathBuf};

use clap::Args;

use crate::lack::Lack;
use crate::report::{Check, Failure, Tally, say};
use crate::runner::{self, Cases, Settings};
use trials::{TRIALS, Trial};

/// Trials per core. They mostly wait.
const LANES_PER_THREAD: usize = 3;

/// Options of the command.
#[derive(Args, Clone, Debug)]
pub(crate) struct LimitsArgs {
    /// Only the trials whose name contains this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Where the stores and disks are made; by default in the directory for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many times to run each trial, with another moment each time.
    #[arg(long, default_value_t = 1)]
    times: u64,
    /// Fail if a trial cannot run on this machine.
    #[arg(long)]
    require: bool,
    /// Run only this case.
    #[arg(long)]
    case: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// The first failure.
pub(crate) fn run(settings: &Settings, args: &LimitsArgs) -> Check<Tally> {
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let root = root.join(format!("kvtorture-limits-{}", std::process::id()));
    let kinds = TRIALS.len() as u64;
    let is_chosen = |trial: &Trial| {
        if trial.of_the_machine { trial.name == args.only } else { trial.name.contains(&args.only) }
    };
    let chosen = |case: &u64| usize::try_from(case % kinds).is_ok_and(|nth| is_chosen(&TRIALS[nth]));
    let mut order: Vec<u64> = (0..kinds * args.times.max(1)).filter(chosen).collect();
    let count = args.case.map_or(order.len() as u64, |_| 1);
    if args.case.is_some() {
        order.clear();
    }
    let is_alone = TRIALS.iter().any(|trial| trial.of_the_machine && trial.name == args.only);
    let lanes = if is_alone { 1 } else { settings.threads * LANES_PER_THREAD };
    let settings = &Settings { threads: lanes, clock: aio::NativeBackend::new(), ..*settings };
    let tally = runner::run(
        settings,
        &Cases {
            replay: "limits --case",
            first: args.case.unwrap_or(0),
            count,
            order: &order,
            round: u64::MAX,
            enough: &|_| false,
            run: &|case| {
                let nth = usize::try_from(case % kinds).unwrap_or(0);
                let dir = root.join(case.to_string());
                one(&dir, &TRIALS[nth], settings.case_seed(case), args.require)
            },
        },
    )?;
    // Fails unless the directory is empty, which it is if no run failed.
    let _ = std::fs::remove_dir(&root);
    Ok(tally)
}

fn one(dir: &Path, trial: &Trial, seed: u64, require: bool) -> Check<Tally> {
    let mut tally = Tally::default();
    let mut rng = fastrand::Rng::with_seed(seed);
    match (trial.run)(dir, &mut rng) {
        Ok(counts) => {
            tally.counts.add("trials", 1);
            tally.counts.merge(&counts);
            tally.operations.add(trial.name, 1);
            std::fs::remove_dir_all(dir)
                .map_err(|error| Failure::new(format!("{}: remove the directory: {error}", trial.name)))?;
        }
        Err(Lack::Machine(lack)) if !require => {
            say(format!("limits: *** SKIPPED {}: {lack} ***", trial.name));
            tally.counts.add("skipped", 1);
            // The trial may have failed before it made the directory.
            let _ = std::fs::remove_dir_all(dir);
        }
        Err(Lack::Machine(lack)) => {
            return Err(Failure::new(format!("{} cannot be tried: {lack}", trial.name)));
        }
        Err(Lack::Store(failure)) => return Err(failure.at(trial.name)),
    }
    Ok(tally)
}
