//! Background I/O gives way: to the reads of users, by fewer operations in flight, and to a limit of bytes per second.
//!
//! A device answers a read in the order of its queue, more or less: with 32 chunks of jobs before it, it takes 30 times as
//! long as with two, and two chunks keep the device busy all the same. So jobs have [`DEPTH_BESIDE_READS`] operations in
//! flight while users' reads miss the cache, and [`DEPTH_ALONE`] otherwise.
//!
//! The limit ([`Builder::background_bytes_per_second`](crate::Builder::background_bytes_per_second)) counts the bytes of
//! flushes and merges. Only merges wait for it: memory waits for a flush. Writers follow, since the pace of writes follows
//! that of merges.

use std::time::Duration;

use aio::Backend;

use crate::base::clock::Clock;
use crate::base::sync::Ordering;
use crate::base::sync::shared::{AtomicBool, AtomicU64};

/// Operations of a job in flight while users read from the device.
const DEPTH_BESIDE_READS: usize = 2;

/// Operations of a job in flight otherwise.
const DEPTH_ALONE: usize = 8;

/// How long after a read from the device jobs have fewer operations in flight.
const AFTER_A_READ: Duration = Duration::from_millis(100);

/// The longest sleep of a merge that is over the limit: then it looks whether the store closes.
const SLICE: Duration = Duration::from_millis(10);

/// A merge is at most this much behind the limit: an idle time earns no burst beyond it.
const MOST_CREDIT: Duration = Duration::from_millis(100);

/// The kind of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobKind {
    /// A flush, or an open.
    Flush,
    Merge,
}

/// See the [module](self). One for each store.
#[derive(Debug)]
pub(crate) struct BackgroundIo {
    /// Bytes per second.
    limit: Option<u64>,
    clock: Clock,
    /// When a user's read last went to the device, in nanoseconds since the start of the backend's clock; 0: never.
    read_at_ns: AtomicU64,
    is_ended: AtomicBool,
}

impl BackgroundIo {
    pub(crate) fn new(limit: Option<u64>) -> BackgroundIo {
        BackgroundIo {
            limit,
            clock: Clock::new(),
            read_at_ns: AtomicU64::new(0),
            is_ended: AtomicBool::new(false),
        }
    }

    /// A user's read goes to the device.
    pub(crate) fn note_read(&self, now: Duration) {
        self.read_at_ns.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Operations that a job may have in flight.
    pub(crate) fn depth(&self, now: Duration) -> usize {
        let read_at = self.read_at_ns.load(Ordering::Relaxed);
        let is_beside_reads = read_at > 0 && now < Duration::from_nanos(read_at) + AFTER_A_READ;
        if is_beside_reads { DEPTH_BESIDE_READS } else { DEPTH_ALONE }
    }

    /// Counts `len_bytes` of a job towards the limit. A merge sleeps while it is ahead of it, unless the store closes.
    pub(crate) fn keep_to_limit(&self, backend: &dyn Backend, job: JobKind, len_bytes: usize) {
        let Some(limit) = self.limit else { return };
        let mut now = backend.now();
        let mut ahead = self.clock.charge(now, len_bytes as u64, limit, MOST_CREDIT);
        while job == JobKind::Merge && !ahead.is_zero() && !self.is_ended.load(Ordering::Relaxed) {
            backend.park(ahead.min(SLICE));
            let before = std::mem::replace(&mut now, backend.now());
            ahead = ahead.saturating_sub(now.saturating_sub(before));
        }
    }

    /// The store closes: no merge sleeps any more.
    pub(crate) fn end(&self) {
        self.is_ended.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use aio::SimBackend;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn jobs_have_fewer_operations_in_flight_for_a_while_after_a_read() {
        let background = BackgroundIo::new(None);
        assert_eq!(background.depth(Duration::ZERO), DEPTH_ALONE);
        background.note_read(5 * MS);
        assert_eq!(background.depth(5 * MS), DEPTH_BESIDE_READS);
        assert_eq!(background.depth(104 * MS), DEPTH_BESIDE_READS);
        assert_eq!(background.depth(105 * MS), DEPTH_ALONE);
    }

    #[test]
    fn merges_keep_to_the_limit_and_flushes_count_towards_it() {
        let sim = SimBackend::new(1);
        let background = BackgroundIo::new(Some(1_000_000));
        let took = |job| {
            let before = sim.now();
            for _ in 0..10 {
                background.keep_to_limit(&sim, job, 100_000);
            }
            sim.now().saturating_sub(before)
        };
        assert_eq!(took(JobKind::Flush), Duration::ZERO);
        // The second of the flush, and its own; a tenth of a second was free.
        assert!((1800 * MS..=2000 * MS).contains(&took(JobKind::Merge)));
        background.end();
        assert_eq!(took(JobKind::Merge), Duration::ZERO);
    }

    #[test]
    fn without_a_limit_no_merge_sleeps() {
        let sim = SimBackend::new(1);
        BackgroundIo::new(None).keep_to_limit(&sim, JobKind::Merge, usize::MAX);
        assert_eq!(sim.now(), SimBackend::new(1).now());
    }
}
