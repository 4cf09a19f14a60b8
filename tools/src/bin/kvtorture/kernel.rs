//! `kernel`: power cuts below the real file systems of the kernel that runs.
//!
//! The store works on ext4, XFS or btrfs, mounted by the kernel on a disk of ours, which notes every write and every
//! flush. From that log the states are rebuilt that a power cut could have left; the kernel mounts each (and replays its
//! journal), the store is opened by the production recovery, and all of it is compared with the model.
//!
//! What `sim` assumes of a file system is tried here. A run does not replay exactly, since the kernel has threads of
//! its own; the disk that shows a failure is kept with `--keep`.

mod device;
mod explore;
mod fuse;
mod hand;
mod image;
mod lane;
mod media;
mod protocol;

use std::path::{Path, PathBuf};

use aio::{Backend as _, NativeBackend};
use fastrand::Rng;
use parking_lot::Mutex;

use self::explore::{Explorer, Left};
use self::lane::Lane;
use self::protocol::Play;
use crate::config::CONFIGS;
use crate::explore::Distinct;
use crate::report::{Check, Counts, Failure, Tally, say};
use crate::runner::{self, Cases, Settings};

pub(crate) use self::hand::run as run_hand;
pub(crate) use self::protocol::Fs;

/// XFS and btrfs are slower: they get one state for so many of ext4.
const SLOWER: u64 = 10;

/// A look at a state waits most of its time, for the kernel to mount and to close contexts of AIO: so many lanes share
/// a core.
const LANES_PER_THREAD: usize = 4;

/// What a machine is told that lacks everything: it is no success.
const NOTHING_TRIED: &str = "kernel: nothing could be tried on this machine";

/// Lives of one workload.
const LIVES: usize = 2;

/// What to try.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) systems: &'a [Fs],
    /// Different states on ext4; a tenth of it on the others.
    pub(crate) states: u64,
    pub(crate) keep: Option<&'a Path>,
    /// Disks that break in a life, on each file system.
    pub(crate) faults: u64,
    /// This workload only.
    pub(crate) case: Option<u64>,
    /// This broken disk only.
    pub(crate) fault: Option<u64>,
}

/// Tries every file system that this machine has.
///
/// # Errors
/// The first failure; or there was nothing that could be tried.
pub(crate) fn run(settings: &Settings, plan: &Plan<'_>) -> Check<Tally> {
    let lanes = settings.threads * LANES_PER_THREAD;
    let settings = &Settings { threads: lanes, clock: NativeBackend::new(), ..*settings };
    let mut tally = Tally::default();
    let mut tried = 0;
    for &fs in plan.systems {
        let lane = match lack(fs).map_or_else(|| Lane::new(fs, settings.seed), |lack| Err(Failure::new(lack)))
        {
            Ok(lane) => lane,
            Err(lack) => {
                say(format!("kernel: SKIPPED {}: {lack}", fs.name()));
                tally.counts.add("skipped", 1);
                continue;
            }
        };
        tried += 1;
        let lanes = Mutex::new(vec![lane]);
        if plan.fault.is_none() {
            let began = settings.clock.now();
            let found = cut_power(settings, plan, fs, &lanes)?;
            let (name, took) = (fs.name(), settings.clock.now().saturating_sub(began).as_secs_f64());
            let distinct = found.counts.get("distinct");
            say(format!("kernel: {name}: {distinct} distinct states in {took:.1} s, none wrong"));
            tally.counts.add(distinct_on(fs), distinct);
            tally.merge(&found);
        }
        if plan.case.is_none() {
            let began = settings.clock.now();
            let found = break_disks(settings, plan, fs, &lanes)?;
            let (name, took) = (fs.name(), settings.clock.now().saturating_sub(began).as_secs_f64());
            let struck = found.counts.get("faults_struck");
            say(format!("kernel: {name}: {struck} times the disk broke, in {took:.1} s, nothing lost"));
            tally.merge(&found);
        }
    }
    if tried == 0 {
        return Err(Failure::new(NOTHING_TRIED));
    }
    Ok(tally)
}

