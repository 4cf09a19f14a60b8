//! The public error: few variants, and each names the next step of the caller.
//!
//! `Clone`, since one failed group commit fails many waiters.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aio::{Full, Holder};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed call: its cause, its place, and the next step of the caller, which ends the message.
///
/// | variant | next |
/// |---|---|
/// | [`Busy`](Error::Busy) | try again |
/// | [`NoSpace`](Error::NoSpace) | make room; an open store continues by itself |
/// | [`InvalidArgument`](Error::InvalidArgument), [`TooLarge`](Error::TooLarge) | fix the call |
/// | [`ReadOnly`](Error::ReadOnly) | open the store for writing |
/// | [`Closed`](Error::Closed) | open the store, or create the keyspace |
/// | [`Halted`](Error::Halted) | close and open the store, after its cause is removed |
/// | [`Corrupt`](Error::Corrupt) | repair the log, or restore a copy |
/// | [`Locked`](Error::Locked) | close the other open; [`Holder`] says as much as can be known about it |
/// | [`Format`](Error::Format) | check the path and the version |
/// | [`Io`](Error::Io) | remove the cause that the message names, then try again |
///
/// A write beyond the process's limit on file sizes (`ulimit -f`) is an [`Io`](Error::Io) with `EFBIG` only in a program that
/// ignores or blocks the signal `SIGXFSZ`. By default that signal ends the process. The library changes no signal handling.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed. If a resource is used up (file handles, memory), nothing was written, but for a rare case that
    /// [`Keyspace::put`](crate::Keyspace::put) names, and the same call can be repeated when the resource is available. A read
    /// can be repeated.
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
    /// Bytes on disk are not those that were written. Nothing was changed, and no wrong data was returned. Where
    /// [`Error::is_repairable`], [`Builder::repair`](crate::Builder::repair) cuts the log before the damage. Else restore a
    /// backup, unless the message says that files of the log have to get their names back.
    #[error(
        "{} is damaged at offset {offset}: {what} (expected {expected}, found {found}): nothing was changed{}",
        file.display(), after_damage(file, what)
    )]
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
    /// The file system has no room: no space, no inodes, or no more quota. No acknowledged write is lost. An open store still
    /// reads, also by snapshots, and when there is room again its writes succeed without a reopen. An open needs room for a new
    /// manifest, and for the writes that are in the log only: without it, the store cannot be opened, not even to read.
    #[error(
        "{full}: {}: {}: {}", path.display(), full.advice(),
        if *is_open { "in an open store reads go on, and writes do when there is room" } else { OPEN_WRITES }
    )]
    #[non_exhaustive]
    NoSpace {
        /// The file that could not be written.
        path: PathBuf,
        /// The resource that is used up.
        full: Full,
        /// Whether the store is open. False if it was the open that failed.
        is_open: bool,
    },
    /// The call would have to wait but must not. It had no effect; try again.
    #[error("busy: {what}")]
    #[non_exhaustive]
    Busy {
        /// The resource that is full.
        what: &'static str,
    },
    /// A write or sync of log or manifest failed, or a sync of the folders of log and segments, now or earlier. The store takes
    /// no more writes; reads still work. Close the store and open it again: only a reopen shows which of the unacknowledged
    /// writes survived.
    #[error(
        "the store has halted: reads go on, writes need a close and another open; first cause: {}",
        first_cause(cause)
    )]
    #[non_exhaustive]
    Halted {
        /// The first failure.
        cause: Arc<Error>,
    },
    /// The store is already open, in another process or in this one. Only one open may hold it.
    ///
    /// [`Holder::ThisProcess`] means that the process id, the PID namespace, the boot of the machine and the start of the process
    /// in the lock file are those of this process. A process of another container has another namespace: its id means nothing
    /// here ([`Holder::OtherNamespace`]).
    #[error("the store is open in {holder}: {} ({})", holder.advice(), lock.display())]
    #[non_exhaustive]
    Locked {
        /// The process that holds it, as far as it is known.
        holder: Holder,
        /// The lock file.
        lock: PathBuf,
    },
    /// The call writes, but the store was opened for reading only. It had no effect.
    #[error("the store was opened read-only")]
    ReadOnly,
    /// The store was closed, or the keyspace was dropped.
    #[error("the store or keyspace is closed")]
    Closed,
    /// A key, a value or a batch is larger than this store takes. Nothing was written.
    #[error("{what} of {found_bytes} bytes, at most {limit_bytes} are possible{}", after_limit(what))]
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

    /// Whether [`Builder::repair`](crate::Builder::repair) may make the store open again: the damage is in its log.
    #[must_use]
    pub fn is_repairable(&self) -> bool {
        matches!(self, Error::Corrupt { file, what, .. } if is_repairable(file, what))
    }

    /// The error of an open that failed: no store is open that could go on, or has halted.
    pub(crate) fn of_open(self) -> Error {
        match self {
            Error::Halted { cause } => Error::clone(&cause).of_open(),
            Error::NoSpace { path, full, .. } => Error::NoSpace { path, full, is_open: false },
            Error::Io { kind: kind @ std::io::ErrorKind::ReadOnlyFilesystem, errno, message } => {
                Error::Io { kind, errno, message: format!("{message}: {OPEN_WRITES}") }
            }
            other => other,
        }
    }

    /// Converts an error raised inside a call of the log, so that the log can return it.
    pub(crate) fn into_wal(self) -> wal::Error {
        match self {
            Error::Corrupt { file, offset, what, expected, found } => {
                wal::Error::Corrupt { file, offset, what, expected, found }
            }
            Error::NoSpace { path, full, .. } => aio::Error::of_full(full, "allocate", &path).into(),
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

/// The effect of a full or read-only file system on an open.
const OPEN_WRITES: &str =
    "until then the store cannot be opened, not even to read, since an open writes; nothing is lost";

/// The [`Error::TooLarge::what`] whose limit depends on the options.
pub(crate) const A_WRITE: &str = "a write";

fn after_limit(what: &str) -> &'static str {
    if what == A_WRITE {
        ": open the store with a larger `Builder::memory_budget_bytes`, of which a 64th may be one write, up to 16 MiB"
    } else {
        ""
    }
}

/// The failed check of a manifest that lacks an edit, which a repair restores.
pub(crate) const LOST_EDIT: &str = "an edit is lost";

/// The failed check of a log file whose groups have another name.
pub(crate) const NAMES_EXCHANGED: &str = "the groups of this log file are in another file";

/// Whether a repair can make good for this damage: it is in the log (a file of it, or as a whole) and more than a wrong name,
/// or in an edit that the log proves.
fn is_repairable(file: &Path, what: &str) -> bool {
    let is_log = file.ends_with("wal") || file.parent().is_some_and(|parent| parent.ends_with("wal"));
    is_log && what != NAMES_EXCHANGED || what == LOST_EDIT
}

fn after_damage(file: &Path, what: &str) -> &'static str {
    if what == NAMES_EXCHANGED {
        "; keep a copy of the store, then exchange the names of the two files, or, if the first one is missing, give its name \
         to the other one: but not if the other one is an older copy"
    } else if is_repairable(file, what) {
        "; keep a copy of the store, then restore a backup, or let a repair (`Builder::repair`) end the log before the damage"
    } else {
        "; keep a copy of the store, then restore a backup"
    }
}

