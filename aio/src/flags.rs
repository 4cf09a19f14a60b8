//! Attributes of one operation: flags, priority, readiness.
//!
//! Invariant: no code trusts a version number. A flag that the kernel or the file does not know is refused at submit or
//! in the completion; the versions serve only the error message.

use std::fmt;

/// `RWF_*` flags of one read or write; none by default. (`man 2 preadv2`)
///
/// The kernel accepts them for asynchronous operations since Linux 4.13. It refuses unknown ones at submit, which
/// becomes [`Error::Unsupported`](crate::Error::Unsupported).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(i32);

/// Flag, name, first kernel.
const FLAGS: [(Flags, &str, &str); 9] = [
    (Flags::HIGH_PRIORITY, "RWF_HIPRI", "Linux 4.13"),
    (Flags::DATA_SYNC, "RWF_DSYNC", "Linux 4.13"),
    (Flags::SYNC, "RWF_SYNC", "Linux 4.13"),
    (Flags::NO_WAIT, "RWF_NOWAIT", "Linux 4.13 and a file system with it"),
    (Flags::APPEND, "RWF_APPEND", "Linux 4.16"),
    (Flags::NO_APPEND, "RWF_NOAPPEND", "Linux 6.9"),
    (Flags::ATOMIC, "RWF_ATOMIC", "Linux 6.11 and a file system and device with it"),
    (Flags::DONT_CACHE, "RWF_DONTCACHE", "Linux 6.14 and a file system with it"),
    (Flags::NO_SIGNAL, "RWF_NOSIGNAL", "Linux 6.18"),
];

impl Flags {
    /// None.
    pub const NONE: Flags = Flags(0);
    /// `RWF_HIPRI`: polls the device instead of waiting for its interrupt. Native AIO accepts and ignores it.
    pub const HIGH_PRIORITY: Flags = Flags(0x1);
    /// `RWF_DSYNC`: a write completes when its bytes, and the metadata needed to read them, are on stable media.
    pub const DATA_SYNC: Flags = Flags(0x2);
    /// `RWF_SYNC`: a write completes when its bytes and all metadata are on stable media.
    pub const SYNC: Flags = Flags(0x4);
    /// `RWF_NOWAIT`: completes with [`Errno::AGAIN`](crate::Errno::AGAIN) if it would block in the submit.
    ///
    /// Not for writes on XFS (most are refused, even overwrites), nor for btrfs and tmpfs.
    pub const NO_WAIT: Flags = Flags(0x8);
    /// `RWF_APPEND`: a write goes to the end of the file; its offset is ignored.
    pub const APPEND: Flags = Flags(0x10);
    /// `RWF_NOAPPEND`: a write goes to its offset even if the file was opened with `O_APPEND`.
    pub const NO_APPEND: Flags = Flags(0x20);
    /// `RWF_ATOMIC`: a direct write is never torn; size and alignment limits are in `statx`.
    pub const ATOMIC: Flags = Flags(0x40);
    /// `RWF_DONTCACHE`: buffered I/O whose pages are dropped afterwards.
    pub const DONT_CACHE: Flags = Flags(0x80);
    /// `RWF_NOSIGNAL`: no `SIGPIPE` from a write to a closed pipe or socket.
    pub const NO_SIGNAL: Flags = Flags(0x100);

    /// These and those of `other`.
    #[must_use]
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The kernel's bits.
    pub const fn bits(self) -> i32 {
        self.0
    }

    /// Flags that this crate has no name for yet.
    #[must_use]
    pub const fn from_bits(bits: i32) -> Flags {
        Flags(bits)
    }

    /// Every flag that this crate names, with its name and the first kernel that has it.
    pub fn known() -> impl Iterator<Item = (Flags, &'static str, &'static str)> {
        FLAGS.into_iter()
    }

