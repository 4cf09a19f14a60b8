//! The simulated machine: a disk whose crashes, faults and scheduling come from a seed.
//!
//! [`SimBackend`] replaces `NativeBackend` in tests. It works on the caller's thread and in memory. Two runs with the
//! same seed and the same calls are identical, which [`SimBackend::trace_hash`] shows.
//!
//! # Finding every crash point
//! Each call that can change the disk is an *event* with an index. Either count them in one run and let each further
//! run [crash at](SimBackend::crash_at) one index, or let one run [show the disk](SimBackend::on_event) before every
//! event. In both cases a [`DiskImage`] gives all states that a [process crash](DiskImage::process_crash) or [power
//! cut](DiskImage::power_cut) can leave, and [`SimBackend::from_image`] restarts the machine on one.
//!
//! # The disk
//! Reads see the *volatile* image. Un-synced sectors, sizes and names are *pending*: each may or may not be on the
//! disk, independently of each other and of their order. Two exceptions hold on real file systems too: changes to the
//! same name, and of the size of the same file, happen in order; a sector is never torn. A sync covers the writes that
//! completed before it was submitted, in its own file only; names take a directory sync. Not simulated: sparse space
//! accounting, access rights.
//!
//! The physical blocks of the device are sectors, or [larger](SimBackend::set_physical_block_bytes). Until a write of a part
//! of such a block is synced, a power cut may destroy the whole block: all its bytes are garbage then.
//!
//! # Concurrency
//! All state is behind one lock, so handles may be used from several threads, but waiting never blocks: a wait that
//! only another thread could end panics.

mod dir;
mod faults;
mod image;
mod inode;
mod machine;
mod map;
mod pages;
mod pending;
mod queue;
mod rng;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

pub use faults::{EventKind, Fault, FaultPlan};
pub use image::DiskImage;
pub use machine::DiskEvent;
pub use pending::PendingUnit;

use dir::DirEntry;
use machine::{Call, Machine, SharedMachine, sim_handle};
use map::{MapSizes, SimLock, SimMap};
use queue::SimQueue;

use crate::backend::{AioSlots, Backend, Lock, OpenMode, SharedMap, Stat};
use crate::buf::Buf;
use crate::clock::whole_nanos;
use crate::error::{Errno, Error, Result};
use crate::fall_back::FallBack;
use crate::holder::Holder;
use crate::open_file::{Alignment, File, SECTOR_BYTES};
use crate::profile::IoProfile;
use crate::queue::Queue;
use crate::trace::{Arguments, Ended};

/// A simulated machine. A clone is another handle of the same machine.
#[derive(Clone)]
pub struct SimBackend {
    machine: SharedMachine,
}

impl std::fmt::Debug for SimBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let machine = self.machine.lock();
        write!(
            f,
            "SimBackend({} events, now {:?}, crashed: {})",
            machine.events(),
            machine.now,
            machine.crashed
        )
    }
}

impl SimBackend {
    /// A machine with an empty disk.
    #[must_use]
    pub fn new(seed: u64) -> SimBackend {
        SimBackend::from_image(DiskImage::new(), seed)
    }

    /// A machine that starts with this disk. The image must come from a crash, so that no operation is in flight.
    #[must_use]
    pub fn from_image(image: DiskImage, seed: u64) -> SimBackend {
        SimBackend { machine: Arc::new(Mutex::new(Machine::new(image, seed))) }
    }

    /// The disk as it is now; cheap.
    #[must_use]
    pub fn snapshot(&self) -> DiskImage {
        self.machine().disk.clone()
    }

    /// Calls `observer` before each event with the disk as it is then. Clone the image to keep it.
    ///
    /// The observer runs under the machine's lock: it may run other machines, not call this one.
    pub fn on_event(&self, observer: impl FnMut(DiskEvent<'_>, &DiskImage) + Send + 'static) {
        self.machine().observer = Some(Box::new(observer));
    }

    /// Ends the observation that [`SimBackend::on_event`] began, and drops its observer.
    pub fn stop_observing(&self) {
        let observer = self.machine().observer.take();
        drop(observer);
    }

    /// Crashes before the event of this index has any effect: from then on every call fails with
    /// [`Error::Crashed`] and nothing changes.
    pub fn crash_at(&self, index: u64) {
        self.machine().crash_at = Some(index);
    }

    /// Crashes after this many calls in total, which ends code that retries for ever.
    pub fn crash_after_calls(&self, calls: u64) {
        self.machine().most_calls = Some(calls);
    }

    /// Crashes now.
    pub fn crash(&self) {
        self.machine().crashed = true;
    }

    /// Whether the machine has crashed.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.machine().crashed
    }

