//! The error of the I/O layer: one cloneable type that names the call, the file and the offset.
//!
//! A group commit fails many waiters with the same cause, so the error is `Clone`; the operating system's code is
//! kept as a plain number.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::advice::{Full, advice};
use crate::holder::Holder;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An `errno` value of the kernel, always positive.
///
/// libaio and the raw system calls report `-errno`; this crate turns that into `Err(Errno)` where it reads the kernel's
/// answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Input or output error: the device failed.
    pub const IO: Errno = Errno(libc::EIO);
    /// No space left on the device.
    pub const NO_SPACE: Errno = Errno(libc::ENOSPC);
    /// The disk quota is used up.
    pub const QUOTA: Errno = Errno(libc::EDQUOT);
    /// No such file or directory.
    pub const NOT_FOUND: Errno = Errno(libc::ENOENT);
    /// The file exists.
    pub const EXISTS: Errno = Errno(libc::EEXIST);
    /// Permission denied.
    pub const ACCESS: Errno = Errno(libc::EACCES);
    /// Operation not permitted.
    pub const NOT_PERMITTED: Errno = Errno(libc::EPERM);
    /// The file was not opened for that.
    pub const NOT_OPEN: Errno = Errno(libc::EBADF);
    /// Bad address: memory that is not there, or cannot be filled or written.
    pub const FAULT: Errno = Errno(libc::EFAULT);
    /// Try again: no slot, or a resource limit.
    pub const AGAIN: Errno = Errno(libc::EAGAIN);
    /// Interrupted by a signal.
    pub const INTERRUPTED: Errno = Errno(libc::EINTR);
    /// Invalid argument; for direct I/O usually a misaligned offset, length or buffer.
    pub const INVALID: Errno = Errno(libc::EINVAL);
    /// Read-only file system.
    pub const READ_ONLY: Errno = Errno(libc::EROFS);
    /// The call is not implemented by this kernel.
    pub const NOT_IMPLEMENTED: Errno = Errno(libc::ENOSYS);
    /// The operation is not supported by this file or kernel.
    pub const NOT_SUPPORTED: Errno = Errno(libc::EOPNOTSUPP);
    /// The operation is in progress; the answer of a successful cancellation.
    pub const IN_PROGRESS: Errno = Errno(libc::EINPROGRESS);
    /// Too many open files in this process.
    pub const TOO_MANY_FILES: Errno = Errno(libc::EMFILE);

    /// The `errno` of the last failed system call of this thread.
    #[must_use]
    pub fn last() -> Errno {
        Errno::from(&std::io::Error::last_os_error())
    }

    /// Whether the disk or the user's quota is full.
    #[must_use]
    pub fn is_no_space(self) -> bool {
        self == Errno::NO_SPACE || self == Errno::QUOTA
    }

    /// Whether a resource was exhausted (space, handles, memory), so that the same call can succeed later.
    #[must_use]
    pub fn is_shortage(self) -> bool {
        self.is_no_space() || [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN].contains(&self.0)
    }

    /// Whether a call with this answer has done nothing and may succeed a moment later. Says nothing about the result of
    /// an operation that the kernel took.
    #[must_use]
    pub fn is_not_now(self) -> bool {
        let codes = [
            libc::EAGAIN,
            libc::ENOMEM,
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOLCK,
            libc::EINTR,
        ];
        codes.contains(&self.0)
    }

    /// Whether there is no room for bytes, now or at all: of the disk, a quota, the size of a file, or a resource of the
    /// moment. Another way to write them gets the same answer.
    pub(crate) fn is_no_room(self) -> bool {
        self.is_no_space() || self.0 == libc::EFBIG || self.is_not_now()
    }

    /// Whether the kernel lacks a call (or a flag of it), or a sandbox forbids it. No two sandboxes agree on the code. The
    /// same codes have other meanings too, so this only says that another way is worth a try.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        [libc::ENOSYS, libc::EPERM, libc::EACCES, libc::EINVAL, libc::EOPNOTSUPP].contains(&self.0)
    }

    /// The next step of a person after a call that has answered with this code, as a clause; `None` where the code says it all.
    /// The message of an [`Error`] has it already.
    #[must_use]
    pub fn advice(self, call: &str) -> Option<&'static str> {
        advice(call, self.0)
    }

    /// The `std::io` kind of this code.
    #[must_use]
    pub fn kind(self) -> std::io::ErrorKind {
        std::io::Error::from_raw_os_error(self.0).kind()
    }
}

