//! Numbers about a store: counted with relaxed atomics, returned as plain data.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Numbers of a store at one moment. They are read while operations run, so parts may differ by an operation.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Whether the files used direct I/O at the end of the open. False: the file system has none, and calls may block.
    pub direct_io: bool,
    /// The ways around refused calls that the store has taken since its open, the first of each kind. Empty on a machine that
    /// has all that is needed. Each was or will be sent as [`Event::FellBack`](crate::Event::FellBack).
    pub fall_backs: Vec<aio::FallBack>,
    /// The number of this writable open, counted from 1.
    pub incarnation: u32,
    /// Records written since open.
    pub records: u64,
    /// Their bytes in the log.
    pub record_bytes: u64,
    /// Log bytes that an open after a crash now would replay.
    pub log_bytes: u64,
    /// Log files in use.
    pub log_files: usize,
    /// Groups written to the log since open.
    pub log_groups: u64,
    /// Syncs of the log since open.
    pub log_syncs: u64,
    /// Memory of the memtables in bytes, frozen ones included.
    pub memtable_bytes: u64,
    /// Memtables written to segments since open.
    pub flushes: u64,
    /// Bytes of the segments written by flushes.
    pub flushed_bytes: u64,
    /// Merges since open.
    pub compactions: u64,
    /// Bytes that merges read.
    pub compacted_bytes_in: u64,
    /// Bytes that merges wrote.
    pub compacted_bytes_out: u64,
    /// Flushes and merges that failed.
    pub failed_jobs: u64,
    /// The error of the newest flush, if it failed.
    pub flush_error: Option<String>,
    /// The first cause, if the store has halted.
    pub halted: Option<String>,
    /// Writes that had to wait for memory, or for room in the log.
    pub stalls: u64,
    /// The total time of these waits.
    pub stalled: Duration,
    /// Writes that slept, so that merges and flushes keep up: for at most 4 ms, or the time of 16 such writes at the rate that
    /// they have, and never longer than 100 ms.
    pub slowed_writes: u64,
    /// The total time of these sleeps.
    pub slowed: Duration,
    /// Bytes per second that merges wrote lately, small ones aside.
    pub merge_bytes_per_second: u64,
    /// Bytes per second that flushes took in lately, small ones aside: keys and values, as in records of the log.
    pub flush_bytes_per_second: u64,
    /// Operations on the device that all flushes and merges together may have in flight now.
    pub background_depth: usize,
    /// Block cache: lookups that found their block.
    pub cache_hits: u64,
    /// Block cache: lookups that had to read.
    pub cache_misses: u64,
    /// Block cache: bytes held.
    pub cache_bytes: u64,
    /// Memory of open segments without their blocks, in bytes: indexes and filters, or the tops that lead to them. With
    /// [`cache_bytes`](Metrics::cache_bytes) it is within one part of the memory budget.
    pub pinned_bytes: u64,
    /// Segments whose indexes and filters do not fit into memory, and come through the block cache.
    pub paged_segments: usize,
    /// Snapshots and iterators that keep old entries.
    pub snapshots: usize,
    /// Files of segments that are open now; see [`Builder::max_open_files`](crate::Builder::max_open_files).
    pub open_files: usize,
    /// Contexts of native AIO of reads, flushes and merges, idle ones included.
    pub aio_contexts: usize,
    /// The machine's slots (`fs.aio-max-nr`) that they take.
    pub aio_slots: usize,
    /// Each keyspace, by name.
    pub keyspaces: Vec<KeyspaceMetrics>,
    /// The operations on the files of the store, of all its contexts: how many, how long they took, and which were made more
    /// than once. The kinds of files are manifest, ring, log, segment and lock.
    pub io: aio::IoProfile,
}

/// Numbers of one keyspace.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct KeyspaceMetrics {
    /// Its name.
    pub name: String,
    /// Runs that a read may have to search.
    pub runs: usize,
    /// Segment files.
    pub segments: usize,
    /// Their size in bytes.
    pub segment_bytes: u64,
    /// Entries in segments, old versions and tombstones included.
    pub entries: u64,
    /// Tombstones in segments.
    pub tombstones: u64,
    /// Bytes of keys and values in segments, before compression.
    pub raw_bytes: u64,
    /// Memory of its memtables in bytes.
    pub memtable_bytes: u64,
    /// How far its runs stand above the shape that merges aim at, in percent: 0 at or below it, 120 at most. Writes go at
    /// any rate at 0, at the rate that merges sustain at 67, at a fifth of it at 120; at any rate while merges fail.
    pub pressure_percent: u64,
    /// The rate of writes to it in bytes per second, if its runs limit it. While the memory of the memtables fills, writes to
    /// all keyspaces may be slower.
    pub write_bytes_per_second: Option<u64>,
    /// Bytes that merges wrote lately for a byte that was flushed, in percent.
    pub merge_amplification_percent: u64,
    /// Bytes that the merge which is due would read; 0 if none is due.
    pub due_bytes: u64,
}

/// The counters behind [`Metrics`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) records: AtomicU64,
    pub(crate) record_bytes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) flushed_bytes: AtomicU64,
    pub(crate) compactions: AtomicU64,
    pub(crate) compacted_bytes_in: AtomicU64,
    pub(crate) compacted_bytes_out: AtomicU64,
    pub(crate) failed_jobs: AtomicU64,
    pub(crate) stalls: AtomicU64,
    pub(crate) stalled_ns: AtomicU64,
    pub(crate) slowed_writes: AtomicU64,
    pub(crate) slowed_ns: AtomicU64,
}

impl Counters {
    pub(crate) fn wrote(&self, record_bytes: usize) {
        add(&self.records, 1);
        add(&self.record_bytes, record_bytes as u64);
    }

    pub(crate) fn flushed(&self, bytes: u64) {
        add(&self.flushes, 1);
        add(&self.flushed_bytes, bytes);
    }

    pub(crate) fn compacted(&self, bytes_in: u64, bytes_out: u64) {
        add(&self.compactions, 1);
        add(&self.compacted_bytes_in, bytes_in);
        add(&self.compacted_bytes_out, bytes_out);
    }

    pub(crate) fn failed_job(&self) {
        add(&self.failed_jobs, 1);
    }

    pub(crate) fn stalled(&self, took: Duration) {
        add(&self.stalls, 1);
        add(&self.stalled_ns, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn slowed(&self, took: Duration) {
        add(&self.slowed_writes, 1);
        add(&self.slowed_ns, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Copies the counters; the rest of [`Metrics`] comes from the parts of the store.
    pub(crate) fn fill(&self, metrics: &mut Metrics) {
        metrics.records = get(&self.records);
        metrics.record_bytes = get(&self.record_bytes);
        metrics.flushes = get(&self.flushes);
        metrics.flushed_bytes = get(&self.flushed_bytes);
        metrics.compactions = get(&self.compactions);
        metrics.compacted_bytes_in = get(&self.compacted_bytes_in);
        metrics.compacted_bytes_out = get(&self.compacted_bytes_out);
        metrics.failed_jobs = get(&self.failed_jobs);
        metrics.stalls = get(&self.stalls);
        metrics.stalled = Duration::from_nanos(get(&self.stalled_ns));
        metrics.slowed_writes = get(&self.slowed_writes);
        metrics.slowed = Duration::from_nanos(get(&self.slowed_ns));
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