    /// The number of events so far: calls that can change the disk.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.machine().events()
    }

    /// The number of calls so far that a fault could have hit, including events.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.machine().calls()
    }

    /// A hash over kind, path, offset, length and bytes of every call so far.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.machine().trace_hash
    }

    /// Ends the hashing of calls, for machines whose trace is not compared. Hashing takes a tenth of the time of a run.
    pub fn stop_tracing(&self) {
        self.machine().is_traced = false;
    }

    /// Adds a fault.
    pub fn fail(&self, plan: FaultPlan) {
        self.machine().faults.add(plan);
    }

    /// Removes all faults; their effects stay.
    pub fn clear_faults(&self) {
        self.machine().faults.clear();
    }

    /// How often a fault has struck.
    #[must_use]
    pub fn faults_struck(&self) -> u64 {
        self.machine().faults.hits()
    }

    /// Limits the sum of all file sizes: a call that would exceed it fails with [`Errno::NO_SPACE`]. Removed files
    /// count until they are closed.
    pub fn set_capacity_bytes(&self, capacity_bytes: u64) {
        self.machine().capacity_bytes = Some(capacity_bytes);
    }

    /// Takes the space of a file away, behind the store's back, as a copy without it or one that shares it does. The bytes
    /// stay. A store into a mapped part of it that was not written since needs space again: on a full disk
    /// [`SharedMap::make_room`] says so, and a store without that call panics, where a real process is killed by `SIGBUS`.
    ///
    /// The size of the file counts as before; the disk is full when the sum of all sizes reaches its capacity. A power cut
    /// may give the space back.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn lose_blocks(&self, path: &Path) {
        let mut machine = self.machine();
        let inode = machine.disk.file_at(path).expect("a file to take the space of");
        machine.disk.inode_mut(inode).lose_blocks();
    }

    /// Bytes in files that have a name or an open handle.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.machine().used_bytes()
    }

    /// Sets the alignment that files opened from now on require; initially 512 bytes.
    ///
    /// # Panics
    /// If the offset alignment is not a power of two of at least a sector.
    pub fn set_alignment(&self, alignment: Alignment) {
        let bytes = alignment.offset_bytes;
        assert!(bytes.is_power_of_two() && bytes >= SECTOR_BYTES, "alignment below a sector");
        self.machine().alignment = alignment;
    }

    /// Sets the physical block of the disk, initially a sector. Images of this disk keep it. See
    /// [`Backend::physical_block_bytes`].
    ///
    /// # Panics
    /// If it is not a power of two from [`SECTOR_BYTES`] to [`Buf::ALIGN`].
    pub fn set_physical_block_bytes(&self, bytes: usize) {
        assert!(
            bytes.is_power_of_two() && (SECTOR_BYTES..=Buf::ALIGN).contains(&bytes),
            "a block of {bytes} bytes"
        );
        self.machine().disk.set_physical_block_bytes(bytes);
    }

    /// Sets whether the device makes zeros by itself, see [`Backend::zero_range`]. Initially not. Images of this disk keep it.
    pub fn set_zeroes_ranges(&self, zeroes_ranges: bool) {
        self.machine().disk.set_zeroes_ranges(zeroes_ranges);
    }

    /// Sets whether files opened from now on are on a file system without direct I/O. Their operations work as before,
    /// [`File::is_direct`] is false, and their maps are private memory, as on such file systems of a real machine.
    pub fn set_buffered(&self, buffered: bool) {
        self.machine().buffered = buffered;
    }

    /// Advances the clock.
    pub fn advance(&self, duration: Duration) {
        self.machine().now += duration;
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock()
    }
}

impl Backend for SimBackend {
    fn queue(&self, slots: usize) -> Result<Box<dyn Queue>> {
        match self.machine().begin(&Call::new(EventKind::Queue, "".as_ref()))? {
            Some(Fault::Errno(Errno::AGAIN)) => return Err(Error::Slots { slots }),
            Some(Fault::Errno(errno)) => return Err(Error::call("io_setup", "".as_ref(), errno)),
            _ => {}
        }
        Ok(Box::new(SimQueue::new(Arc::clone(&self.machine), slots)))
    }