/// The cause of a halt, without the promises of a store that goes on.
fn first_cause(cause: &Error) -> String {
    match cause {
        Error::Halted { cause } => first_cause(cause),
        Error::NoSpace { path, full, .. } => format!("{full}: {}: {}", path.display(), full.advice()),
        cause => cause.to_string(),
    }
}

// An impl cannot be private. Users of this crate never meet the type.
#[doc(hidden)]
impl From<aio::Error> for Error {
    fn from(error: aio::Error) -> Error {
        match &error {
            aio::Error::Locked { path, holder } => Error::Locked { holder: *holder, lock: path.clone() },
            // An error of the reactor, which ends with the store.
            aio::Error::Closed => Error::Closed,
            _ => match error.full() {
                Some((full, path)) => Error::NoSpace { path: path.to_owned(), full, is_open: true },
                None => Error::Io {
                    kind: error.errno().map_or(std::io::ErrorKind::Other, aio::Errno::kind),
                    errno: error.errno().map(|errno| errno.0),
                    message: error.to_string(),
                },
            },
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
                what: A_WRITE,
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

    /// Every error that a caller can meet, with those of the machine in it.
    fn every_error() -> Vec<Error> {
        let machine = aio::every_error();
        let mut all: Vec<Error> = machine.iter().cloned().map(Error::from).collect();
        all.extend(machine.iter().map(|error| Error::from(wal::Error::from(error.clone()))));
        all.extend(machine.into_iter().map(|error| Error::from(error).of_open()));
        for (file, what) in [
            ("/store/wal/000001.log", "sector"),
            ("/store/wal/000002.log", NAMES_EXCHANGED),
            ("/store/wal", "the log ends before the flushed position"),
            ("/store/manifest-000002", LOST_EDIT),
            ("/store/manifest-000001", "the manifest is missing"),
            ("/store/segments/000007.seg", "block checksum"),
        ] {
            all.push(Error::corrupt(Path::new(file), 4096, what, "1", "2"));
        }
        for what in ["a key", "a value", A_WRITE] {
            all.push(Error::TooLarge { what, found_bytes: 2, limit_bytes: 1 });
        }
        all.extend([Error::Busy { what: "the ring" }, Error::ReadOnly, Error::Closed]);
        all.extend([Error::invalid("the empty key is not allowed"), Error::internal("a bug".to_owned())]);
        let through_the_log: Vec<_> = all.iter().map(|error| Error::from(error.clone().into_wal())).collect();
        all.extend(through_the_log);
        let halted = |error: &Error| Error::Halted { cause: Arc::new(error.clone()) };
        let once: Vec<_> = all.iter().map(halted).collect();
        let twice: Vec<_> = once.iter().map(halted).collect();
        let log: Vec<_> = all.iter().map(|error| Error::from(error.clone().into_wal().halted())).collect();
        all.extend(once.into_iter().chain(twice).chain(log));
        all
    }

    #[test]
    fn no_message_says_anything_twice() {
        for error in every_error() {
            aio::assert_said_once(&error.to_string());
        }
    }

    #[test]
    fn what_is_used_up_is_named_also_after_its_way_through_the_log() {
        for full in [Full::Space, Full::Quota, Full::Inodes] {
            let error = Error::from(aio::Error::of_full(full, "open", Path::new("/store/wal/000001.log")));
            let again = Error::from(error.clone().into_wal());
            for error in [&error, &again] {
                assert!(matches!(error, Error::NoSpace { full: found, .. } if *found == full), "{error}");
                let text = error.to_string();
                assert!(text.contains(&full.to_string()) && text.contains("reads go on"), "{text}");
            }
            let text = again.of_open().to_string();
            assert!(text.contains("not even to read") && !text.contains("go on"), "{text}");
            let halted = Error::Halted { cause: Arc::new(error) }.to_string();
            assert!(halted.contains(full.advice()) && !halted.contains("when there is room"), "{halted}");
        }
    }

    #[test]
    fn damage_names_the_next_step_also_without_a_tool() {
        let log = Error::corrupt(Path::new("/store/wal/000001.log"), 0, "sector", "1", "2");
        let segment = Error::corrupt(Path::new("/store/segments/000001.seg"), 0, "block", "1", "2");
        assert!(log.is_repairable() && log.to_string().contains("Builder::repair"), "{log}");
        assert!(!segment.is_repairable() && !segment.to_string().contains("repair"), "{segment}");
        for error in [log, segment] {
            let text = error.to_string();
            assert!(text.contains("keep a copy") && text.contains("backup"), "{text}");
        }
    }

    #[test]
    fn the_limit_of_a_write_says_how_to_raise_it() {
        let too_large = |what| Error::TooLarge { what, found_bytes: 2, limit_bytes: 1 }.to_string();
        assert!(too_large(A_WRITE).contains("Builder::memory_budget_bytes"));
        assert!(!too_large("a key").contains("Builder"));
    }
}
