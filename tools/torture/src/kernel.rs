//! `kernel`: power cuts below the real file systems of the running kernel.
//!
//! The store works on ext4, XFS or btrfs, mounted by the kernel on a disk of ours, which logs every write and every flush.
//! From that log the states are rebuilt that a power cut could have left. The kernel mounts each (and replays its journal),
//! the production recovery opens the store, and all of it is compared with the model.
//!
//! Then the disk fails in the middle of incarnations and of recoveries, in every way and at every kind of file; and file
//! systems are shut down below a store that writes.
//!
//! This tests the assumptions of `sim` about a file system. A run does not replay exactly, because the kernel has its own
//! threads; `--keep` keeps the disk that shows a failure.

mod device;
mod explore;
mod fault;
mod fuse;
mod hand;
mod image;
mod lane;
mod matrix;
mod media;
mod protocol;
mod shutdown;

use std::ops::Range;
use std::path::{Path, PathBuf};

use aio::{Backend as _, NativeBackend};
use fastrand::Rng;
use parking_lot::Mutex;

use self::explore::{KernelExplorer, Left};
use self::lane::Lane;
use self::protocol::{Allow, Play};
use crate::config::CONFIGS;
use crate::explore::Distinct;
use crate::report::{Check, Counts, Failure, Tally, say};
use crate::runner::{self, Cases, Settings};

pub(crate) use self::hand::run as run_hand;
pub(crate) use self::protocol::Fs;

/// XFS and btrfs are slower: they get one state for this many of ext4.
const SLOWER: u64 = 10;

/// Lanes per core. A check of a state mostly waits for the kernel, which mounts file systems and closes AIO contexts.
const LANES_PER_THREAD: usize = 4;

/// The message for a machine that lacks everything: that is no success.
const NOTHING_TRIED: &str = "kernel: nothing could be tried on this machine";

/// Incarnations of one workload.
const INCARNATIONS: usize = 2;

/// The extent of a run.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) systems: &'a [Fs],
    /// Different states on ext4; a tenth of that on the others.
    pub(crate) states: u64,
    pub(crate) keep: Option<&'a Path>,
    /// Disks that break during an incarnation, on each file system.
    pub(crate) faults: u64,
    /// How many times every illness is tried at every kind of file, on ext4 and XFS.
    pub(crate) rounds: u64,
    /// Shutdowns on ext4 and XFS, and as many incarnations on btrfs whose disk is copied.
    pub(crate) shutdowns: u64,
    /// Succeed on a machine on which nothing can be tried.
    pub(crate) may_skip: bool,
    /// Only this case of this part.
    pub(crate) only: Option<(Part, u64)>,
}

/// The parts of a run, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Cuts,
    Faults,
    Cells,
    Shutdowns,
}

impl Part {
    /// The option that selects one case of a part.
    fn name(self) -> &'static str {
        match self {
            Part::Cuts => "case",
            Part::Faults => "fault",
            Part::Cells => "cell",
            Part::Shutdowns => "shutdown",
        }
    }
}

const PARTS: [Part; 4] = [Part::Cuts, Part::Faults, Part::Cells, Part::Shutdowns];

/// The data that all parts of a run on one file system share.
struct FsRun<'a> {
    settings: &'a Settings,
    plan: &'a Plan<'a>,
    fs: Fs,
    /// The free lanes.
    lanes: Mutex<Vec<Lane>>,
}

/// Tries every file system that this machine has.
///
/// # Errors
/// The first failure; or nothing could be tried.
pub(crate) fn run(settings: &Settings, plan: &Plan<'_>) -> Check<Tally> {
    let lanes = settings.threads * LANES_PER_THREAD;
    let settings = &Settings { threads: lanes, clock: NativeBackend::new(), ..*settings };
    let mut tally = Tally::default();
    let mut tried = 0;
    for &fs in plan.systems {
        let lane =
            match lack_of(fs).map_or_else(|| Lane::new(fs, settings.seed), |lack| Err(Failure::new(lack))) {
                Ok(lane) => lane,
                Err(lack) => {
                    skip(&mut tally, &format!("{}: {lack}", fs.name()));
                    continue;
                }
            };
        tried += 1;
        let run = FsRun { settings, plan, fs, lanes: Mutex::new(vec![lane]) };
        for part in PARTS {
            if plan.only.is_none_or(|(only, _)| only == part) {
                run.part(part, &mut tally)?;
            }
        }
    }
    if tried == 0 && plan.may_skip {
        say("kernel: SKIPPED everything: on this machine NOTHING WAS TRIED below real file systems");
    } else if tried == 0 {
        return Err(Failure::new(NOTHING_TRIED));
    }
    Ok(tally)
}

