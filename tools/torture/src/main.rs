//! `kvtorture`: breaks the store on a simulated machine, below the real kernel, or on the real disk by killing its
//! process, and compares the remaining store with a model.

#![forbid(unsafe_code)]

mod check;
mod config;
mod errand;
mod errors;
mod explore;
mod futures;
mod held;
mod kernel;
mod lack;
mod limits;
mod model;
mod modelcheck;
mod planted;
mod report;
mod runner;
mod seccomp;
mod seed;
mod shapes;
mod sim;
mod soak;
mod strace;
mod sweep;
mod workload;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use clap::{Args, Parser, Subcommand};

use crate::errand::ErrandArgs;
use crate::explore::Distinct;
use crate::limits::LimitsArgs;
use crate::report::{Check, Failure, Tally, complain, say};
use crate::runner::{Cases, Settings};
use crate::seccomp::SeccompArgs;
use crate::seed::SeedArg;
use crate::soak::{SoakArgs, WorkerArgs};
use crate::strace::StraceArgs;
use crate::sweep::Sweep;

/// Breaks an Esker store on a simulated machine and compares the remaining store with a model.
///
/// A failure prints its finding and the one command that replays it, and exits with 1.
#[derive(Debug, Parser)]
#[command(name = "kvtorture", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Crashes at every event of many workloads, and of every sequence of at most two operations.
    Sim {
        #[command(flatten)]
        common: Common,
        /// Stop after at least this many different crash states.
        #[arg(long)]
        states: Option<u64>,
        /// Skip the short sequences.
        #[arg(long)]
        no_short: bool,
        /// Run this workload only.
        #[arg(long, conflicts_with = "short")]
        case: Option<u64>,
        /// Run this short sequence only.
        #[arg(long)]
        short: Option<u64>,
    },
    /// Runs every public operation against a sorted map, under random options, with closes and crashes.
    Model {
        #[command(flatten)]
        common: Common,
        /// Stop after at least this many sequences.
        #[arg(long)]
        sequences: Option<u64>,
        /// Run this list of operations only.
        #[arg(long)]
        case: Option<u64>,
    },
    /// Makes every call of ten workloads and of their recoveries fail, once and permanently, in every way.
    Errors {
        #[command(flatten)]
        common: Common,
        /// The number of workloads.
        #[arg(long, default_value_t = 10)]
        workloads: u64,
        /// Run this workload only.
        #[arg(long)]
        case: Option<u64>,
        /// Fail at this call only.
        #[arg(long)]
        at: Option<u64>,
        /// Fail only every n-th call.
        #[arg(long, default_value_t = 1)]
        step: u64,
    },
    /// Damages every file of a small store (each bit), of a larger one (each byte) and the logs of a store after a power
    /// cut, and reads everything.
    Sweep {
        #[command(flatten)]
        common: Common,
        /// Run this piece only.
        #[arg(long)]
        piece: Option<u64>,
        /// Flip only every n-th bit.
        #[arg(long, default_value_t = 1)]
        step: usize,
    },
    /// Power cuts, sick disks and shutdowns below the file systems of the running kernel: qualifies a machine. Needs root,
    /// FUSE and loop devices. The report names every part that was skipped.
    Kernel {
        #[command(flatten)]
        common: Common,
        /// The file systems to use.
        #[arg(long, value_enum, value_delimiter = ',', default_value = "ext4,xfs,btrfs")]
        fs: Vec<kernel::Fs>,
        /// Stop after at least this many different states on ext4, and a tenth of that on each of the others.
        #[arg(long, default_value_t = 3000)]
        states: u64,
        /// Then break the disk this many times during an incarnation, on each file system.
        #[arg(long, default_value_t = 60)]
        faults: u64,
        /// Then try every illness of a disk this many times at log, segments and manifest, on ext4 and XFS.
        #[arg(long, default_value_t = 4)]
        rounds: u64,
        /// Then shut ext4 and XFS down this many times below a running store, and copy as many disks of btrfs in use.
        #[arg(long, default_value_t = 50)]
        shutdowns: u64,
        /// Succeed if this machine can try nothing at all.
        #[arg(long)]
        where_possible: bool,
        #[command(flatten)]
        only: OnlyOne,
        /// Keep the disk of a failure in this directory.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// The child of `kernel` that mounts its disk.
    #[command(hide = true)]
    KernelHand {
        #[arg(value_enum)]
        fs: kernel::Fs,
    },
    /// A real store whose system calls go wrong, one after the other: a call fails, is delayed, submits less than was
    /// requested, reaps other results, or is the last call of its process.
    Strace {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: StraceArgs,
    },
    /// A real store on a machine with limits on files, handles and memory, with full, frozen and read-only disks, large
    /// sectors, and storms of signals. Some need root. The report names every part that was skipped.
    Limits {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: LimitsArgs,
    },
    /// A real store whose system calls a seccomp filter refuses, from its start or from the middle of its work, as sandboxes
    /// do: it must work all the same. All cells are tried, also after a failure.
    Seccomp {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: SeccompArgs,
    },
    /// The process that `strace`, `limits` and `seccomp` disturb.
    #[command(hide = true)]
    Errand(ErrandArgs),
    /// Enables each planted bug in turn (in a build with `--cfg planted`): the other commands must find it.
    Planted {
        #[command(flatten)]
        common: Common,
        /// Only the bugs whose name contains this.
        #[arg(long, default_value = "", conflicts_with = "kernel")]
        only: String,
        /// Leave syncs out below the file systems of the running kernel (as root): `kernel` must find each.
        #[arg(long)]
        kernel: bool,
    },
    /// A real store on a real disk. Its process is killed repeatedly, and its device fails now and then.
    Soak(SoakArgs),
    /// The process that `soak` kills.
    #[command(hide = true)]
    SoakWorker(WorkerArgs),
}

