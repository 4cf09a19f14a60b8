//! Counts and times every operation, always. One lock is taken for all operations that are reaped together.
//!
//! Invariants: nothing but memory is touched under the lock, so it is held for some ten nanoseconds for each operation; a
//! profile is copied out in small parts. In a forked child nothing is counted and the profile is empty, since another thread
//! may have held the lock at the fork. Memory is made when it is needed: 1,024 buckets of places (584 KiB), their filter
//! (1 MiB, made when a bucket is full, and cleared as a whole every two million new places), for each class of operations
//! and kind of file some rows of a histogram (a few KiB, at most 17), and the paths of the files that the places name.
//!
//! One lock instead of atomic counters, because the counts of a batch then cost one exchange instead of six for each
//! operation, and because the places are more than counters.

mod histogram;
mod places;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use self::histogram::Histogram;
pub(crate) use self::places::Arguments;
use self::places::{BUCKETS, Places, Seen};
use crate::clock;
use crate::flags::Flags;
use crate::identity::{Identity, OTHER};
use crate::kind::{IoClass, OperationKind};
use crate::profile::{DEPTHS, IoProfile, OperationProfile, SIZE_CLASSES_BYTES, SIZES};
use crate::sys::Process;

/// Kinds of files that are counted apart. The operations on further ones are counted in the first, `OTHER`.
const FILE_KINDS: usize = 8;

/// Places in a profile.
const TOP: usize = 20;

/// Buckets of places that are searched under the lock at a time.
const SEARCHED: usize = 32;

/// One operation that ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) arguments: Arguments<'a>,
    /// `None` after an error.
    pub(crate) moved_bytes: Option<usize>,
    pub(crate) nanos: u64,
    /// Of the call that submitted it, if this was the last operation of that call.
    pub(crate) submitted: Option<Submitted>,
}

/// A call that handed operations to the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Submitted {
    pub(crate) operations: usize,
    /// How many the device had after it.
    pub(crate) depth: usize,
}

/// The counts of a backend, shared by all its queues.
#[derive(Debug)]
pub(crate) struct Trace {
    state: Mutex<State>,
    process: Process,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace { state: Mutex::default(), process: Process::current() }
    }
}

#[derive(Debug, Default)]
struct State {
    kinds: Vec<FileKind>,
    submit_calls: u64,
    submitted: u64,
    depths: [u64; DEPTHS],
    places: Places,
}

/// The operations on one kind of file.
#[derive(Debug)]
struct FileKind {
    name: &'static str,
    classes: [Option<Box<Counts>>; IoClass::ALL.len()],
}

/// The operations of one class on one kind of file.
#[derive(Debug, Default)]
struct Counts {
    bytes: u64,
    errors: u64,
    nanos: u64,
    sizes: [u64; SIZES],
    latency: Histogram,
    repeated: u64,
    repeated_nanos: u64,
    /// How many of `repeated` were new, probably; in 2^-16.
    mistaken: u64,
}

impl Trace {
    fn lock(&self) -> Option<MutexGuard<'_, State>> {
        self.process.is_current().then(|| self.state.lock())
    }

    /// Keeps everything else from counting, until it is dropped.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Sized {
        self.lock()
    }

    /// Counts operations that ended.
    #[expect(single_use_lifetimes, reason = "an anonymous one is not stable here")]
    pub(crate) fn ended<'a>(&self, operations: impl IntoIterator<Item = Ended<'a>>) {
        let Some(mut state) = self.lock() else { return };
        operations.into_iter().for_each(|ended| state.ended(&ended));
    }

    /// Counts a call that handed over operations; for queues that do not know the last one of it.
    pub(crate) fn submitted(&self, call: Submitted) {
        if let Some(mut state) = self.lock() {
            state.submitted(&call);
        }
    }

    /// The counts so far.
    pub(crate) fn profile(&self) -> IoProfile {
        let mut profile = IoProfile::default();
        let Some(state) = self.lock() else { return profile };
        profile.submit_calls = state.submit_calls;
        profile.submitted = state.submitted;
        profile.depths = state.depths;
        drop(state);
        for class in IoClass::ALL {
            for at in 0..FILE_KINDS {
                let Some(state) = self.lock() else { continue };
                let counts = state.kinds.get(at).and_then(|kind| Some((kind.name, kind.counts(class)?)));
                profile.operations.extend(counts.map(|(name, counts)| counts.snapshot(class, name)));
            }
        }
        let mut top = Vec::with_capacity(TOP);
        for first in (0..BUCKETS).step_by(SEARCHED) {
            let Some(state) = self.lock() else { continue };
            state.places.add_top(first..first + SEARCHED, &mut top, TOP);
        }
        profile.places = top.iter().map(places::Entry::place).collect();
        profile
    }
}

