//! The real machine as a [`Backend`]: direct files and native AIO.
//!
//! File-system calls that change names or sizes are synchronous; only reads, writes and syncs of file contents are
//! operations of a queue. No call of the `write` family is ever made on a file of a store.
//!
//! A call that the machine refuses for a shortage is made again for up to five seconds, see `insist`. Refused at once are only
//! [`Backend::open`] without descriptors and a queue or reactor: their callers may have some to give back.
//!
//! Invariants: every file that is opened is a regular one and goes through `probe`, so its alignment is known; every method
//! with which a forked child could do harm returns an error there.

mod drop_together;
mod limits;
mod lock;
mod map;

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};

use self::lock::NativeLock;
use self::map::NativeMap;
use crate::advice::Full;
use crate::backend::{AioSlots, Backend, Lock, OpenMode, SharedMap, Stat};
use crate::buf::Buf;
use crate::clock;
use crate::context::Context;
use crate::error::{Errno, Error, Result};
use crate::fall_back::FallBack;
use crate::identity::Identity;
use crate::in_flight::InFlight;
use crate::insist::named;
use crate::open_file::{File, FileBody};
use crate::probe::{self, Access};
use crate::profile::IoProfile;
use crate::queue::Queue;
use crate::reactor::Reactor;
use crate::settings::{BackendState, Reaping, Settings, Waking};
use crate::signal::SignalSet;
use crate::thread_queue::ThreadQueue;
use crate::trace::{Arguments, Ended};
use crate::wait_out::wait_out;

/// `FALLOC_FL_WRITE_ZEROES` of Linux 6.17, which the library does not name yet: written blocks of zeros, where the device makes
/// them without a transfer. Refused everywhere else. ext4 has it in 6.17, other file systems do not.
const WRITE_ZEROES: FallocateFlags = FallocateFlags::from_bits_retain(0x80);

/// Linux: files opened for direct I/O, contexts of native AIO, the monotonic clock.
///
/// # Concurrency
/// All methods may be called from many threads; those on names and sizes block as long as the file system takes.
#[derive(Debug)]
pub struct NativeBackend {
    shared: BackendState,
    uses_aio: bool,
    /// Writes the note in the lock file. Made at the first use and kept, since a context is slow to destroy. Only opens
    /// of stores take the lock, each for one write.
    notes: Mutex<Option<Box<dyn Queue>>>,
}

impl Default for NativeBackend {
    fn default() -> NativeBackend {
        NativeBackend::new()
    }
}

impl NativeBackend {
    /// A backend for this process; its clock starts at 0.
    #[must_use]
    pub fn new() -> NativeBackend {
        NativeBackend { shared: BackendState::new(), uses_aio: true, notes: Mutex::new(None) }
    }

    /// A backend that works as on a machine that refuses native AIO: a few threads do the operations by system calls.
    #[must_use]
    pub fn without_aio() -> NativeBackend {
        NativeBackend { uses_aio: false, ..NativeBackend::new() }
    }

    /// A context whose waits always enter the kernel: a trace of system calls then shows every wait, and the call is
    /// cheap compared with an operation on a device.
    fn context(&self, slots: usize, mask: Option<SignalSet>) -> Result<Box<dyn Queue>> {
        let settings = Settings { slots, mask, reaping: Reaping::SystemCall, waking: Waking::Poll };
        self.queue_of(&settings)
    }

    /// A context, or a queue that works without native AIO where that is refused.
    fn queue_of(&self, settings: &Settings) -> Result<Box<dyn Queue>> {
        self.check_fork()?;
        if self.uses_aio {
            match InFlight::new(settings, self.shared.clone()) {
                Ok(in_flight) => return Ok(Box::new(Context::from(in_flight))),
                Err(Error::Unsupported { call, errno, .. }) => {
                    self.shared.fall_backs.note(FallBack::SystemCalls { call, errno });
                }
                Err(error) => return Err(error),
            }
        }
        let BackendState { clock, trace, team, fall_backs, .. } = self.shared.clone();
        Ok(Box::new(ThreadQueue::new(&team, settings.slots, clock, (trace, fall_backs))))
    }