#[derive(Debug, Args)]
struct Common {
    /// Stop after this many seconds; without any limit 60.
    #[arg(long)]
    time: Option<u64>,
    #[command(flatten)]
    seed: SeedArg,
    /// The last line is one JSON object with the counts.
    #[arg(long)]
    json: bool,
    /// Worker threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// The case that a failure of `kernel` names.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct OnlyOne {
    /// Run this workload only.
    #[arg(long)]
    case: Option<u64>,
    /// Break this disk only.
    #[arg(long)]
    fault: Option<u64>,
    /// Try only this illness of a disk.
    #[arg(long)]
    cell: Option<u64>,
    /// Run only this shutdown or copy.
    #[arg(long)]
    shutdown: Option<u64>,
}

impl OnlyOne {
    fn part(&self) -> Option<(kernel::Part, u64)> {
        use kernel::Part;
        let parts = [
            (Part::Cuts, self.case),
            (Part::Faults, self.fault),
            (Part::Cells, self.cell),
            (Part::Shutdowns, self.shutdown),
        ];
        parts.into_iter().find_map(|(part, number)| Some((part, number?)))
    }
}

const DEFAULT_TIME: Duration = Duration::from_mins(1);

impl Common {
    fn settings(&self, has_limit: bool) -> Check<Settings> {
        let seed = self.seed.choose()?;
        let clock = NativeBackend::new();
        let time = self.time.map(Duration::from_secs).or((!has_limit).then_some(DEFAULT_TIME));
        let deadline = time.map(|time| clock.now() + time);
        Ok(Settings { seed, threads: self.threads.max(1), deadline, clock })
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (common, name, has_limit) = match &cli.command {
        Command::Sim { common, states, case, short, .. } => {
            (common, "sim", states.is_some() || case.is_some() || short.is_some())
        }
        Command::Model { common, sequences, case } => {
            (common, "model", sequences.is_some() || case.is_some())
        }
        Command::Errors { common, .. } => (common, "errors", true),
        Command::Sweep { common, .. } => (common, "sweep", true),
        Command::Kernel { common, .. } => (common, "kernel", true),
        Command::Planted { common, .. } => (common, "planted", true),
        Command::Strace { common, .. } => (common, "strace", true),
        Command::Limits { common, .. } => (common, "limits", true),
        Command::Seccomp { common, .. } => (common, "seccomp", true),
        Command::Errand(args) => return errand::run(args),
        Command::Soak(args) => return verdict(soak::run(args)),
        Command::SoakWorker(args) => return verdict(soak::work(args)),
        Command::KernelHand { fs } => return kernel::run_hand(*fs),
    };
    let settings = match planted::check_name().and_then(|()| common.settings(has_limit)) {
        Ok(settings) => settings,
        Err(failure) => return verdict(Err(failure)),
    };
    let started = settings.clock.now();
    let result = match &cli.command {
        Command::Sim { states, no_short, case, short, .. } => {
            run_sim(&settings, *states, *no_short, *case, *short)
        }
        Command::Model { sequences, case, .. } => run_model(&settings, *sequences, *case),
        Command::Errors { workloads, case, at, step, .. } => {
            run_errors(&settings, *workloads, *case, (*at, (*step).max(1)))
        }
        Command::Sweep { piece, step, .. } => run_sweep(&settings, *piece, (*step).max(1)),
        Command::Kernel { fs, states, keep, faults, rounds, shutdowns, where_possible, only, .. } => {
            let plan = kernel::Plan {
                systems: fs,
                states: *states,
                keep: keep.as_deref(),
                faults: *faults,
                rounds: *rounds,
                shutdowns: *shutdowns,
                may_skip: *where_possible,
                only: only.part(),
            };
            kernel::run(&settings, &plan)
        }
        Command::Planted { kernel: true, .. } => planted::run_below(&settings),
        Command::Planted { only, .. } => planted::run(&settings, only),
        Command::Strace { args, .. } => strace::run(&settings, args),
        Command::Limits { args, .. } => limits::run(&settings, args),
        Command::Seccomp { args, .. } => seccomp::run(&settings, args),
        Command::Soak(_) | Command::SoakWorker(_) | Command::KernelHand { .. } | Command::Errand(_) => {
            unreachable!("these have returned")
        }
    };
    let took = settings.clock.now().saturating_sub(started);
    verdict(result.map(|tally| report(name, &settings, &tally, took, common.json)))
}

fn verdict(result: Check) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure);
            ExitCode::FAILURE
        }
    }
}

