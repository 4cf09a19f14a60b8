//! The one interface between the store and the machine: files, asynchronous operations, time and randomness.
//!
//! It has two implementations: `NativeBackend` (Linux) and `SimBackend` (a simulated disk). Code above this trait uses
//! files, clocks and random numbers only through it, so a run over the simulated disk can be replayed from its seed.
//!
//! # The effects of a crash
//! *Process crash*: the process dies, the machine continues. Completed operations are kept, in order; operations in
//! flight may or may not take effect. *Power cut*: volatile caches are lost as well. Each method documents which part
//! of its effect may remain after a power cut. A sector has 512 bytes and is never torn. A physical block may be larger,
//! and a write of a part of it may destroy the rest, see [`Backend::physical_block_bytes`].

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::fall_back::FallBack;
use crate::open_file::File;
use crate::profile::IoProfile;
use crate::queue::Queue;
use crate::reactor::Reactor;

/// How [`Backend::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A new file, for reading and writing; fails with [`Errno::EXISTS`](crate::Errno::EXISTS) if the name is taken.
    Create,
}

/// Memory shared with a file. It survives the death of the process. After a power cut any part of it may be lost that
/// was not synced with the file.
///
/// Words are read and written as relaxed atomics, so overlapping access from several threads is defined (and gives
/// any mixture of the bytes); ordering comes from the caller's own atomics.
pub trait SharedMap: Send + Sync + fmt::Debug {
    /// The size of the accessible part, in bytes.
    fn len_bytes(&self) -> usize;

    /// Makes the part accessible by which the file has grown since it was mapped, up to the length of the mapping.
    ///
    /// # Errors
    /// The size of the file cannot be read.
    fn extend(&self) -> Result<()>;

    /// Makes sure that the file has space of its own behind `len_bytes` from `offset` on, both multiples of 8. Where it has
    /// none (a sparse or shared copy of a file), a [`SharedMap::write`] on a full disk kills the process by `SIGBUS`.
    ///
    /// One window remains: space that is taken away, or shared by another copy, after this call. Another process has to do
    /// that to the file.
    ///
    /// Costs a system call for each page: some 0.4 µs, and 2.5 µs if the page is not in memory or was written back since. Nothing
    /// where the memory is not shared. May be called beside reads and writes.
    ///
    /// # Errors
    /// [`Errno::NO_SPACE`](crate::Errno::NO_SPACE) or `EDQUOT`, and nothing was changed; the same call can succeed later.
    /// [`Errno::IO`](crate::Errno::IO) if a page cannot be had for another reason. Then do not write there.
    ///
    /// # Panics
    /// If misaligned or out of range.
    fn make_room(&self, offset: usize, len_bytes: usize) -> Result<()>;

    /// Copies `bytes` to `offset`. Both are multiples of 8.
    ///
    /// *Power cut*: each sector holds its last synced state or any later one.
    ///
    /// # Panics
    /// If misaligned or out of range.
    fn write(&self, offset: usize, bytes: &[u8]);

    /// Copies from `offset` into `into`. Both are multiples of 8.
    ///
    /// # Panics
    /// If misaligned or out of range.
    fn read(&self, offset: usize, into: &mut [u8]);

    /// Whether the memory is shared with the file. False where a shared mapping is not safe (copy-on-write, network or
    /// buffered-only file systems): then the memory is anonymous and dies with the process.
    fn is_shared(&self) -> bool;
}

/// Size and type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Size in bytes; 0 for a directory. That of its target for a symbolic link.
    pub size_bytes: u64,
    /// Whether it is a directory, or a symbolic link to one.
    pub is_dir: bool,
    /// Whether it is a regular file, which [`Backend::open`] takes. False for a symbolic link.
    pub is_file: bool,
}

/// Slots of native AIO. All programs of the machine share them, also those in containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AioSlots {
    /// All that there are: `fs.aio-max-nr`.
    pub limit: u64,
    /// Those in contexts now, of any program.
    pub in_use: u64,
}

/// The exclusive lock of an open store. Dropping it releases the lock.
pub trait Lock: Send + Sync + fmt::Debug {}

/// The machine: file system, asynchronous I/O, clock, randomness.
///
/// A caller that needs a feature of one backend downcasts to its type ([`Any`]).
pub trait Backend: Any + Send + Sync + fmt::Debug {
    /// A new context with room for `slots` operations in flight. Contexts are long-lived: making and dropping one
    /// can cost tens of milliseconds.
    ///
    /// # Errors
    /// [`Error::Slots`](crate::Error::Slots) when the machine's limit is reached.
    fn queue(&self, slots: usize) -> Result<Box<dyn Queue>>;

    /// Drops queues, overlapped where dropping one takes long. Returns when all are dropped.
    fn drop_queues(&self, queues: Vec<Box<dyn Queue>>) {
        drop(queues);
    }

    /// The machine's slots for queues; `None` if they are not bounded, or not known.
    fn aio_slots(&self) -> Option<AioSlots>;

    /// Files that this process may have open; `None` if that is not bounded.
    fn descriptor_limit(&self) -> Option<u64>;

    /// A new reactor with room for `slots` operations in flight, with a thread where the machine has threads.
    ///
    /// # Errors
    /// Those of [`Backend::queue`], or no thread can be started.
    fn reactor(&self, slots: usize) -> Result<Reactor> {
        Ok(Reactor::without_thread(self.queue(slots)?))
    }

