//! Errors of every kind, for tests that look at all messages: of this crate, of the store and of its tool.

use std::path::Path;

use crate::advice::{Full, SUBMIT_IN_REAL_TIME};
use crate::error::{Errno, Error};
use crate::holder::Holder;

/// The names of calls and operations in errors.
const CALLS: [&str; 39] = [
    "durable vectored write",
    "durable write",
    "data sync",
    "eventfd",
    "fallocate",
    "fcntl",
    "fdatasync",
    "flock",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_setup",
    "io_submit",
    SUBMIT_IN_REAL_TIME,
    "link",
    "mkdir",
    "mmap",
    "open",
    "poll",
    "pread",
    "read",
    "read stream",
    "readdir",
    "sigaction",
    "signalfd",
    "start thread",
    "stat",
    "sync",
    "touch the mapping",
    "unlink",
    "vectored read",
    "vectored write",
    "write",
    "write stream",
];

/// More than the codes that Linux has.
const CODES: std::ops::Range<i32> = 1..140;

/// An error of each variant, and of each call with each code.
#[must_use]
pub fn every_error() -> Vec<Error> {
    let path = || Path::new("/data/store/wal/000001.log").to_owned();
    let mut all = vec![
        Error::NotAFile { path: path(), found: "a FIFO" },
        Error::Short { call: "read", path: path(), offset: 4096, expected: 4096, found: 512 },
        Error::Slots { slots: 64 },
        Error::Forked,
        Error::Closed,
        Error::Crashed,
    ];
    all.extend([Full::Space, Full::Quota, Full::Inodes].map(|full| Error::of_full(full, "open", &path())));
    for holder in [
        Holder::ThisProcess,
        Holder::Process(7),
        Holder::Ended(7),
        Holder::OtherNamespace(1),
        Holder::OtherMachine(7),
        Holder::Unknown,
    ] {
        all.push(Error::Locked { path: path(), holder });
    }
    for call in CALLS {
        for errno in CODES.map(Errno) {
            all.push(Error::call(call, &path(), errno));
            all.push(Error::Os { call, path: path(), offset: 4096, len_bytes: 512, errno });
            let needs = "RWF_DSYNC (Linux 4.13)".to_owned();
            all.push(Error::Unsupported { call, path: path(), needs, errno });
        }
    }
    all
}

/// Checks, for tests, that a message says nothing twice.
///
/// # Panics
/// If a clause stands there twice, or a subject of advice is touched twice.
pub fn assert_said_once(message: &str) {
    let text = message.to_lowercase();
    let mut clauses: Vec<&str> = text.split([':', ';', '.', ',']).map(str::trim).collect();
    clauses.retain(|clause| clause.contains(' '));
    clauses.sort_unstable();
    let twice = clauses.windows(2).find(|pair| pair[0] == pair[1]);
    assert!(twice.is_none(), "{twice:?} is said twice: {message}");
    for subject in SUBJECTS {
        assert!(text.matches(subject).count() <= 1, "`{subject}` is said twice: {message}");
    }
}

/// Words that stand for a piece of advice, in any clause.
const SUBJECTS: [&str; 18] = [
    "ulimit",
    "owner",
    "mount ",
    "check the path",
    "nothing was",
    "sandbox",
    "free some",
    "backup",
    "keep a copy",
    "fuser",
    "dmesg",
    "fs.aio-max-nr",
    "end that process",
    "reads go on",
    "kvtool repair",
    "builder::repair",
    "the store has halted",
    "again",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_says_anything_twice() {
        for error in every_error() {
            assert_said_once(&error.to_string());
        }
    }

    #[test]
    #[should_panic(expected = "is said twice")]
    fn a_clause_that_is_said_twice_is_noticed() {
        assert_said_once("/dir: it is no store: nothing was written to it: nothing was written to it");
    }

    fn says(error: &Error, words: &[&str], others: &[&str]) {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!others.iter().any(|other| text.contains(other)), "{text}");
    }

    #[test]
    fn the_same_code_gives_the_advice_of_its_call() {
        let path = Path::new("/data/store");
        for call in ["io_setup", "io_submit", "io_getevents", "io_pgetevents"] {
            for code in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
                says(&Error::call(call, path, Errno(code)), &["sandbox", "asynchronous I/O"], &["owner"]);
            }
        }
        says(&Error::call("open", path, Errno::ACCESS), &["owner"], &["sandbox"]);
        says(&Error::call("open", path, Errno::NOT_PERMITTED), &["immutable"], &["owner"]);
        says(&Error::call("fdatasync", path, Errno::NOT_PERMITTED), &["sandbox"], &["owner"]);
        says(
            &Error::call(SUBMIT_IN_REAL_TIME, path, Errno::NOT_PERMITTED),
            &["CAP_SYS_NICE"],
            &["sandbox", "owner"],
        );
        for call in ["read stream", "write stream"] {
            says(&Error::call(call, path, Errno::IO), &["terminal", "dmesg"], &["file system"]);
            says(&Error::call(call, path, Errno(libc::ENXIO)), &["terminal"], &["attach"]);
            says(&Error::call(call, path, Errno(libc::ENOTCONN)), &["connection"], &["mount"]);
        }
        says(&Error::call("open", path, Errno(libc::ENXIO)), &["socket", "FIFO"], &["attach"]);
        says(&Error::call("open", path, Errno(libc::ENODEV)), &["attach"], &[]);
        says(&Error::call("read", path, Errno::IO), &["device", "dmesg"], &["terminal"]);
        says(&Error::call("start thread", path, Errno::AGAIN), &["ulimit -u"], &["aio"]);
        says(&Error::call("mkdir", path, Errno::NOT_FOUND), &["above it first"], &["check the path"]);
    }

    #[test]
    fn space_quota_inodes_and_file_size_are_four_messages() {
        let path = Path::new("/data/store");
        let full = [Full::Space, Full::Quota, Full::Inodes];
        for full in full {
            let error = Error::of_full(full, "open", path);
            assert_eq!(error.full(), Some((full, path)));
            assert!(error.errno().is_some_and(Errno::is_no_space));
            says(&error, &[full.advice()], &[]);
        }
        let sets = full.map(Full::advice);
        assert!(sets[0] != sets[1] && sets[1] != sets[2] && sets[0] != sets[2]);
        let large = Error::call("write", path, Errno(libc::EFBIG));
        assert_eq!(large.full(), None);
        says(&large, &["ulimit -f"], &["space"]);
    }
}
