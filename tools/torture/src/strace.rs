//! `strace`: an errand on the real kernel whose system calls go wrong. Each call of the store in turn fails in every way
//! that the kernel allows, is delayed, submits less than was requested, reaps other results, or is the last call of its
//! process.
//!
//! First the errand runs undisturbed, and its calls are counted. Then, for each call and each of its ways, the errand runs
//! again from the start for the first call, the second, and so on up to their number (or for every `--step`-th).
//!
//! After a temporary fault the errand completes its work, if need be after reported errors and after
//! opening the store again in the same process, and leaves no handle or thread behind. Some faults must stay unnoticed.
//! After a permanent fault the errand gives up with an error. With `--not-now` all answers say that nothing was done because
//! of a shortage, and all must stay unnoticed. In all cases there is no panic, no hang, no error that
//! blames the files; nothing acknowledged is lost; and the next process opens the store.

mod not_now;
mod registers;
mod tracer;
mod ways;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use self::not_now::NOT_NOW;
use self::tracer::{CallFault, Watched, watch};
use self::ways::{Lasts, Notice, WAYS, Way};
use crate::errand::sent::{End, Sent};
use crate::errand::terms::Mode;
use crate::lack::Lack;
use crate::report::{Check, Failure, Tally, say};
use crate::runner::{self, Cases, Settings};

/// An errand that takes longer hangs. It takes a tenth of a second, or a few seconds on a slow machine; and a minute if it
/// meets a shortage that does not end, for which the store waits at each call.
const LIMIT: Duration = Duration::from_mins(2);

/// Errands per core. They mostly wait for disks, and for the kernel to close AIO contexts.
const LANES_PER_THREAD: usize = 3;

const SIGKILL: i32 = 9;

/// Roughly the number of calls of an open.
const IN_OPEN: u64 = 211;

/// Options of the command.
#[derive(Args, Clone, Debug)]
pub(crate) struct StraceArgs {
    /// Only every n-th call goes wrong.
    #[arg(long, default_value_t = 1)]
    step: u64,
    /// Only the ways whose name contains this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Only answers that mean "not now", for one call, 20 calls and two seconds: no caller may see more than a delay. All
    /// are tried, also after a failure.
    #[arg(long)]
    not_now: bool,
    /// Where the stores are made; by default in the directory for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Fail if system calls cannot be watched on this machine.
    #[arg(long)]
    require: bool,
    /// Run only this case.
    #[arg(long)]
    case: Option<u64>,
}

/// One run: a way, and the number of the call that goes wrong.
#[derive(Clone, Copy, Debug)]
struct Run {
    way: &'static Way,
    mode: Mode,
    at: u64,
}

/// Runs the command.
///
/// # Errors
/// The first failure; or `required` is set and this machine cannot watch system calls.
pub(crate) fn run(settings: &Settings, args: &StraceArgs) -> Check<Tally> {
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let root = root.join(format!("kvtorture-strace-{}", std::process::id()));
    let mut tally = Tally::default();
    let calm = match calibrate(&root) {
        Ok(calm) => calm,
        Err(Lack::Machine(lack)) if !args.require => {
            say(format!("strace: *** SKIPPED: system calls cannot be watched here: {lack} ***"));
            tally.counts.add("skipped", 1);
            return Ok(tally);
        }
        Err(Lack::Machine(lack)) => {
            return Err(Failure::new(format!("system calls cannot be watched here: {lack}")));
        }
        Err(Lack::Store(failure)) => return Err(failure),
    };
    let runs = plan(&calm, args);
    let lanes = settings.threads * LANES_PER_THREAD;
    let settings = &Settings { threads: lanes, clock: aio::NativeBackend::new(), ..*settings };
    let mut order: Vec<u64> = runs.iter().map(Run::number).collect();
    fastrand::Rng::with_seed(settings.seed).shuffle(&mut order);
    if args.case.is_some() {
        order.clear();
    }
    tally.counts.add("planned", runs.len() as u64);
    let run_cases = if args.not_now { runner::survey } else { runner::run };
    tally.merge(&run_cases(
        settings,
        &Cases {
            replay: "strace --case",
            first: args.case.unwrap_or(0),
            count: args.case.map_or(runs.len() as u64, |_| 1),
            order: &order,
            round: u64::MAX,
            enough: &|_| false,
            run: &|case| {
                let run = Run::of(case).ok_or_else(|| Failure::new("no such case"))?;
                one(&root.join(case.to_string()), &run).map_err(|failure| failure.at(run.name()))
            },
        },
    )?);
    // Fails unless the directory is empty, which it is if no run failed.
    let _ = std::fs::remove_dir(&root);
    Ok(tally)
}

/// Runs one undisturbed errand in each mode.
fn calibrate(root: &Path) -> Result<[Watched; 3], Lack> {
    if let Some(lack) = registers::lack() {
        return Err(Lack::Machine(lack.to_owned()));
    }
    let calm = |mode: Mode| {
        let sent = Sent::new(&root.join(mode.name()), mode).map_err(Lack::Store)?;
        let mut command = sent.command(&[], &sent.store()).map_err(Lack::Store)?;
        let mut child = sent.start(&mut command).map_err(Lack::Store)?;
        let watched = watch(&mut child, None, LIMIT).map_err(|error| {
            // The errand was never released.
            let _ = child.kill();
            Lack::Machine(error.to_string())
        })?;
        let judged = sent.end(watched.status).and_then(|end| {
            if watched.hung || end != End::Done {
                return Err(Failure::new(format!("undisturbed, it ended with {end:?}: {}", sent.said())));
            }
            sent.judge(&sent.store(), false)?;
            sent.remove()
        });
        judged.map_err(Lack::Store)?;
        Ok(watched)
    };
    // The tracer of an errand is the thread that starts it.
    let [manual, durable, threads] = std::thread::scope(|scope| {
        Mode::ALL.map(|mode| scope.spawn(move || calm(mode))).map(|thread| {
            let panicked = |_| Err(Lack::Store(Failure::new("a thread panicked")));
            thread.join().unwrap_or_else(panicked)
        })
    });
    Ok([manual?, durable?, threads?])
}

