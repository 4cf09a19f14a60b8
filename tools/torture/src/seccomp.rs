//! `seccomp`: errands whose system calls a seccomp filter refuses, as container runtimes and sandboxes do. Sandboxes differ
//! in the refused calls and in their answer, so each call is refused with each answer.
//!
//! ```text
//!   first errand    | opens, works  ...  | filter, at the start or in the middle | works    | SIGKILL
//!   second errand   | filter | opens, compares, works, closes, opens, compares, closes      | ends
//!   parent                                                          | opens without a filter, compares, verifies
//! ```
//!
//! An errand has a second writer and readers beside it. The filter comes for all threads at once while they work. A cell
//! passes if no call of the store fails, nothing acknowledged is lost, and the store told what it fell back to.
//!
//! Invariant: a run tries all of its cells, also after a failure, because the matrix as a whole says what is refused where.

use std::path::{Path, PathBuf};

use clap::Args;
use fastrand::Rng;

use crate::errand::refusal;
use crate::errand::terms::{Mode, OLD_WAIT, PAGE_CACHE, SYSTEM_CALLS};
use crate::errand::work::Work;
use crate::lack::Lack;
use crate::report::{Check, Failure, Tally, say};
use crate::runner::{self, Cases, Settings};

/// Errands per core. They mostly wait for disks, and for the kernel to close AIO contexts.
const LANES_PER_THREAD: usize = 3;

/// Options of the command.
#[derive(Args, Clone, Debug)]
pub(crate) struct SeccompArgs {
    /// Only the cells whose name (`statx/EPERM/start`) contains one of these texts, with commas between them.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where the stores are made; by default in the directory for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many times to try each cell, with another moment and another way of syncing each time.
    #[arg(long, default_value_t = 1)]
    times: u64,
    /// Fail if no call can be refused on this machine.
    #[arg(long)]
    require: bool,
    /// Run only this case.
    #[arg(long)]
    case: Option<u64>,
}

/// Refused together.
#[derive(Debug)]
struct Group {
    name: &'static str,
    calls: &'static str,
    /// The way around them that a store must take. The second errand always starts under the filter.
    must: Option<&'static str>,
    /// Others that it may take.
    may: &'static [&'static str],
}

const fn group(name: &'static str) -> Group {
    Group { name, calls: name, must: None, may: &[] }
}

static GROUPS: [Group; 11] = [
    Group { must: Some(SYSTEM_CALLS), ..group("io_setup") },
    Group { may: &[SYSTEM_CALLS], ..group("io_destroy") },
    Group { must: Some(SYSTEM_CALLS), ..group("io_submit") },
    Group { may: &[SYSTEM_CALLS], ..group("io_getevents") },
    Group { must: Some(OLD_WAIT), ..group("io_pgetevents") },
    Group { may: &[SYSTEM_CALLS], ..group("io_cancel") },
    group("fallocate"),
    group("statx"),
    group("preadv2"),
    group("pwritev2"),
    Group {
        name: "aio",
        calls: "io_setup,io_destroy,io_submit,io_getevents,io_pgetevents,io_cancel",
        must: Some(SYSTEM_CALLS),
        may: &[OLD_WAIT],
    },
];
const ERRNOS: [&str; 4] = ["ENOSYS", "EPERM", "EACCES", "EINVAL"];
const MOMENTS: [&str; 2] = ["start", "middle"];

/// One cell of the matrix.
#[derive(Clone, Copy, Debug)]
struct Cell {
    group: &'static Group,
    errno: &'static str,
    moment: &'static str,
}

const CELLS: usize = GROUPS.len() * ERRNOS.len() * MOMENTS.len();

impl Cell {
    fn of(number: usize) -> Cell {
        let (rest, moment) = (number / MOMENTS.len(), number % MOMENTS.len());
        let (group, errno) = (rest / ERRNOS.len() % GROUPS.len(), rest % ERRNOS.len());
        Cell { group: &GROUPS[group], errno: ERRNOS[errno], moment: MOMENTS[moment] }
    }

    fn of_case(case: u64) -> Cell {
        Cell::of(usize::try_from(case % CELLS as u64).unwrap_or(0))
    }

    fn name(&self) -> String {
        format!("{}/{}/{}", self.group.name, self.errno, self.moment)
    }
}

