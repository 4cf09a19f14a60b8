//! Measurements of a run: time, CPU of this process and of others, memory, bytes written; and a memory
//! limit around a process.
//!
//! Everything comes from `/proc` and the memory controller of control groups, version 1 or 2. If the machine does not
//! provide a number it is 0, and [`MemoryLimit::new`] says why there is no limit.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::time::{ClockId, clock_gettime};

use crate::error::{Error, Result};

/// Ticks of `/proc` in a second: fixed for user space on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The time now.
#[expect(clippy::disallowed_methods, reason = "a comparison measures real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits without using CPU.
pub fn pause(duration: Duration) {
    let mutex = parking_lot::Mutex::new(());
    parking_lot::Condvar::new().wait_for(&mut mutex.lock(), duration);
}

/// A reading of all counters; the difference of two readings is the cost of a run.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    cpu: Duration,
    busy_ticks: u64,
    all_ticks: u64,
    kernel_ticks: u64,
    dirtied_bytes: u64,
    device_bytes: u64,
}

/// The difference of two readings.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// CPU time of this process, all threads.
    pub cpu: Duration,
    /// Part of all CPUs that neither this process, nor kernel threads, nor interrupts, nor idling took: 0 to 1.
    pub foreign_cpu: f64,
    /// Bytes that this process wrote directly or made dirty in the page cache, mappings included.
    pub dirtied_bytes: u64,
    /// Bytes that all processes wrote to the device.
    pub device_bytes: u64,
}

impl Reading {
    /// Reads the counters; the device is that of `dir`.
    pub fn take(dir: &Path) -> Reading {
        let (busy_ticks, all_ticks) = machine_ticks(&read("/proc/stat"));
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Reading {
            cpu: Duration::try_from(cpu).unwrap_or_default(),
            busy_ticks,
            all_ticks,
            kernel_ticks: kernel_thread_ticks(),
            dirtied_bytes: field(&read("/proc/self/io"), "write_bytes:"),
            device_bytes: device_written_bytes(dir),
        }
    }

