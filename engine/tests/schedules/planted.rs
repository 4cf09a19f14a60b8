//! Each planted bug of [`IN_SCHEDULES`] and of [`ALSO`] must be found by a scenario. `ONLY` filters all planted bugs
//! by name.
//!
//! Every scenario runs as a process of its own with the bug's name in its environment, until one fails.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aio::{Backend, NativeBackend};
use esker::testing::planted as engine;

use crate::run::first_seed;

/// Schedules of each scenario for each bug. The first round is short: most scenarios find a bug soon or never.
const ROUNDS: [&str; 3] = ["100", "1000", "5000"];

/// Processes that run at once.
const CORES: usize = 2;

/// Bugs that tests with one thread find, and schedules find too.
const ALSO: [&str; 4] = [
    wal::planted::Bug::LogErrorNotSticky.name(),
    engine::Bug::FlushBeforeDurable.name(),
    engine::Bug::FlushedTooFar.name(),
    engine::Bug::FrozenTablesNotRead.name(),
];

/// One list of each crate.
type Lists = [&'static [(&'static str, &'static str)]; 3];

const ALL: Lists = [aio::planted::Bug::ALL, wal::planted::Bug::ALL, engine::Bug::ALL];
const IN_SCHEDULES: Lists =
    [aio::planted::Bug::IN_SCHEDULES, wal::planted::Bug::IN_SCHEDULES, engine::Bug::IN_SCHEDULES];

fn names(lists: Lists) -> impl Iterator<Item = &'static str> {
    lists.into_iter().flatten().map(|(name, _)| *name)
}

fn child() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("it is running"));
    command.stdin(Stdio::null()).stderr(Stdio::null()).env("SEED", first_seed().to_string());
    command
}

/// All tests except the one in this file.
fn scenarios() -> Vec<String> {
    let listed = child().args(["--list", "--format", "terse"]).output().expect("it starts");
    let listed = String::from_utf8(listed.stdout).expect("names are text");
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    names.filter(|name| !name.contains("planted")).map(str::to_owned).collect()
}

/// Whether the scenario passes with this bug enabled, or with none.
fn passes(scenario: &str, schedules: &str, bug: Option<&str>) -> bool {
    let mut command = child();
    command.env("SCHEDULES", schedules);
    command.args(["--exact", scenario]).stdout(Stdio::null());
    match bug {
        Some(bug) => command.env("ESKER_PLANTED", bug),
        None => command.env_remove("ESKER_PLANTED"),
    };
    command.status().expect("it starts").success()
}

/// Calls `work` with every item, on [`CORES`] threads.
fn spread<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CORES {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

#[test]
fn every_planted_bug_is_found() {
    let scenarios = scenarios();
    assert!(scenarios.len() >= 12, "{scenarios:?}");
    let only = std::env::var("ONLY").ok().filter(|part| !part.is_empty());
    let bugs: Vec<&str> = match &only {
        Some(part) => names(ALL).chain(names(IN_SCHEDULES)).filter(|bug| bug.contains(part)).collect(),
        None => names(IN_SCHEDULES).chain(ALSO).collect(),
    };
    if only.is_none() {
        spread(&scenarios, |scenario| {
            assert!(passes(scenario, ROUNDS[1], None), "{scenario} fails without a bug")
        });
    }
    let clock = NativeBackend::new();
    let missed = AtomicUsize::new(0);
    spread(&bugs, |bug| {
        let begun = clock.now();
        let rounds = ROUNDS.iter().flat_map(|round| scenarios.iter().map(move |scenario| (scenario, round)));
        let mut found = rounds.filter(|(scenario, round)| !passes(scenario, round, Some(*bug)));
        let by = found.next();
        let took: Duration = clock.now().saturating_sub(begun);
        let how = by.map_or("NOT FOUND".to_owned(), |(by, of)| format!("found by {by} of {of}"));
        println!("{bug}: {how} after {:.1} s", took.as_secs_f64());
        missed.fetch_add(usize::from(by.is_none()), Ordering::Relaxed);
    });
    assert_eq!(missed.into_inner(), 0, "bugs that no schedule showed");
}
