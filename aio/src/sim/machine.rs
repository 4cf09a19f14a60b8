//! State of the simulated machine behind its one lock: disk, clock, randomness, the count of events, faults.
//!
//! Invariants: after a crash no state changes; the index of an event is the number of disk-changing events before it;
//! all state is a function of the seed, the first image and the calls.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::faults::{EventKind, Fault, Faults};
use super::image::DiskImage;
use super::rng::{Rng, hash_bytes, mix};
use crate::error::{Error, Result};
use crate::fall_back::{FallBack, FallBacks};
use crate::identity::Identity;
use crate::open_file::{Alignment, File, FileBody, SECTOR_BYTES, SimHandle};
use crate::trace::Trace;

/// A call that is about to change the disk.
#[derive(Clone, Copy, Debug)]
pub struct DiskEvent<'a> {
    /// The number of events before it; the argument of [`SimBackend::crash_at`](super::SimBackend::crash_at).
    pub index: u64,
    /// The kind of the call.
    pub kind: EventKind,
    /// The file or directory.
    pub path: &'a Path,
}

/// Called with the disk before each event.
pub(crate) type Observer = Box<dyn FnMut(DiskEvent<'_>, &DiskImage) + Send>;

/// The machine, shared by its handles.
pub(crate) type SharedMachine = Arc<Mutex<Machine>>;

/// One call, for the trace.
pub(crate) struct Call<'a> {
    pub(crate) kind: EventKind,
    pub(crate) path: &'a Path,
    pub(crate) offset: u64,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Call<'a> {
    pub(crate) fn new(kind: EventKind, path: &'a Path) -> Call<'a> {
        Call { kind, path, offset: 0, bytes: &[] }
    }
}

pub(crate) struct Machine {
    pub(crate) disk: DiskImage,
    pub(crate) rng: Rng,
    /// A separate stream for the store, so that its numbers do not depend on the scheduling of I/O.
    pub(crate) random: Rng,
    pub(crate) now: Duration,
    pub(crate) faults: Faults,
    pub(crate) observer: Option<Observer>,
    pub(crate) crash_at: Option<u64>,
    pub(crate) most_calls: Option<u64>,
    pub(crate) crashed: bool,
    pub(crate) capacity_bytes: Option<u64>,
    pub(crate) alignment: Alignment,
    pub(crate) buffered: bool,
    pub(crate) fall_backs: FallBacks,
    pub(crate) locks: BTreeSet<PathBuf>,
    /// The hash of all calls so far, updated while [`Machine::is_traced`].
    pub(crate) trace_hash: u64,
    pub(crate) is_traced: bool,
    pub(crate) trace: Trace,
    events: u64,
    calls: u64,
    flights: u64,
    handles: Vec<Weak<SimHandle>>,
}

impl Machine {
    pub(crate) fn new(disk: DiskImage, seed: u64) -> Machine {
        let mut rng = Rng::new(seed);
        Machine {
            disk,
            random: Rng::new(rng.next()),
            rng,
            now: Duration::from_secs(1),
            faults: Faults::default(),
            observer: None,
            crash_at: None,
            most_calls: None,
            crashed: false,
            capacity_bytes: None,
            alignment: Alignment { memory_bytes: SECTOR_BYTES, offset_bytes: SECTOR_BYTES },
            buffered: false,
            fall_backs: FallBacks::default(),
            locks: BTreeSet::new(),
            trace_hash: 0,
            is_traced: true,
            trace: Trace::default(),
            events: 0,
            calls: 0,
            flights: 0,
            handles: Vec::new(),
        }
    }

    /// Disk-changing events so far.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// Calls so far that a fault could have hit.
    pub(crate) fn calls(&self) -> u64 {
        self.calls
    }

    /// Counts, traces and times a call before its effect. Returns the fault that strikes it, if any.
    pub(crate) fn begin(&mut self, call: &Call<'_>) -> Result<Option<Fault>> {
        self.check()?;
        if self.most_calls.is_some_and(|most| most <= self.calls) {
            self.crashed = true;
            return Err(Error::Crashed);
        }
        if call.kind.changes_disk() {
            if self.crash_at.is_some_and(|index| index <= self.events) {
                self.crashed = true;
                return Err(Error::Crashed);
            }
            if let Some(mut observer) = self.observer.take() {
                observer(DiskEvent { index: self.events, kind: call.kind, path: call.path }, &self.disk);
                self.observer = Some(observer);
            }
            self.events += 1;
        }
        self.calls += 1;
        if self.is_traced {
            let path = hash_bytes(call.path.as_os_str().as_encoded_bytes());
            for word in [call.kind as u64, path, call.offset, hash_bytes(call.bytes)] {
                self.trace_hash = mix(self.trace_hash, word);
            }
        }
        self.now += Duration::from_nanos(10_000 + self.rng.below(90_000));
        Ok(self.faults.strike(call.kind, call.path))
    }

    /// Begins a call whose only possible fault is an errno.
    pub(crate) fn enter(&mut self, name: &'static str, kind: EventKind, path: &Path) -> Result<()> {
        match self.begin(&Call::new(kind, path))? {
            Some(Fault::Errno(errno)) => Err(Error::call(name, path, errno)),
            _ => Ok(()),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.crashed { Err(Error::Crashed) } else { Ok(()) }
    }

    /// A number for an operation in flight.
    pub(crate) fn next_flight(&mut self) -> u64 {
        self.flights += 1;
        self.flights
    }

    /// A handle that keeps the inode alive.
    pub(crate) fn handle(&mut self, path: &Path, inode: u64, writable: bool) -> File {
        let handle = Arc::new(SimHandle { inode, writable });
        self.handles.push(Arc::downgrade(&handle));
        if self.buffered {
            self.fall_backs.note(FallBack::PageCache { path: path.to_owned(), refused: None });
        }
        let identity = Identity::new(0, inode, path);
        File::new(identity, self.alignment, !self.buffered, FileBody::Sim(handle))
    }

    /// Removes files without a name and without an open handle.
    pub(crate) fn sweep(&mut self) {
        let open = self.open_inodes();
        self.disk.sweep(&open);
    }

    /// Whether a file may grow to `len_bytes` within the capacity.
    pub(crate) fn has_room(&mut self, inode: u64, len_bytes: u64) -> bool {
        let size_bytes = self.disk.inode(inode).size_bytes();
        let Some(capacity_bytes) = self.capacity_bytes else { return true };
        if len_bytes <= size_bytes {
            return true;
        }
        let open = self.open_inodes();
        self.disk.used_bytes(&open) - size_bytes + len_bytes <= capacity_bytes
    }

    /// Gives space to a part of a file that has none of its own. False if the disk is full.
    pub(crate) fn fill_hole(&mut self, inode: u64, (from, to): (u64, u64)) -> bool {
        if self.disk.inode(inode).has_space(from, to) {
            return true;
        }
        let is_full = self.capacity_bytes.is_some_and(|capacity_bytes| self.used_bytes() >= capacity_bytes);
        if !is_full {
            self.disk.inode_mut(inode).give_space(from, to);
        }
        !is_full
    }

    /// Bytes in files that have a name or an open handle.
    pub(crate) fn used_bytes(&mut self) -> u64 {
        let open = self.open_inodes();
        self.disk.used_bytes(&open)
    }

    fn open_inodes(&mut self) -> Vec<u64> {
        self.handles.retain(|handle| handle.strong_count() > 0);
        self.handles.iter().filter_map(Weak::upgrade).map(|handle| handle.inode).collect()
    }
}

/// The handle of a file of this machine.
///
/// # Panics
/// If the file belongs to another backend: the caller's bug.
pub(crate) fn sim_handle(file: &File) -> &SimHandle {
    match file.body() {
        FileBody::Sim(handle) => handle,
        FileBody::Native(_) => panic!("{file:?} is not a file of the simulated disk"),
    }
}
