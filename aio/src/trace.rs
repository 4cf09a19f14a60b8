//! Counts and times every operation, always: five relaxed atomic accesses each, no lock, no allocation.
//!
//! A snapshot is plain data. It is not atomic: a count may include an operation whose latency is not yet included.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;

/// Buckets of a latency histogram: the last one begins at 2^39 ns, about nine minutes.
const BUCKETS: usize = 40;

/// Upper bounds of the size classes in bytes. Larger operations are counted in one more class.
pub const SIZE_CLASSES_BYTES: [usize; SIZES - 1] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Number of size classes.
const SIZES: usize = 6;

/// Buckets of the histogram of depths: the last one begins at 2^15.
const DEPTHS: usize = 16;

/// Number of recent operations that are remembered, to count repeated ones.
const REMEMBERED: usize = 256;

/// The kinds that operations are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Read,
    Write,
    WriteDurable,
    Sync,
    Poll,
}

#[cfg(feature = "tracing")]
impl Class {
    /// The name for traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Read => "read",
            Class::Write => "write",
            Class::WriteDurable => "durable write",
            Class::Sync => "sync",
            Class::Poll => "poll",
        }
    }
}

/// Counts of all operations of a backend since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Reads.
    pub read: OperationCounters,
    /// Writes that are durable only after a sync.
    pub write: OperationCounters,
    /// Writes that complete on stable media.
    pub write_durable: OperationCounters,
    /// Syncs, as operations and as calls.
    pub sync: OperationCounters,
    /// Polls of descriptors.
    pub poll: OperationCounters,
    /// Calls that handed operations to the kernel. The number of operations divided by this is the mean size of a
    /// batch.
    pub submit_calls: u64,
    /// How many operations were in flight after such a call: element `i` counts depths from 2^i to 2^(i+1) - 1.
    pub depths: [u64; DEPTHS],
    /// Reads and writes with the same file, offset and length as one of the recent ones: possibly repeated work.
    pub repeated: u64,
}

/// Counts of one kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationCounters {
    /// Operations that ended, with or without an error.
    pub count: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Operations that ended in an error.
    pub errors: u64,
    /// Time from submit to reaping.
    pub latency: LatencyHistogram,
    /// The same latencies by bytes moved, see [`SIZE_CLASSES_BYTES`].
    pub latency_by_size: [LatencyHistogram; SIZES],
    /// Sum of those times. Divided by the elapsed time it is the mean depth of the queue.
    pub time_in_flight: Duration,
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

/// The counters of a backend, shared by all its queues.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    read: OperationTrace,
    write: OperationTrace,
    write_durable: OperationTrace,
    sync: OperationTrace,
    poll: OperationTrace,
    /// Each submit is counted in one element, so their sum is the number of calls.
    depths: [AtomicU64; DEPTHS],
    repeated: AtomicU64,
    recent: Recent,
}

/// Hashes of recent operations. The index of an operation is derived from its hash.
#[derive(Debug)]
struct Recent([AtomicU64; REMEMBERED]);

impl Default for Recent {
    fn default() -> Recent {
        Recent([const { AtomicU64::new(0) }; REMEMBERED])
    }
}

#[derive(Debug)]
struct OperationTrace {
    bytes: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
    /// By size class. Every operation is counted in one bucket, so their sum is the count.
    latency: [[AtomicU64; BUCKETS]; SIZES],
}

impl Default for OperationTrace {
    fn default() -> OperationTrace {
        OperationTrace {
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            latency: [const { [const { AtomicU64::new(0) }; BUCKETS] }; SIZES],
        }
    }
}