    fn aio_slots(&self) -> Option<AioSlots> {
        None
    }

    fn descriptor_limit(&self) -> Option<u64> {
        None
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<File> {
        let mut machine = self.machine();
        let create = mode == OpenMode::Create;
        machine.enter("open", if create { EventKind::Create } else { EventKind::Open }, path)?;
        let found = if create { machine.disk.create(path) } else { machine.disk.file_at(path) };
        let inode = found.map_err(|errno| not_opened(path, errno))?;
        Ok(machine.handle(path, inode, mode != OpenMode::Read))
    }

    fn size_bytes(&self, file: &File) -> Result<u64> {
        let mut machine = self.machine();
        machine.enter("fstat", EventKind::Stat, file.path())?;
        Ok(machine.disk.inode(sim_handle(file).inode).size_bytes())
    }

    fn physical_block_bytes(&self, file: &File) -> usize {
        if file.is_direct() { self.machine().disk.physical_block_bytes() } else { Buf::ALIGN }
    }

    fn sync(&self, file: &File) -> Result<()> {
        let mut machine = self.machine();
        let begun = machine.now;
        let fault = machine.begin(&Call::new(EventKind::Sync, file.path()))?;
        let covers = machine.disk.seq();
        let synced = queue::sync(&mut machine, sim_handle(file).inode, covers, fault);
        machine.trace.ended([Ended {
            arguments: Arguments::of_sync(file.identity()),
            moved_bytes: synced.ok().map(|()| 0),
            nanos: whole_nanos(machine.now.saturating_sub(begun)),
            submitted: None,
        }]);
        synced.map_err(|errno| Error::failed("fdatasync", file.path(), errno))
    }

    fn allocate(&self, file: &File, len_bytes: u64) -> Result<()> {
        self.resize("fallocate", EventKind::Allocate, file, len_bytes)
    }

    fn zero_range(&self, file: &File, range: Range<u64>) -> Result<bool> {
        let mut machine = self.machine();
        machine.check()?;
        if !machine.disk.zeroes_ranges() {
            return Ok(false);
        }
        let inode = sim_handle(file).inode;
        let call = Call {
            offset: range.start,
            bytes: &range.end.to_le_bytes(),
            ..Call::new(EventKind::ZeroRange, file.path())
        };
        match machine.begin(&call)? {
            Some(Fault::Errno(errno)) if !errno.is_no_room() => return Ok(false),
            Some(Fault::Errno(errno)) => return Err(Error::call("fallocate", file.path(), errno)),
            _ => {}
        }
        if !machine.has_room(inode, range.end) {
            return Err(Error::call("fallocate", file.path(), Errno::NO_SPACE));
        }
        let seq = machine.disk.next_seq();
        machine.disk.inode_mut(inode).zero(seq, range);
        Ok(true)
    }

    fn truncate(&self, file: &File, len_bytes: u64) -> Result<()> {
        self.resize("ftruncate", EventKind::Truncate, file, len_bytes)
    }

    fn link(&self, from: &Path, to: &Path) -> Result<()> {
        let mut machine = self.machine();
        machine.enter("link", EventKind::Link, to)?;
        machine.disk.link(from, to).map_err(|errno| Error::call("link", to, errno))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut machine = self.machine();
        machine.enter("unlink", EventKind::Remove, path)?;
        machine.disk.remove(path).map_err(|errno| Error::call("unlink", path, errno))?;
        machine.sweep();
        Ok(())
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let mut machine = self.machine();
        machine.enter("readdir", EventKind::List, dir)?;
        let names = machine.disk.names(dir).map_err(|errno| Error::call("readdir", dir, errno))?;
        Ok(names.keys().map(ToString::to_string).collect())
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>> {
        let mut machine = self.machine();
        machine.enter("stat", EventKind::Stat, path)?;
        match machine.disk.entry(path) {
            Ok(DirEntry::Dir) => Ok(Some(Stat { size_bytes: 0, is_dir: true, is_file: false })),
            Ok(DirEntry::File(inode)) => {
                let size_bytes = machine.disk.inode(inode).size_bytes();
                Ok(Some(Stat { size_bytes, is_dir: false, is_file: true }))
            }
            Err(Errno::NOT_FOUND) => Ok(None),
            Err(errno) => Err(Error::call("stat", path, errno)),
        }
    }

    fn make_dir(&self, path: &Path) -> Result<()> {
        let mut machine = self.machine();
        machine.enter("mkdir", EventKind::MakeDir, path)?;
        machine.disk.make_dir(path).map_err(|errno| Error::call("mkdir", path, errno))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let mut machine = self.machine();
        let fault = machine.begin(&Call::new(EventKind::SyncDir, path))?;
        let failed = |errno| Error::failed("fsync", path, errno);
        let dir = machine.disk.dir_mut(path).map_err(failed)?;
        match fault {
            Some(Fault::Errno(errno)) => {
                dir.sync_failed();
                return Err(failed(errno));
            }
            Some(Fault::Dropped) => {}
            _ => dir.sync(),
        }
        machine.sweep();
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>> {
        let mut machine = self.machine();
        machine.enter("open", EventKind::Lock, path)?;
        if !machine.locks.insert(path.to_owned()) {
            return Err(Error::Locked { path: path.to_owned(), holder: Holder::ThisProcess });
        }
        let lock = SimLock::new(Arc::clone(&self.machine), path);
        let made = match machine.disk.file_at(path) {
            Ok(_) => Ok(()),
            Err(Errno::NOT_FOUND) => machine.enter("open", EventKind::Create, path).and_then(|()| {
                // The process id is left out: with it the disk would differ from run to run.
                machine.disk.create(path).map(|_| ()).map_err(|errno| Error::call("open", path, errno))
            }),
            Err(errno) => Err(not_opened(path, errno)),
        };
        drop(machine);
        made.map(|()| Box::new(lock) as Box<dyn Lock>)
    }

    fn map_shared(&self, file: &File, len_bytes: usize) -> Result<Arc<dyn SharedMap>> {
        let mut machine = self.machine();
        machine.enter("mmap", EventKind::Map, file.path())?;
        let size_bytes = machine.disk.inode(sim_handle(file).inode).size_bytes();
        if len_bytes == 0 || !len_bytes.is_multiple_of(8) {
            return Err(Error::call("mmap", file.path(), Errno::INVALID));
        }
        let there = usize::try_from(size_bytes).map_or(len_bytes, |size| size.min(len_bytes));
        let mut private = None;
        if machine.buffered {
            let mut bytes = vec![0; len_bytes];
            machine.disk.inode(sim_handle(file).inode).volatile().read(0, &mut bytes[..there]);
            private = Some(bytes);
        }
        let sizes = MapSizes { len_bytes: there, most_bytes: len_bytes };
        Ok(Arc::new(SimMap::new(Arc::clone(&self.machine), file.clone(), sizes, private)))
    }

    fn now(&self) -> Duration {
        self.machine().now
    }

    fn random(&self) -> u64 {
        self.machine().random.next()
    }

    fn park(&self, duration: Duration) {
        self.advance(duration);
    }

    fn check_fork(&self) -> Result<()> {
        Ok(())
    }

    fn fall_backs(&self) -> Vec<FallBack> {
        self.machine().fall_backs.list()
    }

    fn profile(&self) -> IoProfile {
        self.machine().trace.profile()
    }
}

impl SimBackend {
    fn resize(&self, call: &'static str, kind: EventKind, file: &File, len_bytes: u64) -> Result<()> {
        let mut machine = self.machine();
        let bytes = len_bytes.to_le_bytes();
        let failed = |errno| Error::call(call, file.path(), errno);
        let fault = machine.begin(&Call { kind, path: file.path(), offset: len_bytes, bytes: &bytes })?;
        if let Some(Fault::Errno(errno)) = fault {
            return Err(failed(errno));
        }
        let handle = sim_handle(file);
        if !handle.writable {
            return Err(failed(Errno(libc::EBADF)));
        }
        if !machine.has_room(handle.inode, len_bytes) {
            return Err(failed(Errno::NO_SPACE));
        }
        let size_bytes = machine.disk.inode(handle.inode).size_bytes();
        if len_bytes > size_bytes || len_bytes < size_bytes && kind == EventKind::Truncate {
            let seq = machine.disk.next_seq();
            machine.disk.inode_mut(handle.inode).resize(seq, len_bytes);
        }
        Ok(())
    }
}

fn not_opened(path: &Path, errno: Errno) -> Error {
    match errno.0 {
        libc::EISDIR => Error::NotAFile { path: path.to_owned(), found: "a directory" },
        _ => Error::call("open", path, errno),
    }
}
