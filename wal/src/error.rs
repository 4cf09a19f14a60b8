//! What can go wrong in the log: one cloneable error, since one failed group fails all who wait for it.
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
    /// The bytes on disk are not what was acknowledged. Nothing was changed.
    #[error("{} at offset {offset}: {what}: expected {expected}, found {found}", file.display())]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where in the file the damage was noticed, in bytes.
        offset: u64,
        /// What is wrong.
        what: &'static str,
        /// What should stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// An earlier write or sync failed and the log takes no more writes. For a write in flight it means: outcome
    /// unknown until the log is replayed.
    #[error("the log stopped after an error: {cause}")]
    Halted {
        /// The first failure.
        cause: Arc<Error>,
    },
    /// The record is above the limit; nothing was written.
    #[error("a record of {len_bytes} bytes is above the limit of {max_bytes}")]
    TooLarge {
        /// Bytes of the record as framed.
        len_bytes: usize,
        /// The most that one record may take, as framed.
        max_bytes: usize,
    },
    /// The [`Host`](crate::Host) failed for a reason of its own.
    #[error("{message}")]
    Host {
        /// What it said.
        message: String,
    },
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

    /// Whether something was used up (space, handles) before anything was written: the log goes on, and a later call can
    /// succeed.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        matches!(self, Error::Io(error) if error.errno().is_some_and(aio::Errno::is_shortage))
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
