//! Trials on other file systems: an errand must notice nothing there; and files that the file system stores otherwise than
//! they were written, on a disk that fills.
//!
//! A copy of a store may have holes where the ring had zeros, and a copy that shares blocks makes the kernel allocate at the
//! next store into the mapped ring. On a full disk that would end the process with SIGBUS.

use std::path::Path;
use std::time::Duration;

use aio::{Backend as _, NativeBackend};
use fastrand::Rng;
use rustix::process::{Signal, kill_process};

use super::disk::{Disk, Format, Mount, tool};
use super::terms::{ERRORS, Found, MORE, at_first, io};
use crate::errand::terms::Mode;
use crate::errand::work::Work;
use crate::lack::Lack;
use crate::report::Failure;

/// A refused write has its record in the ring: with so many of them, records go to all of its pages.
const ERRORS_OF_A_LAP: u64 = 300;
/// Longer than the log trusts the room of its ring.
const PAST_TRUST: Duration = Duration::from_secs(3);

/// All work of an errand in this directory, unnoticed.
fn unnoticed(dir: &Path, place: &Path, rng: &mut Rng) -> Found {
    let mode = Mode::ALL[rng.usize(..Mode::ALL.len())];
    let mut work = Work::begin((dir, mode), &[], &[], Some(place))?;
    work.go()?;
    work.ends_unnoticed()?;
    work.judge()
}

fn on_disk(dir: &Path, format: Format, sector_bytes: u32, rng: &mut Rng) -> Found {
    let disk = Disk::new(dir, format, format.least_mib().max(64), sector_bytes)?;
    let counts = unnoticed(dir, disk.path(), rng)?;
    disk.unmount()?;
    Ok(counts)
}

pub(super) fn small_sectors(dir: &Path, rng: &mut Rng) -> Found {
    on_disk(dir, Format::Ext4, 512, rng)
}

/// A device that takes nothing smaller than 4 KiB.
pub(super) fn large_sectors(dir: &Path, rng: &mut Rng) -> Found {
    on_disk(dir, Format::Ext4, 4096, rng)
}

pub(super) fn xfs(dir: &Path, rng: &mut Rng) -> Found {
    on_disk(dir, Format::Xfs, 512, rng)
}

pub(super) fn btrfs(dir: &Path, rng: &mut Rng) -> Found {
    on_disk(dir, Format::Btrfs, 512, rng)
}

fn on_mount(dir: &Path, program: &[&str], rng: &mut Rng) -> Found {
    let mount = Mount::new(dir, program)?;
    let counts = unnoticed(dir, mount.path(), rng)?;
    mount.unmount()?;
    Ok(counts)
}

pub(super) fn tmpfs(dir: &Path, rng: &mut Rng) -> Found {
    on_mount(dir, &["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs"], rng)
}

/// The upper layer is on a tmpfs, because overlay cannot lie on every file system (on another overlay, for example).
pub(super) fn overlay(dir: &Path, rng: &mut Rng) -> Found {
    let base = dir.join("layers");
    let layers = Mount::new(&base, &["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs"])?;
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| layers.path().join(name));
    for layer in [&lower, &upper, &work] {
        std::fs::create_dir(layer).map_err(io("make a layer"))?;
    }
    let (lower, upper, work) = (lower.display(), upper.display(), work.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let counts = on_mount(dir, &["mount", "-t", "overlay", "-o", &options, "overlay"], rng)?;
    layers.unmount()?;
    Ok(counts)
}

/// Another directory, served by a process.
pub(super) fn fuse(dir: &Path, rng: &mut Rng) -> Found {
    let below = dir.join("below");
    std::fs::create_dir_all(&below).map_err(io("make a directory"))?;
    on_mount(dir, &["bindfs", &below.to_string_lossy()], rng)
}

pub(super) fn sparse_ext4(dir: &Path, rng: &mut Rng) -> Found {
    after_a_copy(dir, Format::Ext4, "--sparse=always", rng)
}

pub(super) fn sparse_xfs(dir: &Path, rng: &mut Rng) -> Found {
    after_a_copy(dir, Format::Xfs, "--sparse=always", rng)
}

pub(super) fn sparse_btrfs(dir: &Path, rng: &mut Rng) -> Found {
    after_a_copy(dir, Format::Btrfs, "--sparse=always", rng)
}

