//! The trials: each limits an errand in one way and names the required result.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use aio::{Backend as _, NativeBackend, Queue};
use fastrand::Rng;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use super::disk::{Disk, Format, tool};
use super::places;
use super::terms::{ERRORS, Found, MORE, at_first, io};
use crate::errand::sent::End;
use crate::errand::terms::Mode;
use crate::errand::work::Work;
use crate::lack::Lack;
use crate::report::{Counts, Failure};

/// One trial.
pub(super) struct Trial {
    pub(super) name: &'static str,
    /// Affects the whole machine, so it runs only if its name is given.
    pub(super) of_the_machine: bool,
    /// Runs in the directory. The moment is random.
    pub(super) run: fn(&Path, &mut Rng) -> Found,
}

const fn trial(name: &'static str, run: fn(&Path, &mut Rng) -> Found) -> Trial {
    Trial { name, of_the_machine: false, run }
}

pub(super) static TRIALS: [Trial; 27] = [
    trial("file-size", file_size),
    trial("file-size-deadly", file_size_deadly),
    trial("handles", handles),
    trial("address-space", address_space),
    trial("memory-group", memory_group),
    Trial { of_the_machine: true, ..trial("aio-slots", aio_slots) },
    Trial { of_the_machine: true, ..trial("aio-max-nr", aio_max) },
    trial("sectors-512", places::small_sectors),
    trial("sectors-4k", places::large_sectors),
    trial("xfs", places::xfs),
    trial("btrfs", places::btrfs),
    trial("tmpfs", places::tmpfs),
    trial("overlay", places::overlay),
    trial("fuse", places::fuse),
    trial("sparse-ext4", places::sparse_ext4),
    trial("sparse-xfs", places::sparse_xfs),
    trial("sparse-btrfs", places::sparse_btrfs),
    trial("shared-xfs", places::shared_xfs),
    trial("shared-btrfs", places::shared_btrfs),
    trial("copied-xfs", places::copied_xfs),
    trial("copied-btrfs", places::copied_btrfs),
    trial("full-disk", full_disk),
    trial("frozen", frozen),
    trial("read-only", read_only),
    trial("signals", signals),
    trial("stops", stops),
    trial("undisturbed", undisturbed),
];

const KIB: u64 = 1 << 10;
const SIGXFSZ: i32 = 25;
const SIGKILL: i32 = 9;

/// Sets the soft limit of a process.
fn limit(work: &Work, resource: Resource, current: Option<u64>) -> Result<(), Lack> {
    let maximum = getrlimit(resource).maximum;
    let new = Rlimit { current: current.or(maximum), maximum };
    prlimit(Some(work.pid()?), resource, new).map(drop).map_err(|errno| io("set a limit")(errno.into()))
}

/// Sets a limit for a while: errors, but no end, and writes continue afterwards. Then kills the errand.
fn for_a_while(
    mut work: Work,
    rng: &mut Rng,
    begin: impl FnOnce(&Work) -> Result<(), Lack>,
    end: impl FnOnce(&Work) -> Result<(), Lack>,
) -> Found {
    work.go()?;
    let first = at_first(rng);
    work.until("its first writes", |noted| noted.acknowledged >= first)?;
    begin(&work)?;
    let met = work.noted()?.errors;
    work.until("errors", |noted| noted.errors >= met + ERRORS)?;
    end(&work)?;
    let before = work.noted()?.acknowledged;
    work.until("more writes", |noted| noted.acknowledged >= before + MORE)?;
    work.kill_and_judge()
}

/// Files of at most 20 KiB, with the signal ignored: writes are cut short, and then refused.
fn file_size(dir: &Path, rng: &mut Rng) -> Found {
    let ignoring = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    let work = Work::begin((dir, Mode::Manual), &ignoring, &["--endless"], None)?;
    let bytes = rng.u64(8..24) * KIB;
    for_a_while(
        work,
        rng,
        |work| limit(work, Resource::Fsize, Some(bytes)),
        |work| limit(work, Resource::Fsize, None),
    )
}

/// The same without ignoring the signal: it ends the process, and does no other harm.
fn file_size_deadly(dir: &Path, rng: &mut Rng) -> Found {
    let mut work = Work::begin((dir, Mode::Threads), &[], &["--endless"], None)?;
    work.go()?;
    let first = at_first(rng);
    work.until("its first writes", |noted| noted.acknowledged >= first)?;
    limit(&work, Resource::Fsize, Some(rng.u64(8..24) * KIB))?;
    work.ends(&[End::Signal(SIGXFSZ)])?;
    work.judge()
}

/// No handle more than are open.
fn handles(dir: &Path, rng: &mut Rng) -> Found {
    let work = Work::begin((dir, Mode::Manual), &[], &["--endless"], None)?;
    for_a_while(
        work,
        rng,
        |work| {
            let open = std::fs::read_dir(format!("/proc/{}/fd", work.id())).map_err(io("its handles"))?;
            limit(work, Resource::Nofile, Some(open.count() as u64))
        },
        |work| limit(work, Resource::Nofile, None),
    )
}

