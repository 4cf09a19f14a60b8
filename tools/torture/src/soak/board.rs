//! The board: a file of numbers that a worker writes and its killer reads. The page cache holds a written number, so it
//! survives SIGKILL at any moment, like the acknowledgement that it stands for.
//!
//! ```text
//!   OFFSET  SIZE  FIELD (all integers little-endian)
//!        0     8  for each writer: the number of its last acknowledged write
//!      ...     8  for each of `Count`: its value
//!      ...     8  for each class of latencies, of durable writes and then of reads: its count
//! ```
//!
//! Invariant: each number has one writer at a time, and is written with one call.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::plan::WRITERS;

/// The counts beside acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Count {
    /// 1 when the store is open.
    Opened,
    /// 1 when a fault has halted the store and every later write was refused as it should be.
    Halted,
    Writes,
    Reads,
    Scans,
    Snapshots,
    Jobs,
    Faults,
    RssKib,
    Handles,
    Threads,
    /// Blocks that were read from the device.
    Misses,
}

const COUNTS: usize = Count::Misses as usize + 1;
/// Four classes for each power of two of microseconds.
pub(crate) const CLASSES: usize = 128;

/// An open board.
#[derive(Debug)]
pub(crate) struct Board(File);

/// How often each class of latency was seen.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(pub(crate) Vec<u64>);

impl Latencies {
    pub(crate) fn new() -> Latencies {
        Latencies(vec![0; CLASSES])
    }

    pub(crate) fn add(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let power = micros.ilog2();
        let quarter = if power < 2 { 0 } else { micros >> (power - 2) & 3 };
        let class = (u64::from(power) * 4 + quarter).min(CLASSES as u64 - 1);
        self.0[usize::try_from(class).unwrap_or(0)] += 1;
    }

    pub(crate) fn merge(&mut self, other: &Latencies) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }

    /// The upper end in microseconds of the class that contains this share of all latencies; 0 if there are none.
    pub(crate) fn percentile(&self, percent: u64) -> u64 {
        let total: u64 = self.0.iter().sum();
        let mut seen = 0;
        for (class, count) in self.0.iter().enumerate() {
            seen += count;
            if seen > 0 && seen * 100 >= total * percent {
                let (power, quarter) = (class / 4, class as u64 % 4);
                return (5 + quarter) << power >> 2;
            }
        }
        0
    }
}

impl Board {
    /// A new board on which these writes are acknowledged.
    pub(crate) fn create(path: &Path, acknowledged: &[u64; WRITERS]) -> io::Result<Board> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let board = Board(file);
        board.0.set_len(((WRITERS + COUNTS + 2 * CLASSES) * 8) as u64)?;
        for (writer, number) in acknowledged.iter().enumerate() {
            board.acknowledge(writer, *number)?;
        }
        Ok(board)
    }

    pub(crate) fn open(path: &Path) -> io::Result<Board> {
        OpenOptions::new().read(true).write(true).open(path).map(Board)
    }

    pub(crate) fn acknowledge(&self, writer: usize, number: u64) -> io::Result<()> {
        self.set(writer, number)
    }

    pub(crate) fn acknowledged(&self) -> io::Result<[u64; WRITERS]> {
        let mut numbers = [0; WRITERS];
        for (writer, number) in numbers.iter_mut().enumerate() {
            *number = self.get(writer)?;
        }
        Ok(numbers)
    }

    pub(crate) fn put(&self, count: Count, number: u64) -> io::Result<()> {
        self.set(WRITERS + count as usize, number)
    }

    pub(crate) fn count(&self, count: Count) -> io::Result<u64> {
        self.get(WRITERS + count as usize)
    }

    /// Latencies of durable writes and of reads.
    pub(crate) fn put_latencies(&self, both: [&Latencies; 2]) -> io::Result<()> {
        let words = both.into_iter().flat_map(|latencies| &latencies.0).flat_map(|count| count.to_le_bytes());
        self.0.write_all_at(&words.collect::<Vec<u8>>(), ((WRITERS + COUNTS) * 8) as u64)
    }

    pub(crate) fn latencies(&self) -> io::Result<[Latencies; 2]> {
        let mut both = [Latencies::new(), Latencies::new()];
        for (nth, latencies) in both.iter_mut().enumerate() {
            for (class, count) in latencies.0.iter_mut().enumerate() {
                *count = self.get(WRITERS + COUNTS + nth * CLASSES + class)?;
            }
        }
        Ok(both)
    }

    fn set(&self, index: usize, number: u64) -> io::Result<()> {
        self.0.write_all_at(&number.to_le_bytes(), (index * 8) as u64)
    }

    fn get(&self, index: usize) -> io::Result<u64> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, (index * 8) as u64)?;
        Ok(u64::from_le_bytes(word))
    }
}

/// Resident memory in KiB, open handles and threads of this process.
pub(crate) fn usage() -> io::Result<[u64; 3]> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    // The handle that reads the directory is one of them.
    let handles = std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64;
    Ok([field("VmRSS:"), handles, field("Threads:")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_quarter() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.percentile(50), 0);
        for micros in 1..=1000 {
            latencies.add(Duration::from_micros(micros));
        }
        for (percent, exact) in [(50, 500), (99, 990)] {
            let found = latencies.percentile(percent);
            assert!(found >= exact && found <= exact * 13 / 10, "p{percent} {found}");
        }
    }
}