pub(super) fn shared_xfs(dir: &Path, rng: &mut Rng) -> Found {
    after_a_copy(dir, Format::Xfs, "--reflink=always", rng)
}

pub(super) fn shared_btrfs(dir: &Path, rng: &mut Rng) -> Found {
    after_a_copy(dir, Format::Btrfs, "--reflink=always", rng)
}

/// An errand works on a copy of a store: it opens it on a full disk until there is room, and goes on until the disk is full
/// again. The original stays, so that blocks that were shared stay shared.
fn after_a_copy(dir: &Path, format: Format, way: &str, rng: &mut Rng) -> Found {
    let disk = Disk::new(dir, format, format.least_mib(), 512)?;
    // So few that most of the ring is as it was made.
    let commits = rng.u64(5..30).to_string();
    let mut work = Work::begin((dir, mode(rng)), &[], &["--commits", &commits], Some(disk.path()))?;
    work.go()?;
    work.ends_unnoticed()?;
    let [store, original] = ["store", "original"].map(|name| disk.path().join(name));
    tool(&["mv", &store.to_string_lossy(), &original.to_string_lossy()])?;
    tool(&["cp", "-a", way, &original.to_string_lossy(), &store.to_string_lossy()])?;
    disk.fill()?;
    work.again(&["--endless", "--only-writes"])?;
    work.go()?;
    work.until("errors", |noted| noted.errors >= ERRORS)?;
    disk.empty()?;
    let before = work.noted()?.acknowledged;
    work.until("a write", |noted| noted.acknowledged > before)?;
    kill_process(work.pid()?, Signal::STOP).map_err(|errno| io("stop the errand")(errno.into()))?;
    disk.fill()?;
    kill_process(work.pid()?, Signal::CONT).map_err(|errno| io("continue the errand")(errno.into()))?;
    let counts = until_there_is_room(work, &disk)?;
    disk.unmount()?;
    Ok(counts)
}

pub(super) fn copied_xfs(dir: &Path, rng: &mut Rng) -> Found {
    while_copied(dir, Format::Xfs, rng)
}

pub(super) fn copied_btrfs(dir: &Path, rng: &mut Rng) -> Found {
    while_copied(dir, Format::Btrfs, rng)
}

/// The ring of an open store comes to share its blocks with a copy while the store is idle, and the disk becomes full.
fn while_copied(dir: &Path, format: Format, rng: &mut Rng) -> Found {
    let disk = Disk::new(dir, format, format.least_mib(), 512)?;
    let first = at_first(rng);
    let options = ["--endless", "--only-writes", "--wait-after", &first.to_string()];
    // Its commit thread doubts that there is room once it has been idle for a while.
    let mut work = Work::begin((dir, Mode::Threads), &[], &options, Some(disk.path()))?;
    work.go()?;
    work.until("its first writes", |noted| noted.acknowledged >= first)?;
    // Its other files come and go.
    let log = std::fs::read_dir(disk.path().join("store/wal")).map_err(io("list the log"))?;
    let is_ring = |file: &std::fs::DirEntry| file.file_name().to_string_lossy().starts_with("ring-");
    let mapped = log.flatten().find(is_ring).map(|file| file.path());
    let mapped = mapped.ok_or_else(|| Lack::Store(Failure::new("there is no ring")))?;
    let copy = disk.path().join("copy");
    tool(&["cp", "-a", "--reflink=always", &mapped.to_string_lossy(), &copy.to_string_lossy()])?;
    disk.fill()?;
    NativeBackend::new().park(PAST_TRUST);
    work.go()?;
    let counts = until_there_is_room(work, &disk)?;
    disk.unmount()?;
    Ok(counts)
}

/// The errand tries to write to a full disk, until its records have gone to each page of the ring. Then there is room again.
fn until_there_is_room(mut work: Work, disk: &Disk) -> Found {
    let met = work.noted()?.errors;
    work.until("errors in each page of the ring", |noted| noted.errors >= met + ERRORS_OF_A_LAP)?;
    disk.empty()?;
    let before = work.noted()?.acknowledged;
    work.until("more writes", |noted| noted.acknowledged >= before + MORE)?;
    work.kill_and_judge()
}

fn mode(rng: &mut Rng) -> Mode {
    Mode::ALL[rng.usize(..Mode::ALL.len())]
}
