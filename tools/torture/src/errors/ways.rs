//! The ways in which a call can fail, and the store's errors that each of them explains.

use std::time::Duration;

use aio::Errno;
use aio::sim::{EventKind, Fault, FaultPlan};
use esker::Error;

use crate::report::{Check, Failure};

/// A way to fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorWay {
    pub(super) name: &'static str,
    pub(super) fault: Fault,
    /// The affected calls; empty for all that the fault can hit, other than submits and waits.
    pub(super) on: &'static [EventKind],
    /// Only files with this in their path.
    pub(super) path: &'static str,
    /// The answers that the store may give while the fault lasts.
    pub(super) may: May,
}

/// The errors that a fault entitles the store to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum May {
    /// None: the fault is a delay or an interruption.
    NotFail,
    /// A call failed.
    Fail,
    /// Bytes that were read are wrong.
    FindDamage,
}

const fn errno(name: &'static str, errno: Errno, on: &'static [EventKind]) -> ErrorWay {
    ErrorWay { name, fault: Fault::Errno(errno), on, path: "", may: May::Fail }
}

const fn sync_folder(name: &'static str, path: &'static str, code: Errno) -> ErrorWay {
    ErrorWay { path, ..errno(name, code, &[EventKind::SyncDir]) }
}

const fn flip(name: &'static str, path: &'static str) -> ErrorWay {
    ErrorWay { name, fault: Fault::FlipBit(0), on: &[], path, may: May::FindDamage }
}

const fn late(name: &'static str, fault: Fault) -> ErrorWay {
    ErrorWay { name, fault, on: &[], path: "", may: May::NotFail }
}

/// The folders of log and segments, in every store.
const LOG_FOLDER: &str = "/wal";
const SEGMENTS: &str = "/segments";

/// The delay of a late call.
pub(super) const LATE: Duration = Duration::from_secs(10);

/// All of them.
pub(super) const WAYS: [ErrorWay; 22] = [
    errno("eio", Errno::IO, &[]),
    errno("enospc", Errno::NO_SPACE, &[]),
    errno("erofs", Errno::READ_ONLY, &[]),
    errno("eagain", Errno::AGAIN, &[]),
    errno("eintr", Errno::INTERRUPTED, &[]),
    errno("submit_eagain", Errno::AGAIN, &[EventKind::Submit]),
    errno("submit_eio", Errno::IO, &[EventKind::Submit]),
    errno("wait_eio", Errno::IO, &[EventKind::Wait]),
    errno("sync_eio", Errno::IO, &[EventKind::Sync]),
    sync_folder("sync_log_folder_eio", LOG_FOLDER, Errno::IO),
    sync_folder("sync_log_folder_enospc", LOG_FOLDER, Errno::NO_SPACE),
    sync_folder("sync_log_folder_eintr", LOG_FOLDER, Errno::INTERRUPTED),
    sync_folder("sync_segments_eio", SEGMENTS, Errno::IO),
    sync_folder("sync_segments_enospc", SEGMENTS, Errno::NO_SPACE),
    ErrorWay {
        name: "wait_eintr",
        fault: Fault::Errno(Errno::INTERRUPTED),
        on: &[EventKind::Wait],
        path: "",
        may: May::NotFail,
    },
    ErrorWay { name: "short", fault: Fault::Short(0), on: &[], path: "", may: May::Fail },
    late("reordered", Fault::Last),
    late("late", Fault::Delay(LATE)),
    flip("flip_manifest", "/manifest-"),
    flip("flip_log", ".log"),
    flip("flip_segment", ".seg"),
    flip("flip_ring", "/ring-"),
];

impl ErrorWay {
    /// The distance of the calls that fail in a sample of every `step`-th. Few calls are syncs, and each matters, so a sample
    /// takes more of them.
    pub(super) fn step(&self, step: u64) -> u64 {
        let is_rare = matches!(self.on, [EventKind::Sync | EventKind::SyncDir]);
        if is_rare { step.div_ceil(8) } else { step }
    }
}

/// A fault that strikes once or permanently from the `k`-th call on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strike {
    pub(super) way: &'static ErrorWay,
    pub(super) k: u64,
    pub(super) for_ever: bool,
}

impl std::fmt::Display for Strike {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {} {}", self.way.name, self.k, if self.for_ever { "for ever" } else { "once" })
    }
}

impl Strike {
    /// The fault for the simulated machine.
    pub(super) fn plan(&self) -> FaultPlan {
        let fault = match self.way.fault {
            Fault::Short(_) => Fault::Short([0, 512, 1000, 2560][usize::try_from(self.k % 4).unwrap_or(0)]),
            Fault::FlipBit(_) => Fault::FlipBit(fastrand::Rng::with_seed(self.k).u64(..)),
            fault => fault,
        };
        let plan = FaultPlan::new(fault).on(self.way.on).path(self.way.path).skip(self.k);
        if self.for_ever { plan.forever() } else { plan }
    }

    /// A bit that flips while the ring is read cuts off its records: this looks like a store that died before the pages of
    /// the ring reached the disk. Writes acknowledged for power cuts are in the log.
    pub(super) fn spares_ring(&self) -> bool {
        self.way.name != "flip_ring"
    }

    /// An error that the fault does not explain is a failure.
    pub(super) fn judge(&self, error: &Error) -> Check {
        let fits = match error {
            Error::Io { .. } | Error::NoSpace { .. } | Error::Halted { .. } | Error::Busy { .. } => {
                self.way.may != May::NotFail
            }
            Error::Corrupt { file, .. } => self.way.may == May::FindDamage && !file.as_os_str().is_empty(),
            _ => false,
        };
        if fits { Ok(()) } else { Err(Failure::new(format!("an error that does not fit: {error:?}"))) }
    }
}
