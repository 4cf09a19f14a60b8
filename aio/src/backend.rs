//! The narrow waist between the store and the machine: files, asynchronous operations, time and randomness.
//!
//! Two implementations stand behind it: `NativeBackend` (Linux) and `SimBackend` (a simulated disk). Nothing above
//! this trait touches a file, a clock or a random number in any other way, so a run over the simulated disk replays
//! from its seed.
//!
//! # What a crash may do
//! *Process crash*: the process dies, the machine lives. Everything that was completed is kept, in
//! order; operations in flight may or may not happen. *Power cut*: volatile caches are lost as well. For each method
//! the documentation says what a power cut may leave of its effect. A sector is 512 bytes and is never torn itself.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::open_file::File;
use crate::queue::Queue;
use crate::reactor::Reactor;
use crate::trace::Counters;

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

/// Memory shared with a file: it survives the death of the process, and what of it survives a power cut is anybody's
/// guess until the file is synced.
///
/// Words are read and written as relaxed atomics, so overlapping access from several threads is defined (and gives
/// any mixture of the bytes); ordering comes from the caller's own atomics.
pub trait SharedMap: Send + Sync + fmt::Debug {
    /// Its size in bytes: of the part that may be accessed.
    fn len_bytes(&self) -> usize;

    /// Lets the part be accessed by which the file has grown since it was mapped, up to what was asked for then.
    ///
    /// # Errors
    /// The size of the file could not be found out.
    fn extend(&self) -> Result<()>;

    /// Copies `bytes` to `offset`. Both are multiples of 8.
    ///
    /// *Power cut*: each sector is either as it was last synced, or holds any later state.
    ///
    /// # Panics
    /// If misaligned or out of range.
    fn write(&self, offset: usize, bytes: &[u8]);

    /// Copies from `offset` into `into`. Both are multiples of 8.
    ///
    /// # Panics
    /// If misaligned or out of range.
    fn read(&self, offset: usize, into: &mut [u8]);

    /// Whether it is really shared with the file. False where a shared mapping is not safe (copy-on-write, network
    /// or buffered-only file systems): then it is anonymous and dies with the process.
    fn is_shared(&self) -> bool;
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Size in bytes; 0 for a directory.
    pub size_bytes: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Held while a store is open; dropping it releases the lock.
pub trait Lock: Send + Sync + fmt::Debug {}

/// The machine: file system, asynchronous I/O, clock, randomness.
///
/// What only one backend has is found by looking whether it is that one ([`Any`]).
pub trait Backend: Any + Send + Sync + fmt::Debug {
    /// A new context with room for `slots` operations in flight. Contexts are long-lived: making and dropping one
    /// can cost tens of milliseconds.
    ///
    /// # Errors
    /// [`Error::Slots`](crate::Error::Slots) when the machine's limit is reached.
    fn queue(&self, slots: usize) -> Result<Box<dyn Queue>>;

    /// A new reactor with room for `slots` operations in flight, with a thread where the machine has threads.
    ///
    /// # Errors
    /// As [`Backend::queue`], and if no thread can be started.
    fn reactor(&self, slots: usize) -> Result<Reactor> {
        Ok(Reactor::without_thread(self.queue(slots)?))
    }

    /// Opens a file for direct I/O where the file system has it.
    ///
    /// *Power cut*: a created name is gone, or there, until its directory is synced, whatever is done to the file.
    ///
    /// # Errors
    /// [`Errno::NOT_FOUND`](crate::Errno::NOT_FOUND), [`Errno::EXISTS`](crate::Errno::EXISTS), [`Errno::ACCESS`](crate::Errno::ACCESS), [`Errno::TOO_MANY_FILES`](crate::Errno::TOO_MANY_FILES) and others.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<File>;

    /// The current size of the file in bytes.
    ///
    /// # Errors
    /// The call failed.
    fn size_bytes(&self, file: &File) -> Result<u64>;

    /// Makes every completed write to the file, and its size, durable (`fdatasync`). After an error nothing is known
    /// about any earlier un-synced write, and a second call that succeeds proves nothing: never retry.
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

    /// Cuts the file to `len_bytes`.
    ///
    /// *Power cut*: the size is old or new until synced.
    ///
    /// # Errors
    /// The call failed.
    fn truncate(&self, file: &File, len_bytes: u64) -> Result<()>;

    /// Renames, replacing an existing target atomically.
    ///
    /// *Power cut*: done or not done until the directory is synced; never neither name nor both.
    ///
    /// # Errors
    /// The call failed.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Makes a second name for a file (`link`).
    ///
    /// *Power cut*: there or not until the directory is synced.
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

    /// What stands at a path; `None` if nothing does.
    ///
    /// # Errors
    /// The call failed for another reason than absence.
    fn stat(&self, path: &Path) -> Result<Option<Stat>>;

    /// Makes a directory; its parent must exist.
    ///
    /// *Power cut*: gone or there until the parent is synced.
    ///
    /// # Errors
    /// The call failed.
    fn make_dir(&self, path: &Path) -> Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// The call failed.
    fn sync_dir(&self, path: &Path) -> Result<()>;

    /// Takes the exclusive lock of a store through the file `path` (made if absent), and notes this process's pid in
    /// it. The lock goes with the process.
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked) with the holder's pid, also when the holder is this process.
    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>>;

    /// Maps the first `len_bytes` of a file, a multiple of 8 and not 0. What is there of them must have been written
    /// already; what lies behind the end of the file may be accessed when the file has grown and [`SharedMap::extend`]
    /// has noticed. The file must not become shorter.
    ///
    /// # Errors
    /// The mapping failed.
    fn map_shared(&self, file: &File, len_bytes: usize) -> Result<Arc<dyn SharedMap>>;

    /// Time since some fixed moment; never goes back.
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

    /// What was done so far, through all queues.
    fn counters(&self) -> Counters;
}