fn skip(tally: &mut Tally, what: &str) {
    say(format!("kernel: SKIPPED {what}"));
    tally.counts.add("skipped", 1);
}

impl FsRun<'_> {
    /// Runs a part, and reports its result.
    fn part(&self, part: Part, tally: &mut Tally) -> Check {
        if part == Part::Shutdowns && self.fs != Fs::Btrfs && !is_program("xfs_io") {
            skip(tally, &format!("shutdowns of {}: there is no program xfs_io", self.fs.name()));
            return Ok(());
        }
        let began = self.settings.clock.now();
        let found = match part {
            Part::Cuts => self.cut_power()?,
            Part::Faults => {
                let run = |lane: &mut Lane, _, seed| media::break_disk(lane, seed);
                self.cases(part, self.plan.faults, &media::COUNTS, run)?
            }
            // btrfs has its own checksums, and moves written data.
            Part::Cells if self.fs == Fs::Btrfs => return Ok(()),
            Part::Cells => {
                let count = self.plan.rounds * matrix::CELLS;
                self.cases(part, count, &matrix::COUNTS, matrix::try_cell)?
            }
            Part::Shutdowns => {
                let fs = self.fs;
                let end = |lane: &mut Lane, _, seed| shutdown::end(lane, fs, seed);
                let tally = self.cases(part, self.plan.shutdowns, &shutdown::COUNTS, end)?;
                let killed = tally.counts.get(shutdown::KILLED);
                if killed > self.plan.shutdowns.div_ceil(20) {
                    return Err(Failure::new(format!("the kernel killed {killed} processes by SIGBUS")));
                }
                tally
            }
        };
        let took = self.settings.clock.now().saturating_sub(began).as_secs_f64();
        let count = |name| found.counts.get(name);
        let what = match part {
            Part::Cuts => format!("{} distinct states, none wrong", count("distinct")),
            Part::Faults => format!("{} times the disk broke, nothing lost", count("faults_struck")),
            Part::Cells => format!(
                "{} illnesses of the disk, {} lies found out, {} harmless, {} undetectable by design",
                count("cells_struck"),
                count("detected"),
                count("harmless"),
                count("undetectable_by_design")
            ),
            Part::Shutdowns if self.fs == Fs::Btrfs => {
                format!("{} copies of living disks opened, none wrong", count("copies_opened"))
            }
            Part::Shutdowns => format!(
                "{} shutdowns, nothing lost, {} processes killed by SIGBUS",
                count("shutdowns"),
                count(shutdown::KILLED)
            ),
        };
        say(format!("kernel: {}: {what} ({took:.1} s)", self.fs.name()));
        if part == Part::Cuts {
            tally.counts.add(distinct_on(self.fs), count("distinct"));
        }
        tally.merge(&found);
        Ok(())
    }
}

