//! The errors of the log. An error can be cloned, since one failed group fails all its waiters.
//!
//! Invariant: damage found on disk is always [`Error::Corrupt`] with file and offset; a torn tail is no error.

use std::path::{Path, PathBuf};

use crate::sync::Arc;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call on a file failed.
    #[error(transparent)]
    Io(#[from] aio::Error),
    /// The bytes on disk differ from the acknowledged ones. Nothing was changed.
    #[error("{} at offset {offset}: {what}: expected {expected}, found {found}", file.display())]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Offset in the file, in bytes, at which the damage was noticed.
        offset: u64,
        /// The damaged item, for example `"group header"`.
        what: &'static str,
        /// The value that should stand there.
        expected: String,
        /// The value that stands there.
        found: String,
    },
    /// An earlier write or sync failed, and the log accepts no more writes. The outcome of a write in flight is unknown
    /// until the log is replayed.
    #[error("the log stopped after an error: {cause}")]
    Halted {
        /// The first failure.
        cause: Arc<Error>,
    },
    /// The record is larger than the limit. Nothing was written.
    #[error("a record of {len_bytes} bytes is above the limit of {max_bytes}")]
    TooLarge {
        /// Bytes of the framed record.
        len_bytes: usize,
        /// The limit for a framed record, in bytes.
        max_bytes: usize,
    },
    /// The [`Host`](crate::Host) reported an error.
    #[error("{message}")]
    Host {
        /// The message of the host.
        message: String,
    },
    /// The files of the log have no room for the record, and no more may be made: files have to be retired first. Nothing was
    /// written.
    #[error("the log is at its limit")]
    AtLimit,
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

impl Error {
    /// An [`Error::Corrupt`].
    pub fn corrupt(
        file: &Path,
        offset: u64,
        what: &'static str,
        expected: &dyn ToString,
        found: &dyn ToString,
    ) -> Error {
        Error::Corrupt {
            file: file.to_owned(),
            offset,
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// Whether space or handles ran out before anything was written. The log goes on, and a later call can succeed.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        matches!(self, Error::Io(error) if error.errno().is_some_and(aio::Errno::is_shortage))
    }

    /// Whether the machine refused a call for lack of a resource before anything was done. Unlike a shortage of space it can
    /// never be the result of a write.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Io(error) if error.is_not_now())
    }

    /// The error that later calls get after this one stopped the log.
    #[must_use]
    pub fn halted(&self) -> Error {
        match self {
            Error::Halted { .. } => self.clone(),
            cause => Error::Halted { cause: Arc::new(cause.clone()) },
        }
    }
}