/// Runs the command.
///
/// # Errors
/// The number of failed cells; or `require` is set and this machine has no seccomp filters.
pub(crate) fn run(settings: &Settings, args: &SeccompArgs) -> Check<Tally> {
    if let Some(lack) = refusal::lack() {
        if args.require {
            return Err(Failure::new(format!("no call can be refused on this machine: {lack}")));
        }
        say(format!("seccomp: *** SKIPPED: no call can be refused on this machine: {lack} ***"));
        let mut tally = Tally::default();
        tally.counts.add("skipped", 1);
        return Ok(tally);
    }
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let root = root.join(format!("kvtorture-seccomp-{}", std::process::id()));
    let is_chosen = |case: &u64| {
        let name = Cell::of_case(*case).name();
        args.only.is_empty() || args.only.iter().any(|text| name.contains(text))
    };
    let order: Vec<u64> = match args.case {
        Some(case) => vec![case],
        None => (0..CELLS as u64 * args.times.max(1)).filter(is_chosen).collect(),
    };
    if order.is_empty() {
        return Err(Failure::new("no cell has such a name: try `--only io_setup/EPERM/start`"));
    }
    let lanes = settings.threads * LANES_PER_THREAD;
    let settings = &Settings { threads: lanes, clock: aio::NativeBackend::new(), ..*settings };
    let mut tally = runner::survey(
        settings,
        &Cases {
            replay: "seccomp --case",
            first: 0,
            count: order.len() as u64,
            order: &order,
            round: u64::MAX,
            enough: &|_| false,
            run: &|case| {
                let cell = Cell::of_case(case);
                let seed = settings.case_seed(case);
                one(&root.join(case.to_string()), &cell, seed).map_err(|failure| failure.at(cell.name()))
            },
        },
    )?;
    tally.counts.add("planned", order.len() as u64);
    // Fails unless the directory is empty, which it is if no cell failed.
    let _ = std::fs::remove_dir(&root);
    Ok(tally)
}

/// Writes that an errand makes after the filter has come: every kind of call is among them.
const MORE: u64 = 70;

/// Tries one cell.
fn one(dir: &Path, cell: &Cell, seed: u64) -> Check<Tally> {
    let mut rng = Rng::with_seed(seed);
    let mode = [Mode::Threads, Mode::Threads, Mode::Durable][rng.usize(..3)];
    let after = if cell.moment == "start" { 0 } else { rng.u64(30..90) };
    let refuse = format!("{}={}", cell.group.calls, cell.errno);
    let first = ["--endless", "--beside", "--refuse", &refuse, "--refuse-after", &after.to_string()];
    let mut work = Work::begin((dir, mode), &[], &first, None)?;
    let killed = (|| {
        work.go()?;
        let until = after + MORE + rng.u64(..MORE);
        work.until("writes under the filter", |noted| noted.errors > 0 || noted.acknowledged >= until)?;
        work.has_met_no_error()?;
        work.kill()
    })();
    let first = |failure: Failure| failure.at("the first process");
    killed.map_err(first)?;
    // A store that has its contexts when the filter comes may need no other one. All else it meets, and has flushed since.
    if cell.moment == "start" || cell.group.name != "io_setup" {
        told(cell.group, &work).map_err(first)?;
    }

    let commits = (work.noted()?.acknowledged + MORE).to_string();
    work.again(&["--beside", "--refuse", &refuse, "--commits", &commits])?;
    let ended = work.go().and_then(|()| work.ends_unnoticed());
    ended.map_err(|failure| failure.at("the process after the kill"))?;

    let judged = work.judge().map_err(|lack| match lack {
        Lack::Machine(lack) => Failure::new(lack),
        Lack::Store(failure) => failure,
    })?;
    told(cell.group, &work)?;
    let mut tally = Tally::default();
    tally.counts.merge(&judged);
    tally.counts.add("cells", 1);
    tally.counts.add("fell_back", u64::from(!work.fell_back().is_empty()));
    tally.operations.add(cell.group.name, 1);
    work.remove()?;
    Ok(tally)
}

/// The store told the ways around the refused calls, and no others.
fn told(group: &Group, work: &Work) -> Check {
    let told = work.fell_back();
    if let Some(must) = group.must.filter(|must| !told.contains(*must)) {
        return Err(Failure::new(format!("it did not tell that it fell back to {must}, but {told:?}")));
    }
    // The page cache depends on the file system alone.
    let explained =
        |way: &&String| [PAGE_CACHE].iter().chain(group.may).chain(&group.must).any(|known| known == *way);
    match told.iter().find(|way| !explained(way)) {
        Some(way) => Err(Failure::new(format!("it fell back to {way}, although nothing asked for that"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_is_refused_with_every_answer_at_every_moment() {
        let names: BTreeSet<String> = (0..CELLS).map(|number| Cell::of(number).name()).collect();
        assert_eq!(names.len(), 11 * 4 * 2);
        for group in &GROUPS {
            for errno in ERRNOS {
                let text = format!("{}={errno}", group.calls);
                assert!(text.parse::<refusal::Refusal>().is_ok(), "{text}");
            }
        }
    }
}
