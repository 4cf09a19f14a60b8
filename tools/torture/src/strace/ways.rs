//! The system calls of a store, and the ways in which each can go wrong.

use std::time::Duration;

use nix::libc::{
    self, EAGAIN, EINTR, EINVAL, EIO, EMFILE, ENFILE, ENOLCK, ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP,
};

use super::tracer::{Deed, REAPING, WAKE_UP, Watched};
use crate::errand::refusal::IO_PGETEVENTS;
use crate::errand::terms::Mode;

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lasts {
    /// One call.
    Once,
    /// This many calls in a row.
    Times(u64),
    /// All calls for this time.
    For(Duration),
    /// All calls from then on.
    Forever,
}

/// How the errand must take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// It continues and notices nothing.
    MustNot,
    /// It may get an error.
    May,
    /// It dies.
    Death,
}

/// One way to go wrong.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) name: &'static str,
    /// No name means every call of [`ALL`].
    pub(super) calls: &'static [i64],
    pub(super) deed: Deed,
    pub(super) lasts: Lasts,
    pub(super) notice: Notice,
    /// In the longest run, too, only one call in this many goes wrong.
    every: u64,
}

impl Way {
    /// The system calls, by number.
    pub(super) fn calls(&self) -> &'static [i64] {
        if self.calls.is_empty() { &ALL } else { self.calls }
    }

    /// How many calls of an errand without faults can go wrong in this way.
    pub(super) fn count(&self, calm: &Watched) -> u64 {
        match self.deed {
            Deed::EventFails(_) | Deed::EventHalf => calm.reaped[0],
            Deed::EventsReversed => calm.reaped[1],
            Deed::SubmitHalf => calm.submitted_many,
            _ => self.calls().iter().filter_map(|call| calm.calls.get(call)).sum(),
        }
    }

    /// One call in this many goes wrong. With threads the order of calls differs in each run, so a sample says as much as all
    /// calls. Without `fdatasync` of the log the runs hardly differ from the others.
    pub(super) fn every(&self, mode: Mode) -> u64 {
        match mode {
            Mode::Threads if self.every > 1 => self.every * 3,
            Mode::Durable if self.every > 1 => self.every * 6,
            _ => self.every,
        }
    }
}

/// Some architectures have `openat` only, and no `open`.
const OPEN: i64 = if cfg!(target_arch = "x86_64") { 2 } else { libc::SYS_openat };

pub(super) const SUBMIT: &[i64] = &[libc::SYS_io_submit];
pub(super) const WAKE: &[i64] = &[WAKE_UP];
pub(super) const REAP: &[i64] = &REAPING;
pub(super) const SETUP: &[i64] = &[libc::SYS_io_setup];
const DATA_SYNC: &[i64] = &[libc::SYS_fdatasync];
const DIR_SYNC: &[i64] = &[libc::SYS_fsync];
pub(super) const OPENS: &[i64] = &[OPEN, libc::SYS_openat];
pub(super) const UNLINK: &[i64] = &[libc::SYS_unlinkat];
pub(super) const MAKE_DIR: &[i64] = &[libc::SYS_mkdirat];
const ALLOCATE: &[i64] = &[libc::SYS_fallocate, libc::SYS_ftruncate];
const LIST: &[i64] = &[libc::SYS_getdents64];
pub(super) const STATS: &[i64] = &[libc::SYS_fstat, libc::SYS_newfstatat];
pub(super) const STATX: &[i64] = &[libc::SYS_statx];
pub(super) const LOCK: &[i64] = &[libc::SYS_flock];
pub(super) const MAP: &[i64] = &[libc::SYS_mmap];
pub(super) const ADVISE: &[i64] = &[libc::SYS_madvise];
pub(super) const RESIDENT: &[i64] = &[libc::SYS_mincore];
pub(super) const EVENT: &[i64] = &[libc::SYS_eventfd2];
pub(super) const CLONE: &[i64] = &[libc::SYS_clone3];

/// The calls that may answer EIO, and those that may lack space.
const STORE: &[i64] = &[
    libc::SYS_io_submit,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    OPEN,
    libc::SYS_openat,
    libc::SYS_unlinkat,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
];
const SPACE: &[i64] = &[libc::SYS_fdatasync, libc::SYS_fsync, OPEN, libc::SYS_fallocate];

/// The meaning of "any call": calls on files, names, mapped memory, contexts and threads.
pub(super) const ALL: [i64; 26] = [
    libc::SYS_io_submit,
    WAKE_UP,
    IO_PGETEVENTS,
    libc::SYS_io_getevents,
    libc::SYS_io_setup,
    libc::SYS_io_destroy,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    OPEN,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_flock,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_getdents64,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_eventfd2,
    libc::SYS_clone3,
];

const fn way(name: &'static str, calls: &'static [i64], deed: Deed, every: u64) -> Way {
    Way { name, calls, deed, lasts: Lasts::Once, notice: Notice::May, every }
}

/// One call in `every` fails.
pub(super) const fn fails(name: &'static str, calls: &'static [i64], errno: i32, every: u64) -> Way {
    way(name, calls, Deed::Fail(errno), every)
}

impl Way {
    pub(super) const fn lasting(self, lasts: Lasts) -> Way {
        Way { lasts, ..self }
    }

    const fn for_ever(self) -> Way {
        self.lasting(Lasts::Forever)
    }

    pub(super) const fn unnoticed(self) -> Way {
        Way { notice: Notice::MustNot, ..self }
    }

    const fn deadly(self) -> Way {
        Way { notice: Notice::Death, ..self }
    }
}

const SHORTLY: Duration = Duration::from_millis(5);