impl From<&std::io::Error> for Errno {
    fn from(error: &std::io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Errno {
        Errno(errno.raw_os_error())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({self})")
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

/// An error of the I/O layer. Its message ends with the next step, where there is one.
///
/// A process that writes beyond its limit on file sizes (`ulimit -f`) gets the signal `SIGXFSZ` with the error `EFBIG`, and
/// dies by it unless it ignores or blocks the signal. This crate changes no signal handling: a program that wants the error
/// has to ask for it, for example by `SignalSet::none().with(libc::SIGXFSZ).block()` before it starts threads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call or an operation failed.
    #[error(
        "{call} {}{}: {errno}{}",
        path.display(),
        Position { offset: *offset, len_bytes: *len_bytes },
        Then(advice(call, errno.0))
    )]
    Os {
        /// The system call or operation.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The offset in the file, in bytes; 0 for calls without one.
        offset: u64,
        /// The length requested, in bytes; 0 for calls without one.
        len_bytes: usize,
        /// The error code of the kernel.
        errno: Errno,
    },
    /// A call was refused for lack of memory, descriptors or another resource. Nothing was done; the same call can succeed
    /// later.
    #[error("{call} {}: {errno}, nothing was done{}", path.display(), Then(advice(call, errno.0)))]
    NotNow {
        /// The system call.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error code of the kernel.
        errno: Errno,
    },
    /// The file system has no inode for another file, although it may have space.
    #[error("{call} {}: {}: {}", path.display(), Full::Inodes, Full::Inodes.advice())]
    NoInodes {
        /// The system call.
        call: &'static str,
        /// The file or directory that was to be made.
        path: PathBuf,
    },
    /// The kernel, or the file, lacks a feature that an operation needs.
    #[error("{call} {}: {errno}; it needs {needs}", path.display())]
    Unsupported {
        /// The operation.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// The features it needs, each with the first kernel that has it.
        needs: String,
        /// The error code of the kernel.
        errno: Errno,
    },
    /// Something else has the name of a file.
    #[error("open {}: is {found}, a regular file is expected", path.display())]
    NotAFile {
        /// The name.
        path: PathBuf,
        /// Its type, with its article.
        found: &'static str,
    },
    /// A read or write moved fewer bytes than asked for.
    #[error("{call} {} at offset {offset}: {found} of {expected} bytes", path.display())]
    Short {
        /// The operation.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// The offset in the file, in bytes.
        offset: u64,
        /// Bytes requested.
        expected: usize,
        /// Bytes moved.
        found: usize,
    },
    /// Another open of the same directory holds its lock.
    #[error("{} is locked by {holder}: {}", path.display(), holder.advice())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The holder.
        holder: Holder,
    },
    /// The kernel has no asynchronous I/O slots left.
    #[error(
        "no AIO slots left for a context of {slots} operations: raise fs.aio-max-nr (sysctl), in a container that of the host"
    )]
    Slots {
        /// The slots requested.
        slots: usize,
    },
    /// This handle belongs to the parent process.
    #[error("this process is a fork: open the store again, the handles of the parent do not work here")]
    Forked,
    /// The reactor was shut down.
    #[error("the reactor is closed")]
    Closed,
    /// The simulated machine has crashed, and every later call fails. Only the simulated disk returns this error.
    #[error("the simulated machine has crashed")]
    Crashed,
}

/// Shows offset and length; empty if both are 0.
struct Position {
    offset: u64,
    len_bytes: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position { offset: 0, len_bytes: 0 } => Ok(()),
            Position { offset, len_bytes } => write!(f, " at offset {offset}, {len_bytes} bytes"),
        }
    }
}

/// Appends the next step, if there is one.
struct Then(Option<&'static str>);

impl fmt::Display for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(advice) => write!(f, ": {advice}"),
            None => Ok(()),
        }
    }
}

impl Error {
    /// The error of a call on a path as a whole: [`Error::NotNow`] if the answer [says so](Errno::is_not_now), else
    /// [`Error::Os`]. Not for syncs and operations, which may have been done in part.
    #[must_use]
    pub fn call(call: &'static str, path: &Path, errno: impl Into<Errno>) -> Error {
        match errno.into() {
            errno if errno.is_not_now() => Error::NotNow { call, path: path.to_owned(), errno },
            errno => Error::failed(call, path, errno),
        }
    }

    /// The error of a call that may have been done in part: a sync.
    pub(crate) fn failed(call: &'static str, path: &Path, errno: impl Into<Errno>) -> Error {
        Error::Os { call, path: path.to_owned(), offset: 0, len_bytes: 0, errno: errno.into() }
    }

    /// Whether a resource was missing before anything was done. The same call can succeed later; see
    /// [`wait_out`](crate::wait_out).
    #[must_use]
    pub fn is_not_now(&self) -> bool {
        matches!(self, Error::NotNow { .. } | Error::Slots { .. })
    }

    /// Whether a sync of this folder failed, and not the open of the folder for it. Then names of any files in it may be lost,
    /// and the next sync may report success.
    #[must_use]
    pub fn is_failed_sync_of(&self, folder: &Path) -> bool {
        match self {
            Error::Os { call, path, .. } | Error::Unsupported { call, path, .. } => {
                *call == "fsync" && path == folder
            }
            _ => false,
        }
    }

    /// The same error for a call that had done something before it.
    pub(crate) fn into_failure(self) -> Error {
        match self {
            Error::NotNow { call, path, errno } => Error::Os { call, path, offset: 0, len_bytes: 0, errno },
            error => error,
        }
    }

    /// The error code of the kernel, if the error has one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Os { errno, .. } | Error::NotNow { errno, .. } | Error::Unsupported { errno, .. } => {
                Some(*errno)
            }
            Error::NoInodes { .. } => Some(Errno::NO_SPACE),
            Error::Slots { .. } => Some(Errno::AGAIN),
            _ => None,
        }
    }

    /// The resource that is used up, and the path, if that is why the call failed.
    #[must_use]
    pub fn full(&self) -> Option<(Full, &Path)> {
        match self {
            Error::NoInodes { path, .. } => Some((Full::Inodes, path)),
            Error::Os { path, errno, .. } if *errno == Errno::NO_SPACE => Some((Full::Space, path)),
            Error::Os { path, errno, .. } if *errno == Errno::QUOTA => Some((Full::Quota, path)),
            _ => None,
        }
    }

    /// The error of a call that found no more of `full`.
    #[must_use]
    pub fn of_full(full: Full, call: &'static str, path: &Path) -> Error {
        match full {
            Full::Space => Error::failed(call, path, Errno::NO_SPACE),
            Full::Quota => Error::failed(call, path, Errno::QUOTA),
            Full::Inodes => Error::NoInodes { call, path: path.to_owned() },
        }
    }
}
