//! Short runs of `kvtorture`, and processes killed on the real disk.
#![forbid(unsafe_code)]

mod failed_seeds;
mod kill;
mod short_runs;

use std::io::Write as _;
use std::sync::OnceLock;

use aio::{Backend as _, NativeBackend};
use tempfile::TempDir;

/// `TMPFS_MAGIC` of the kernel.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// A directory below `target`. On a memory file system the tests run with a warning.
fn temp_dir() -> TempDir {
    let root = env!("CARGO_TARGET_TMPDIR");
    let found = rustix::fs::statfs(root).expect("the target directory is there");
    if found.f_type == TMPFS_MAGIC {
        loud(&format!("{root} is a memory file system: this proves nothing about disks"));
    }
    tempfile::tempdir_in(root).expect("the target directory is writable")
}

/// The number in `SEED`, or one that is drawn once per run. Printed first, so that a failing run can be repeated.
fn seed() -> u64 {
    static DRAWN: OnceLock<u64> = OnceLock::new();
    *DRAWN.get_or_init(|| {
        let given = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
        let seed = given.unwrap_or_else(|| NativeBackend::new().random() >> 32);
        loud(&format!("SEED={seed}"));
        seed
    })
}

/// A line on standard error that the test harness does not capture.
fn loud(text: &str) {
    writeln!(std::io::stderr(), "*** {text}").expect("standard error is open");
}