    /// Opens a regular file, for direct I/O where that works. Returns a lack of descriptors at once: the caller may have one
    /// to give back.
    fn open_file(&self, path: &Path, flags: OFlags) -> Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let first = open_if_free(path, flags | OFlags::DIRECT);
        let Opened { mut descriptor, mut stat, refused } =
            open_regular(first, path, flags | OFlags::DIRECT).map_err(no_inodes)?;
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let has_flag = refused.is_none();
        let direct =
            if has_flag { probe::access(path, descriptor.as_fd(), size_bytes)? } else { Access::BUFFERED };
        // A file with bytes that keeps the flag may begin with a hole: then it is direct, although nothing proves it.
        if !direct.is_direct && (size_bytes == 0 || !direct.keeps_flag()) {
            let refused = refused.map(|errno| ("open", errno));
            let refused = refused.or(direct.refused.map(|errno| ("pread", errno)));
            self.shared.fall_backs.note(FallBack::PageCache { path: path.to_owned(), refused });
        }
        if has_flag && !direct.keeps_flag() {
            // Not by `fcntl`, which a sandbox may refuse: a file system in user space keeps the flags of an open for itself.
            let flags = flags.difference(OFlags::CREATE | OFlags::EXCL);
            // First, so that this takes no second one.
            drop(descriptor);
            Opened { descriptor, stat, .. } = open_regular(open(path, flags), path, flags)?;
        }
        let identity = Identity::new(stat.st_dev, stat.st_ino, path);
        Ok(File::new(identity, direct.alignment, direct.is_direct, FileBody::Native(descriptor)))
    }

    /// A [`Backend::queue`] that sets the thread's signal mask to `mask` while it waits. A signal that the thread
    /// blocks otherwise and that is not in `mask` can arrive only during the wait, and makes it return
    /// [`Wake::Interrupted`].
    ///
    /// Where the kernel has no `io_pgetevents` the mask is not used.
    ///
    /// # Errors
    /// [`Error::Slots`] when the machine's limit is reached.
    ///
    /// # Panics
    /// If `slots` is 0.
    ///
    /// [`Wake::Interrupted`]: crate::Wake::Interrupted
    pub fn queue_with_mask(&self, slots: usize, mask: SignalSet) -> Result<Box<dyn Queue>> {
        self.context(slots, Some(mask))
    }
}

impl Backend for NativeBackend {
    fn queue(&self, slots: usize) -> Result<Box<dyn Queue>> {
        self.context(slots, None)
    }

    fn drop_queues(&self, queues: Vec<Box<dyn Queue>>) {
        drop_together::drop_together(queues);
    }

    fn aio_slots(&self) -> Option<AioSlots> {
        limits::aio_slots()
    }

    fn descriptor_limit(&self) -> Option<u64> {
        limits::descriptors()
    }

