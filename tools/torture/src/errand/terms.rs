//! The agreement between an errand and its sender.

use clap::ValueEnum;
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, FallBack, SyncMethod};

/// Exit code of an errand that met too many errors.
pub(crate) const GAVE_UP: u8 = 3;

/// The errand is this writer of the board and of the plan.
pub(crate) const WRITER: usize = 0;
/// The writer that works beside it, if it has one.
pub(crate) const BESIDE: usize = 1;

/// Begins the name of each way around a refused call, in the output of the errand.
pub(crate) const FELL_BACK: &str = "fell back to ";
pub(crate) const SYSTEM_CALLS: &str = "system-calls";
pub(crate) const OLD_WAIT: &str = "old-wait";
pub(crate) const PAGE_CACHE: &str = "page-cache";

/// The name of a way around a refused call.
pub(crate) fn way_around(fall_back: &FallBack) -> &'static str {
    match fall_back {
        FallBack::SystemCalls { .. } => SYSTEM_CALLS,
        FallBack::OldWait { .. } => OLD_WAIT,
        FallBack::PageCache { .. } => PAGE_CACHE,
        _ => "another",
    }
}

const KIB: u64 = 1 << 10;

/// How the store of an errand works: both ways of syncing, with or without its own threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// No threads; `fdatasync` syncs the log.
    Manual,
    /// No threads; durable writes of the log.
    Durable,
    /// Threads; `fdatasync` syncs the log.
    Threads,
}

impl Mode {
    pub(crate) const ALL: [Mode; 3] = [Mode::Manual, Mode::Durable, Mode::Threads];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Manual => "manual",
            Mode::Durable => "durable",
            Mode::Threads => "threads",
        }
    }

    /// The options of the store: everything is small, so that a few writes rotate the log, grow the ring and fill manifests.
    pub(crate) fn builder(self) -> Builder {
        let (background, sync) = match self {
            Mode::Manual => (Background::Manual, SyncMethod::Fdatasync),
            Mode::Durable => (Background::Manual, SyncMethod::DurableWrite),
            Mode::Threads => (Background::Threads, SyncMethod::Fdatasync),
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
}
