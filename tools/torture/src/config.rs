//! The configurations of a store: many, and all must give the same answers.
//!
//! Sizes are tiny, so that a few dozen operations rotate and recycle the log, wrap the ring, fill the manifest, cut
//! segments and start compactions.
//!
//! Invariant: every configuration accepts every batch that a [`Mix`](crate::workload::Mix) of small values makes, and
//! returns `TooLarge` for [`Op::TooLarge`](crate::workload::Op::TooLarge).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aio::SimBackend;
use esker::testing::{Background, BuilderExt, Sizes};
use esker::{Builder, Db, Durability, SyncMethod};

/// One way to open a store. Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    ring: u64,
    log_file: u64,
    memtable: u64,
    segment: u64,
    manifest: u64,
    block: usize,
    budget: u64,
    compress: bool,
    sync: SyncMethod,
    pub(crate) durability: Durability,
}

const KIB: u64 = 1 << 10;

/// The first is the smallest everywhere.
pub(crate) const CONFIGS: [Config; 16] = [
    config([8, 4, 4, 8, 8], 512),
    config([8, 8, 4, 16, 16], 600),
    config([16, 4, 8, 8, 8], 1024).process().synced_by(SyncMethod::DurableWrite),
    config([8, 16, 4, 4, 12], 512).plain().synced_by(SyncMethod::DurableWrite),
    config([12, 8, 16, 16, 8], 520).plain().process(),
    config([32, 4, 4, 64, 16], 4096).synced_by(SyncMethod::DurableWrite),
    config([8, 32, 8, 4, 8], 700).process(),
    config([64, 64, 64, 64, 64], 8192).process(),
    config([16, 12, 6, 32, 8], 2048).plain(),
    config([8, 4, 32, 8, 32], 512).process(),
    config([256, 256, 256, 256, 256], 8192),
    config([8, 4, 5, 12, 8], 512).plain(),
    // The ring wraps several times between two flushes.
    config([4, 8, 64, 16, 8], 512).process(),
    config([8, 4, 64, 16, 8], 512).process().plain().synced_by(SyncMethod::DurableWrite),
    config([12, 8, 64, 4, 8], 512).process(),
    config([16, 4, 32, 4, 12], 600).plain(),
];

/// For the damaged stores: several groups fit into a log file, several blocks into a segment. In an uncompressed block a
/// flipped bit of a value changes only the value.
///
/// In the second one a single log file holds everything that the segments lack.
pub(crate) const SWEPT: [Config; 3] = [
    config([4, 8, 8, 8, 8], 512).plain(),
    config([4, 32, 8, 8, 8], 512).plain(),
    config([16, 8, 8, 8, 16], 1024),
];

/// KiB of ring, log file, memtable, segment and manifest, and bytes of a block.
const fn config([ring, log_file, memtable, segment, manifest]: [u64; 5], block: usize) -> Config {
    Config {
        ring: ring * KIB,
        log_file: log_file * KIB,
        memtable: memtable * KIB,
        segment: segment * KIB,
        manifest: manifest * KIB,
        block,
        budget: 1 << 20,
        compress: true,
        sync: SyncMethod::Fdatasync,
        durability: Durability::Power,
    }
}

impl Config {
    const fn process(mut self) -> Config {
        self.durability = Durability::Process;
        self
    }

    /// Without compression.
    const fn plain(mut self) -> Config {
        self.compress = false;
        self
    }

    const fn synced_by(mut self, method: SyncMethod) -> Config {
        self.sync = method;
        self
    }

    /// The options, on this simulated machine.
    pub(crate) fn builder(&self, sim: &SimBackend) -> Builder {
        self.options().backend(Arc::new(sim.clone())).background(Background::Manual)
    }

    fn options(&self) -> Builder {
        Db::builder()
            .memory_budget_bytes(self.budget)
            .durability(self.durability)
            .compress(self.compress)
            .drain_interval(Duration::from_millis(1))
            .sync_method(self.sync)
            .sizes(Sizes {
                ring_bytes: Some(self.ring),
                log_file_bytes: Some(self.log_file),
                memtable_bytes: Some(self.memtable),
                segment_bytes: Some(self.segment),
                manifest_bytes: Some(self.manifest),
                block_bytes: Some(self.block),
            })
    }

    /// Opens the store with the production recovery.
    pub(crate) fn open(&self, sim: &SimBackend) -> esker::Result<Db> {
        self.builder(sim).open(Path::new(ROOT))
    }

    /// Opens the store in a directory of the real machine.
    pub(crate) fn open_in(&self, directory: &Path, background: Background) -> esker::Result<Db> {
        self.options().background(background).open(directory)
    }
}

/// The store's directory on every simulated disk.
pub(crate) const ROOT: &str = "/store";
