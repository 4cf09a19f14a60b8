//! Admission, the first step of a commit: a write goes on when memory, log files and merges allow it.
//!
//! Before, it may sleep, so that merges and flushes keep up: a few ms, and 100 ms at most. It waits while the memtables are
//! full or the log is at its limit, and while the log is made longer if no spare file is ready. A freeze waits for the writers
//! under way and for an install.
//! The next log file is made before the current one is full, so a full disk refuses a write here, before it has a place in
//! the log, and not after.
//!
//! [`Room`] is all that admission sees of a store, so that it can be tested without one.

use std::sync::Arc;
use std::time::Duration;

use wal::RecordBuf;

use crate::base::clock;
use crate::base::error::Result;
use crate::base::events::Event;
use crate::compaction::pacing::{self, ANY_RATE, Admission, MemtableUsage};
use crate::compaction::scheduler;
use crate::tree::superversion::Tree;
use crate::tree::writing::{MemtableBytes, Writing};
use crate::write::ops;

/// The side of a store that admission works on.
pub(crate) trait Room {
    /// The memory of the memtables and its limits.
    fn memory(&self) -> MemtableUsage;

    /// Freezes the largest active memtable, and those that hold old log files if the log is nearly full, and asks for their
    /// flush.
    fn freeze_largest(&self);

    /// Returns when a flush has ended.
    ///
    /// # Errors
    /// The flush failed, or the store is closed or halted.
    fn wait_for_flush(&self) -> Result<()>;

    /// A write has waited this long for memory, or for the log.
    fn stalled(&self, took: Duration);

    /// Time since some moment.
    fn now(&self) -> Duration;

    /// Whether the log has a place for `len_bytes` more, even if the disk is full by then.
    fn has_log_room(&self, len_bytes: usize) -> bool;

    /// Makes log files, or lets the ring grow, until the log has a place for `len_bytes` more. False if the log is at its
    /// limit.
    ///
    /// # Errors
    /// The disk is full, or the log has halted.
    fn make_log_room(&self, len_bytes: usize) -> Result<bool>;

    /// Freezes the memtables that hold the oldest log files, and returns when a flush has ended.
    ///
    /// # Errors
    /// Those of [`Room::wait_for_flush`].
    fn wait_for_log(&self, len_bytes: usize) -> Result<()>;

    /// Asks for a spare log file if one is needed soon.
    fn prepare_spare(&self);

    /// Freezes the memtables that hold the oldest log files and asks for their flush, if the log is nearly full: so that no
    /// write has to wait for that.
    fn release_old_log(&self);
}

/// Lets the caller sleep, so that merges keep up with the writes to these keyspaces and flushes with all writes.
///
/// A write pays for its own keyspaces only, and sleeps once. Where memory is short each keyspace has the same rate: those that
/// write more sleep, and the rate falls until all together go as fast as flushes. More than fifty busy ones, or batches over as
/// many, have to wait for memory instead: the rate stops at a fiftieth of that of flushes. Close and halt end the sleep.
#[inline]
pub(crate) fn slow_down(store: &Writing, trees: &[Arc<Tree>], record: &RecordBuf) {
    let rate_by_memory = pacing::rate_by_memory(store.memory(), store.speeds.flush_rate());
    if rate_by_memory != ANY_RATE || trees.iter().any(|tree| tree.pace.rate() != ANY_RATE) {
        pay(store, trees, record.payload(), rate_by_memory);
    }
}

#[cold]
fn pay(store: &Writing, trees: &[Arc<Tree>], payload: &[u8], rate_by_memory: u64) {
    let now = store.now();
    let mut time = Duration::ZERO;
    for (tree, bytes) in trees.iter().zip(bytes_of_each(trees, payload)) {
        let rate = tree.pace.rate().min(rate_by_memory);
        if rate != ANY_RATE {
            time = time.max(tree.pace.charge(now, bytes, rate));
        }
    }
    if !time.is_zero() {
        clock::sleep(&**store.files.backend(), time, &|| store.check_writable().is_err());
        store.counters.slowed(store.now().saturating_sub(now));
    }
}

