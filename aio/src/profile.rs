//! The profile of the operations of a backend or context, as plain data.
//!
//! A profile is a copy. It is not atomic: operations that end while it is made may be in one part of it and not in another.
//! A part by itself is consistent.

mod json;

use std::path::PathBuf;
use std::time::Duration;

use self::json::{Object, list};
use crate::flags::Flags;
use crate::kind::{IoClass, OperationKind};

/// Upper bounds of the size classes in bytes. Larger operations are counted in one more class.
pub const SIZE_CLASSES_BYTES: [usize; SIZES - 1] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Number of size classes.
pub(crate) const SIZES: usize = 6;

/// Elements of the histogram of depths: the last one begins at 2^15.
pub(crate) const DEPTHS: usize = 16;

/// All operations of a backend, or of a context that was made without one, since it was made: how many, how long they
/// took, and which of them were made more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoProfile {
    /// One element for each class of operations and kind of file that occurred.
    pub operations: Vec<OperationProfile>,
    /// Calls that handed operations to the kernel. Counted when the last operation of the call has ended.
    pub submit_calls: u64,
    /// Operations that these calls handed over. Divided by the number of calls it is the mean size of a batch.
    pub submitted: u64,
    /// How many operations the device had after such a call: element `i` counts depths from 2^i to 2^(i+1) - 1, and the
    /// first one 0 as well. Operations that were done already and not yet reaped do not count, where the completion ring
    /// can be read.
    pub depths: [u64; DEPTHS],
    /// The 20 places with the most calls, of those with at least two. Most calls first.
    pub places: Vec<Place>,
}

/// Counts of one class of operations on one kind of file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OperationProfile {
    /// The class.
    pub class: IoClass,
    /// The kind of the files, see [`File::set_kind`](crate::File::set_kind); "other" where none is set, "all" in a sum.
    pub file_kind: String,
    /// Operations that ended, with or without an error.
    pub count: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Operations that ended in an error.
    pub errors: u64,
    /// Operations by bytes moved, see [`SIZE_CLASSES_BYTES`].
    pub sizes: [u64; SIZES],
    /// Time from the operation's turn in the submit to its end, see [`OperationProfile::time`].
    pub latency: LatencyHistogram,
    /// Sum of the latencies. Divided by the elapsed time it is the mean depth of the queue.
    ///
    /// The latency begins before the call that hands the operation to the kernel. The time of a call with several operations is
    /// divided evenly among them: the second one begins when the first one's share ends. An operation ends when it is reaped; one
    /// that was done inside the call ends with it if the file is direct, else with its share if another one was submitted after it.
    pub time: Duration,
    /// Operations with the same arguments as an earlier one: the same kind, file, offset, length and flags. Not counted for
    /// polls.
    ///
    /// Right within 2 % as long as there are at most a million places, of which at least one in twenty-five is called again.
    /// Exact up to some thousand places. Too low with more than two million.
    pub repeated: u64,
    /// Their latencies.
    pub repeated_time: Duration,
}

/// Arguments of a call that was made more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The kind of the operation.
    pub kind: OperationKind,
    /// Its flags.
    pub flags: Flags,
    /// The kind of the file, as in [`OperationProfile::file_kind`].
    pub file_kind: String,
    /// The path of the file when it was opened. (A file is known by device, inode and the last part of this.)
    pub file: PathBuf,
    /// The device that holds the file, as in `stat`; 0 on the simulated disk.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// In bytes; 0 for syncs.
    pub offset: u64,
    /// Of all buffers together; 0 for syncs.
    pub len_bytes: u64,
    /// How often it was called, at least.
    pub calls: u64,
    /// How many more calls there may have been: 0 with up to some thousand places, and with more usually far
    /// below 0.1 % of all calls.
    pub missed_calls_at_most: u64,
    /// Latencies of `calls`.
    pub time: Duration,
}

impl Place {
    /// The mean latency.
    #[must_use]
    pub fn mean(&self) -> Duration {
        divided(self.time, self.calls)
    }