/// Every way at each of its calls: about 2,500 runs.
pub(super) static WAYS: [Way; 62] = [
    way("any SIGKILL before", &[], Deed::KillBefore, 8).deadly(),
    way("any SIGKILL after", &[], Deed::KillAfter, 8).deadly(),
    // Three in a row, so that the reaction to the first failure fails, too: the clean-up, the next open.
    fails("three calls EIO", STORE, EIO, 10).lasting(Lasts::Times(3)),
    fails("three calls ENOSPC", SPACE, ENOSPC, 8).lasting(Lasts::Times(3)),
    fails("io_submit EIO", SUBMIT, EIO, 5),
    fails("io_submit EAGAIN", SUBMIT, EAGAIN, 8),
    fails("io_submit ENOMEM", SUBMIT, ENOMEM, 16),
    fails("io_submit EINVAL", SUBMIT, EINVAL, 16),
    fails("io_submit EIO for ever", SUBMIT, EIO, 40).for_ever(),
    fails("io_submit EAGAIN for ever", SUBMIT, EAGAIN, 40).for_ever(),
    way("io_submit half", SUBMIT, Deed::SubmitHalf, 2).unnoticed(),
    way("io_submit half for ever", SUBMIT, Deed::SubmitHalf, 40).for_ever().unnoticed(),
    way("io_submit late", SUBMIT, Deed::Delay(SHORTLY), 40).unnoticed(),
    fails("wake-up EAGAIN 20 times", WAKE, EAGAIN, 2).lasting(Lasts::Times(20)).unnoticed(),
    way("wake-up late", WAKE, Deed::Delay(SHORTLY), 2).unnoticed(),
    fails("io_pgetevents EINTR", REAP, EINTR, 8).unnoticed(),
    fails("io_pgetevents EINTR 50 times", REAP, EINTR, 40).lasting(Lasts::Times(50)).unnoticed(),
    fails("io_pgetevents EIO", REAP, EIO, 16),
    fails("io_pgetevents ENOSYS for ever", &[IO_PGETEVENTS], ENOSYS, 100).for_ever().unnoticed(),
    way("event EIO", REAP, Deed::EventFails(EIO), 5),
    way("event ENOSPC", REAP, Deed::EventFails(ENOSPC), 8),
    way("event EIO for ever", REAP, Deed::EventFails(EIO), 40).for_ever(),
    way("event ENOSPC for ever", REAP, Deed::EventFails(ENOSPC), 40).for_ever(),
    way("event half", REAP, Deed::EventHalf, 6),
    way("events reversed", REAP, Deed::EventsReversed, 2).unnoticed(),
    way("events reversed for ever", REAP, Deed::EventsReversed, 40).for_ever().unnoticed(),
    fails("fdatasync EIO", DATA_SYNC, EIO, 2),
    fails("fdatasync ENOSPC", DATA_SYNC, ENOSPC, 4),
    fails("fdatasync EIO for ever", DATA_SYNC, EIO, 25).for_ever(),
    way("fdatasync late", DATA_SYNC, Deed::Delay(SHORTLY), 25).unnoticed(),
    fails("fsync EIO", DIR_SYNC, EIO, 1),
    fails("fsync ENOSPC", DIR_SYNC, ENOSPC, 4),
    fails("fsync EIO for ever", DIR_SYNC, EIO, 10).for_ever(),
    fails("open EMFILE", OPENS, EMFILE, 4),
    fails("open EIO", OPENS, EIO, 4),
    fails("open ENOSPC", OPENS, ENOSPC, 8),
    fails("open ENOMEM", OPENS, ENOMEM, 8),
    fails("open EINTR", OPENS, EINTR, 8).unnoticed(),
    fails("openat EINTR", &[libc::SYS_openat], EINTR, 2).unnoticed(),
    fails("open ENFILE for ever", OPENS, ENFILE, 25).for_ever(),
    fails("fallocate ENOSPC", ALLOCATE, ENOSPC, 2),
    fails("fallocate EIO", ALLOCATE, EIO, 4),
    fails("fallocate EINTR", ALLOCATE, EINTR, 8).unnoticed(),
    fails("fallocate EOPNOTSUPP", ALLOCATE, EOPNOTSUPP, 8).unnoticed(),
    fails("fallocate ENOSPC for ever", ALLOCATE, ENOSPC, 8).for_ever(),
    fails("unlink EIO", UNLINK, EIO, 1),
    fails("unlink EIO for ever", UNLINK, EIO, 8).for_ever(),
    fails("mkdir ENOSPC", MAKE_DIR, ENOSPC, 1),
    fails("mkdir EIO", MAKE_DIR, EIO, 1),
    fails("getdents EIO", LIST, EIO, 2),
    fails("fstat EIO", STATS, EIO, 6),
    fails("statx EIO", STATX, EIO, 8),
    fails("statx ENOSYS for ever", STATX, ENOSYS, 75).for_ever().unnoticed(),
    fails("flock EINTR", LOCK, EINTR, 1),
    fails("flock ENOLCK", LOCK, ENOLCK, 1),
    fails("mmap ENOMEM", MAP, ENOMEM, 1),
    fails("madvise ENOMEM", ADVISE, ENOMEM, 2),
    fails("mincore ENOMEM", RESIDENT, ENOMEM, 2).unnoticed(),
    fails("io_setup EAGAIN", SETUP, EAGAIN, 1),
    fails("io_setup ENOMEM", SETUP, ENOMEM, 1),
    fails("eventfd EMFILE", EVENT, EMFILE, 1),
    fails("clone EAGAIN", CLONE, EAGAIN, 1),
];
