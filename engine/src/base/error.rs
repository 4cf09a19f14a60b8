//! The public error: few variants, and each says what to do next.
//!
//! `Clone`, since one failed group commit fails many waiters.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed call: the cause, the place, and what to do next.
///
/// | variant | next |
/// |---|---|
/// | [`Busy`](Error::Busy) | try again |
/// | [`NoSpace`](Error::NoSpace) | free space; the store goes on by itself |
/// | [`InvalidArgument`](Error::InvalidArgument), [`TooLarge`](Error::TooLarge) | fix the call |
/// | [`ReadOnly`](Error::ReadOnly) | open the store for writing |
/// | [`Closed`](Error::Closed) | open the store, or create the keyspace |
/// | [`Halted`](Error::Halted) | close and open the store, after its cause is removed |
/// | [`Corrupt`](Error::Corrupt) | repair the log, or restore a copy |
/// | [`Locked`](Error::Locked) | end the other process |
/// | [`Format`](Error::Format) | check the path and the version |
/// | [`Io`](Error::Io) | remove the cause that the message names, then try again |
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call of the operating system failed. If a resource is used up (file handles, memory), nothing was written, and the
    /// same call can be made again when there is some. A read can be made again.
    #[error("{message}")]
    #[non_exhaustive]
    Io {
        /// Its kind in `std::io`.
        kind: std::io::ErrorKind,
        /// The system's error number, if there is one.
        errno: Option<i32>,
        /// Call, file, offset and cause in one line.
        message: String,
    },
    /// Bytes on disk are not those that were written. Nothing was changed, and no wrong data was returned. For a file of the
    /// log, [`Builder::repair`](crate::Builder::repair) cuts it before the damage; for other files, restore a copy.
    #[error("{} is damaged at offset {offset}: {what} (expected {expected}, found {found})", file.display())]
    #[non_exhaustive]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// Which check failed.
        what: &'static str,
        /// The value that should stand there.
        expected: String,
        /// The value that stands there.
        found: String,
    },
    /// The disk is full. Reads go on, and nothing is lost. Free space: writes then succeed without a reopen.
    #[error("no space left on the device for {}: free some, the store goes on by itself", path.display())]
    #[non_exhaustive]
    NoSpace {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// The call would have to wait, and must not. Nothing was done; try again.
    #[error("busy: {what}")]
    #[non_exhaustive]
    Busy {
        /// The resource that is full.
        what: &'static str,
    },
    /// A write or sync of log or manifest failed, now or earlier, and nothing is written any more. Reads go on. Close the
    /// store and open it again: only that tells which of the unacknowledged writes are there.
    #[error("the store has halted, close and reopen it; first cause: {cause}")]
    #[non_exhaustive]
    Halted {
        /// The first failure.
        cause: Arc<Error>,
    },
    /// The store is open in another process, or a second time in this one. Only one open may hold it.
    #[error("the store is open in {}", match pid { Some(pid) => format!("process {pid}"), None => "another process".to_owned() })]
    #[non_exhaustive]
    Locked {
        /// The holder, if known; may be this process.
        pid: Option<u32>,
    },
    /// The call writes, and this store has no part that can write: it was opened for reading only. Nothing was done.
    #[error("the store was opened read-only")]
    ReadOnly,
    /// The store was closed, or the keyspace was dropped.
    #[error("the store or keyspace is closed")]
    Closed,
    /// A key, a value or a batch is larger than this store takes. Nothing was written.
    #[error("{what} of {found_bytes} bytes, at most {limit_bytes} are possible")]
    #[non_exhaustive]
    TooLarge {
        /// A key, a value or a batch.
        what: &'static str,
        /// Its size.
        found_bytes: u64,
        /// The largest possible.
        limit_bytes: u64,
    },
    /// An argument is wrong: an empty key, a bad name, a keyspace of another store. Nothing was done.
    #[error("{message}")]
    #[non_exhaustive]
    InvalidArgument {
        /// The reason, and what is allowed.
        message: String,
    },
    /// The directory is no store, or a store of another version. Nothing was written.
    #[error("{}: {what}", path.display())]
    #[non_exhaustive]
    Format {
        /// The directory or file.
        path: PathBuf,
        /// The reason.
        what: String,
    },
}

impl Error {
    /// A failed check of bytes read from `file`.
    pub(crate) fn corrupt(
        file: &Path,
        offset: u64,
        what: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Error {
        Error::Corrupt {
            file: file.to_owned(),
            offset,
            what,
            expected: format!("{expected}"),
            found: format!("{found}"),
        }
    }

    /// An [`Error::Io`] that does not come from the operating system.
    pub(crate) fn internal(message: String) -> Error {
        Error::Io { kind: std::io::ErrorKind::Other, errno: None, message }
    }

    /// Whether something is used up (space, handles, memory) that can come back: then nothing was written.
    pub(crate) fn is_shortage(&self) -> bool {
        match self {
            Error::NoSpace { .. } => true,
            Error::Io { errno: Some(code), .. } => aio::Errno(*code).is_shortage(),
            _ => false,
        }
    }

    /// As the log passes it on, when it is raised inside one of the log's calls.
    pub(crate) fn into_wal(self) -> wal::Error {
        match self {
            Error::Corrupt { file, offset, what, expected, found } => {
                wal::Error::Corrupt { file, offset, what, expected, found }
            }
            Error::NoSpace { path } => aio::Error::call("allocate", &path, aio::Errno::NO_SPACE).into(),
            Error::Closed => wal::Error::Closed,
            // Not the bare cause: a want of space in it would look like one that passes.
            Error::Halted { cause } => {
                wal::Error::Halted { cause: Arc::new(Error::clone(&cause).into_wal()) }
            }
            other => wal::Error::Host { message: other.to_string() },
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::InvalidArgument { message: message.into() }
    }
}

/// The next step for the user, where the system's message does not name it.
fn advice(errno: Option<aio::Errno>) -> &'static str {
    match errno {
        Some(aio::Errno::TOO_MANY_FILES) => ": raise the limit on open files (ulimit -n)",
        Some(aio::Errno::ACCESS) => ": check owner and permissions",
        Some(aio::Errno::READ_ONLY) => ": mount the file system for writing",
        _ => "",
    }
}

impl From<aio::Error> for Error {
    fn from(error: aio::Error) -> Error {
        match &error {
            aio::Error::Locked { pid, .. } => Error::Locked { pid: *pid },
            // Of the reactor, which ends with the store.
            aio::Error::Closed => Error::Closed,
            aio::Error::Os { path, errno, .. } if errno.is_no_space() => {
                Error::NoSpace { path: path.clone() }
            }
            _ => {
                let kind = error.errno().map_or(std::io::ErrorKind::Other, aio::Errno::kind);
                let errno = error.errno().map(|errno| errno.0);
                Error::Io { kind, errno, message: format!("{error}{}", advice(error.errno())) }
            }
        }
    }
}

impl From<wal::Error> for Error {
    fn from(error: wal::Error) -> Error {
        match error {
            wal::Error::Io(error) => error.into(),
            wal::Error::Corrupt { file, offset, what, expected, found } => {
                Error::Corrupt { file, offset, what, expected, found }
            }
            wal::Error::Halted { cause } => {
                Error::Halted { cause: Arc::new(Error::from(wal::Error::clone(&cause))) }
            }
            wal::Error::TooLarge { len_bytes, max_bytes } => Error::TooLarge {
                what: "a write",
                found_bytes: len_bytes as u64,
                limit_bytes: max_bytes as u64,
            },
            wal::Error::Closed => Error::Closed,
            other => Error::internal(other.to_string()),
        }
    }
}