    fn to_json(&self) -> String {
        Object::new()
            .text("kind", self.kind.name())
            .raw("flags", &self.flags.bits())
            .text("file_kind", &self.file_kind)
            .text("file", &self.file.to_string_lossy())
            .raw("device", &self.device)
            .raw("inode", &self.inode)
            .raw("offset", &self.offset)
            .raw("len_bytes", &self.len_bytes)
            .raw("calls", &self.calls)
            .raw("missed_calls_at_most", &self.missed_calls_at_most)
            .nanos("time", self.time)
            .nanos("mean", self.mean())
            .end()
    }
}

/// Counts of latencies, with two significant digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatencyHistogram {
    /// The buckets that are not empty, rising.
    pub buckets: Vec<LatencyBucket>,
}

/// Operations whose latency is at least `from_nanos` and below `to_nanos`; the middle is off by less than 1 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyBucket {
    /// The lowest latency.
    pub from_nanos: u64,
    /// The lowest latency above.
    pub to_nanos: u64,
    /// How many operations.
    pub count: u64,
}

impl LatencyBucket {
    fn to_json(self) -> String {
        list([self.from_nanos, self.to_nanos, self.count])
    }
}

impl LatencyHistogram {
    /// How many latencies were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count).sum()
    }

    /// The latency below or at which `per_mille` thousandths of the operations are (990: the 99th percentile), within 1 %;
    /// zero if there were none. Above 18 minutes it is too low.
    #[must_use]
    pub fn percentile(&self, per_mille: u32) -> Duration {
        let wanted = (u128::from(self.count()) * u128::from(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0_u128;
        for bucket in &self.buckets {
            seen += u128::from(bucket.count);
            if seen >= wanted {
                return Duration::from_nanos(bucket.from_nanos.midpoint(bucket.to_nanos - 1));
            }
        }
        Duration::ZERO
    }

    fn add(&mut self, other: &LatencyHistogram) {
        self.buckets.extend(&other.buckets);
        self.buckets.sort_by_key(|bucket| bucket.from_nanos);
        self.buckets.dedup_by(|next, bucket| {
            let is_same = next.from_nanos == bucket.from_nanos;
            bucket.count += if is_same { next.count } else { 0 };
            is_same
        });
    }
}

impl OperationProfile {
    /// Nothing counted.
    pub(crate) fn new(class: IoClass, file_kind: &str) -> OperationProfile {
        OperationProfile {
            class,
            file_kind: file_kind.to_owned(),
            count: 0,
            bytes: 0,
            errors: 0,
            sizes: [0; SIZES],
            latency: LatencyHistogram::default(),
            time: Duration::ZERO,
            repeated: 0,
            repeated_time: Duration::ZERO,
        }
    }

    /// The mean latency.
    #[must_use]
    pub fn mean(&self) -> Duration {
        divided(self.time, self.count)
    }

    fn add(&mut self, other: &OperationProfile) {
        self.count += other.count;
        self.bytes += other.bytes;
        self.errors += other.errors;
        for (sum, count) in self.sizes.iter_mut().zip(other.sizes) {
            *sum += count;
        }
        self.latency.add(&other.latency);
        self.time += other.time;
        self.repeated += other.repeated;
        self.repeated_time += other.repeated_time;
    }

    fn to_json(&self) -> String {
        Object::new()
            .text("class", self.class.name())
            .text("file_kind", &self.file_kind)
            .raw("count", &self.count)
            .raw("bytes", &self.bytes)
            .raw("errors", &self.errors)
            .raw("sizes", &list(self.sizes))
            .nanos("time", self.time)
            .nanos("mean", self.mean())
            .nanos("p50", self.latency.percentile(500))
            .nanos("p99", self.latency.percentile(990))
            .raw("latency", &list(self.latency.buckets.iter().map(|bucket| bucket.to_json())))
            .raw("repeated", &self.repeated)
            .nanos("repeated", self.repeated_time)
            .end()
    }
}

impl IoProfile {
    /// The sum over all kinds of files.
    #[must_use]
    pub fn class(&self, class: IoClass) -> OperationProfile {
        let mut sum = OperationProfile::new(class, "all");
        self.operations.iter().filter(|part| part.class == class).for_each(|part| sum.add(part));
        sum
    }

    /// Reads of all kinds of files.
    #[must_use]
    pub fn read(&self) -> OperationProfile {
        self.class(IoClass::Read)
    }

    /// Writes that are durable only after a sync.
    #[must_use]
    pub fn write(&self) -> OperationProfile {
        self.class(IoClass::Write)
    }

    /// Writes that complete on stable media.
    #[must_use]
    pub fn write_durable(&self) -> OperationProfile {
        self.class(IoClass::WriteDurable)
    }

    /// Syncs, as operations and as calls.
    #[must_use]
    pub fn sync(&self) -> OperationProfile {
        self.class(IoClass::Sync)
    }

    /// Polls of descriptors.
    #[must_use]
    pub fn poll(&self) -> OperationProfile {
        self.class(IoClass::Poll)
    }

    /// Operations that ended.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.operations.iter().map(|part| part.count).sum()
    }

    /// Operations with the same arguments as an earlier one, see [`OperationProfile::repeated`].
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.operations.iter().map(|part| part.repeated).sum()
    }

    /// Their latencies.
    #[must_use]
    pub fn repeated_time(&self) -> Duration {
        self.operations.iter().map(|part| part.repeated_time).sum()
    }

    /// The profile as one JSON object in a line. Names are those of the fields; durations are in nanoseconds, with `_ns` at the
    /// end of the name. A latency is `[from_ns, to_ns, count]`. A path that is not UTF-8 is shown as well as possible.
    #[must_use]
    pub fn to_json(&self) -> String {
        Object::new()
            .raw("submit_calls", &self.submit_calls)
            .raw("submitted", &self.submitted)
            .raw("depths", &list(self.depths))
            .raw("repeated", &self.repeated())
            .nanos("repeated", self.repeated_time())
            .raw("operations", &list(self.operations.iter().map(OperationProfile::to_json)))
            .raw("places", &list(self.places.iter().map(Place::to_json)))
            .end()
    }
}

