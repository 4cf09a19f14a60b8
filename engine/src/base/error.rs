//! The public error: few variants, and each names the next step of the caller.
//!
//! `Clone`, since one failed group commit fails many waiters.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed call: its cause, its place, and the next step of the caller.
///
/// | variant | next |
/// |---|---|
/// | [`Busy`](Error::Busy) | try again |
/// | [`NoSpace`](Error::NoSpace) | free space; the store continues by itself |
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
    /// A system call failed. If a resource is used up (file handles, memory), nothing was written, and the same call can be
    /// repeated when the resource is available. A read can be repeated.
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
    /// Bytes on disk are not those that were written. Nothing was changed, and no wrong data was returned. In a file of the
    /// log, [`Builder::repair`](crate::Builder::repair) cuts the log before the damage. For other files, restore a copy.
    #[error("{} is damaged at offset {offset}: {what} (expected {expected}, found {found})", file.display())]
    #[non_exhaustive]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Offset of the damage in the file, in bytes.
        offset: u64,
        /// The failed check.
        what: &'static str,
        /// The expected value.
        expected: String,
        /// The value on disk.
        found: String,
    },
    /// The disk is full. Reads still work, and no acknowledged write is lost. After space is freed, writes succeed without a
    /// reopen.
    #[error("no space left on the device for {}: free some, the store goes on by itself", path.display())]
    #[non_exhaustive]
    NoSpace {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// The call would have to wait but must not. It had no effect; try again.
    #[error("busy: {what}")]
    #[non_exhaustive]
    Busy {
        /// The resource that is full.
        what: &'static str,
    },
    /// A write or sync of log or manifest failed, now or earlier. The store takes no more writes; reads still work. Close the
    /// store and open it again: only a reopen shows which of the unacknowledged writes survived.
    #[error("the store has halted, close and reopen it; first cause: {cause}")]
    #[non_exhaustive]
    Halted {
        /// The first failure.
        cause: Arc<Error>,
    },
    /// The store is already open, in another process or in this one. Only one open may hold it.
    #[error("the store is open in {}", match pid { Some(pid) => format!("process {pid}"), None => "another process".to_owned() })]
    #[non_exhaustive]
    Locked {
        /// The process that holds it, if known; may be this process.
        pid: Option<u32>,
    },
    /// The call writes, but the store was opened for reading only. It had no effect.
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
    /// An argument is wrong: an empty key, a bad name, a keyspace of another store. The call had no effect.
    #[error("{message}")]
    #[non_exhaustive]
    InvalidArgument {
        /// The reason, and the allowed values.
        message: String,
    },
    /// The directory is no store, or a store of another format version. Nothing was written.
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

    /// Whether a resource is used up (space, handles, memory) that may become available again. Nothing was written then.
    pub(crate) fn is_shortage(&self) -> bool {
        match self {
            Error::NoSpace { .. } => true,
            Error::Io { errno: Some(code), .. } => aio::Errno(*code).is_shortage(),
            _ => false,
        }
    }

    /// Converts an error raised inside a call of the log, so that the log can return it.
    pub(crate) fn into_wal(self) -> wal::Error {
        match self {
            Error::Corrupt { file, offset, what, expected, found } => {
                wal::Error::Corrupt { file, offset, what, expected, found }
            }
            Error::NoSpace { path } => aio::Error::call("allocate", &path, aio::Errno::NO_SPACE).into(),
            Error::Closed => wal::Error::Closed,
            // Not the bare cause: a lack of space in it would look like a temporary one.
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

// An impl cannot be private. Users of this crate never meet the type.
#[doc(hidden)]
impl From<aio::Error> for Error {
    fn from(error: aio::Error) -> Error {
        match &error {
            aio::Error::Locked { pid, .. } => Error::Locked { pid: *pid },
            // An error of the reactor, which ends with the store.
            aio::Error::Closed => Error::Closed,
            aio::Error::Os { path, errno, .. } if errno.is_no_space() => {
                Error::NoSpace { path: path.clone() }
            }
            _ => {
                let kind = error.errno().map_or(std::io::ErrorKind::Other, aio::Errno::kind);
                let errno = error.errno().map(|errno| errno.0);
                // This error says its next step itself.
                let is_advice = matches!(error, aio::Error::Unsupported { .. });
                let advice = if is_advice { "" } else { advice(error.errno()) };
                Error::Io { kind, errno, message: format!("{error}{advice}") }
            }
        }
    }
}

#[doc(hidden)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_says_its_next_step_gets_no_other_advice() {
        let (path, needs) = (PathBuf::from("/store"), "another file system".to_owned());
        let errno = aio::Errno::ACCESS;
        let unsupported = aio::Error::Unsupported { call: "fsync", path: path.clone(), needs, errno };
        let foreign = aio::Error::NotAFile { path: path.clone(), found: "a FIFO" };
        for error in [unsupported, foreign] {
            assert_eq!(Error::from(error.clone()).to_string(), error.to_string());
        }
        let denied = Error::from(aio::Error::call("open", &path, errno)).to_string();
        assert!(denied.ends_with("check owner and permissions"), "{denied}");
    }
}
