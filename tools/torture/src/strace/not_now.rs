//! The answers that mean "not now": a lack of slots, handles, memory or locks, or a signal. Nothing was done, so a store
//! makes the call again, and its callers see a delay.
//!
//! One row for each call and each such answer in its manual page (`man 2 CALL`, ERRORS), and three durations. Left out:
//! EINTR of `fsync` and `fdatasync`, after which it is open how much was synced; of `close`, which has closed; and calls
//! of at most 256 bytes to `getrandom`, which have no such answer. A store makes no links and no renames.

use std::time::Duration;

use nix::libc::{self, EAGAIN, EINTR, EMFILE, ENFILE, ENOLCK, ENOMEM};

use super::ways::{
    ADVISE, CLONE, EVENT, LOCK, Lasts, MAKE_DIR, MAP, OPENS, REAP, RESIDENT, SETUP, STATS, STATX, SUBMIT,
    UNLINK, WAKE, Way, fails,
};

/// Less than the patience of a store.
const TWO_SECONDS: Duration = Duration::from_secs(2);

const ALLOCATE: &[i64] = &[libc::SYS_fallocate];
const TRUNCATE: &[i64] = &[libc::SYS_ftruncate];

/// One call, 20 calls, and all calls of two seconds, from each place on; or from one place in `every`.
macro_rules! shortages {
    ($($name:literal, $calls:expr, $errno:expr, $every:literal;)*) => {
        [$([
            fails(concat!($name, " once"), $calls, $errno, $every).unnoticed(),
            fails(concat!($name, " 20 times"), $calls, $errno, $every)
                .lasting(Lasts::Times(20))
                .unnoticed(),
            fails(concat!($name, " for 2 s"), $calls, $errno, $every * 4)
                .lasting(Lasts::For(TWO_SECONDS))
                .unnoticed(),
        ]),*]
    };
}

/// Every shortage at its calls.
pub(super) static NOT_NOW: [[Way; 3]; 27] = shortages! {
    "io_setup not now: EAGAIN", SETUP, EAGAIN, 1;
    "io_setup not now: ENOMEM", SETUP, ENOMEM, 2;
    "io_submit not now: EAGAIN", SUBMIT, EAGAIN, 8;
    "wake-up not now: EAGAIN", WAKE, EAGAIN, 2;
    "io_pgetevents not now: EINTR", REAP, EINTR, 16;
    "open not now: EINTR", OPENS, EINTR, 8;
    "open not now: EMFILE", OPENS, EMFILE, 4;
    "open not now: ENFILE", OPENS, ENFILE, 8;
    "open not now: ENOMEM", OPENS, ENOMEM, 8;
    "mkdir not now: ENOMEM", MAKE_DIR, ENOMEM, 1;
    "unlink not now: ENOMEM", UNLINK, ENOMEM, 4;
    "fallocate not now: EINTR", ALLOCATE, EINTR, 8;
    "ftruncate not now: EINTR", TRUNCATE, EINTR, 2;
    "flock not now: EINTR", LOCK, EINTR, 1;
    "flock not now: ENOLCK", LOCK, ENOLCK, 1;
    "mmap not now: EAGAIN", MAP, EAGAIN, 1;
    "mmap not now: ENOMEM", MAP, ENOMEM, 1;
    "mmap not now: ENFILE", MAP, ENFILE, 1;
    "madvise not now: EAGAIN", ADVISE, EAGAIN, 2;
    "mincore not now: EAGAIN", RESIDENT, EAGAIN, 2;
    "stat not now: ENOMEM", STATS, ENOMEM, 8;
    "statx not now: ENOMEM", STATX, ENOMEM, 16;
    "eventfd not now: EMFILE", EVENT, EMFILE, 1;
    "eventfd not now: ENFILE", EVENT, ENFILE, 1;
    "eventfd not now: ENOMEM", EVENT, ENOMEM, 1;
    "clone not now: EAGAIN", CLONE, EAGAIN, 1;
    "clone not now: ENOMEM", CLONE, ENOMEM, 1;
};