fn divided(time: Duration, count: u64) -> Duration {
    let nanos = time.as_nanos().checked_div(u128::from(count)).unwrap_or(0);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_in_the_json() {
        let mut read = OperationProfile::new(IoClass::Read, "log");
        (read.count, read.bytes, read.repeated) = (3, 12288, 2);
        read.time = Duration::from_nanos(300);
        read.latency.buckets.push(LatencyBucket { from_nanos: 100, to_nanos: 101, count: 3 });
        let place = Place {
            kind: OperationKind::ReadVectored,
            flags: Flags::DATA_SYNC,
            file_kind: "log".to_owned(),
            file: "a \"b\"\\\n\u{e9}".into(),
            device: 1,
            inode: 2,
            offset: 4096,
            len_bytes: 8192,
            calls: 3,
            missed_calls_at_most: 1,
            time: Duration::from_nanos(301),
        };
        let mut all = IoProfile { submit_calls: 2, submitted: 3, ..IoProfile::default() };
        (all.operations, all.places) = (vec![read], vec![place]);
        let found: serde_json::Value = serde_json::from_str(&all.to_json()).unwrap();
        assert_eq!(
            found,
            serde_json::json!({
                "submit_calls": 2, "submitted": 3, "depths": vec![0; 16], "repeated": 2, "repeated_ns": 0,
                "operations": [{
                    "class": "read", "file_kind": "log", "count": 3, "bytes": 12288, "errors": 0, "sizes": vec![0; 6],
                    "time_ns": 300, "mean_ns": 100, "p50_ns": 100, "p99_ns": 100, "latency": [[100, 101, 3]],
                    "repeated": 2, "repeated_ns": 0,
                }],
                "places": [{
                    "kind": "read_vectored", "flags": 2, "file_kind": "log", "file": "a \"b\"\\\n\u{e9}", "device": 1,
                    "inode": 2, "offset": 4096, "len_bytes": 8192, "calls": 3, "missed_calls_at_most": 1,
                    "time_ns": 301, "mean_ns": 100,
                }],
            })
        );
        let nothing: serde_json::Value = serde_json::from_str(&IoProfile::default().to_json()).unwrap();
        assert_eq!(nothing["operations"], serde_json::json!([]));
    }
}
