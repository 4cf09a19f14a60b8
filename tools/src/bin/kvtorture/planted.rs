//! `planted`: each bug of [`aio::Bug`] must be found, by layers that do not know which one is awake.
//!
//! Each layer runs as a child of this binary with the bug's name in its environment, in slices that grow, until one of
//! them fails or the time for the bug is over. A child that panics, dies or hangs has found it, too. Before that every
//! layer runs without a bug, and must find nothing.

use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aio::{Backend as _, Bug, NativeBackend};

use crate::report::{Check, Failure, Tally, say};
use crate::runner::Settings;

/// The layers, cheapest first, with what makes a short run of each a broad one.
const LAYERS: [&[&str]; 4] = [&["model"], &["sim"], &["errors", "--step", "23"], &["sweep", "--step", "97"]];

/// A bug that is not found in this time is a failure.
const TIME_FOR_A_BUG: Duration = Duration::from_mins(1);

/// The first slice of each layer; every round doubles it.
const FIRST_SLICE: Duration = Duration::from_secs(1);

/// How long each layer must find nothing before that.
const CLEAN_SLICE: Duration = Duration::from_secs(4);

/// A child that runs this much longer than its slice hangs.
const GRACE: Duration = Duration::from_secs(10);

/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What became of one bug.
struct Finding {
    bug: Bug,
    /// The layer that found it, and how.
    by: Option<(&'static str, &'static str)>,
    took: Duration,
}

/// Runs the bugs whose name contains `only`; fails if one of them is not found.
pub(crate) fn run(settings: &Settings, only: &str) -> Check<Tally> {
    if !cfg!(planted) {
        return Err(Failure::new(
            "this build has no planted bugs: build with RUSTFLAGS=\"--cfg planted\" and a target directory of its own",
        ));
    }
    clean(settings)?;
    let bugs: Vec<Bug> =
        Bug::ALL.iter().map(|(bug, _)| *bug).filter(|bug| bug.name().contains(only)).collect();
    let (next, findings) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..settings.threads {
            scope.spawn(|| {
                while let Some(&bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let finding = hunt(settings, bug);
                    tell(&finding);
                    findings.lock().expect("no hunter panics").push(finding);
                }
            });
        }
    });
    conclude(&findings.into_inner().expect("no hunter panics"))
}

fn clean(settings: &Settings) -> Check {
    for layer in LAYERS {
        if let Some(how) = slice(settings, layer, None, Slice { length: CLEAN_SLICE, nth: 0 }) {
            return Err(Failure::new(format!("{} {how} although no bug is awake", layer[0])));
        }
    }
    Ok(())
}

fn hunt(settings: &Settings, bug: Bug) -> Finding {
    let started = settings.clock.now();
    let mut part = Slice { length: FIRST_SLICE, nth: 0 };
    loop {
        for layer in LAYERS {
            let how = slice(settings, layer, Some(bug), part);
            let took = settings.clock.now().saturating_sub(started);
            if let Some(how) = how {
                return Finding { bug, by: Some((layer[0], how)), took };
            }
            if took >= TIME_FOR_A_BUG {
                return Finding { bug, by: None, took };
            }
        }
        part = Slice { length: part.length * 2, nth: part.nth + 1 };
    }
}

/// How long a layer runs. Each has a seed of its own, so that none begins with the cases of the one before.
#[derive(Clone, Copy)]
struct Slice {
    length: Duration,
    nth: u64,
}

/// Runs one layer for a while; how it ended, if not well.
fn slice(settings: &Settings, layer: &[&str], bug: Option<Bug>, part: Slice) -> Option<&'static str> {
    let clock = NativeBackend::new();
    let mut command = Command::new(std::env::current_exe().expect("a running program has a path"));
    let (seconds, seed) = (part.length.as_secs().to_string(), settings.seed + part.nth);
    command.args(layer).args(["--threads", "1", "--time", &seconds, "--seed", &seed.to_string()]);
    command.env_remove("ESKER_PLANTED").stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    if let Some(bug) = bug {
        command.env("ESKER_PLANTED", bug.name());
    }
    let mut child = command.spawn().expect("this program can start itself");
    let status = loop {
        match child.try_wait().expect("the child is ours") {
            Some(status) => break Some(status),
            None if clock.now() > part.length + GRACE => break None,
            None => clock.park(POLL),
        }
    };
    if status.is_none() {
        child.kill().expect("the child is ours");
        child.wait().expect("the child is ours");
    }
    how_it_ended(status)
}

fn how_it_ended(status: Option<ExitStatus>) -> Option<&'static str> {
    match status.map(|status| (status.success(), status.code())) {
        None => Some("hung"),
        Some((true, _)) => None,
        Some((false, Some(1))) => Some("failed"),
        Some((false, _)) => Some("died"),
    }
}

fn tell(finding: &Finding) {
    let seconds = finding.took.as_secs_f64();
    match finding.by {
        Some((layer, how)) => say(format!("{:<32} {seconds:5.1} s  {layer} {how}", finding.bug.name())),
        None => say(format!("{:<32} {seconds:5.1} s  NOT FOUND", finding.bug.name())),
    }
}

fn conclude(findings: &[Finding]) -> Check<Tally> {
    let missed: Vec<String> =
        findings.iter().filter(|finding| finding.by.is_none()).map(|finding| finding.bug.name()).collect();
    if !missed.is_empty() {
        return Err(Failure::new(format!("not found in {TIME_FOR_A_BUG:?}: {}", missed.join(", "))));
    }
    let mut tally = Tally::default();
    let slowest = findings.iter().map(|finding| finding.took.as_secs()).max().unwrap_or(0);
    tally.counts.add("planted", findings.len() as u64);
    tally.counts.add("found", findings.len() as u64);
    tally.counts.add("slowest_seconds", slowest);
    Ok(tally)
}