/// More calls of one kind than an errand makes.
const CALLS: u64 = 1_000_000;
const MODES: u64 = Mode::ALL.len() as u64;

/// All ways; new ones come last, so that the numbers of the others stay.
fn ways() -> impl Iterator<Item = &'static Way> {
    WAYS.iter().chain(NOT_NOW.iter().flatten())
}

impl Run {
    /// A number for the replay that does not depend on the calls of an undisturbed errand.
    fn number(&self) -> u64 {
        let way = ways().position(|way| std::ptr::eq(way, self.way)).unwrap_or(0) as u64;
        let mode = Mode::ALL.iter().position(|mode| *mode == self.mode).unwrap_or(0) as u64;
        (way * MODES + mode) * CALLS + self.at
    }

    fn of(number: u64) -> Option<Run> {
        let way = ways().nth(usize::try_from(number / CALLS / MODES).ok()?)?;
        let mode = *Mode::ALL.get(usize::try_from(number / CALLS % MODES).ok()?)?;
        Some(Run { way, mode, at: number % CALLS })
    }

    fn name(&self) -> String {
        format!("{} {}, call {}", self.mode.name(), self.way.name, self.at)
    }
}

/// All runs: each way for each of its calls.
fn plan(calm: &[Watched; 3], args: &StraceArgs) -> Vec<Run> {
    let mut runs = Vec::new();
    for (mode, calm) in Mode::ALL.into_iter().zip(calm) {
        let chosen = ways().enumerate().filter(|(nth, _)| (*nth >= WAYS.len()) == args.not_now);
        for way in chosen.map(|(_, way)| way).filter(|way| way.name.contains(&args.only)) {
            let step = args.step.max(1) * way.every(mode);
            // Each way starts at another call. Otherwise some calls would never be chosen.
            let first = 1 + (way.name.len() as u64 % step);
            let last = way.count(calm);
            let first = if first > last { 1 } else { first };
            runs.extend((first..=last).step_by(usize::try_from(step).unwrap_or(1)).map(|at| Run {
                way,
                mode,
                at,
            }));
        }
    }
    runs
}

/// Runs an errand with a fault, on the store that the errand before it left.
fn disturbed(sent: &Sent, fault: &CallFault) -> Check<(Watched, End)> {
    let mut child = sent.start(&mut sent.command(&[], &sent.store())?)?;
    let watched = watch(&mut child, Some(fault), LIMIT).map_err(|error| {
        // The errand was never released.
        let _ = child.kill();
        Failure::new(format!("watch an errand: {error}"))
    })?;
    if watched.hung {
        return Err(Failure::new(format!("it hangs: {}", sent.said())));
    }
    let end = sent.end(watched.status)?;
    Ok((watched, end))
}

/// Runs one errand in which one call goes wrong.
fn one(dir: &Path, run: &Run) -> Check<Tally> {
    let sent = Sent::new(dir, run.mode)?;
    let (until, within) = match run.way.lasts {
        Lasts::Once => (run.at, None),
        Lasts::Times(times) => (run.at + times - 1, None),
        Lasts::For(time) => (u64::MAX, Some(time)),
        Lasts::Forever => (u64::MAX, None),
    };
    let fault = CallFault { calls: run.way.calls(), deed: run.way.deed, from: run.at, until, within };
    let (watched, end) = disturbed(&sent, &fault)?;
    let mut tally = Tally::default();
    if end == End::Signal(SIGKILL) {
        // The next process dies, too, most often while it opens the store.
        let at = 1 + run.at % IN_OPEN;
        let (_, end) = disturbed(&sent, &CallFault { from: at, until: at, ..fault })?;
        tally.counts.add("killed_again", u64::from(end == End::Signal(SIGKILL)));
    }
    let noted = sent.judge(&sent.store(), false)?;
    let wrong = |what: &str| Err(Failure::new(format!("{what}: it ended with {end:?}: {}", sent.said())));
    let struck = watched.struck > 0;
    match (end, run.way.notice) {
        (End::Signal(SIGKILL), Notice::Death) | (End::Done, Notice::May) => {}
        (End::Done, Notice::MustNot) if noted.errors == 0 => {}
        (End::Done, Notice::MustNot) => return wrong("that should not even be noticed"),
        (End::Done, Notice::Death) if !struck => {}
        (End::GaveUp, Notice::May) if struck && run.way.lasts == Lasts::Forever => {}
        _ => return wrong("that is no end for such a fault"),
    }
    tally.counts.add("runs", 1);
    tally.counts.add(if struck { "struck" } else { "missed" }, 1);
    tally.counts.add("acknowledged", noted.acknowledged);
    tally.counts.add("errors_met", noted.errors);
    match end {
        End::Signal(_) => tally.counts.add("killed", 1),
        End::GaveUp => tally.counts.add("gave_up", 1),
        End::Done if noted.errors > 0 => tally.counts.add("went_on_after_an_error", 1),
        End::Done => tally.counts.add("unnoticed", 1),
    }
    tally.operations.add(run.way.name, u64::from(struck));
    sent.remove()?;
    Ok(tally)
}
