//! Faults of the simulated machine: which call fails, when, how often, and in which way.
//!
//! Invariant: a plan counts only the calls that it matches and that its fault can hit, so "the third write" does not
//! depend on other calls.

use std::path::Path;
use std::time::Duration;

use crate::error::Errno;

/// The kinds of calls and operations of the simulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventKind {
    /// A read completes.
    Read,
    /// A write completes.
    Write,
    /// A durable write completes.
    WriteDurable,
    /// A sync of a file, asynchronous or not.
    Sync,
    /// An existing file is opened.
    Open,
    /// A file is made.
    Create,
    /// Space is reserved.
    Allocate,
    /// A file is cut.
    Truncate,
    /// A second name is made.
    Link,
    /// A name is removed.
    Remove,
    /// A directory is made.
    MakeDir,
    /// A directory is synced.
    SyncDir,
    /// A store into a mapped file. Cannot fail.
    MapWrite,
    /// A file is mapped.
    Map,
    /// A directory is listed.
    List,
    /// A size or an entry is looked up.
    Stat,
    /// A lock is taken.
    Lock,
    /// A queue is made; `EAGAIN` gives `Error::Slots`.
    Queue,
    /// Operations are submitted: an errno refuses the operation at the front.
    Submit,
    /// A wait for completions: `EINTR` ends it, another errno fails it.
    Wait,
    /// Space is made behind a part of a mapped file.
    MakeRoom,
    /// A range is zeroed without a write.
    ZeroRange,
}

impl EventKind {
    /// Whether it can change the disk, so that crashes before and after it differ. Only such events have an index.
    #[must_use]
    pub fn changes_disk(self) -> bool {
        use EventKind::{
            Allocate, Create, Link, MakeDir, MapWrite, Remove, Sync, SyncDir, Truncate, Write, WriteDurable,
            ZeroRange,
        };
        matches!(
            self,
            Write
                | WriteDurable
                | Sync
                | Create
                | Allocate
                | ZeroRange
                | Truncate
                | Link
                | Remove
                | MakeDir
                | SyncDir
                | MapWrite
        )
    }
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails. Of a failed write any subset of sectors is visible, and any subset on the disk. A failed sync
    /// makes nothing durable, and no later sync will, although it reports success.
    Errno(Errno),
    /// A read or write moves at most this many bytes (a write whole sectors only) and reports how many.
    Short(usize),
    /// An operation takes this long.
    Delay(Duration),
    /// An operation completes after all others in flight on its queue.
    Last,
    /// A read returns its data with this bit flipped, counted from the first byte, modulo the length.
    FlipBit(u64),
    /// A write or sync reports success and has no effect.
    Dropped,
    /// A write goes to this offset of its file instead, and reports success.
    Misdirected(u64),
}

impl Fault {
    /// Whether it takes effect when an operation is submitted, not when it completes.
    fn is_scheduling(self) -> bool {
        matches!(self, Fault::Delay(_) | Fault::Last)
    }

    fn can_hit(self, kind: EventKind) -> bool {
        use EventKind::{MapWrite, Read, Sync, SyncDir, Write, WriteDurable};
        match self {
            Fault::Errno(_) => kind != MapWrite,
            Fault::Short(_) => matches!(kind, Read | Write | WriteDurable),
            Fault::Delay(_) | Fault::Last => matches!(kind, Read | Write | WriteDurable | Sync),
            Fault::FlipBit(_) => kind == Read,
            Fault::Dropped => matches!(kind, Write | WriteDurable | Sync | SyncDir),
            Fault::Misdirected(_) => matches!(kind, Write | WriteDurable),
        }
    }
}

/// A fault and the calls that it strikes.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    fault: Fault,
    kinds: Vec<EventKind>,
    path_part: String,
    skip: u64,
    times: u64,
}

impl FaultPlan {
    /// Strikes the first call that the fault can hit, once. `Submit` and `Wait` are hit only when named in
    /// [`FaultPlan::on`].
    #[must_use]
    pub fn new(fault: Fault) -> FaultPlan {
        FaultPlan { fault, kinds: Vec::new(), path_part: String::new(), skip: 0, times: 1 }
    }

    /// Limits the plan to calls of these kinds.
    #[must_use]
    pub fn on(mut self, kinds: &[EventKind]) -> FaultPlan {
        self.kinds = kinds.to_vec();
        self
    }

    /// Limits the plan to calls on paths that contain `part`. An open file keeps the path it was opened with.
    #[must_use]
    pub fn path(mut self, part: &str) -> FaultPlan {
        part.clone_into(&mut self.path_part);
        self
    }

    /// Lets this many matching calls pass first.
    #[must_use]
    pub fn skip(mut self, calls: u64) -> FaultPlan {
        self.skip = calls;
        self
    }

    /// Strikes this many matching calls in a row.
    #[must_use]
    pub fn times(mut self, times: u64) -> FaultPlan {
        self.times = times;
        self
    }

    /// Strikes every matching call from then on.
    #[must_use]
    pub fn forever(self) -> FaultPlan {
        self.times(u64::MAX)
    }

    fn matches(&self, kind: EventKind, path: &Path) -> bool {
        let named = self.kinds.contains(&kind);
        let by_default = self.kinds.is_empty() && !matches!(kind, EventKind::Submit | EventKind::Wait);
        (named || by_default)
            && self.fault.can_hit(kind)
            && (self.path_part.is_empty() || path.to_string_lossy().contains(&self.path_part))
    }

    /// Counts the call if it matches. Returns whether the fault strikes it.
    fn strikes(&mut self, kind: EventKind, path: &Path) -> bool {
        if self.times == 0 || !self.matches(kind, path) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.times < u64::MAX {
            self.times -= 1;
        }
        true
    }
}

/// All plans of a machine.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    plans: Vec<FaultPlan>,
    hits: u64,
}

impl Faults {
    pub(crate) fn add(&mut self, plan: FaultPlan) {
        self.plans.push(plan);
    }

    pub(crate) fn clear(&mut self) {
        self.plans.clear();
    }

    /// How often a fault has struck.
    pub(crate) fn hits(&self) -> u64 {
        self.hits
    }

    /// The fault for a call that happens now.
    pub(crate) fn strike(&mut self, kind: EventKind, path: &Path) -> Option<Fault> {
        self.pick(kind, path, false)
    }

    /// The delay or reordering for an operation that is being submitted.
    pub(crate) fn schedule(&mut self, kind: EventKind, path: &Path) -> Option<Fault> {
        self.pick(kind, path, true)
    }

    /// Every plan counts every call; the first that strikes wins.
    fn pick(&mut self, kind: EventKind, path: &Path, scheduling: bool) -> Option<Fault> {
        let mut picked = None;
        for plan in self.plans.iter_mut().filter(|plan| plan.fault.is_scheduling() == scheduling) {
            if plan.strikes(kind, path) {
                picked = picked.or(Some(plan.fault));
            }
        }
        self.hits += u64::from(picked.is_some());
        picked
    }
}
