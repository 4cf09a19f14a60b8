//! What an errand and who sends it agree on.

use esker::{Background, Builder, Db, Sizes, SyncMethod};

/// Exit code of an errand that met one error after the other.
pub(crate) const GAVE_UP: u8 = 3;

/// The writer of the board and the plan that an errand is.
pub(crate) const WRITER: usize = 0;

const KIB: u64 = 1 << 10;

/// How the store is opened: everything small, so that a few writes rotate the log, grow the ring, and fill manifests.
pub(crate) fn builder(threads: bool) -> Builder {
    // Both ways of syncing are tried, one in each mode.
    let (background, sync) = if threads {
        (Background::Threads, SyncMethod::AioFdatasync)
    } else {
        (Background::Manual, SyncMethod::Fdatasync)
    };
    Db::builder().memory_budget_bytes(1 << 20).background(background).sync_method(sync).sizes(Sizes {
        ring_bytes: Some(64 * KIB),
        log_file_bytes: Some(64 * KIB),
        memtable_bytes: Some(64 * KIB),
        segment_bytes: Some(32 * KIB),
        manifest_bytes: Some(8 * KIB),
        block_bytes: Some(4096),
    })
}
