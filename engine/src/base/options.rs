//! The options of an open, and the sizes that follow from the memory budget.
//!
//! ```text
//!   budget   | memtables 1/4 | ring 1/16 and its tables | I/O 8 MiB | read-ahead 1/64 | cache: the rest, at least 1/8 |
//! ```
//!
//! The cache shares its part with the indexes and filters of open segments (`reserve.rs`).
//!
//! Invariant: the store works with the sizes that follow from any options. Only the sizes of ring and log files are stored, in
//! the manifest.

use std::sync::Arc;
use std::time::Duration;

use aio::Backend;
use wal::SyncMethod;

use crate::base::events::Listener;

/// The failure that an acknowledged write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The death of the process by any signal, at once; power loss after `drain_interval` (10 ms) or 1 MiB of log,
    /// whichever comes first.
    Process,
    /// Power loss, too: the call returns when the write and all before it are on stable media. A file system in memory (tmpfs,
    /// ramfs) has none: there it is as [`Durability::Process`].
    #[default]
    Power,
}

/// The threads that do flushes, compactions and log rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Background {
    /// Threads of the store.
    #[default]
    Threads,
    /// The caller, inside the call that makes them due: no thread is started, so a run over the simulated disk
    /// replays exactly. For tests; writes stall while a flush or a compaction runs.
    Manual,
}

/// Sizes in bytes that replace those derived from the memory budget; `None` keeps the derived one. Each is clamped to the
/// possible range and rounded up as the files need.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// The mapped ring of the log.
    pub ring_bytes: Option<u64>,
    /// One file of the log.
    pub log_file_bytes: Option<u64>,
    /// The largest active memtable is frozen when all active ones together reach this size.
    pub memtable_bytes: Option<u64>,
    /// A run is cut into the next segment at this size.
    pub segment_bytes: Option<u64>,
    /// The first size of a manifest file.
    pub manifest_bytes: Option<u64>,
    /// A block before compression.
    pub block_bytes: Option<usize>,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The least size of ring, log files and memtables: one step of the log, and records of up to 1 KiB.
const SMALLEST_BYTES: u64 = 4 * KIB;

/// The largest ring. The tables of its progress grow with it.
const LARGEST_RING_BYTES: u64 = 1 << 30;

/// References inside a memtable reach 32 GiB, and a replay puts the entries of several tables into one.
const LARGEST_MEMTABLES_BYTES: u64 = 16 << 30;

/// Everything that [`Builder`](crate::Builder) sets.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) memory_budget_bytes: u64,
    pub(crate) durability: Durability,
    pub(crate) create: bool,
    pub(crate) background: Background,
    pub(crate) backend: Option<Arc<dyn Backend>>,
    pub(crate) listener: Option<Arc<dyn Listener>>,
    pub(crate) drain_interval: Duration,
    pub(crate) sync_method: SyncMethod,
    pub(crate) sizes: Sizes,
    pub(crate) compress: bool,
    pub(crate) max_open_files: Option<usize>,
    pub(crate) background_bytes_per_second: Option<u64>,
    /// A damaged log is cut before the damage instead of being refused.
    pub(crate) repair: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            memory_budget_bytes: 256 * MIB,
            durability: Durability::default(),
            create: true,
            background: Background::default(),
            backend: None,
            listener: None,
            drain_interval: Duration::from_millis(10),
            sync_method: SyncMethod::default(),
            sizes: Sizes::default(),
            compress: true,
            max_open_files: None,
            background_bytes_per_second: None,
            repair: false,
        }
    }
}

impl Options {
    /// The mapped ring of the log.
    pub(crate) fn ring_bytes(&self) -> u64 {
        self.sizes
            .ring_bytes
            .unwrap_or((self.memory_budget_bytes / 16).clamp(MIB, 64 * MIB))
            .clamp(SMALLEST_BYTES, LARGEST_RING_BYTES)
            .next_multiple_of(4 * KIB)
    }

    /// The first size of a new ring. It grows to its full size with the writes to the store.
    pub(crate) fn ring_first_bytes(&self) -> u64 {
        (self.ring_bytes() / 16).next_multiple_of(4 * KIB)
    }

    /// One file of the log.
    pub(crate) fn log_file_bytes(&self) -> u64 {
        self.sizes
            .log_file_bytes
            .unwrap_or((self.memory_budget_bytes / 16).clamp(MIB, 64 * MIB))
            .max(SMALLEST_BYTES)
            .next_multiple_of(4 * KIB)
    }

    /// All memtables together, frozen ones included.
    pub(crate) fn memtables_bytes(&self) -> u64 {
        self.sizes
            .memtable_bytes
            .map_or(self.memory_budget_bytes / 4, |bytes| bytes.max(SMALLEST_BYTES).saturating_mul(5) / 3)
            .min(LARGEST_MEMTABLES_BYTES)
    }

    /// A memtable is frozen when all active ones together reach this size: three fifths of all memtables. Flushing an entry
    /// takes about half as long as putting one, so writes proceed in the rest while they are flushed.
    pub(crate) fn freeze_bytes(&self) -> u64 {
        self.memtables_bytes() / 5 * 3
    }

    /// The limit on the bytes of all log files, spare ones included. A log that uses more than three quarters of it lets the
    /// keyspaces be flushed that need its oldest files. At the limit writes wait for that. Twice the memtables, so that these
    /// fill first unless the log has much padding; and never so low that a record does not fit beside the current file.
    pub(crate) fn log_limit_bytes(&self) -> u64 {
        (self.memtables_bytes() * 2).max(self.log_file_bytes() * 4)
    }

    /// The log files within the limit.
    pub(crate) fn max_log_files(&self) -> u64 {
        self.log_limit_bytes() / self.log_file_bytes()
    }

    /// The block cache and the pinned memory of open segments: the rest of the budget. The ring counts with a quarter more
    /// for its two progress tables.
    pub(crate) fn cache_bytes(&self) -> u64 {
        let buffers = IO_BUFFER_BYTES + self.read_ahead_bytes() as u64;
        let others = self.memtables_bytes() + self.ring_bytes() * 5 / 4 + buffers;
        self.memory_budget_bytes.saturating_sub(others).max(self.memory_budget_bytes / 8)
    }

    /// The most bytes that all scans together read ahead: 16 scans at full length with the default budget.
    pub(crate) fn read_ahead_bytes(&self) -> usize {
        let bytes = (self.memory_budget_bytes / 64).clamp(256 * KIB, 16 * MIB);
        usize::try_from(bytes).expect("clamped")
    }

    /// The size at which a run continues in the next segment.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.sizes.segment_bytes.unwrap_or((self.memory_budget_bytes / 8).clamp(4 * MIB, 64 * MIB))
    }

    /// A block before compression.
    pub(crate) fn block_bytes(&self) -> usize {
        self.sizes.block_bytes.unwrap_or(8 << 10).clamp(512, 32 << 10)
    }

    /// The first size of a manifest file; it grows with its content.
    pub(crate) fn manifest_bytes(&self) -> u64 {
        self.sizes.manifest_bytes.unwrap_or(256 * KIB)
    }
}

/// Buffers of reads, flushes and compactions in flight.
const IO_BUFFER_BYTES: u64 = 8 * MIB;