/// Runs the short sequences first, in at most half of the time, and then workloads.
fn run_sim(
    settings: &Settings,
    states: Option<u64>,
    no_short: bool,
    case: Option<u64>,
    short: Option<u64>,
) -> Check<Tally> {
    let distinct = Distinct::new();
    let mut tally = Tally::default();
    let enough = |tally: &Tally| states.is_some_and(|states| tally.counts.get("distinct") >= states);
    if case.is_none() && (!no_short || short.is_some()) {
        let half = settings.deadline.map(|deadline| (settings.clock.now() + deadline) / 2);
        let settings = &Settings { deadline: half, clock: NativeBackend::new(), ..*settings };
        tally.merge(&runner::run(
            settings,
            &Cases {
                replay: "sim --short",
                first: short.unwrap_or(0),
                count: short.map_or(sim::short_sequences(), |_| 1),
                order: &[],
                round: 16,
                enough: &enough,
                run: &|number| sim::short_sequence(number, settings, &distinct),
            },
        )?);
    }
    if short.is_none() {
        let so_far = tally.counts.get("distinct");
        let enough =
            |tally: &Tally| states.is_some_and(|states| so_far + tally.counts.get("distinct") >= states);
        tally.merge(&runner::run(
            settings,
            &Cases {
                replay: "sim --case",
                first: case.unwrap_or(0),
                count: case.map_or(u64::MAX, |_| 1),
                order: &[],
                round: 16,
                enough: &enough,
                run: &|number| sim::workload(number, settings, &distinct),
            },
        )?);
    }
    Ok(tally)
}

