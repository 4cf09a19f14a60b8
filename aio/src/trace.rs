//! Counts and times every operation, always: four relaxed additions each, no lock, no allocation.
//!
//! A snapshot is plain data. It is not taken at one moment: a count may already include an operation whose latency it
//! does not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of a latency histogram: the last one begins at 2^39 ns, about nine minutes.
const BUCKETS: usize = 40;

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    WriteDurable,
    Sync,
}

impl Kind {
    /// The name for errors and traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::WriteDurable => "durable write",
            Kind::Sync => "sync",
        }
    }
}

/// Everything that a backend has done since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads.
    pub read: OperationCounters,
    /// Writes without a sync of their own.
    pub write: OperationCounters,
    /// Writes that complete on stable media.
    pub write_durable: OperationCounters,
    /// Syncs, as operations and as calls.
    pub sync: OperationCounters,
    /// Calls that handed operations to the kernel; the operations divided by this is the size of a batch.
    pub submit_calls: u64,
}

/// What was done with one kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationCounters {
    /// Operations that ended, well or not.
    pub count: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Operations that ended in an error.
    pub errors: u64,
    /// Time from submit to reaping.
    pub latency: LatencyHistogram,
}

/// Counts of latencies by powers of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyHistogram {
    /// Element `i` counts latencies from 2^i to 2^(i+1) nanoseconds; the first also holds 0, the last everything above.
    pub buckets: [u64; BUCKETS],
}

impl Default for LatencyHistogram {
    fn default() -> LatencyHistogram {
        LatencyHistogram { buckets: [0; BUCKETS] }
    }
}

impl LatencyHistogram {
    /// An upper bound for the latency of `per_mille` thousandths of the operations (990: the 99th percentile), at
    /// most twice the true value; zero if there were none.
    #[must_use]
    pub fn percentile(&self, per_mille: u32) -> Duration {
        let total: u64 = self.buckets.iter().sum();
        let wanted = (u128::from(total) * u128::from(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0_u128;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += u128::from(count);
            if seen >= wanted {
                return Duration::from_nanos(2 << bucket);
            }
        }
        Duration::ZERO
    }
}

/// Where a backend counts; shared by all its queues.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    read: OperationTrace,
    write: OperationTrace,
    write_durable: OperationTrace,
    sync: OperationTrace,
    submit_calls: AtomicU64,
}

#[derive(Debug)]
struct OperationTrace {
    bytes: AtomicU64,
    errors: AtomicU64,
    /// Every operation is in one of them, so their sum is the count.
    latency: [AtomicU64; BUCKETS],
}

impl Default for OperationTrace {
    fn default() -> OperationTrace {
        OperationTrace {
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Trace {
    /// Counts one operation that ended: `moved_bytes` if it went well.
    pub(crate) fn ended(&self, kind: Kind, moved_bytes: Option<usize>, latency: Duration) {
        let trace = match kind {
            Kind::Read => &self.read,
            Kind::Write => &self.write,
            Kind::WriteDurable => &self.write_durable,
            Kind::Sync => &self.sync,
        };
        trace.latency[bucket(latency)].fetch_add(1, Ordering::Relaxed);
        match moved_bytes {
            Some(bytes) => trace.bytes.fetch_add(bytes as u64, Ordering::Relaxed),
            None => trace.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// Counts one call that submitted something.
    pub(crate) fn submitted(&self) {
        self.submit_calls.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts so far.
    pub(crate) fn snapshot(&self) -> Counters {
        Counters {
            read: self.read.snapshot(),
            write: self.write.snapshot(),
            write_durable: self.write_durable.snapshot(),
            sync: self.sync.snapshot(),
            submit_calls: self.submit_calls.load(Ordering::Relaxed),
        }
    }
}

impl OperationTrace {
    fn snapshot(&self) -> OperationCounters {
        let buckets = self.latency.each_ref().map(|count| count.load(Ordering::Relaxed));
        OperationCounters {
            count: buckets.iter().sum(),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            latency: LatencyHistogram { buckets },
        }
    }
}

fn bucket(latency: Duration) -> usize {
    let log2 = latency.as_nanos().checked_ilog2().unwrap_or(0);
    usize::try_from(log2).map_or(BUCKETS - 1, |log2| log2.min(BUCKETS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        for (nanos, expected) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (1023, 9), (1024, 10)] {
            assert_eq!(bucket(Duration::from_nanos(nanos)), expected, "{nanos} ns");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn operations_are_counted_by_kind() {
        let trace = Trace::default();
        trace.ended(Kind::Read, Some(512), Duration::from_nanos(100));
        trace.ended(Kind::Read, Some(512), Duration::from_micros(100));
        trace.ended(Kind::Sync, None, Duration::ZERO);
        trace.submitted();
        let counters = trace.snapshot();
        assert_eq!((counters.read.count, counters.read.bytes, counters.read.errors), (2, 1024, 0));
        assert_eq!((counters.sync.count, counters.sync.bytes, counters.sync.errors), (1, 0, 1));
        assert_eq!(counters.write, OperationCounters::default());
        assert_eq!(counters.submit_calls, 1);
        assert_eq!(counters.read.latency.percentile(500), Duration::from_nanos(128));
        assert_eq!(counters.read.latency.percentile(990), Duration::from_nanos(131_072));
        assert_eq!(counters.write.latency.percentile(500), Duration::ZERO);
    }
}