    fn reactor(&self, slots: usize) -> Result<Reactor> {
        let settings = Settings { slots, mask: None, reaping: Reaping::default(), waking: Waking::default() };
        Reactor::with_thread(self.queue_of(&settings)?)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<File> {
        let flags = match mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::Write => OFlags::RDWR,
            OpenMode::Create => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        self.open_file(path, flags)
    }

    fn size_bytes(&self, file: &File) -> Result<u64> {
        let stat = named("fstat", file.path(), || rustix::fs::fstat(file.descriptor()))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn physical_block_bytes(&self, file: &File) -> usize {
        if file.is_direct() { probe::physical_block_bytes(file.descriptor().as_fd()) } else { Buf::ALIGN }
    }

    fn sync(&self, file: &File) -> Result<()> {
        let begin_nanos = clock::nanos();
        // Not retried after any error.
        let synced = rustix::fs::fdatasync(file.descriptor());
        let nanos = clock::nanos().saturating_sub(begin_nanos);
        let moved_bytes = synced.ok().map(|()| 0);
        let arguments = Arguments::of_sync(file.identity());
        self.shared.trace.ended([Ended { arguments, moved_bytes, nanos, submitted: None }]);
        synced.map_err(|errno| Error::failed("fdatasync", file.path(), errno))
    }

    fn allocate(&self, file: &File, len_bytes: u64) -> Result<()> {
        if len_bytes == 0 {
            return Ok(());
        }
        let none = FallocateFlags::empty();
        match named("fallocate", file.path(), || rustix::fs::fallocate(file.descriptor(), none, 0, len_bytes))
        {
            Err(error) if error.errno().is_some_and(Errno::is_refusal) => {
                if self.size_bytes(file)? < len_bytes { self.truncate(file, len_bytes) } else { Ok(()) }
            }
            reserved => reserved,
        }
    }

    fn zero_range(&self, file: &File, range: Range<u64>) -> Result<bool> {
        let len_bytes = range.end - range.start;
        match named("fallocate", file.path(), || {
            rustix::fs::fallocate(file.descriptor(), WRITE_ZEROES, range.start, len_bytes)
        }) {
            Err(error) if !error.errno().is_some_and(Errno::is_no_room) => Ok(false),
            zeroed => zeroed.map(|()| true),
        }
    }

    fn truncate(&self, file: &File, len_bytes: u64) -> Result<()> {
        named("ftruncate", file.path(), || rustix::fs::ftruncate(file.descriptor(), len_bytes))
    }

    fn link(&self, from: &Path, to: &Path) -> Result<()> {
        named("link", to, || rustix::fs::link(from, to)).map_err(no_inodes)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        named("unlink", path, || rustix::fs::unlink(path))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let mut names = named("readdir", dir, || names(dir).map_err(|error| Errno::from(&error)))?;
        names.sort_unstable();
        Ok(names)
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>> {
        let entry = match named("stat", path, || rustix::fs::lstat(path)) {
            Err(error) if error.errno().is_some_and(is_absent) => return Ok(None),
            entry => entry?,
        };
        // The target of a link, which may be absent.
        let is_link = FileType::from_raw_mode(entry.st_mode).is_symlink();
        let target = is_link.then(|| named("stat", path, || rustix::fs::stat(path)).unwrap_or(entry));
        let stat = target.unwrap_or(entry);
        let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
        let size_bytes = if is_dir { 0 } else { u64::try_from(stat.st_size).unwrap_or(0) };
        Ok(Some(Stat { size_bytes, is_dir, is_file: FileType::from_raw_mode(entry.st_mode).is_file() }))
    }

    fn make_dir(&self, path: &Path) -> Result<()> {
        named("mkdir", path, || rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))).map_err(no_inodes)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let dir = open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        // Not retried after any error.
        rustix::fs::fsync(dir).map_err(|errno| match Errno::from(errno) {
            errno if errno.is_refusal() || errno == Errno::NOT_OPEN => {
                let needs = "a file system that makes the names of files durable, because without that a power cut can \
                             lose acknowledged data: use another file system";
                Error::Unsupported { call: "fsync", path: path.to_owned(), needs: needs.to_owned(), errno }
            }
            errno => Error::failed("fsync", path, errno),
        })
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>> {
        self.check_fork()?;
        let mut notes = self.notes.lock();
        let queue = match &mut *notes {
            Some(queue) => queue,
            None => notes.insert(wait_out(self, || self.context(1, None))?),
        };
        let file = wait_out(self, || self.open_file(path, OFlags::RDWR | OFlags::CREATE))?;
        file.set_kind("lock");
        Ok(Box::new(NativeLock::take(file, queue.as_mut(), self.shared.process)?))
    }

    fn map_shared(&self, file: &File, len_bytes: usize) -> Result<Arc<dyn SharedMap>> {
        Ok(Arc::new(NativeMap::new(file, len_bytes)?))
    }

    fn now(&self) -> Duration {
        self.shared.clock.now()
    }

    fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        assert_eq!(filled, Ok(bytes.len()), "every supported kernel returns random numbers");
        u64::from_le_bytes(bytes)
    }

    fn park(&self, duration: Duration) {
        std::thread::park_timeout(duration);
    }

    fn check_fork(&self) -> Result<()> {
        if self.shared.process.is_current() { Ok(()) } else { Err(Error::Forked) }
    }

    fn fall_backs(&self) -> Vec<FallBack> {
        self.shared.fall_backs.list()
    }

    fn profile(&self) -> IoProfile {
        self.shared.trace.profile()
    }
}

/// The error of a call that makes a name. The kernel has one answer for no space and for no inodes.
fn no_inodes(error: Error) -> Error {
    let Error::Os { call, path, errno: Errno::NO_SPACE, .. } = &error else { return error };
    let dir = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match rustix::fs::statvfs(dir) {
        // A file system that makes inodes as it needs them counts none.
        Ok(stat) if stat.f_files > 0 && stat.f_favail == 0 => Error::of_full(Full::Inodes, call, path),
        _ => error,
    }
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    named("open", path, || open_once(path, flags))
}

/// Returns a lack of descriptors at once, as [`Error::NotNow`]. Only the first `open` of a file may: after it the file may be
/// made, and be in the way of another try.
fn open_if_free(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let opened = named("open", path, || match open_once(path, flags) {
        Err(lack @ (rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)) => Ok(Err(lack)),
        opened => opened.map(Ok),
    })?;
    opened.map_err(|lack| Error::call("open", path, lack))
}

fn open_once(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

/// A regular file.
struct Opened {
    descriptor: OwnedFd,
    stat: rustix::fs::Stat,
    /// The answer to `O_DIRECT`, if that was refused.
    refused: Option<Errno>,
}

/// Opens a regular file. Nothing else is opened for longer than it takes to see its type, and
/// never waited for.
///
/// Direct I/O is requested, if at all, in the `open` itself, so that a trace of system calls shows it. Opens without it where
/// the `first` one was refused. That one may have made the file, so the second one accepts an existing file. (The name was
/// free: a taken one fails before the kernel checks the flag.)
fn open_regular(first: Result<OwnedFd>, path: &Path, flags: OFlags) -> Result<Opened> {
    let mut opened = first;
    let errno = opened.as_ref().err().and_then(Error::errno);
    let of_flag = |errno: &Errno| matches!(*errno, Errno::INVALID | Errno::NOT_SUPPORTED);
    let refused = errno.filter(of_flag).filter(|_| flags.contains(OFlags::DIRECT));
    if refused.is_some() {
        opened = open(path, flags.difference(OFlags::DIRECT | OFlags::EXCL));
    }
    let not_a_file = |found| Error::NotAFile { path: path.to_owned(), found };
    let descriptor = opened.map_err(|error| {
        // The kernel opens neither links (because of the flag) nor sockets, and directories only for reading.
        let is_of_type =
            |errno: Errno| matches!(errno.0, libc::ELOOP | libc::EISDIR | libc::ENXIO | libc::ENODEV);
        let entry =
            error.errno().filter(|&errno| is_of_type(errno)).and_then(|_| rustix::fs::lstat(path).ok());
        entry.and_then(|entry| other_type(entry.st_mode)).map_or(error, not_a_file)
    })?;
    let stat = named("fstat", path, || rustix::fs::fstat(&descriptor))?;
    match other_type(stat.st_mode) {
        None => Ok(Opened { descriptor, stat, refused }),
        Some(found) => Err(not_a_file(found)),
    }
}

/// The type of an entry, with its article; `None` for a regular file.
fn other_type(mode: rustix::fs::RawMode) -> Option<&'static str> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory"),
        FileType::Symlink => Some("a symbolic link"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        FileType::Unknown => Some("of an unknown type"),
    }
}

/// The names in a directory. One that is not UTF-8 was not made by a store. It is listed, so that the directory is not taken
/// for empty.
fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Whether a path names nothing.
fn is_absent(errno: Errno) -> bool {
    errno == Errno::NOT_FOUND || errno == Errno(libc::ENOTDIR)
}