    /// The difference to an earlier reading.
    #[expect(clippy::cast_precision_loss, reason = "ticks of a run are far below 2^52")]
    pub fn since(&self, earlier: &Reading) -> Cost {
        let cpu = self.cpu.saturating_sub(earlier.cpu);
        let all = self.all_ticks.saturating_sub(earlier.all_ticks) as f64;
        let busy = self.busy_ticks.saturating_sub(earlier.busy_ticks) as f64;
        let kernel = self.kernel_ticks.saturating_sub(earlier.kernel_ticks) as f64;
        let foreign = (busy - kernel - cpu.as_secs_f64() * TICKS_PER_SECOND) / all.max(1.0);
        Cost {
            cpu,
            foreign_cpu: foreign.clamp(0.0, 1.0),
            dirtied_bytes: self.dirtied_bytes.saturating_sub(earlier.dirtied_bytes),
            device_bytes: self.device_bytes.saturating_sub(earlier.device_bytes),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number after a label in a file of lines `label number`; 0 if it is not there.
fn field(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Busy and all ticks of all CPUs, from the text of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
/// Interrupts do not count as other work: most of them are the store's own I/O.
fn machine_ticks(stat: &str) -> (u64, u64) {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
    let all: u64 = ticks.iter().sum();
    let idle_or_interrupted: u64 = ticks.iter().skip(3).take(4).sum();
    (all - idle_or_interrupted, all)
}

/// CPU ticks of the threads of the kernel, which write back dirty pages.
fn kernel_thread_ticks() -> u64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| kernel_ticks_of(&read(entry.path().join("stat").to_str()?))).sum()
}

/// User and system ticks in the text of a `stat` file, if the process is a child of the kernel's own thread 2.
fn kernel_ticks_of(stat: &str) -> Option<u64> {
    // The name in parentheses may hold any character.
    let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if *words.get(1)? != "2" {
        return None;
    }
    Some(words.get(11)?.parse::<u64>().ok()? + words.get(12)?.parse::<u64>().ok()?)
}

/// Bytes written to the device below a directory since the machine started.
fn device_written_bytes(dir: &Path) -> u64 {
    let Ok(meta) = fs::metadata(dir) else { return 0 };
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let stats = read("/proc/diskstats");
    let lines = stats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mine = |words: &Vec<&str>| {
        words.first() == Some(&&*major.to_string()) && words.get(1) == Some(&&*minor.to_string())
    };
    let sectors = lines.into_iter().find(mine).and_then(|words| words.get(9)?.parse::<u64>().ok());
    sectors.unwrap_or(0) * 512
}

/// The most memory that this process held, in bytes, mapped files included.
pub fn peak_rss_bytes() -> u64 {
    field(&read("/proc/self/status"), "VmHWM:") * 1024
}

/// Bytes that a directory's files take on the device.
pub fn space_bytes(dir: &Path) -> u64 {
    files_below(dir).iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.blocks() * 512).sum()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// Writes back the dirty pages of a directory's file system, and drops the directory's files from the page cache, so that
/// every run begins with the same empty cache.
pub fn evict(dir: &Path) {
    let open = |path: &Path| fs::OpenOptions::new().read(true).open(path).ok();
    if let Some(root) = open(dir) {
        // A failure leaves pages in the cache: a run that is a little warmer.
        let _ = rustix::fs::syncfs(&root);
    }
    for file in files_below(dir).iter().filter_map(|path| open(path)) {
        let _ = rustix::fs::fadvise(file.as_fd(), 0, None, Advice::DontNeed);
    }
}

/// A control group with a limit on memory. Dropping it removes the group; processes must have left.
#[derive(Debug)]
pub struct MemoryLimit {
    group: PathBuf,
}

impl MemoryLimit {
    /// Makes a group with a limit for anonymous memory, page cache and the kernel's own, in bytes.
    ///
    /// # Errors
    /// This machine has no memory controller, or not for this user.
    pub fn new(name: &str, limit_bytes: u64) -> Result<MemoryLimit> {
        let first = Path::new("/sys/fs/cgroup/memory");
        let second = Path::new("/sys/fs/cgroup");
        let (parent, file) = if first.join("memory.limit_in_bytes").exists() {
            (first, "memory.limit_in_bytes")
        } else {
            // The parent must delegate the controller; where it already does, this changes nothing.
            let _ = fs::write(second.join("cgroup.subtree_control"), "+memory");
            (second, "memory.max")
        };
        let group = parent.join(name);
        fs::create_dir(&group).map_err(Error::io("make the control group", &group))?;
        let limit = MemoryLimit { group };
        let path = limit.group.join(file);
        fs::write(&path, limit_bytes.to_string()).map_err(Error::io("set the limit", &path))?;
        Ok(limit)
    }

    /// The file into which a process writes its number to come under the limit.
    pub fn door(&self) -> PathBuf {
        self.group.join("cgroup.procs")
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // An empty group left behind holds nothing.
        let _ = fs::remove_dir(&self.group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_children_of_the_kernels_thread_count() {
        let stat = |parent| format!("77 (a (b) c) S {parent} 0 0 0 -1 69238880 0 0 0 0 5 7 0 0 20 0 1 0");
        assert_eq!(kernel_ticks_of(&stat(2)), Some(12));
        assert_eq!(kernel_ticks_of(&stat(1)), None);
        assert_eq!(kernel_ticks_of("nonsense"), None);
    }

    #[test]
    fn ticks_are_read_from_the_first_line_and_interrupts_are_nobodys_work() {
        assert_eq!(machine_ticks("cpu  1 2 4 8 16 32 64 128 0 0\ncpu0 1"), (1 + 2 + 4 + 128, 255));
        assert_eq!(machine_ticks(""), (0, 0));
    }

    #[test]
    fn a_reading_sees_the_cpu_that_was_used() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let before = Reading::take(dir);
        let end = now() + Duration::from_millis(30);
        while now() < end {
            std::hint::spin_loop();
        }
        let cost = Reading::take(dir).since(&before);
        assert!(cost.cpu >= Duration::from_millis(2), "{cost:?}");
        assert!(peak_rss_bytes() > 0);
    }
}