impl Trace {
    /// Counts one operation that ended; `moved_bytes` is `None` after an error.
    pub(crate) fn ended(&self, class: Class, moved_bytes: Option<usize>, nanos: u64) {
        let trace = match class {
            Class::Read => &self.read,
            Class::Write => &self.write,
            Class::WriteDurable => &self.write_durable,
            Class::Sync => &self.sync,
            Class::Poll => &self.poll,
        };
        let size = size_class(moved_bytes.unwrap_or(0));
        trace.latency[size][bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        trace.nanos.fetch_add(nanos, Ordering::Relaxed);
        match moved_bytes {
            Some(bytes) => trace.bytes.fetch_add(bytes as u64, Ordering::Relaxed),
            None => trace.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// Counts one call that submitted operations, by the number in flight after it.
    pub(crate) fn submitted(&self, depth: usize) {
        let log2 = depth.checked_ilog2().unwrap_or(0);
        let class = usize::try_from(log2).map_or(DEPTHS - 1, |log2| log2.min(DEPTHS - 1));
        self.depths[class].fetch_add(1, Ordering::Relaxed);
    }

    /// Remembers a read or write; counts it if a recent one was the same.
    pub(crate) fn touched(&self, what: Touch) {
        let hash = what.hash();
        let index = usize::try_from(hash >> 32).unwrap_or(0) % REMEMBERED;
        // Two threads at one index may miss a repetition. An exact count is not worth a stronger operation.
        if self.recent.0[index].load(Ordering::Relaxed) == hash {
            self.repeated.fetch_add(1, Ordering::Relaxed);
        } else {
            self.recent.0[index].store(hash, Ordering::Relaxed);
        }
    }

    /// The counts so far.
    pub(crate) fn snapshot(&self) -> IoCounters {
        let depths = self.depths.each_ref().map(|count| count.load(Ordering::Relaxed));
        IoCounters {
            read: self.read.snapshot(),
            write: self.write.snapshot(),
            write_durable: self.write_durable.snapshot(),
            sync: self.sync.snapshot(),
            poll: self.poll.snapshot(),
            submit_calls: depths.iter().sum(),
            depths,
            repeated: self.repeated.load(Ordering::Relaxed),
        }
    }
}

/// For the benches: only the counting of a context.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Counting(Trace);

impl Counting {
    /// Counters of zero.
    #[must_use]
    pub fn new() -> Counting {
        Counting::default()
    }

    /// Counts `count` reads of 4 KiB from `offset` on, submitted and reaped together.
    pub fn operations(&self, offset: i64, count: usize) {
        let submitted_at = clock::nanos();
        for nth in (offset..).step_by(4096).take(count) {
            self.0.touched(Touch { opcode: 0, descriptor: 3, offset: nth, len_bytes: 4096 });
        }
        self.0.submitted(count);
        let latency = clock::nanos().saturating_sub(submitted_at);
        for _ in 0..count {
            self.0.ended(Class::Read, Some(4096), latency);
        }
    }
}

/// Arguments of a read or write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    pub(crate) opcode: u16,
    pub(crate) descriptor: u32,
    pub(crate) offset: i64,
    pub(crate) len_bytes: u64,
}

impl Touch {
    /// Never 0, which marks an empty element.
    fn hash(self) -> u64 {
        // An odd constant with well-spread bits (from the golden ratio); each step mixes one argument in.
        const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
        let first = u64::from(self.opcode) << 32 | u64::from(self.descriptor);
        let mut hash = 0_u64;
        for argument in [first, self.offset.cast_unsigned(), self.len_bytes] {
            hash = (hash ^ argument).wrapping_mul(FACTOR);
            hash ^= hash >> 29;
        }
        hash | 1
    }
}

impl OperationTrace {
    fn snapshot(&self) -> OperationCounters {
        let load = |counts: &[AtomicU64; BUCKETS]| LatencyHistogram {
            buckets: counts.each_ref().map(|count| count.load(Ordering::Relaxed)),
        };
        let latency_by_size = self.latency.each_ref().map(load);
        let mut latency = LatencyHistogram::default();
        for class in &latency_by_size {
            for (sum, count) in latency.buckets.iter_mut().zip(class.buckets) {
                *sum += count;
            }
        }
        OperationCounters {
            count: latency.buckets.iter().sum(),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            latency,
            latency_by_size,
            time_in_flight: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

fn size_class(bytes: usize) -> usize {
    SIZE_CLASSES_BYTES.partition_point(|&most| most < bytes)
}

fn bucket(nanos: u64) -> usize {
    let log2 = nanos.checked_ilog2().unwrap_or(0);
    usize::try_from(log2).map_or(BUCKETS - 1, |log2| log2.min(BUCKETS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        for (nanos, expected) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (1023, 9), (1024, 10)] {
            assert_eq!(bucket(nanos), expected, "{nanos} ns");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn operations_are_counted_by_kind() {
        let trace = Trace::default();
        trace.ended(Class::Read, Some(512), 100);
        trace.ended(Class::Read, Some(512), 100_000);
        trace.ended(Class::Sync, None, 0);
        trace.submitted(1);
        let counters = trace.snapshot();
        assert_eq!((counters.read.count, counters.read.bytes, counters.read.errors), (2, 1024, 0));
        assert_eq!((counters.sync.count, counters.sync.bytes, counters.sync.errors), (1, 0, 1));
        assert_eq!(counters.write, OperationCounters::default());
        assert_eq!(counters.submit_calls, 1);
        assert_eq!(counters.read.latency.percentile(500), Duration::from_nanos(128));
        assert_eq!(counters.read.latency.percentile(990), Duration::from_nanos(131_072));
        assert_eq!(counters.write.latency.percentile(500), Duration::ZERO);
    }

    #[test]
    fn sizes_depths_and_repetitions_are_counted() {
        let trace = Trace::default();
        for (bytes, class) in [(0, 0), (4096, 0), (4097, 1), (1 << 20, 4), (1 << 21, 5)] {
            assert_eq!(size_class(bytes), class, "{bytes} bytes");
        }
        trace.ended(Class::Write, Some(1 << 16), 3000);
        trace.submitted(1);
        trace.submitted(7);
        let touch = Touch { opcode: 0, descriptor: 3, offset: 4096, len_bytes: 4096 };
        for offset in 0..8 {
            trace.touched(Touch { offset: offset << 12, ..touch });
        }
        assert_eq!(trace.snapshot().repeated, 0);
        trace.touched(touch);
        trace.touched(Touch { descriptor: 4, ..touch });
        let counters = trace.snapshot();
        assert_eq!(counters.repeated, 1);
        assert_eq!(counters.depths[..4], [1, 0, 1, 0]);
        assert_eq!(counters.write.latency_by_size[2].buckets.iter().sum::<u64>(), 1);
        assert_eq!(counters.write.time_in_flight, Duration::from_micros(3));
    }
}
