//! The next step after a refused or failed call: the only place that gives advice about the machine.
//!
//! The same code means different things in different calls, so the call decides first. Nothing is advised where the code
//! says it all, or where only a change of the program helps.

use std::fmt;

/// The thing that a call works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Contexts of native AIO.
    Aio,
    /// The real-time priority of an operation.
    Priority,
    /// The name of an entry, which may be new.
    Name,
    /// A lock of a file.
    Lock,
    /// Memory that is shared with a file.
    Mapping,
    /// Threads.
    Threads,
    /// Handlers of signals, of which nothing outside the program is to blame.
    Signals,
    /// Standard input or output, or a file that is read like one: a terminal, a pipe, a socket, a device or a regular file.
    Stream,
    /// The content or the size of an open file.
    Content,
}

impl Subject {
    fn of(call: &str) -> Subject {
        match call {
            "io_setup" | "io_destroy" | "io_submit" | "io_getevents" | "io_pgetevents" | "io_cancel"
            | "eventfd" => Subject::Aio,
            SUBMIT_IN_REAL_TIME => Subject::Priority,
            "open" | "stat" | "readdir" | "mkdir" | "link" | "unlink" => Subject::Name,
            "flock" => Subject::Lock,
            "mmap" | "touch the mapping" => Subject::Mapping,
            "start thread" => Subject::Threads,
            "sigaction" => Subject::Signals,
            "read stream" | "write stream" => Subject::Stream,
            _ => Subject::Content,
        }
    }
}

/// The submit of an operation whose priority a process may be refused.
pub(crate) const SUBMIT_IN_REAL_TIME: &str = "io_submit with a real-time priority";

/// Calls that a file system without them answers with EINVAL.
const MAY_BE_MISSING: [&str; 6] = ["fallocate", "ftruncate", "fsync", "fdatasync", "sync", "data sync"];

const LACKS_THE_CALL: &str = "this file system lacks the call, so use another one, such as ext4 or xfs";

/// The next step of a person after `call` has answered with `code`, as a clause without a full stop.
pub(crate) fn advice(call: &str, code: i32) -> Option<&'static str> {
    let subject = Subject::of(call);
    of_refusal(call, subject, code)
        .or_else(|| of_limit(subject, code))
        .or_else(|| of_place(call, subject, code))
}

/// The call itself is forbidden or missing.
fn of_refusal(call: &str, subject: Subject, code: i32) -> Option<&'static str> {
    Some(match (subject, code) {
        (Subject::Aio, libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EOPNOTSUPP) => {
            "a sandbox (seccomp profile) or the kernel refuses asynchronous I/O, so let it allow io_setup, io_submit, \
             io_getevents, io_pgetevents and eventfd2"
        }
        (Subject::Priority, libc::EPERM) => {
            "give the process the capability CAP_SYS_NICE (old kernels: CAP_SYS_ADMIN), or the operation another priority"
        }
        (_, libc::ENOSYS) => "this kernel lacks the call, or a sandbox (seccomp profile) hides it",
        (Subject::Name, libc::EACCES) => "check owner and permissions of it and of the directories above it",
        (Subject::Name, libc::EPERM) => {
            "it or its directory is immutable (see `lsattr`), or a sandbox (seccomp profile) forbids the call"
        }
        (Subject::Lock, libc::EOPNOTSUPP | libc::EINVAL) => "use a file system with locks (flock)",
        (_, libc::EPERM | libc::EACCES) => {
            "a sandbox (seccomp profile) or a security module forbids the call"
        }
        (Subject::Content, libc::EOPNOTSUPP) => LACKS_THE_CALL,
        // Of reads and writes it says that an offset, a length or memory is misaligned.
        (Subject::Content, libc::EINVAL) if MAY_BE_MISSING.contains(&call) => LACKS_THE_CALL,
        _ => return None,
    })
}

/// Something is used up.
fn of_limit(subject: Subject, code: i32) -> Option<&'static str> {
    Some(match (subject, code) {
        (_, libc::ENOSPC) => Full::Space.advice(),
        (_, libc::EDQUOT) => Full::Quota.advice(),
        (_, libc::EFBIG) => {
            "raise the limit on file sizes of this process (`ulimit -f`), or use a file system that takes larger files"
        }
        (_, libc::EMFILE) => "raise the limit on open files of this process (`ulimit -n`)",
        (_, libc::ENFILE) => "raise the limit on open files of the machine (sysctl fs.file-max)",
        (Subject::Threads, libc::EAGAIN) => {
            "raise the limit on threads (`ulimit -u`, or pids.max of the control group)"
        }
        (Subject::Mapping, libc::EAGAIN) => "raise the limit on locked memory (`ulimit -l`)",
        (Subject::Mapping, libc::ENOMEM) => {
            "free some memory, or raise the limits on mappings (`ulimit -v`, sysctl vm.max_map_count)"
        }
        (_, libc::ENOMEM) => "free some memory, or raise the limit of the control group",
        (Subject::Lock, libc::ENOLCK) => "the machine or the server of the file system is out of locks",
        _ => return None,
    })
}

/// The path or the device is not as it should be.
fn of_place(call: &str, subject: Subject, code: i32) -> Option<&'static str> {
    Some(match (subject, code) {
        (_, libc::EROFS) => "mount the file system for writing",
        // A terminal that is closed may not say that it is one.
        (Subject::Stream, libc::EIO) => {
            "if it is a terminal, it is gone or this process is in its background; if it is a file, its device has failed, see \
             the log of the kernel (`dmesg`)"
        }
        (Subject::Stream, libc::ENODEV | libc::ENXIO | libc::ENOTCONN | libc::ESHUTDOWN) => {
            "there is no terminal, device or connection behind it, so redirect it"
        }
        (_, libc::EIO) => "the device or its file system has failed, see the log of the kernel (`dmesg`)",
        (Subject::Name, libc::ENOENT) if call == "mkdir" => "make the directory above it first",
        (Subject::Name, libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ELOOP) => "check the path",
        (Subject::Name, libc::ENXIO) => {
            "it is a socket, a FIFO without a reader or the name of a device that is gone, so give the path of a file or directory"
        }
        (_, libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM) => "the device is gone, attach it again",
        (_, libc::ENOTCONN | libc::ESHUTDOWN) => "the server of the file system has ended, mount it again",
        (_, libc::ESTALE) => "the network file system has changed below, mount it again",
        _ => return None,
    })
}

/// The resource of a file system that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Full {
    /// Space.
    Space,
    /// Space or files that the quota of a user, a group or a project allows.
    Quota,
    /// Inodes: there may be space, but not for another file.
    Inodes,
}

impl Full {
    /// The next step, as a clause.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Full::Space => "free some space there",
            Full::Quota => "raise the quota of the user, group or project, or remove some of its files",
            Full::Inodes => "remove files there, or use a file system that was made with more inodes",
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Full::Space => "no space left on the file system",
            Full::Quota => "the disk quota is used up",
            Full::Inodes => "no inodes left on the file system, although it may have space",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_was_wrong_is_not_blamed_on_the_machine() {
        for call in ["read", "write", "vectored read", "sigaction", "read stream", "write stream"] {
            assert_eq!(advice(call, libc::EINVAL), None, "{call}");
        }
        for call in MAY_BE_MISSING {
            assert_eq!(advice(call, libc::EINVAL), Some(LACKS_THE_CALL), "{call}");
        }
    }
}