/// This much memory beyond the size at the start: an error, or an abort by the allocator, which says so. All sizes at the same
/// time, because an errand mostly waits for memory.
fn address_space(dir: &Path, _: &mut Rng) -> Found {
    let mut works = Vec::new();
    for (nth, kib) in [0, 64, 256, 1 << 10, 4 << 10, 16 << 10, 1 << 20].into_iter().enumerate() {
        let mut work = Work::begin((&dir.join(nth.to_string()), Mode::Threads), &[], &[], None)?;
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", work.id())).map_err(io("its size"))?;
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let size = size.and_then(|size| size.split_whitespace().next()?.parse::<u64>().ok());
        let size = size.ok_or_else(|| Lack::Machine("the size of the process is unknown".to_owned()))?;
        limit(&work, Resource::As, Some((size + kib) * KIB))?;
        work.go()?;
        works.push(work);
    }
    let mut counts = Counts::default();
    for mut work in works {
        if work.ends_for_want_of_memory()? {
            counts.add("ended_by_the_allocator", 1);
        }
        counts.merge(&work.judge()?);
    }
    Ok(counts)
}

/// A control group with too little memory: the kernel kills the process, and nothing is lost.
fn memory_group(dir: &Path, _: &mut Rng) -> Found {
    /// Removes the group; its processes have ended.
    struct Group(std::path::PathBuf);
    impl Drop for Group {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }
    // Another trial may run at the same time.
    let case = dir.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("kvtorture-{}-{case}", std::process::id());
    let first = Path::new("/sys/fs/cgroup/memory").join(&name);
    let second = Path::new("/sys/fs/cgroup").join(&name);
    let (group, file) = if std::fs::create_dir(&first).is_ok() {
        (Group(first), "memory.limit_in_bytes")
    } else if std::fs::create_dir(&second).is_ok() && second.join("memory.max").exists() {
        (Group(second), "memory.max")
    } else {
        // Only the controller is missing here.
        let _ = std::fs::remove_dir(&second);
        return Err(Lack::Machine("no group of memory can be made".to_owned()));
    };
    for (nth, kib) in [4096, 2048, 1024, 512, 256, 128].into_iter().enumerate() {
        let mut work = Work::begin((&dir.join(nth.to_string()), Mode::Threads), &[], &[], None)?;
        let cannot = |error: std::io::Error| Lack::Machine(format!("a group of memory: {error}"));
        std::fs::write(group.0.join(file), (kib * KIB).to_string()).map_err(cannot)?;
        std::fs::write(group.0.join("cgroup.procs"), work.id().to_string()).map_err(cannot)?;
        work.go()?;
        let end = work.ends(&[End::Done, End::Signal(SIGKILL)])?;
        let mut counts = work.judge()?;
        if end == End::Signal(SIGKILL) {
            counts.add("killed_for_memory", 1);
            return Ok(counts);
        }
    }
    Err(Lack::Machine("no limit of memory is felt".to_owned()))
}

/// Another process takes all slots of asynchronous I/O of the machine.
fn aio_slots(dir: &Path, rng: &mut Rng) -> Found {
    let backend = NativeBackend::new();
    let mut taken: Vec<Box<dyn Queue>> = Vec::new();
    let mut work = Work::begin((dir, Mode::Manual), &[], &["--endless"], None)?;
    for slots in [8192, 1024, 128, 16, 1] {
        while let Ok(queue) = backend.queue(slots) {
            taken.push(queue);
        }
    }
    work.go()?;
    work.until("errors", |noted| noted.errors >= ERRORS)?;
    drop(taken);
    let more = at_first(rng);
    work.until("writes", |noted| noted.acknowledged >= more)?;
    work.kill_and_judge()
}

/// The machine's limit on slots of asynchronous I/O falls below the slots in use: unnoticed.
fn aio_max(dir: &Path, rng: &mut Rng) -> Found {
    const LIMIT: &str = "/proc/sys/fs/aio-max-nr";
    let before = std::fs::read_to_string(LIMIT).map_err(io("the limit of the machine"))?;
    let mut work = Work::begin((dir, Mode::Threads), &[], &["--endless", "--beside"], None)?;
    work.go()?;
    let first = at_first(rng);
    work.until("its first writes", |noted| noted.acknowledged >= first)?;
    // Another process puts it back when this one ends, killed or not. Signals to the group of this one do not reach that one.
    let restores = format!("trap '' HUP INT TERM; cat; echo {} >{LIMIT}", before.trim());
    let mut keeper = Command::new("sh");
    keeper.args(["-c", &restores]).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
    let keeper = keeper.spawn();
    let mut keeper = keeper.map_err(io("start a process"))?;
    let lowered = std::fs::write(LIMIT, "1");
    let result = lowered.map_err(|error| Lack::Machine(format!("{LIMIT}: {error}"))).and_then(|()| {
        let before = work.noted()?;
        // Each twentieth write comes with reads of all kinds and a flush, each sixtieth with a merge and a verification. The
        // readers beside it end the process with their first error.
        work.until("more writes", |noted| noted.acknowledged >= before.acknowledged + 20 * MORE)?;
        Ok(work.has_met_no_error()?)
    });
    drop(keeper.stdin.take());
    keeper.wait().map_err(io("put the limit back"))?;
    if std::fs::read_to_string(LIMIT).map_err(io("the limit of the machine"))? != before {
        return Err(Lack::Store(Failure::new(format!("{LIMIT} was not put back"))));
    }
    result?;
    work.kill_and_judge()
}