impl FsRun<'_> {
    /// Tests different states that a power cut can leave.
    ///
    /// # Errors
    /// One state is wrong; or there are fewer states than requested, although there was time.
    fn cut_power(&self) -> Check<Tally> {
        let FsRun { settings, plan, fs, .. } = *self;
        let asked = if fs == Fs::Ext4 { plan.states } else { plan.states.div_ceil(SLOWER) };
        let distinct = Distinct::new();
        let cases = self.numbers(Part::Cuts, u64::MAX);
        let mut tally = runner::run(
            settings,
            &Cases {
                replay: &format!("kernel --fs {} --{}", fs.name(), Part::Cuts.name()),
                first: cases.start,
                count: cases.end - cases.start,
                order: &[],
                round: settings.threads as u64,
                enough: &|_| distinct.len() >= asked,
                run: &|case| {
                    let mut explorer =
                        KernelExplorer::new(settings, (&distinct, asked), plan.keep, (fs, case));
                    let seed = settings.case_seed(case);
                    self.on_lane(seed, |lane| workload(lane, &mut explorer, seed))
                },
            },
        )?;
        let found = tally.counts.get("distinct");
        if found < asked && plan.only.is_none() {
            let what = format!("{}: {found} distinct states of {asked} that were asked for", fs.name());
            if !settings.is_over() {
                return Err(Failure::new(what));
            }
            say(format!("kernel: CUT SHORT {what}"));
        }
        tally.counts.add("asked", asked);
        Ok(tally)
    }

    /// The requested number of cases, or the selected one.
    fn cases(
        &self,
        part: Part,
        count: u64,
        counts: &[&'static str],
        run: impl Fn(&mut Lane, u64, u64) -> Check<Tally> + Sync,
    ) -> Check<Tally> {
        let settings = self.settings;
        let cases = self.numbers(part, count);
        let mut tally = Tally { counts: Counts::of(counts), ..Tally::default() };
        tally.merge(&runner::run(
            settings,
            &Cases {
                replay: &format!("kernel --fs {} --{}", self.fs.name(), part.name()),
                first: cases.start,
                count: cases.end - cases.start,
                order: &[],
                round: u64::MAX,
                enough: &|_| false,
                run: &|case| {
                    let seed = settings.case_seed(case);
                    self.on_lane(seed, |lane| run(lane, case, seed))
                },
            },
        )?);
        Ok(tally)
    }

    fn numbers(&self, part: Part, count: u64) -> Range<u64> {
        match self.plan.only {
            Some((only, case)) if only == part => case..case + 1,
            _ => 0..count,
        }
    }

    /// Runs a case on a free lane, or on a new one. A lane that failed is not used again.
    fn on_lane(&self, seed: u64, run: impl FnOnce(&mut Lane) -> Check<Tally>) -> Check<Tally> {
        let free = self.lanes.lock().pop();
        let mut lane = match free {
            Some(lane) => lane,
            None => Lane::new(self.fs, seed)?,
        };
        let tally = run(&mut lane)?;
        self.lanes.lock().push(lane);
        Ok(tally)
    }
}

/// Some incarnations of one store: each continues on the remains of a power cut in the one before.
fn workload(lane: &mut Lane, explorer: &mut KernelExplorer<'_>, seed: u64) -> Check<Tally> {
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally::default();
    let threads = rng.bool();
    let mut left: Option<Left> = None;
    lane.clear();
    for _ in 0..INCARNATIONS {
        let play = Play {
            seed: rng.u64(..),
            ops: rng.usize(5..45),
            config: rng.usize(..CONFIGS.len()),
            threads,
            bounds: left.as_ref().map(|left| left.bounds.clone()),
            stays: false,
            allow: Allow::None,
            shutdown: None,
        };
        if let Some(left) = left {
            lane.device.set_image(left.image);
        }
        let incarnation = lane.play(play)?;
        if let Some(wrong) = incarnation.wrong {
            return Err(Failure::new(wrong).at("while the store lived"));
        }
        tally.counts.add("incarnations", 1);
        tally.counts.add("operations_run", incarnation.stamps.len() as u64);
        left = explorer.explore(lane, &incarnation)?;
        if left.is_none() {
            break;
        }
    }
    tally.counts.add("workloads", 1);
    tally.counts.merge(&std::mem::take(&mut explorer.counts));
    Ok(tally)
}

/// The missing parts of this machine for the file system of this name.
pub(crate) fn lack(name: &str) -> Option<String> {
    let fs = [Fs::Ext4, Fs::Xfs, Fs::Btrfs].into_iter().find(|fs| fs.name() == name);
    fs.map_or_else(|| Some("it is not tried".to_owned()), lack_of)
}

fn lack_of(fs: Fs) -> Option<String> {
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
    // A module may still be loaded at the mount. If it cannot be, the mount reports it.
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