/// Different states that a power cut can leave.
fn cut_power(settings: &Settings, plan: &Plan<'_>, fs: Fs, lanes: &Mutex<Vec<Lane>>) -> Check<Tally> {
    let states = if fs == Fs::Ext4 { plan.states } else { plan.states.div_ceil(SLOWER) };
    let distinct = Distinct::new();
    runner::run(
        settings,
        &Cases {
            replay: &format!("kernel --fs {} --case", fs.name()),
            first: plan.case.unwrap_or(0),
            count: plan.case.map_or(u64::MAX, |_| 1),
            order: &[],
            round: settings.threads as u64,
            enough: &|tally| tally.counts.get("distinct") >= states,
            run: &|case| {
                let mut explorer = Explorer::new(settings, &distinct, plan.keep, (fs, case));
                let seed = settings.case_seed(case);
                on_lane(fs, lanes, seed, |lane| workload(lane, &mut explorer, seed))
            },
        },
    )
}

/// Disks that break in the middle of a life, and in a recovery.
fn break_disks(settings: &Settings, plan: &Plan<'_>, fs: Fs, lanes: &Mutex<Vec<Lane>>) -> Check<Tally> {
    let mut tally = Tally { counts: Counts::of(&media::COUNTS), ..Tally::default() };
    tally.merge(&runner::run(
        settings,
        &Cases {
            replay: &format!("kernel --fs {} --fault", fs.name()),
            first: plan.fault.unwrap_or(0),
            count: plan.fault.map_or(plan.faults, |_| 1),
            order: &[],
            round: u64::MAX,
            enough: &|_| false,
            run: &|case| {
                let seed = settings.case_seed(case);
                on_lane(fs, lanes, seed, |lane| media::break_disk(lane, seed))
            },
        },
    )?);
    Ok(tally)
}

/// Runs a case on a lane that is free, or on a new one. One that failed is not used again.
fn on_lane(
    fs: Fs,
    lanes: &Mutex<Vec<Lane>>,
    seed: u64,
    run: impl FnOnce(&mut Lane) -> Check<Tally>,
) -> Check<Tally> {
    let free = lanes.lock().pop();
    let mut lane = match free {
        Some(lane) => lane,
        None => Lane::new(fs, seed)?,
    };
    let tally = run(&mut lane)?;
    lanes.lock().push(lane);
    Ok(tally)
}

/// Some lives of one store: each goes on with what a power cut has left of the one before.
fn workload(lane: &mut Lane, explorer: &mut Explorer<'_>, seed: u64) -> Check<Tally> {
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally::default();
    let threads = rng.bool();
    let mut left: Option<Left> = None;
    lane.clear();
    for _ in 0..LIVES {
        let play = Play {
            seed: rng.u64(..),
            ops: rng.usize(5..45),
            config: rng.usize(..CONFIGS.len()),
            threads,
            bounds: left.as_ref().map(|left| left.bounds.clone()),
            breaks: false,
        };
        if let Some(left) = left {
            lane.device.set_image(left.image);
        }
        let life = lane.play(play)?;
        if let Some(wrong) = life.wrong {
            return Err(Failure::new(wrong).at("while the store lived"));
        }
        tally.counts.add("lives", 1);
        tally.counts.add("operations_run", life.stamps.len() as u64);
        left = explorer.explore(lane, &life)?;
        if left.is_none() {
            break;
        }
    }
    tally.counts.add("workloads", 1);
    tally.counts.merge(&std::mem::take(&mut explorer.counts));
    Ok(tally)
}

/// What this machine lacks to try a file system.
fn lack(fs: Fs) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting needs root".to_owned());
    }
    if let Some(missing) = ["/dev/fuse", "/dev/loop-control"].iter().find(|path| !Path::new(path).exists()) {
        return Some(format!("there is no {missing}"));
    }
    let mkfs = fs.mkfs().first().copied().unwrap_or_default();
    if let Some(missing) = ["unshare", "losetup", mkfs].iter().find(|name| !is_program(name)) {
        return Some(format!("there is no program {missing}"));
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let is_known = known.lines().any(|line| line.split_whitespace().last() == Some(fs.name()));
    // A module may still be loaded when it is mounted; what cannot be mounted then is said there.
    let has_modules = Path::new("/proc/modules").exists();
    (!is_known && !has_modules).then(|| "the kernel does not know it".to_owned())
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory: PathBuf| directory.join(name).is_file())
}

fn distinct_on(fs: Fs) -> &'static str {
    match fs {
        Fs::Ext4 => "distinct_ext4",
        Fs::Xfs => "distinct_xfs",
        Fs::Btrfs => "distinct_btrfs",
    }
}