/// A disk that is full for a while.
fn full_disk(dir: &Path, rng: &mut Rng) -> Found {
    let disk = Disk::new(dir, Format::Ext4, Format::Ext4.least_mib(), 512)?;
    let work = Work::begin((dir, Mode::Manual), &[], &["--endless"], Some(disk.path()))?;
    let counts = for_a_while(work, rng, |_| disk.fill(), |_| disk.empty())?;
    disk.unmount()?;
    Ok(counts)
}

/// A file system that is frozen for a second: a delay, and no error.
fn frozen(dir: &Path, rng: &mut Rng) -> Found {
    let disk = Disk::new(dir, Format::Ext4, 64, 512)?;
    let path = disk.path().to_string_lossy().into_owned();
    let mut work = Work::begin((dir, Mode::Threads), &[], &["--endless"], Some(disk.path()))?;
    work.go()?;
    let first = at_first(rng);
    work.until("its first writes", |noted| noted.acknowledged >= first)?;
    tool(&["fsfreeze", "-f", &path]).map_err(|lack| Lack::Machine(lack.to_string()))?;
    let before = work.noted()?.acknowledged;
    NativeBackend::new().park(Duration::from_secs(1));
    let during = work.noted()?.acknowledged - before;
    tool(&["fsfreeze", "-u", &path])?;
    work.until("more writes", |noted| noted.acknowledged >= before + during + MORE)?;
    if work.noted()?.errors > 0 {
        return Err(Failure::new("a wait was taken for an error").into());
    }
    let mut counts = work.kill_and_judge()?;
    counts.add("acknowledged_while_frozen", during);
    disk.unmount()?;
    Ok(counts)
}

/// A file system that has found an error and refuses writes. This is as severe as a loss of power, so after the next mount
/// everything is there that survives one.
fn read_only(dir: &Path, rng: &mut Rng) -> Found {
    let disk = Disk::new(dir, Format::Ext4, 64, 512)?;
    let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", disk.device_name());
    if !Path::new(&trigger).exists() {
        return Err(Lack::Machine(format!("there is no {trigger}")));
    }
    let mut work = Work::begin((dir, Mode::Manual), &[], &["--endless"], Some(disk.path()))?;
    work.go()?;
    let first = at_first(rng);
    work.until("its first writes", |noted| noted.acknowledged >= first)?;
    std::fs::write(&trigger, "an error of kvtorture").map_err(io("trigger an error"))?;
    work.until("errors", |noted| noted.errors >= ERRORS)?;
    work.kill()?;
    disk.unmount()?;
    disk.mount()?;
    let counts = work.judge_durable()?;
    disk.unmount()?;
    Ok(counts)
}

/// Thousands of signals, with a handler that interrupts blocking calls: unnoticed.
fn signals(dir: &Path, _: &mut Rng) -> Found {
    storm((dir, Mode::Manual), &["--catch"], &[Signal::USR1], Duration::from_micros(50))
}

/// Repeated stop and continue signals: unnoticed.
fn stops(dir: &Path, _: &mut Rng) -> Found {
    storm((dir, Mode::Threads), &[], &[Signal::STOP, Signal::CONT], Duration::from_millis(1))
}

fn storm(place: (&Path, Mode), options: &[&str], signals: &[Signal], pause: Duration) -> Found {
    let clock = NativeBackend::new();
    let mut work = Work::begin(place, &[], options, None)?;
    let pid = work.pid()?;
    work.go()?;
    let mut sent = 0;
    while work.is_running()? {
        for &signal in signals {
            // The process may have ended. Its number cannot be reused before `wait`.
            let _ = kill_process(pid, signal);
            sent += 1;
            clock.park(pause);
        }
    }
    work.ends_unnoticed()?;
    let mut counts = work.judge()?;
    counts.add("signals", sent);
    Ok(counts)
}

/// No limit: the errand must notice nothing.
fn undisturbed(dir: &Path, _: &mut Rng) -> Found {
    let mut work = Work::begin((dir, Mode::Manual), &[], &[], None)?;
    work.go()?;
    work.ends_unnoticed()?;
    work.judge()
}