impl State {
    fn ended(&mut self, ended: &Ended<'_>) {
        // Not a copy of all of it: the processor waits if bytes that were just stored are loaded as larger words.
        let Ended { arguments, moved_bytes, submitted, .. } = ended;
        let (class, nanos) = (arguments.class(), ended.nanos);
        let seen = match class {
            // It waits for something that happens again and again.
            IoClass::Poll => Seen::Never { mistaken: 0 },
            _ => self.places.count(arguments, nanos),
        };
        let counts = self.counts(arguments.file.map_or(OTHER, |file| file.kind()), class);
        counts.latency.count(nanos);
        counts.nanos += nanos;
        counts.sizes[size_class(moved_bytes.unwrap_or(0))] += 1;
        match moved_bytes {
            Some(bytes) => counts.bytes += *bytes as u64,
            None => counts.errors += 1,
        }
        match seen {
            Seen::Before => {
                counts.repeated += 1;
                counts.repeated_nanos += nanos;
            }
            Seen::Never { mistaken } => counts.mistaken += mistaken,
        }
        if let Some(call) = submitted {
            self.submitted(call);
        }
    }

    fn submitted(&mut self, call: &Submitted) {
        if call.operations == 0 {
            return;
        }
        self.submit_calls += 1;
        self.submitted += call.operations as u64;
        let log2 = call.depth.checked_ilog2().unwrap_or(0);
        self.depths[usize::try_from(log2).map_or(DEPTHS - 1, |log2| log2.min(DEPTHS - 1))] += 1;
    }

    fn counts(&mut self, name: &'static str, class: IoClass) -> &mut Counts {
        if self.kinds.is_empty() {
            self.kinds.push(FileKind::new(OTHER));
        }
        let found = self.kinds.iter().position(|kind| std::ptr::eq(kind.name, name) || kind.name == name);
        let at = match found {
            Some(at) => at,
            None if self.kinds.len() == FILE_KINDS => 0,
            None => {
                self.kinds.push(FileKind::new(name));
                self.kinds.len() - 1
            }
        };
        self.kinds[at].classes[class as usize].get_or_insert_default()
    }
}

impl FileKind {
    fn new(name: &'static str) -> FileKind {
        FileKind { name, classes: [const { None }; IoClass::ALL.len()] }
    }

    fn counts(&self, class: IoClass) -> Option<&Counts> {
        self.classes[class as usize].as_deref()
    }
}

impl Counts {
    fn snapshot(&self, class: IoClass, file_kind: &str) -> OperationProfile {
        let repeated = self.repeated.saturating_sub(self.mistaken >> 16);
        // Those taken for repeats by mistake took as long as the others, on average.
        let share = u128::from(self.repeated_nanos) * u128::from(repeated);
        let repeated_nanos = share.checked_div(u128::from(self.repeated)).unwrap_or(0);
        let latency = self.latency.snapshot();
        OperationProfile {
            count: latency.count(),
            bytes: self.bytes,
            errors: self.errors,
            sizes: self.sizes,
            latency,
            time: Duration::from_nanos(self.nanos),
            repeated,
            repeated_time: Duration::from_nanos(u64::try_from(repeated_nanos).unwrap_or(u64::MAX)),
            ..OperationProfile::new(class, file_kind)
        }
    }
}

fn size_class(bytes: usize) -> usize {
    // Without branches: five comparisons are faster than a search.
    SIZE_CLASSES_BYTES.iter().map(|&most| usize::from(most < bytes)).sum()
}

/// For the benches: only the counting of a context.
#[doc(hidden)]
#[derive(Debug)]
pub struct Counting {
    trace: Trace,
    file: Arc<Identity>,
}

impl Default for Counting {
    fn default() -> Counting {
        Counting::new()
    }
}

impl Counting {
    /// Counts of zero.
    #[must_use]
    pub fn new() -> Counting {
        Counting { trace: Trace::default(), file: Arc::new(Identity::new(1, 2, Path::new("file"))) }
    }

    /// Counts `operations` reads of 4 KiB from `offset` on, submitted and reaped together.
    pub fn operations(&self, offset: u64, operations: usize) {
        let begin_nanos = clock::nanos();
        let submitted_nanos = if operations > 1 { clock::nanos() } else { begin_nanos };
        let now_nanos = clock::nanos();
        self.trace.ended((0..operations).map(|nth| Ended {
            arguments: Arguments {
                file: Some(&self.file),
                kind: OperationKind::Read,
                flags: Flags::NONE,
                offset: offset + (nth as u64) * 4096,
                len_bytes: 4096,
            },
            moved_bytes: Some(4096),
            nanos: now_nanos.saturating_sub(begin_nanos.midpoint(submitted_nanos)),
            submitted: (nth + 1 == operations).then_some(Submitted { operations, depth: operations }),
        }));
    }

    /// The counts so far.
    #[must_use]
    pub fn profile(&self) -> IoProfile {
        self.trace.profile()
    }
}

#[cfg(test)]
#[path = "trace/tests.rs"]
mod tests;
