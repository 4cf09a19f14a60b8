//! Background I/O gives way: to the reads of users, by fewer operations in flight, and to a limit of bytes per second.
//!
//! A device answers a read in the order of its queue, more or less: with 32 chunks of jobs before it, it takes 30 times as
//! long as with two, and two chunks keep the device busy all the same. So all jobs together have [`DEPTH_BESIDE_READS`]
//! operations in flight while users' reads miss the cache, and [`DEPTH_ALONE`] otherwise, in equal parts.
//!
//! The limit ([`Builder::background_bytes_per_second`](crate::Builder::background_bytes_per_second)) counts the bytes of
//! flushes and merges, except those that open their output: index and filter, a hundredth. Only merges wait for it: memory
//! waits for a flush. Writers follow, since the pace of writes follows that of merges. A merge goes on, slowly, even while
//! flushes alone are above the limit: it waits for its own bytes and for [`MOST_SLACK`].

use std::time::Duration;

use aio::Backend;

use crate::base::clock::{Clock, sleep};
use crate::base::sync::Ordering;
use crate::base::sync::shared::{AtomicBool, AtomicU64, AtomicUsize};

/// Operations of all jobs in flight while users read from the device.
const DEPTH_BESIDE_READS: usize = 2;

/// Operations of all jobs in flight otherwise.
const DEPTH_ALONE: usize = 8;

/// How long after a read from the device jobs have fewer operations in flight.
const AFTER_A_READ: Duration = Duration::from_millis(100);

/// An idle time earns no burst beyond this, and no operation of a merge waits longer for the bytes of flushes.
const MOST_SLACK: Duration = Duration::from_millis(100);

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
    /// Jobs under way.
    jobs: AtomicUsize,
    is_ended: AtomicBool,
}

impl BackgroundIo {
    pub(crate) fn new(limit: Option<u64>) -> BackgroundIo {
        BackgroundIo {
            limit,
            clock: Clock::new(MOST_SLACK, MOST_SLACK),
            read_at_ns: AtomicU64::new(0),
            jobs: AtomicUsize::new(0),
            is_ended: AtomicBool::new(false),
        }
    }

    /// A user's read goes to the device.
    pub(crate) fn note_read(&self, now: Duration) {
        self.read_at_ns.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A job begins to work with the device.
    pub(crate) fn begin_job(&self) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
    }

    /// A job has ended.
    pub(crate) fn end_job(&self) {
        self.jobs.fetch_sub(1, Ordering::Relaxed);
    }

    /// Operations that a job may have in flight.
    pub(crate) fn depth(&self, now: Duration) -> usize {
        (self.depth_of_all(now) / self.jobs.load(Ordering::Relaxed).max(1)).max(1)
    }

    /// Operations that all jobs together may have in flight.
    pub(crate) fn depth_of_all(&self, now: Duration) -> usize {
        let read_at = self.read_at_ns.load(Ordering::Relaxed);
        let is_beside_reads = read_at > 0 && now < Duration::from_nanos(read_at) + AFTER_A_READ;
        if is_beside_reads { DEPTH_BESIDE_READS } else { DEPTH_ALONE }
    }

    /// Counts `len_bytes` of a job towards the limit. A merge sleeps while it is ahead of it, unless the store closes.
    pub(crate) fn keep_to_limit(&self, backend: &dyn Backend, job: JobKind, len_bytes: usize) {
        let Some(limit) = self.limit else { return };
        let ahead = self.clock.charge(backend.now(), len_bytes as u64, limit);
        if job == JobKind::Merge {
            sleep(backend, ahead, &|| self.is_ended.load(Ordering::Relaxed));
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
    fn jobs_share_the_operations_in_flight() {
        let background = BackgroundIo::new(None);
        let depths = || (background.depth(50 * MS), background.depth(500 * MS));
        background.note_read(5 * MS);
        for expected in [(2, 8), (1, 4), (1, 2)] {
            background.begin_job();
            assert_eq!(depths(), expected);
        }
        background.end_job();
        background.end_job();
        assert_eq!(depths(), (2, 8));
    }

    #[test]
    fn merges_keep_to_the_limit_and_flushes_count_towards_it() {
        let sim = SimBackend::new(1);
        sim.advance(1000 * MS);
        let background = BackgroundIo::new(Some(1_000_000));
        let took = |job| {
            let before = sim.now();
            for _ in 0..10 {
                background.keep_to_limit(&sim, job, 100_000);
            }
            sim.now().saturating_sub(before)
        };
        assert_eq!(took(JobKind::Merge), 900 * MS, "a tenth of a second was free");
        assert_eq!(took(JobKind::Flush), Duration::ZERO);
        assert_eq!(took(JobKind::Merge), 1100 * MS, "its own second, and a tenth of that of the flush");
        background.end();
        assert_eq!(took(JobKind::Merge), Duration::ZERO);
    }

    #[test]
    fn a_merge_goes_on_while_flushes_alone_are_above_the_limit() {
        let sim = SimBackend::new(1);
        let background = BackgroundIo::new(Some(1_000_000));
        for _ in 0..100 {
            background.keep_to_limit(&sim, JobKind::Flush, 10_000_000);
            let before = sim.now();
            background.keep_to_limit(&sim, JobKind::Merge, 100_000);
            assert!(sim.now().saturating_sub(before) <= 200 * MS);
        }
    }

    #[test]
    fn without_a_limit_no_merge_sleeps() {
        let sim = SimBackend::new(1);
        BackgroundIo::new(None).keep_to_limit(&sim, JobKind::Merge, usize::MAX);
        assert_eq!(sim.now(), SimBackend::new(1).now());
    }
}