fn run_model(settings: &Settings, sequences: Option<u64>, case: Option<u64>) -> Check<Tally> {
    let tally = runner::run(
        settings,
        &Cases {
            replay: "model --case",
            first: case.unwrap_or(0),
            count: case.map_or(u64::MAX, |_| 1),
            order: &[],
            round: 512,
            enough: &|tally| sequences.is_some_and(|sequences| tally.counts.get("sequences") >= sequences),
            run: &|number| modelcheck::sequence(settings.case_seed(number)),
        },
    )?;
    if case.is_none() && tally.counts.get("sequences") >= modelcheck::ENOUGH_TO_JUDGE {
        modelcheck::judge(&tally)?;
    }
    Ok(tally)
}

/// A case is one workload with one way to fail. Every `step`-th of its calls fails, from a random first one on.
fn run_errors(
    settings: &Settings,
    workloads: u64,
    case: Option<u64>,
    (at, step): (Option<u64>, u64),
) -> Check<Tally> {
    let run = |number| {
        let (workload, way) = errors::case(number);
        let which = errors::Which { at, first: settings.case_seed(number) % step, step };
        errors::workload(settings.case_seed(workload), way, which, &|| settings.is_over())
    };
    let count = case.map_or(workloads * errors::ways(), |_| 1);
    let cases = Cases {
        replay: "errors --case",
        first: case.unwrap_or(0),
        count,
        order: &if case.is_some() { Vec::new() } else { errors::order(settings, workloads) },
        round: u64::MAX,
        enough: &|_| false,
        run: &run,
    };
    let mut tally = runner::run(settings, &cases)?;
    tally.counts.add("cases_left_out", count - tally.counts.get("cases"));
    Ok(tally)
}

/// Runs all stores, or one piece.
fn run_sweep(settings: &Settings, piece: Option<u64>, step: usize) -> Check<Tally> {
    let sweeps = Sweep::all(settings.seed, step)?;
    let pieces: u64 = sweeps.iter().map(Sweep::pieces).sum();
    let run = |mut number| {
        for sweep in &sweeps {
            if number < sweep.pieces() {
                let mut tally = sweep.piece(number)?;
                tally.counts.add("pieces_swept", 1);
                return Ok(tally);
            }
            number -= sweep.pieces();
        }
        Err(Failure::new("no such piece"))
    };
    let mut tally = Tally::default();
    tally.counts.add("content_bytes", sweeps.iter().map(Sweep::content_bytes).sum());
    tally.counts.add("pieces", pieces);
    tally.merge(&runner::run(
        settings,
        &Cases {
            replay: &format!("sweep --step {step} --piece"),
            first: piece.unwrap_or(0),
            count: piece.map_or(pieces, |_| 1),
            order: &if piece.is_some() { Vec::new() } else { Sweep::order(&sweeps, settings) },
            round: u64::MAX,
            enough: &|_| false,
            run: &run,
        },
    )?);
    Ok(tally)
}

fn report(name: &str, settings: &Settings, tally: &Tally, took: Duration, json: bool) {
    say(format!("{name}: no failure in {:.1} s, seed {}", took.as_secs_f64(), settings.seed));
    say(format!("{}", tally.counts.to_json()));
    say(format!("operations {}", tally.operations.to_json()));
    if json {
        let mut line = serde_json::json!({
            "command": name,
            "seed": settings.seed,
            "threads": settings.threads,
            "milliseconds": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        });
        if let (Some(line), serde_json::Value::Object(counts)) =
            (line.as_object_mut(), tally.counts.to_json())
        {
            line.extend(counts);
            line.insert("operations".to_owned(), tally.operations.to_json());
        }
        say(line);
    }
}