    /// Opens a file for direct I/O where the file system has it. Only a regular file is opened; a pipe is not waited for, and
    /// a symbolic link not followed.
    ///
    /// *Power cut*: a created name may be present or absent until its directory is synced, even if the file itself is
    /// synced.
    ///
    /// # Errors
    /// [`Errno::NOT_FOUND`](crate::Errno::NOT_FOUND), [`Errno::EXISTS`](crate::Errno::EXISTS), [`Errno::ACCESS`](crate::Errno::ACCESS), [`Errno::TOO_MANY_FILES`](crate::Errno::TOO_MANY_FILES) and others.
    /// [`Error::NotAFile`](crate::Error::NotAFile) if the name is taken by something else.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<File>;

    /// The current size of the file in bytes.
    ///
    /// # Errors
    /// The call failed.
    fn size_bytes(&self, file: &File) -> Result<u64>;

    /// The physical block of the device below the file, in bytes, as far as it is known: the unit that the device changes on its
    /// medium. It reads and rewrites the rest of a block of which it gets a part, so a *power cut* during a write can destroy
    /// everything in the blocks that the write touches, also bytes that were durable.
    ///
    /// A power of two from [`SECTOR_BYTES`](crate::SECTOR_BYTES) to [`Buf::ALIGN`](crate::Buf::ALIGN), the smallest only where the
    /// device is believed to write sectors. The largest stands for all that is not known, for larger blocks, for partitions that
    /// begin inside a block, and for files that go through the page cache, which writes whole pages. In a larger block, or in
    /// one that the partition cuts, a write can destroy other bytes than those of its page.
    ///
    /// A few system calls. The answer holds until the volume is moved to other devices, so ask again for each file.
    fn physical_block_bytes(&self, file: &File) -> usize;

    /// Makes every completed write to the file, and its size, durable (`fdatasync`). After an error any earlier
    /// un-synced write may be lost, and a second call that succeeds proves nothing: never retry.
    ///
    /// # Errors
    /// The call failed.
    fn sync(&self, file: &File) -> Result<()>;

    /// Reserves space up to `len_bytes` and makes the file at least that long; new bytes read as zeros.
    ///
    /// *Power cut*: the size is old or new until synced.
    ///
    /// # Errors
    /// [`Errno::NO_SPACE`](crate::Errno::NO_SPACE) and others; part of the space may have been reserved.
    fn allocate(&self, file: &File, len_bytes: u64) -> Result<()>;

    /// Makes a range of the file zeros that count as written, without a transfer of them: the device marks its blocks as zeros.
    /// Makes the file at least so long. False where that is not possible or has failed: the caller has to reserve and to
    /// write, and finds any part of the range zeroed or not. A device that is thin may still have to find space for a later write.
    ///
    /// *Power cut*: size and bytes are old or new until synced.
    ///
    /// # Errors
    /// There is no room (space, quota, the limit on file sizes), or the kernel lacks a resource for the moment. Part of the range
    /// may be zeros.
    fn zero_range(&self, file: &File, range: Range<u64>) -> Result<bool>;

    /// Cuts the file to `len_bytes`.
    ///
    /// *Power cut*: the size is old or new until synced.
    ///
    /// # Errors
    /// The call failed.
    fn truncate(&self, file: &File, len_bytes: u64) -> Result<()>;

    /// Makes a second name for a file (`link`).
    ///
    /// *Power cut*: the new name may be present or absent until the directory is synced.
    ///
    /// # Errors
    /// The call failed.
    fn link(&self, from: &Path, to: &Path) -> Result<()>;

    /// Removes a file's name; open handles keep working.
    ///
    /// *Power cut*: the name may be back until the directory is synced.
    ///
    /// # Errors
    /// The call failed.
    fn remove(&self, path: &Path) -> Result<()>;

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// The call failed.
    fn list(&self, dir: &Path) -> Result<Vec<String>>;

    /// Size and type of the entry at a path; `None` if there is none.
    ///
    /// # Errors
    /// The call failed for a reason other than an absent entry.
    fn stat(&self, path: &Path) -> Result<Option<Stat>>;

    /// Makes a directory; its parent must exist.
    ///
    /// *Power cut*: the directory may be present or absent until its parent is synced.
    ///
    /// # Errors
    /// The call failed.
    fn make_dir(&self, path: &Path) -> Result<()>;

    /// Makes the names in a directory durable. Never retry, as with [`Backend::sync`].
    ///
    /// # Errors
    /// The call failed; [`Error::Unsupported`](crate::Error::Unsupported) if the file system cannot do it at all.
    fn sync_dir(&self, path: &Path) -> Result<()>;

    /// Takes the exclusive lock of a store through the file `path` (made if absent), and writes this process's pid into
    /// it. The lock ends with the process.
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked) with the holder, which may be this process.
    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>>;

    /// Maps the first `len_bytes` of a file, a multiple of 8 and not 0. The part of this range inside the file must
    /// have been written before. The part beyond the end of the file becomes accessible by [`SharedMap::extend`] once
    /// the file has grown. The file must not become shorter.
    ///
    /// # Errors
    /// The mapping failed.
    fn map_shared(&self, file: &File, len_bytes: usize) -> Result<Arc<dyn SharedMap>>;

    /// Time since a fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// A random number; seeded in the simulation, from the kernel otherwise.
    fn random(&self) -> u64;

    /// Sleeps this thread, at most for `duration`.
    fn park(&self, duration: Duration);

    /// An error if this process is a fork of the one that made the backend. A few nanoseconds.
    ///
    /// # Errors
    /// [`Error::Forked`](crate::Error::Forked).
    fn check_fork(&self) -> Result<()>;

    /// The ways around refused calls that were taken so far, the first of each kind. The list only grows. It is empty
    /// where the machine has all that is needed.
    fn fall_backs(&self) -> Vec<FallBack>;

    /// The operations of all queues so far, and the syncs as calls.
    fn profile(&self) -> IoProfile;
}