    /// The names of the set flags, each with the first kernel that has it.
    pub(crate) fn named(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        FLAGS.into_iter().filter(move |(flag, ..)| self.contains(*flag)).map(|(_, name, since)| (name, since))
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({:#x}", self.0)?;
        for (name, _) in self.named() {
            write!(f, " {name}")?;
        }
        write!(f, ")")
    }
}

/// I/O priority of one operation (`IOCB_FLAG_IOPRIO`, Linux 4.18; `man 2 ioprio_set`). It takes effect where the
/// device's scheduler uses it (`mq-deadline`, `bfq`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Priority(i16);

impl Priority {
    /// Served only when the device is otherwise idle.
    pub const IDLE: Priority = Priority(3 << 13);

    /// The default class; level 0 is served first, 7 last.
    ///
    /// # Panics
    /// If the level is above 7.
    #[must_use]
    pub const fn best_effort(level: u8) -> Priority {
        Priority::of(2, level)
    }

    /// Served before the other classes. Needs `CAP_SYS_NICE` (old kernels: `CAP_SYS_ADMIN`); without it the submit is refused with `EPERM`.
    ///
    /// # Panics
    /// If the level is above 7.
    #[must_use]
    pub const fn real_time(level: u8) -> Priority {
        Priority::of(1, level)
    }

    pub(crate) fn is_real_time(self) -> bool {
        self.0 >> 13 == 1
    }

    const fn of(class: i16, level: u8) -> Priority {
        assert!(level <= 7, "levels are 0 to 7");
        Priority(class << 13 | level as i16)
    }

    pub(crate) fn bits(self) -> i16 {
        self.0
    }
}

/// The events that a poll waits for and reports, as in `man 2 poll`: 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Readiness(u16);

impl Readiness {
    /// Data can be read (`POLLIN`).
    pub const READABLE: Readiness = Readiness(0x1);
    /// An exceptional condition (`POLLPRI`).
    pub const EXCEPTIONAL: Readiness = Readiness(0x2);
    /// Data can be written (`POLLOUT`).
    pub const WRITABLE: Readiness = Readiness(0x4);
    /// An error; reported even if not requested (`POLLERR`).
    pub const ERROR: Readiness = Readiness(0x8);
    /// The other side has hung up; reported even if not requested (`POLLHUP`).
    pub const HANG_UP: Readiness = Readiness(0x10);
    /// The other side will not write any more (`POLLRDHUP`).
    pub const READ_HANG_UP: Readiness = Readiness(0x2000);

    /// These and those of `other`.
    #[must_use]
    pub const fn with(self, other: Readiness) -> Readiness {
        Readiness(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Readiness) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn bits(self) -> u16 {
        self.0
    }

    pub(crate) fn from_bits(bits: u16) -> Readiness {
        Readiness(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_the_kernels() {
        assert_eq!(Flags::HIGH_PRIORITY.bits(), libc::RWF_HIPRI);
        assert_eq!(Flags::DATA_SYNC.bits(), libc::RWF_DSYNC);
        assert_eq!(Flags::SYNC.bits(), libc::RWF_SYNC);
        assert_eq!(Flags::NO_WAIT.bits(), libc::RWF_NOWAIT);
        assert_eq!(Flags::APPEND.bits(), libc::RWF_APPEND);
        assert_eq!(Flags::NO_APPEND.bits(), libc::RWF_NOAPPEND);
        assert_eq!(Flags::ATOMIC.bits(), libc::RWF_ATOMIC);
        assert_eq!(Flags::DONT_CACHE.bits(), libc::RWF_DONTCACHE);
    }

    #[test]
    fn readiness_is_that_of_poll() {
        let bits = |events: libc::c_short| events.cast_unsigned();
        assert_eq!(Readiness::READABLE.bits(), bits(libc::POLLIN));
        assert_eq!(Readiness::EXCEPTIONAL.bits(), bits(libc::POLLPRI));
        assert_eq!(Readiness::WRITABLE.bits(), bits(libc::POLLOUT));
        assert_eq!(Readiness::ERROR.bits(), bits(libc::POLLERR));
        assert_eq!(Readiness::HANG_UP.bits(), bits(libc::POLLHUP));
        assert_eq!(Readiness::READ_HANG_UP.bits(), bits(libc::POLLRDHUP));
    }

    #[test]
    fn flags_show_their_names() {
        let flags = Flags::DATA_SYNC.with(Flags::from_bits(0x4000));
        assert_eq!(format!("{flags:?}"), "Flags(0x4002 RWF_DSYNC)");
        assert!(flags.contains(Flags::DATA_SYNC) && !flags.contains(Flags::SYNC));
    }
}