/// The bytes of each keyspace in a payload.
fn bytes_of_each(trees: &[Arc<Tree>], payload: &[u8]) -> Vec<u64> {
    if trees.len() == 1 {
        return vec![payload.len() as u64];
    }
    let mut bytes = vec![0; trees.len()];
    for op in ops::ops(payload) {
        let op = op.expect("the record was encoded by this process");
        let at = trees.iter().position(|tree| tree.id == op.keyspace);
        bytes[at.expect("a batch holds the keyspaces it names")] += op.size_bytes() as u64;
    }
    bytes
}

/// Waits or makes room, as memtables and log demand, before a write of `len_bytes`.
///
/// # Errors
/// There is no room and none can be made: the disk is full, or the store is closed or halted.
pub(crate) fn admit(room: &impl Room, len_bytes: usize) -> Result<()> {
    wait_for_memory(room)?;
    room.release_old_log();
    if !room.has_log_room(len_bytes) {
        return wait_for_log(room, len_bytes);
    }
    room.prepare_spare();
    Ok(())
}

#[cold]
fn wait_for_log(room: &impl Room, len_bytes: usize) -> Result<()> {
    let mut waiting_since = None;
    while !room.make_log_room(len_bytes)? {
        waiting_since.get_or_insert_with(|| room.now());
        room.wait_for_log(len_bytes)?;
    }
    if let Some(since) = waiting_since {
        room.stalled(room.now().saturating_sub(since));
    }
    Ok(())
}

#[inline]
fn wait_for_memory(room: &impl Room) -> Result<()> {
    let mut waiting_since = None;
    loop {
        match pacing::admit(room.memory()) {
            Admission::Go => break,
            Admission::Freeze => room.freeze_largest(),
            Admission::Wait => {
                waiting_since.get_or_insert_with(|| room.now());
                room.wait_for_flush()?;
            }
        }
    }
    if let Some(since) = waiting_since {
        room.stalled(room.now().saturating_sub(since));
    }
    Ok(())
}

impl Room for Writing {
    #[inline]
    fn memory(&self) -> MemtableUsage {
        let MemtableBytes { active, frozen } = self.memtable_bytes();
        MemtableUsage {
            active,
            frozen,
            freeze_at: self.options.freeze_bytes(),
            limit: self.options.memtables_bytes(),
        }
    }

    fn freeze_largest(&self) {
        Writing::freeze_largest(self);
        scheduler::request_flush(self);
    }

    fn wait_for_flush(&self) -> Result<()> {
        scheduler::wait_for_flush(self, || self.memtable_bytes().frozen > 0)?;
        self.check_open()
    }

    fn stalled(&self, took: Duration) {
        self.counters.stalled(took);
        self.tell(&Event::Stalled { took });
    }

    fn now(&self) -> Duration {
        self.files.backend().now()
    }

    fn has_log_room(&self, len_bytes: usize) -> bool {
        self.log.has_room(len_bytes)
    }

    fn make_log_room(&self, len_bytes: usize) -> Result<bool> {
        self.files.with_queue(|queue| Ok(self.log.make_room(len_bytes, queue)?))
    }

    fn wait_for_log(&self, len_bytes: usize) -> Result<()> {
        self.freeze_oldest();
        if self.memtable_bytes().frozen == 0 {
            // Only keyspaces that were dropped have records in these files. The files can go when the records are durable.
            self.log.sync()?;
        }
        scheduler::wait_for_flush(self, || self.log.is_at_limit(len_bytes))?;
        self.check_open()
    }

    fn prepare_spare(&self) {
        if self.log.wants_spare() {
            scheduler::request_spare(self);
        }
    }

    fn release_old_log(&self) {
        // At most once for each file: if that does not help, the limit does.
        let is_due = self.log.is_nearly_full() && self.log_bytes_since_cut() >= self.options.log_file_bytes();
        if is_due && self.memtable_bytes().frozen == 0 {
            self.freeze_oldest();
            scheduler::request_flush(self);
        }
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
