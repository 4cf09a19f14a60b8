//! `planted`: each bug of the lists of `aio`, `wal` and `esker` must be found by layers that do not know which one is enabled.
//!
//! Each layer runs as a child of this binary with the name of the bug in its environment. The time slices grow until one
//! layer fails or the time for the bug is over. A child that panics, dies or hangs has found the bug, too. Before that
//! every layer runs without a bug and must find nothing.
//!
//! With `--kernel` there is only the layer `kernel`, which needs root: power cuts below a real file system must find each
//! missing sync.

use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use esker::testing::planted as engine;

use crate::kernel;
use crate::report::{Check, Failure, Tally, say};
use crate::runner::Settings;

/// The layers, cheapest first, with the options that make a short run of each a broad one.
const LAYERS: [&[&str]; 4] = [&["model"], &["sim"], &["errors", "--step", "23"], &["sweep", "--step", "97"]];

/// Missing syncs, and a file system below which each must be found. On ext4 the sync of any file also writes back
/// everything that was written to other files before it.
const UNSYNCED: [(&str, &str); 4] = [
    (wal::planted::Bug::LogNotSynced.name(), "ext4"),
    (wal::planted::Bug::LogSyncedBeforeTheWrite.name(), "ext4"),
    (engine::Bug::ManifestNotSynced.name(), "ext4"),
    (engine::Bug::SegmentNotSynced.name(), "btrfs"),
];

/// The first slice of `kernel`, which has to make file systems first.
const KERNEL_SLICE: Duration = Duration::from_secs(5);

/// A bug that is not found within this time is a failure. On an idle machine, with any seed, half a minute is enough.
const TIME_FOR_A_BUG: Duration = Duration::from_mins(4);

/// The first slice of each layer; every round doubles it.
const FIRST_SLICE: Duration = Duration::from_secs(1);

/// The time for which each layer must find nothing before the first bug.
const CLEAN_SLICE: Duration = Duration::from_secs(4);

/// A child that exceeds its slice by this much hangs.
const GRACE: Duration = Duration::from_secs(10);

/// The interval between two looks at a child.
const POLL: Duration = Duration::from_millis(10);

/// The names of all bugs that one thread can notice.
fn all() -> impl Iterator<Item = &'static str> {
    let lists = [aio::planted::Bug::ALL, wal::planted::Bug::ALL, engine::Bug::ALL];
    lists.into_iter().flatten().map(|(name, _)| *name)
}

/// The bug that is enabled in this process must be one of them: a misspelt name would enable none.
pub(crate) fn check_name() -> Check {
    match std::env::var("ESKER_PLANTED") {
        Ok(name) if cfg!(planted) && !all().any(|bug| bug == name) => {
            Err(Failure::new(format!("ESKER_PLANTED={name} is not a planted bug")))
        }
        _ => Ok(()),
    }
}

/// The result for one bug.
struct Finding {
    bug: &'static str,
    /// The layer that found it, and its finding.
    by: Option<(&'static str, &'static str)>,
    took: Duration,
}

/// Runs the bugs whose name contains `only`. Fails if one of them is not found.
pub(crate) fn run(settings: &Settings, only: &str) -> Check<Tally> {
    must_be_planted()?;
    for layer in LAYERS {
        clean(settings, layer, CLEAN_SLICE)?;
    }
    let bugs: Vec<&str> = all().filter(|bug| bug.contains(only)).collect();
    let (next, findings) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..settings.threads {
            scope.spawn(|| {
                while let Some(&bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let finding = hunt(settings, bug, &LAYERS, FIRST_SLICE);
                    tell(&finding);
                    findings.lock().expect("no hunter panics").push(finding);
                }
            });
        }
    });
    conclude(&findings.into_inner().expect("no hunter panics"))
}

/// Runs the missing syncs below real file systems. Fails if one of them is not found.
pub(crate) fn run_below(settings: &Settings) -> Check<Tally> {
    must_be_planted()?;
    let mut findings = Vec::new();
    let mut skipped = 0;
    for fs in ["ext4", "btrfs"] {
        let bugs = UNSYNCED.iter().filter(|(_, name)| *name == fs).map(|(bug, _)| *bug);
        if let Some(lack) = kernel::lack(fs) {
            say(format!("planted: SKIPPED {fs}: {lack}"));
            skipped += bugs.count() as u64;
            continue;
        }
        let layer = ["kernel", "--fs", fs, "--faults", "0", "--rounds", "0", "--shutdowns", "0"];
        clean(settings, &layer, KERNEL_SLICE)?;
        for bug in bugs {
            let finding = hunt(settings, bug, &[&layer[..]], KERNEL_SLICE);
            tell(&finding);
            findings.push(finding);
        }
    }
    let mut tally = conclude(&findings)?;
    tally.counts.add("skipped", skipped);
    Ok(tally)
}

fn must_be_planted() -> Check {
    if cfg!(planted) {
        return Ok(());
    }
    Err(Failure::new(
        "this build has no planted bugs: build with RUSTFLAGS=\"--cfg planted\" and a target directory of its own",
    ))
}

fn clean(settings: &Settings, layer: &[&str], length: Duration) -> Check {
    match slice(settings, layer, None, Slice { length, nth: 0 }) {
        Some(how) => Err(Failure::new(format!("{} {how} although no bug is awake", layer[0]))),
        None => Ok(()),
    }
}

fn hunt(settings: &Settings, bug: &'static str, layers: &[&[&'static str]], first: Duration) -> Finding {
    let started = settings.clock.now();
    let mut part = Slice { length: first, nth: 0 };
    loop {
        for &layer in layers {
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

/// The time for one layer. Each run has its own seed, so no run begins with the cases of the previous one.
#[derive(Clone, Copy)]
struct Slice {
    length: Duration,
    nth: u64,
}

/// Runs one layer for a while. Returns how it ended, unless it ended well.
fn slice(settings: &Settings, layer: &[&str], bug: Option<&str>, part: Slice) -> Option<&'static str> {
    let clock = NativeBackend::new();
    let mut command = Command::new(std::env::current_exe().expect("a running program has a path"));
    let (seconds, seed) = (part.length.as_secs().to_string(), settings.seed.wrapping_add(part.nth));
    command.args(layer).args(["--threads", "1", "--time", &seconds, "--seed", &seed.to_string()]);
    command.env_remove("ESKER_PLANTED").stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    if let Some(bug) = bug {
        command.env("ESKER_PLANTED", bug);
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
        Some((layer, how)) => say(format!("{:<32} {seconds:5.1} s  {layer} {how}", finding.bug)),
        None => say(format!("{:<32} {seconds:5.1} s  NOT FOUND", finding.bug)),
    }
}

fn conclude(findings: &[Finding]) -> Check<Tally> {
    let missed: Vec<&str> =
        findings.iter().filter(|finding| finding.by.is_none()).map(|finding| finding.bug).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_planted_bugs_are_unique() {
        let by_threads =
            [aio::planted::Bug::IN_SCHEDULES, wal::planted::Bug::IN_SCHEDULES, engine::Bug::IN_SCHEDULES];
        let others = by_threads
            .into_iter()
            .chain([wal::planted::Bug::IN_UNITS, engine::Bug::IN_UNITS])
            .flatten()
            .map(|(name, _)| *name);
        let names: Vec<_> = all().chain(others).collect();
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "{names:?}");
        assert!(names.len() >= 60, "{} bugs", names.len());
    }
}
